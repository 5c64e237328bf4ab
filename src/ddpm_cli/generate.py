"""Images for a range of indices of a seed, by any sampler.

Image i of seed s starts from its own x_T and meets its own noise at every t, so it is the same image whatever else
is made with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from . import rng
from .denoiser import Denoiser
from .diffusion.process import Diffusion
from .diffusion.samplers import Step, ancestral, ddim
from .diffusion.schedule import uniform_steps
from .errors import ArgumentError
from .pixels import Pixels, to_levels

SAMPLERS = ("ddpm", "ddim")


@dataclass(frozen=True)
class Sampling:
    """How images are made: the settings that, with a model, decide every pixel.

    Args:
        sampler: ``ddpm`` is Algorithm 2, ``ddim`` Song, Meng and Ermon 2020.
        steps: how many of the T steps are visited, evenly spaced; None for all (``ddim``: 50).
        eta: noise of ``ddim``, 0 none, 1 as much as Algorithm 2.
        seed: names the noise.
    """

    sampler: Literal["ddpm", "ddim"] = "ddpm"
    steps: int | None = None
    eta: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ArgumentError(f"--sampler is {self.sampler!r}; it must be one of {', '.join(SAMPLERS)}")
        if self.eta is not None and self.sampler == "ddpm":
            raise ArgumentError("--eta belongs to --sampler ddim; Algorithm 2 has its own sigma_t")
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise ArgumentError(f"--eta is {self.eta}; it must be from 0 to 1")

    def timesteps(self, d: Diffusion) -> list[int]:
        """The steps of the chain that are visited, ascending.

        Raises:
            ArgumentError: more steps than the chain has, or none; or too few for a variance that is learned.
        """
        T = d.schedule.T
        default = T if self.sampler == "ddpm" else min(50, T)
        steps = default if self.steps is None else self.steps
        if self.sampler == "ddpm" and d.variance == "learned" and steps < T:
            raise ArgumentError(
                f"--steps is {steps}, and this model has learned the variances of its {T} single steps; leave out "
                "--steps, or use --sampler ddim"
            )
        return uniform_steps(T, steps)


@torch.inference_mode()
def chain(
    denoiser: Denoiser,
    d: Diffusion,
    sampling: Sampling,
    shape: tuple[int, int, int],
    indices: Sequence[int],
    device: torch.device,
) -> Iterator[Step]:
    """The reverse chain of the images ``indices``, each of ``shape`` (C, H, W), as one batch on ``device``."""

    def noise(t: int) -> torch.Tensor:
        return _normal(shape, sampling.seed, "z", [(i, t) for i in indices], device)

    x_T = _normal(shape, sampling.seed, "x_T", [(i,) for i in indices], device)
    respaced = d.respaced(sampling.timesteps(d))
    if sampling.sampler == "ddpm":
        yield from ancestral(respaced, denoiser, x_T, noise)
    else:
        yield from ddim(respaced, denoiser, x_T, noise, sampling.eta or 0.0)


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


def _normal(
    shape: tuple[int, ...], seed: int, purpose: str, indices: list[tuple[int, ...]], device: torch.device
) -> torch.Tensor:
    return torch.from_numpy(rng.normal_batch(shape, seed, purpose, indices)).to(device, non_blocking=True)
