"""The variational bound as the paper's own code computes it, written anew in plain float64 numpy: an oracle for ours.

Everything is counted as that code does: index i = 0..T-1 is the paper's t - 1, variances are handled as logarithms, the
means of both Gaussians are computed and subtracted, and every number is bits/dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class PaperBound:
    """The bound of B images, bits/dim: L_T (B,); L_0, L_1, ..., L_{T-1} (B, T); squared errors of x_0_hat (B, T)."""

    prior: Array
    terms: Array
    mse: Array

    @property
    def total(self) -> Array:
        return self.prior + self.terms.sum(1)


def bound(
    betas: Array, network: Callable[[Array, int], Array], x_0: Array, eps: Array, *, large: bool, clip: bool
) -> PaperBound:
    """The bound of images x_0 (B, C, H, W) with noise eps (T, B, C, H, W), for a network that predicts it."""
    ab = np.cumprod(1 - betas)
    ab_before = np.append(1.0, ab[:-1])
    posterior_variance = betas * (1 - ab_before) / (1 - ab)
    posterior_log_variance = np.log(np.append(posterior_variance[1], posterior_variance[1:]))
    model_log_variance = np.log(np.append(posterior_variance[1], betas[1:])) if large else posterior_log_variance
    coefficient_0 = betas * np.sqrt(ab_before) / (1 - ab)
    coefficient_t = (1 - ab_before) * np.sqrt(1 - betas) / (1 - ab)

    T = len(betas)
    terms, mse = np.empty((len(x_0), T)), np.empty((len(x_0), T))
    for i in range(T):
        x_t = np.sqrt(ab[i]) * x_0 + np.sqrt(1 - ab[i]) * eps[i]
        x_0_hat = np.sqrt(1 / ab[i]) * x_t - np.sqrt(1 / ab[i] - 1) * network(x_t, i)
        if clip:
            x_0_hat = np.clip(x_0_hat, -1, 1)
        true_mean = coefficient_0[i] * x_0 + coefficient_t[i] * x_t
        model_mean = coefficient_0[i] * x_0_hat + coefficient_t[i] * x_t
        if i == 0:
            bits = -log_discretised_gaussian(x_0, model_mean, model_log_variance[0] / 2) / np.log(2)
        else:
            bits = normal_kl(true_mean, posterior_log_variance[i], model_mean, model_log_variance[i]) / np.log(2)
        terms[:, i], mse[:, i] = per_image(bits), per_image((x_0_hat - x_0) ** 2)
    prior = normal_kl(np.sqrt(ab[-1]) * x_0, np.log(1 - ab[-1]), np.zeros_like(x_0), np.float64(0))
    return PaperBound(per_image(prior) / np.log(2), terms, mse)


def per_image(x: Array) -> Array:
    """The mean over all axes but the first."""
    mean: Array = x.reshape(len(x), -1).mean(1)
    return mean


def normal_kl(mean_1: Array, log_variance_1: Array, mean_2: Array, log_variance_2: Array) -> Array:
    """KL of two Gaussians in each dimension, nats."""
    ratio = np.exp(log_variance_1 - log_variance_2)
    return (log_variance_2 - log_variance_1 + ratio - 1 + (mean_1 - mean_2) ** 2 * np.exp(-log_variance_2)) / 2


def log_discretised_gaussian(x: Array, mean: Array, log_scale: float) -> Array:
    """The logarithm of the probability of the bin of each pixel value x."""

    def cdf(y: Array) -> Array:
        return (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3))) / 2

    upper = cdf(np.exp(-log_scale) * (x - mean + 1 / 255))
    lower = cdf(np.exp(-log_scale) * (x - mean - 1 / 255))
    probability = np.where(x < -0.999, upper, np.where(x > 0.999, 1 - lower, upper - lower))
    return np.log(np.maximum(probability, 1e-12))
