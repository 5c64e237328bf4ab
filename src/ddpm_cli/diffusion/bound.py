"""The variational bound term by term (Eq. 5), and the losses that train: L, L_simple (Eq. 14), L_hybrid.

Every function returns one number for each image, shape (B,), in nats summed over the image's dimensions, unless its
first line says otherwise. `bits_per_dim` is the one place where nats become bits/dim.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from .process import FROM_X_0, Diffusion, Reverse, Times, at, network_times, p_theta, q_sample, reverse

if TYPE_CHECKING:
    from .process import Denoiser

HALF_BIN = 1 / 255  # half the distance of two neighbouring pixel values in [-1, 1]
MIN_PROBABILITY = 1e-12
VLB_WEIGHT = 0.001  # of L_vlb in L_hybrid


def l_simple(d: Diffusion, denoiser: Denoiser, x_0: torch.Tensor, t: Times, eps: torch.Tensor) -> torch.Tensor:
    """Eq. 14: squared error of the network's prediction at x_t(x_0, eps), the mean over an image's dimensions."""
    x_t = q_sample(d.schedule, x_0, t, eps)
    output = denoiser(x_t, network_times(d, t, x_t))
    prediction = output.chunk(2, dim=1)[0] if d.learns_variance else output
    return _squared_error(d, prediction, x_0, x_t, t, eps)


def l_vlb(d: Diffusion, denoiser: Denoiser, x_0: torch.Tensor, t: Times, eps: torch.Tensor) -> torch.Tensor:
    """The term of Eq. 5 that belongs to t at x_t(x_0, eps), bits/dim: L_{t-1}, and L_0 where t = 1.

    T times its mean over t and eps is L - L_T. x_0_hat is not clipped: where it is, it has no gradient.
    """
    x_t = q_sample(d.schedule, x_0, t, eps)
    return bits_per_dim(_term(d, x_0, p_theta(d.unclipped, denoiser, x_t, t), t), x_0[0].numel())


def l_hybrid(d: Diffusion, denoiser: Denoiser, x_0: torch.Tensor, t: Times, eps: torch.Tensor) -> torch.Tensor:
    """L_simple + .001 T L_vlb for a learned variance, which L_vlb alone trains, and nothing else (IDDPM, Eq. 16)."""
    x_t = q_sample(d.schedule, x_0, t, eps)
    prediction, v = denoiser(x_t, network_times(d, t, x_t)).chunk(2, dim=1)
    p = reverse(d.unclipped, torch.cat([prediction.detach(), v], dim=1), x_t, t)
    vlb = bits_per_dim(_term(d, x_0, p, t), x_0[0].numel())
    return _squared_error(d, prediction, x_0, x_t, t, eps) + VLB_WEIGHT * d.schedule.T * vlb


OBJECTIVES = {"simple": l_simple, "vlb": l_vlb, "hybrid": l_hybrid}  # by their names in `config.LOSSES`


def prior_kl(d: Diffusion, x_0: torch.Tensor) -> torch.Tensor:
    """L_T of Eq. 5: KL(q(x_T | x_0) || N(0, I)).

    Per dimension (alpha_bar x_0^2 - alpha_bar - log(1 - alpha_bar)) / 2. Both parts are positive, so float32 images
    lose nothing: the small difference -alpha_bar - log(1 - alpha_bar) is taken in float64.
    """
    alpha_bar = float(d.schedule.alpha_bar[-1])
    constant = -alpha_bar - math.log1p(-alpha_bar)
    return (alpha_bar * _sum(x_0.square()) + constant * x_0[0].numel()) / 2


def reverse_kl(d: Diffusion, x_0: torch.Tensor, p: Reverse, t: Times) -> torch.Tensor:
    """L_{t-1} of Eq. 5, t >= 2: KL(q(x_{t-1} | x_t, x_0) || p_theta(x_{t-1} | x_t)).

    Eq. 8 with its constant. Both means are Eq. 7 of the same x_t, so they differ by c_0 (x_0 - x_0_hat) alone, and
    nothing cancels.
    """
    s = d.schedule
    squared_error = (x_0 - p.x_0_hat).square()
    if d.learns_variance:
        log_ratio = at(s.log_beta_tilde, t, x_0) - torch.as_tensor(p.sigma2).log()
        error = at(s.c_0**2, t, x_0) * squared_error / p.sigma2
        return _sum(torch.expm1(log_ratio) - log_ratio + error) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = s.c_0**2 / (2 * d.sigma2)
        ratio = s.beta_tilde / d.sigma2
        constant = (ratio - 1 - np.log(ratio)) / 2
    total = _sum(squared_error)
    return at(weight, t, total) * total + at(constant, t, total) * x_0[0].numel()


def decoder_nll(x_0: torch.Tensor, p: Reverse) -> torch.Tensor:
    """L_0 of Eq. 5: -log p_theta(x_0 | x_1), the discretised Gaussian of Eq. 13.

    The mean is mu_theta(x_1, 1) = x_0_hat. As in the paper's code, the normal distribution function is its tanh
    approximation, probabilities are at least 1e-12, and the outermost bins are open. In float32 a pixel that is far
    from its mean loses digits; evaluation asks in float64.
    """
    centred = x_0 - p.x_0_hat
    inv_sigma = 1 / p.sigma2**0.5
    below = _normal_cdf(inv_sigma * (centred - HALF_BIN))
    up_to = _normal_cdf(inv_sigma * (centred + HALF_BIN))
    probability = torch.where(x_0 < -0.999, up_to, torch.where(x_0 > 0.999, 1 - below, up_to - below))
    return -_sum(probability.clamp(min=MIN_PROBABILITY).log())


def bits_per_dim(nats: torch.Tensor, dimensions: int) -> torch.Tensor:
    """Nats of an image of so many dimensions (C H W) as bits/dim."""
    return nats / (dimensions * math.log(2))


def _squared_error(
    d: Diffusion, prediction: torch.Tensor, x_0: torch.Tensor, x_t: torch.Tensor, t: Times, eps: torch.Tensor
) -> torch.Tensor:
    """Of a prediction from what it should be, the mean over an image's dimensions."""
    if d.predict == "eps":
        target = eps
    elif d.predict == "v":  # not by way of x_t, which at small t hardly knows eps
        target = q_sample(d.schedule, eps, t, -x_0)
    else:
        target = FROM_X_0[d.predict](d.schedule, x_0, x_t, t)
    return (prediction - target).square().flatten(1).mean(1)


def _term(d: Diffusion, x_0: torch.Tensor, p: Reverse, t: Times) -> torch.Tensor:
    """L_{t-1} where t >= 2, L_0 where t = 1."""
    nats = reverse_kl(d, x_0, p, t)
    first = np.flatnonzero(np.broadcast_to(t, len(x_0)) == 1)
    if not len(first):
        return nats
    sigma2 = p.sigma2[first] if isinstance(p.sigma2, torch.Tensor) else p.sigma2
    rows = torch.from_numpy(first).to(nats.device)
    return nats.index_copy(0, rows, decoder_nll(x_0[rows], Reverse(p.x_0_hat[rows], sigma2)))


def _normal_cdf(x: torch.Tensor) -> torch.Tensor:
    """The standard normal distribution function, approximated by tanh as the paper's code does (error < 4e-4)."""
    return (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def _sum(x: torch.Tensor) -> torch.Tensor:
    """The sum over all axes but the first."""
    return x.flatten(1).sum(1)
