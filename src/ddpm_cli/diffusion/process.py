"""The forward process q and the reverse process p_theta (sections 2 and 3).

Images are (B, C, H, W) in [-1, 1], or any other shape whose first axis is B. A step ``t`` is an int for all images,
or an int64 numpy array (B,) with one step for each: tables are read on the host, and only the few numbers that are
needed travel to the device, so that nothing waits for it. The forward process works on numpy arrays as on tensors,
and does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..config import DiffusionConfig
from .schedule import Schedule, Table, from_config

if TYPE_CHECKING:
    import torch

    X = TypeVar("X", npt.NDArray[Any], torch.Tensor)
    Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

Times = int | npt.NDArray[np.int64]


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
    return at(_c_0(s), t, x_0) * x_0 + at(_c_t(s), t, x_0) * x_t


def _c_0(s: Schedule) -> Table:
    """The factor of x_0 in Eq. 7, (T + 1,); 1 at t = 1."""
    result = np.zeros_like(s.beta)
    result[1:] = np.sqrt(s.alpha_bar[:-1]) * s.beta[1:] / (1 - s.alpha_bar[1:])
    result[1] = 1  # not only up to rounding
    return result


def _c_t(s: Schedule) -> Table:
    """The factor of x_t in Eq. 7, (T + 1,); 0 at t = 1."""
    result = np.zeros_like(s.beta)
    result[1:] = np.sqrt(s.alpha[1:]) * (1 - s.alpha_bar[:-1]) / (1 - s.alpha_bar[1:])
    return result


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
    return (mu - at(_c_t(s), t, x_t) * x_t) / at(_c_0(s), t, x_t)


def score_from_eps(s: Schedule, eps: X, t: Times) -> X:
    """Section 3.2: the gradient of log q(x_t) that eps estimates, -eps / sqrt(1 - alpha_bar_t); t >= 1."""
    return -eps / at(np.sqrt(1 - s.alpha_bar), t, eps)


def _same(_: Schedule, x_0: X, x_t: X, t: Times) -> X:
    return x_0


X_0_FROM: dict[str, Callable[..., Any]] = {"eps": x_0_from_eps, "x0": _same, "v": x_0_from_v}
FROM_X_0: dict[str, Callable[..., Any]] = {"eps": eps_from_x_0, "x0": _same, "v": v_from_x_0}


@dataclass(frozen=True, eq=False)
class Diffusion:
    """A chain and what is known of its reversal: which schedule, what the network predicts, which sigma_t.

    Args:
        schedule: q.
        predict: what the network's output is: ``eps``, ``x0`` or ``v``.
        variance: sigma_t^2, ``fixed-large`` or ``fixed-small`` (see `Schedule.sigma2`).
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

    @cached_property
    def sigma2(self) -> Table:
        """sigma_t^2 of p_theta(x_{t-1} | x_t), (T + 1,)."""
        return self.schedule.sigma2(self.variance)

    def respaced(self, timesteps: list[int]) -> Diffusion:
        """The same reversal over a subset of the steps; see `Schedule.respaced`."""
        return Diffusion(self.schedule.respaced(timesteps), self.predict, self.variance, self.clip)


def network_times(d: Diffusion, t: Times, x: torch.Tensor) -> torch.Tensor:
    """The step(s) t as the tensor that the denoiser takes, int64 (B,): the trained chain's t, beside x."""
    import torch

    if isinstance(t, int):
        return torch.full((len(x),), int(d.schedule.timesteps[t]), dtype=torch.int64, device=x.device)
    return torch.from_numpy(d.schedule.timesteps[t]).to(x.device, non_blocking=True)


def p_x_0(d: Diffusion, denoiser: Denoiser, x_t: torch.Tensor, t: Times) -> torch.Tensor:
    """x_0_hat, what the network makes of x_t (Eq. 15 where it predicts eps), clipped if the diffusion says so."""
    x_0_hat: torch.Tensor = X_0_FROM[d.predict](d.schedule, denoiser(x_t, network_times(d, t, x_t)), x_t, t)
    return x_0_hat.clamp(-1, 1) if d.clip else x_0_hat


def p_mean(d: Diffusion, x_0_hat: torch.Tensor, x_t: torch.Tensor, t: Times) -> torch.Tensor:
    """mu_theta(x_t, t): Eq. 7 with x_0_hat for x_0, which for eps and without clipping is Eq. 11."""
    return q_posterior_mean(d.schedule, x_0_hat, x_t, t)
