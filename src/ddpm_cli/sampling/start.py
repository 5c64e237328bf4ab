"""Where reverse chains begin that do not begin at pure noise: images that were noised, and what lies between two.

All noise has a name, so that a seed gives the same start whatever else is made; `ddpm noise` uses the same names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from ..core import rng
from ..diffusion.process import Denoiser, Diffusion, q_sample
from ..diffusion.samplers import Step, repaint
from ..diffusion.spacing import check_times
from . import generate
from .generate import Start
from .settings import Sampling


def noised(d: Diffusion, x_0: torch.Tensor, t: int, seed: int, variation: int = 0) -> torch.Tensor:
    """x_t ~ q(x_t | x_0), Eq. 4, for images (B, C, H, W) that share one noise.

    Args:
        t: 0..T.
        variation: which noise of the seed; 0 is that of ``ddpm noise``.
    """
    C, H, W = x_0.shape[1:]
    eps = rng.normal((1, H, W, C), seed, "noise", *([variation] if variation else []))
    return q_sample(d.schedule, x_0, t, torch.from_numpy(eps).permute(0, 3, 1, 2).to(x_0.device))


def between(d: Diffusion, x_0: torch.Tensor, other: torch.Tensor, t: int, lambdas: Sequence[float], seed: int) -> Start:
    """(1 - lambda) x_t + lambda x'_t for each lambda, where chains begin that interpolate two images (section 4.4).

    x_t and x'_t share one noise: so what is between them has as much as q gives it. Of two different noises the middle
    would have half the variance, which the network takes for an image without detail.

    Args:
        x_0, other: (1, C, H, W).
        t: 1..T.
    """
    weight = torch.tensor(lambdas, dtype=x_0.dtype, device=x_0.device).reshape(-1, 1, 1, 1)
    x_t, x_t_other = (noised(d, x, t, seed) for x in (x_0, other))
    return Start(t, (1 - weight) * x_t + weight * x_t_other)


def through(sampling: Sampling, d: Diffusion, *times: int) -> Sampling:
    """The same sampling along a chain that also visits these t.

    Raises:
        ArgumentError: the model has no such step.
    """
    check_times(times, d.schedule.T)
    steps = sorted({*generate.visited(sampling, d), *times}, reverse=True)
    return sampling.along(tuple(steps))


@torch.inference_mode()
def inpaint(
    denoiser: Denoiser,
    d: Diffusion,
    sampling: Sampling,
    x_0: torch.Tensor,
    known: torch.Tensor,
    indices: Sequence[int],
    rounds: int,
) -> Iterator[Step]:
    """The chains of RePaint for one image, (1, C, H, W), on its device: one for each index of the seed.

    Args:
        known: (1, 1, H, W), 1 where a pixel is kept, 0 where it is made anew.
        rounds: see `repaint`.
    """
    shape = (x_0.shape[1], x_0.shape[2], x_0.shape[3])
    x_T = generate.normal(shape, sampling.seed, "x_T", [(i,) for i in indices], x_0.device)
    noise = generate.chain_noise(shape, sampling.seed, indices, x_0.device)
    yield from repaint(d.respaced(generate.visited(sampling, d)), denoiser, x_T, noise, x_0, known, rounds)
