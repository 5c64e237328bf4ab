"""Images for a range of indices of a seed, by any sampler.

Image i of seed s starts from its own x_T and meets its own noise at every t, so it is the same image whatever else
is made with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from ..core import rng
from ..core.pixels import Pixels, to_levels
from ..diffusion.process import Denoiser, Diffusion
from ..diffusion.samplers import Step
from ..diffusion.spacing import check_times, spaced_steps
from ..errors import ArgumentError
from .settings import Sampling

if TYPE_CHECKING:
    from ..diffusion.samplers import Noise


@dataclass(frozen=True, eq=False)
class Start:
    """Where chains begin instead of at x_T: at x_t, (B, C, H, W), of the paper's step t."""

    t: int
    x_t: torch.Tensor


@torch.inference_mode()
def chain(
    denoiser: Denoiser,
    d: Diffusion,
    sampling: Sampling,
    shape: tuple[int, int, int],
    indices: Sequence[int],
    device: torch.device,
    start: Start | None = None,
) -> Iterator[Step]:
    """The reverse chain of the images ``indices``, each of ``shape`` (C, H, W), as one batch on ``device``.

    An index names the noise of a row, and may come more than once. A chain from a ``start`` taken out of another chain
    continues exactly as that one does, except for ``dpm++``: its first step has none before it and is of first order.
    """
    respaced = d.respaced(visited(sampling, d, start.t if start else None))
    x_t = start.x_t.to(device) if start else normal(shape, sampling.seed, "x_T", [(i,) for i in indices], device)
    noise = chain_noise(shape, sampling.seed, indices, device)
    yield from sampling.traits.run(respaced, denoiser, x_t, noise, **sampling.settings)


def chain_noise(shape: tuple[int, int, int], seed: int, indices: Sequence[int], device: torch.device) -> Noise:
    """The noise z of the chains of some images: each image's own, whatever else is made with it."""

    def noise(t: int, draw: int) -> torch.Tensor:
        return normal(shape, seed, "z", [(i, t, draw) if draw else (i, t) for i in indices], device)

    return noise


def normal(
    shape: tuple[int, ...], seed: int, purpose: str, indices: list[tuple[int, ...]], device: torch.device
) -> torch.Tensor:
    """N(0, I) on a device, (B, *shape), row b drawn for ``indices[b]``."""
    return torch.from_numpy(rng.normal_batch(shape, seed, purpose, indices)).to(device, non_blocking=True)


def visited(sampling: Sampling, d: Diffusion, start: int | None = None) -> list[int]:
    """The steps of the chain that are visited, ascending, up to ``start``, or all of them if that is None.

    Raises:
        ArgumentError: there are no such steps; or they are too far apart for a variance that is learned.
    """
    T = d.schedule.T
    if start is not None:
        check_times([start], T)
    if sampling.timesteps is None:
        default = min(sampling.traits.steps or T, T)
        count = default if sampling.steps is None else sampling.steps
        steps = spaced_steps(d.schedule, count, sampling.spacing or sampling.traits.spacing)
    else:
        steps = _ascending(sampling.timesteps, T)
    if start is not None:
        steps = [*(t for t in steps if t < start), start]
    if sampling.traits.ancestral and d.variance == "learned" and steps[-1] != len(steps):
        raise ArgumentError(
            f"this model has learned the variances of its {T} single steps, of which {len(steps)} are asked for; use "
            f"`steps={T}`, or `sampler=ddim`"
        )
    return steps


def _ascending(timesteps: tuple[int, ...], T: int) -> list[int]:
    if not timesteps:
        raise ArgumentError("`timesteps` is empty; name at least one")
    check_times(timesteps, T, "timesteps", distinct=True)
    for t, following in pairwise(timesteps):
        if t < following:
            raise ArgumentError(f"`timesteps` has {t} before {following}; the chain goes down, so must they")
    return list(timesteps[::-1])


def batches(first: int, n: int, batch_size: int) -> Iterator[range]:
    """The indices first..first+n-1 in ranges of at most ``batch_size``."""
    for start in range(first, first + n, batch_size):
        yield range(start, min(start + batch_size, first + n))


def pixels_of(x: torch.Tensor) -> Pixels:
    """A batch (B, C, H, W) in [-1, 1] as uint8 images (B, H, W, C) on the host."""
    pixels: Pixels = to_levels(x).permute(0, 2, 3, 1).cpu().numpy()
    return pixels


def last(steps: Iterator[Step]) -> Step:
    """The step at which a chain ends."""
    return deque(steps, maxlen=1).pop()  # without keeping those before it
