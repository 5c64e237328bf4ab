"""The variational bound term by term (Eq. 5), and the loss that trains (Eq. 14).

Every function returns one number for each image, shape (B,), in nats summed over the image's dimensions, unless its
first line says otherwise. `bits_per_dim` is the one place where nats become bits/dim.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from .process import FROM_X_0, Diffusion, Times, at, network_times, q_sample

if TYPE_CHECKING:
    from .process import Denoiser

HALF_BIN = 1 / 255  # half the distance of two neighbouring pixel values in [-1, 1]
MIN_PROBABILITY = 1e-12


def l_simple(d: Diffusion, denoiser: Denoiser, x_0: torch.Tensor, t: Times, eps: torch.Tensor) -> torch.Tensor:
    """Eq. 14: squared error of the network's prediction at x_t(x_0, eps), the mean over an image's dimensions."""
    x_t = q_sample(d.schedule, x_0, t, eps)
    target = eps if d.predict == "eps" else FROM_X_0[d.predict](d.schedule, x_0, x_t, t)
    return (denoiser(x_t, network_times(d, t, x_t)) - target).square().flatten(1).mean(1)


def prior_kl(d: Diffusion, x_0: torch.Tensor) -> torch.Tensor:
    """L_T of Eq. 5: KL(q(x_T | x_0) || N(0, I)).

    Per dimension (alpha_bar x_0^2 - alpha_bar - log(1 - alpha_bar)) / 2. Both parts are positive, so float32 images
    lose nothing: the small difference -alpha_bar - log(1 - alpha_bar) is taken in float64.
    """
    alpha_bar = float(d.schedule.alpha_bar[-1])
    constant = -alpha_bar - math.log1p(-alpha_bar)
    return (alpha_bar * _sum(x_0.square()) + constant * x_0[0].numel()) / 2


def reverse_kl(d: Diffusion, x_0: torch.Tensor, x_0_hat: torch.Tensor, t: Times) -> torch.Tensor:
    """L_{t-1} of Eq. 5, t >= 2: KL(q(x_{t-1} | x_t, x_0) || p_theta(x_{t-1} | x_t)).

    Eq. 8 with its constant. Both means are Eq. 7 of the same x_t, so they differ by c_0 (x_0 - x_0_hat) alone, and
    nothing cancels.
    """
    s, sigma2 = d.schedule, d.sigma2
    with np.errstate(divide="ignore", invalid="ignore"):
        c_0 = np.sqrt(np.r_[1, s.alpha_bar[:-1]]) * s.beta / (1 - s.alpha_bar)
        weight = c_0**2 / (2 * sigma2)
        ratio = s.beta_tilde / sigma2
        constant = (ratio - 1 - np.log(ratio)) / 2
    squared_error = _sum((x_0 - x_0_hat).square())
    return at(weight, t, squared_error) * squared_error + at(constant, t, squared_error) * x_0[0].numel()


def decoder_nll(d: Diffusion, x_0: torch.Tensor, x_0_hat: torch.Tensor) -> torch.Tensor:
    """L_0 of Eq. 5: -log p_theta(x_0 | x_1), the discretised Gaussian of Eq. 13, float64.

    The mean is mu_theta(x_1, 1) = x_0_hat, the variance sigma_1^2. As in the paper's code, the normal distribution
    function is its tanh approximation, probabilities are at least 1e-12, and the outermost bins are open.
    """
    centred = (x_0 - x_0_hat).double()
    inv_sigma = 1 / math.sqrt(d.sigma2[1])
    below = _normal_cdf(inv_sigma * (centred - HALF_BIN))
    up_to = _normal_cdf(inv_sigma * (centred + HALF_BIN))
    probability = torch.where(x_0 < -0.999, up_to, torch.where(x_0 > 0.999, 1 - below, up_to - below))
    return -_sum(probability.clamp(min=MIN_PROBABILITY).log())


def bits_per_dim(nats: torch.Tensor, dimensions: int) -> torch.Tensor:
    """Nats of an image of so many dimensions (C H W) as bits/dim."""
    return nats / (dimensions * math.log(2))


def _normal_cdf(x: torch.Tensor) -> torch.Tensor:
    """The standard normal distribution function, approximated by tanh as the paper's code does (error < 4e-4)."""
    return (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def _sum(x: torch.Tensor) -> torch.Tensor:
    """The sum over all axes but the first."""
    return x.flatten(1).sum(1)
