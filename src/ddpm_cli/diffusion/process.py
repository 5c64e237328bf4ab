"""The forward process q and the reverse process p_theta (sections 2 and 3).

Images are (B, C, H, W) in [-1, 1], or any other shape whose first axis is B. A step ``t`` is an int for all images,
or an int64 numpy array (B,) with one step for each: tables are read on the host, and only the few numbers that are
needed travel to the device, so that nothing waits for it. The forward process works on numpy arrays as on tensors,
and does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ..config import LEARNED_VARIANCES, DiffusionConfig
from .schedule import Schedule, Table, from_config

if TYPE_CHECKING:
    import torch

    X = TypeVar("X", npt.NDArray[Any], torch.Tensor)

Times = int | npt.NDArray[np.int64]


class Denoiser(Protocol):
    """``denoiser(x_t, t)``: all that the maths knows of a network. What wraps a denoiser is one again."""

    def __call__(self, x_t: torch.Tensor, t: torch.Tensor, /) -> torch.Tensor:
        """What the network says of x_t (B, C, H, W) at the paper's t = 1..T, int64 (B,): see `Diffusion.predict`."""
        ...


def at(table: Table, t: Times, x: X) -> X | float:
    """table[t], cast once to what multiplies the images x: a number, or one for each image, shape (B, 1, ..., 1)."""
    if isinstance(t, int):
        return float(table[t])
    values = table[t].reshape(-1, *[1] * (x.ndim - 1))
    if isinstance(x, np.ndarray):
        return values.astype(x.dtype)
    import torch

    return torch.from_numpy(values).to(x.dtype).to(x.device, non_blocking=True)


def q_sample(s: Schedule, x_0: X, t: Times, eps: X) -> X:
    """Eq. 4: x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps."""
    return at(np.sqrt(s.alpha_bar), t, x_0) * x_0 + at(np.sqrt(1 - s.alpha_bar), t, x_0) * eps


def q_step(s: Schedule, x: X, t: Times, eps: X) -> X:
    """Eq. 2: x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) eps."""
    return at(np.sqrt(s.alpha), t, x) * x + at(np.sqrt(s.beta), t, x) * eps


def q_posterior_mean(s: Schedule, x_0: X, x_t: X, t: Times) -> X:
    """Eq. 7: the mean mu_tilde_t of q(x_{t-1} | x_t, x_0)."""
    return at(s.c_0, t, x_0) * x_0 + at(s.c_t, t, x_0) * x_t


# What a network may predict, as functions of x_0 and back. Each takes (schedule, value, x_t, t).


def x_0_from_eps(s: Schedule, eps: X, x_t: X, t: Times) -> X:
    """Eq. 15: x_0 = (x_t - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t)."""
    return at(1 / np.sqrt(s.alpha_bar), t, x_t) * x_t - at(np.sqrt(1 / s.alpha_bar - 1), t, x_t) * eps


def eps_from_x_0(s: Schedule, x_0: X, x_t: X, t: Times) -> X:
    """The eps that leads from x_0 to x_t, Eq. 4 solved for eps; t >= 1."""
    return (x_t - at(np.sqrt(s.alpha_bar), t, x_t) * x_0) / at(np.sqrt(1 - s.alpha_bar), t, x_t)


def x_0_from_v(s: Schedule, v: X, x_t: X, t: Times) -> X:
    """x_0 = sqrt(alpha_bar_t) x_t - sqrt(1 - alpha_bar_t) v (Salimans and Ho 2022, appendix D)."""
    return at(np.sqrt(s.alpha_bar), t, x_t) * x_t - at(np.sqrt(1 - s.alpha_bar), t, x_t) * v


def v_from_x_0(s: Schedule, x_0: X, x_t: X, t: Times) -> X:
    """v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0; t >= 1."""
    eps = eps_from_x_0(s, x_0, x_t, t)
    return at(np.sqrt(s.alpha_bar), t, x_t) * eps - at(np.sqrt(1 - s.alpha_bar), t, x_t) * x_0


def x_0_from_mu(s: Schedule, mu: X, x_t: X, t: Times) -> X:
    """Eq. 7 solved for x_0, given the mean mu of x_{t-1}; t >= 1."""
    return (mu - at(s.c_t, t, x_t) * x_t) / at(s.c_0, t, x_t)


def x_0_from_score(s: Schedule, score: X, x_t: X, t: Times) -> X:
    """x_0 = (x_t + (1 - alpha_bar_t) score) / sqrt(alpha_bar_t): Eq. 15 with score = -eps / sqrt(1 - alpha_bar_t)."""
    return at(1 / np.sqrt(s.alpha_bar), t, x_t) * x_t + at((1 - s.alpha_bar) / np.sqrt(s.alpha_bar), t, x_t) * score


def score_from_x_0(s: Schedule, x_0: X, x_t: X, t: Times) -> X:
    """The gradient of log q(x_t | x_0), which the network learns to know the mean of (section 3.2); t >= 1."""
    return -eps_from_x_0(s, x_0, x_t, t) / at(np.sqrt(1 - s.alpha_bar), t, x_t)


def _same(_: Schedule, x_0: X, x_t: X, t: Times) -> X:
    return x_0


X_0_FROM: dict[str, Callable[..., Any]] = {
    "eps": x_0_from_eps,
    "x0": _same,
    "mu": x_0_from_mu,
    "v": x_0_from_v,
    "score": x_0_from_score,
}
FROM_X_0: dict[str, Callable[..., Any]] = {
    "eps": eps_from_x_0,
    "x0": _same,
    "mu": q_posterior_mean,
    "v": v_from_x_0,
    "score": score_from_x_0,
}


@dataclass(frozen=True, eq=False)
class Diffusion:
    """A chain and what is known of its reversal: which schedule, what the network predicts, which sigma_t.

    Args:
        schedule: q.
        predict: what the network's output is: ``eps``, ``x0``, ``mu`` or ``v``.
        variance: sigma_t^2, ``fixed-large`` or ``fixed-small`` (see `Schedule.sigma2`), or ``learned`` or
            ``learned-range``: then the network's output has twice the channels, the second half for it (`p_theta`).
        clip: keep x_0_hat within [-1, 1].
    """

    schedule: Schedule
    predict: str = "eps"
    variance: str = "fixed-large"
    clip: bool = True

    @classmethod
    def from_config(cls, config: DiffusionConfig) -> Diffusion:
        """The diffusion that a configuration describes."""
        return cls(from_config(config), config.predict, config.variance, config.clip)

    @property
    def learns_variance(self) -> bool:
        """Whether the network says what sigma_t^2 is, for each pixel."""
        return self.variance in LEARNED_VARIANCES

    @cached_property
    def sigma2(self) -> Table:
        """sigma_t^2 of p_theta(x_{t-1} | x_t) where it is fixed, (T + 1,)."""
        return self.schedule.sigma2(self.variance)

    @cached_property
    def unclipped(self) -> Diffusion:
        """The same reversal, with x_0_hat as the network has it."""
        return replace(self, clip=False)

    def respaced(self, timesteps: list[int]) -> Diffusion:
        """The same reversal over a subset of the steps; see `Schedule.respaced`."""
        return replace(self, schedule=self.schedule.respaced(timesteps))


def network_times(d: Diffusion, t: Times, x: torch.Tensor) -> torch.Tensor:
    """The step(s) t as the tensor that the denoiser takes, int64 (B,): the trained chain's t, beside x."""
    import torch

    trained = _trained_times(d, t)
    if isinstance(trained, int):
        return torch.full((len(x),), trained, dtype=torch.int64, device=x.device)
    return torch.from_numpy(trained).to(x.device, non_blocking=True)


def _trained_times(d: Diffusion, t: Times) -> Times:
    """The same step(s) in the chain that the network was trained for."""
    return int(d.schedule.timesteps[t]) if isinstance(t, int) else d.schedule.timesteps[t]


@dataclass(frozen=True, eq=False)
class Reverse:
    """p_theta(x_{t-1} | x_t) = N(mu_theta, sigma2): what the network makes of x_t.

    Args:
        x_0_hat: (B, C, H, W); mu_theta is Eq. 7 with it for x_0 (see `p_mean`).
        sigma2: a number, one for each image (B, 1, 1, 1), or where it is learned one for each pixel (B, C, H, W).
    """

    x_0_hat: torch.Tensor
    sigma2: torch.Tensor | float


def p_theta(d: Diffusion, denoiser: Denoiser, x_t: torch.Tensor, t: Times) -> Reverse:
    """p_theta(x_{t-1} | x_t): the network at x_t, and what its output says (`reverse`)."""
    return reverse(d, denoiser(x_t, network_times(d, t, x_t)), x_t, t)


def reverse(d: Diffusion, output: torch.Tensor, x_t: torch.Tensor, t: Times) -> Reverse:
    """p_theta(x_{t-1} | x_t) of the network's output at x_t.

    Eq. 15 where it predicts eps; x_0_hat is clipped if the diffusion says so. A learned variance is exp of the
    output's second half, or, as ``learned-range``, lies between the two fixed ones: with v from the second half,
    sigma^2 = exp(w log beta_t + (1 - w) log beta_tilde_t), w = (v + 1) / 2 (Nichol and Dhariwal 2021, Eq. 15).
    """
    sigma2: torch.Tensor | float
    if d.learns_variance:
        output, v = output.chunk(2, dim=1)
        sigma2 = v.exp() if d.variance == "learned" else _between(d.schedule, (v + 1) / 2, t).exp()
    else:
        sigma2 = at(d.sigma2, t, x_t)
    # In the chain of its training, because mu is a mean of that chain's x_{t-1}; all else is the same in both.
    x_0_hat: torch.Tensor = X_0_FROM[d.predict](d.schedule.trained or d.schedule, output, x_t, _trained_times(d, t))
    return Reverse(x_0_hat.clamp(-1, 1) if d.clip else x_0_hat, sigma2)


def _between(s: Schedule, w: torch.Tensor, t: Times) -> torch.Tensor:
    """w log beta_t + (1 - w) log beta_tilde_t, with beta_tilde_2 at t = 1 as in `Schedule.sigma2`."""
    return w * at(s.log_beta, t, w) + (1 - w) * at(s.log_beta_tilde, t, w)


def p_mean(d: Diffusion, x_0_hat: torch.Tensor, x_t: torch.Tensor, t: Times) -> torch.Tensor:
    """mu_theta(x_t, t): Eq. 7 with x_0_hat for x_0, which for eps and without clipping is Eq. 11."""
    return q_posterior_mean(d.schedule, x_0_hat, x_t, t)
