"""The reverse chain, as generators: whoever iterates sees every step, and may stop at any.

A sampler takes x_T and a source of noise, and knows neither seeds nor devices nor files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .process import Diffusion, eps_from_x_0, p_mean, p_theta

if TYPE_CHECKING:
    from .process import Denoiser

Noise = Callable[[int], torch.Tensor]
"""z ~ N(0, I) of x_T's shape, for the step that leaves the trained chain's step t."""


@dataclass(frozen=True, eq=False)
class Step:
    """One step of the reverse chain, done.

    Args:
        t: where the chain is now, T-1..0 (the trained chain's t, also if respaced).
        x_t: (B, C, H, W).
        x_0_hat: what the network took the image to be when it made this step (Eq. 15), (B, C, H, W).
    """

    t: int
    x_t: torch.Tensor
    x_0_hat: torch.Tensor


def ancestral(d: Diffusion, denoiser: Denoiser, x_T: torch.Tensor, noise: Noise) -> Iterator[Step]:
    """Algorithm 2: x_{t-1} = mu_theta(x_t, t) + sigma_t z for t = T..1, without noise in the last step."""
    x_t = x_T
    for t in range(d.schedule.T, 0, -1):
        p = p_theta(d, denoiser, x_t, t)
        x_t = p_mean(d, p.x_0_hat, x_t, t)
        if t > 1:
            x_t = x_t + p.sigma2**0.5 * noise(int(d.schedule.timesteps[t]))
        yield Step(int(d.schedule.timesteps[t - 1]), x_t, p.x_0_hat)


def ddim(d: Diffusion, denoiser: Denoiser, x_T: torch.Tensor, noise: Noise, eta: float = 0.0) -> Iterator[Step]:
    """DDIM (Song, Meng and Ermon 2020, Eq. 12 and 16): deterministic for eta = 0; eta = 1 has Algorithm 2's variance.

    eps is taken from the clipped x_0_hat, so that eta = 1 over all steps is `ancestral` with ``fixed-small``.
    """
    alpha_bar = d.schedule.alpha_bar
    x_t = x_T
    for t in range(d.schedule.T, 0, -1):
        x_0_hat = p_theta(d, denoiser, x_t, t).x_0_hat
        eps = eps_from_x_0(d.schedule, x_0_hat, x_t, t)
        sigma2 = eta**2 * float(d.schedule.beta_tilde[t])
        x_t = math.sqrt(alpha_bar[t - 1]) * x_0_hat + math.sqrt(max(1 - alpha_bar[t - 1] - sigma2, 0.0)) * eps
        if sigma2 > 0:
            x_t = x_t + math.sqrt(sigma2) * noise(int(d.schedule.timesteps[t]))
        yield Step(int(d.schedule.timesteps[t - 1]), x_t, x_0_hat)
