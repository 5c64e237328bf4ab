"""beta_1..beta_T and all that follows from them, as float64 tables of length T + 1 (section 2).

Index t is the paper's t: entry 0 is the data itself (beta[0] = 0, alpha_bar[0] = 1), entry T the noisiest step.
No torch: `process` casts single entries where they are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..config import DiffusionConfig
from ..errors import ArgumentError, InputError

DRAWN_UNIFORMLY = 0.1  # of the steps that are trained by importance, so that no weight exceeds its inverse
LEAST_ALPHA_BAR = 1e-70  # float32 holds 1 / sqrt(alpha_bar), times what it multiplies

Table = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Schedule:
    """The variances of the forward process, and which step of the trained chain each step is.

    Args:
        beta: (T + 1,), float64, beta[0] = 0.
        alpha_bar: (T + 1,), float64, prod over s <= t of 1 - beta_s; alpha_bar[0] = 1.
        timesteps: (T + 1,), int64: the t that the network is asked at. t itself, unless the chain is respaced.
        trained: the schedule that this one is respaced from; None if it is none such.
    """

    beta: Table
    alpha_bar: Table
    timesteps: npt.NDArray[np.int64]
    trained: Schedule | None = None

    @property
    def T(self) -> int:  # noqa: N802
        """Number of steps."""
        return len(self.beta) - 1

    @cached_property
    def alpha(self) -> Table:
        """alpha_t = 1 - beta_t, (T + 1,)."""
        return 1 - self.beta

    @cached_property
    def beta_tilde(self) -> Table:
        """Eq. 7: variance of q(x_{t-1} | x_t, x_0), (T + 1,); 0 at t = 1, where x_0 is known."""
        result = np.zeros_like(self.beta)
        result[1:] = (1 - self.alpha_bar[:-1]) / (1 - self.alpha_bar[1:]) * self.beta[1:]
        return result

    @cached_property
    def c_0(self) -> Table:
        """Eq. 7: the factor of x_0 in the mean of q(x_{t-1} | x_t, x_0), (T + 1,); 1 at t = 1."""
        result = np.zeros_like(self.beta)
        result[1:] = np.sqrt(self.alpha_bar[:-1]) * self.beta[1:] / (1 - self.alpha_bar[1:])
        result[1] = 1  # not only up to rounding
        return result

    @cached_property
    def c_t(self) -> Table:
        """Eq. 7: the factor of x_t in that mean, (T + 1,); 0 at t = 1."""
        result = np.zeros_like(self.beta)
        result[1:] = np.sqrt(self.alpha[1:]) * (1 - self.alpha_bar[:-1]) / (1 - self.alpha_bar[1:])
        return result

    @cached_property
    def log_beta(self) -> Table:
        """log beta_t, (T + 1,); -infinity at t = 0."""
        return _log(self.beta)

    @cached_property
    def log_beta_tilde(self) -> Table:
        """log beta_tilde_t, (T + 1,), with that of t = 2 at t = 1, as `sigma2` has it; -infinity at t = 0."""
        return _log(self.sigma2("fixed-small"))

    @cached_property
    def snr(self) -> Table:
        """Signal-to-noise ratio alpha_bar_t / (1 - alpha_bar_t), (T + 1,); infinite at t = 0."""
        result = np.full_like(self.beta, np.inf)
        result[1:] = self.alpha_bar[1:] / (1 - self.alpha_bar[1:])
        return result

    @cached_property
    def importance(self) -> Table:
        """p(t) in proportion to sqrt(alpha_bar_t), but for a tenth that is uniform: (T + 1,), 0 at t = 0, the sum 1.

        L_simple is a mean over t, and drawing t from another p than the uniform one while each squared error weighs
        1 / (T p(t)) leaves it, and its gradient, the same mean. The variance of that gradient is least for p(t) in
        proportion to its root mean square at t, and so about to that of the error. What cannot be known of eps at x_t
        is at most alpha_bar_t s^2 / (alpha_bar_t s^2 + 1 - alpha_bar_t) of its variance, for data of variance s^2: it
        vanishes like alpha_bar_t.
        """
        signal = np.sqrt(self.alpha_bar)
        signal[0] = 0  # x_0 is never shown to the network
        result: Table = (1 - DRAWN_UNIFORMLY) * signal / signal.sum()
        result[1:] += DRAWN_UNIFORMLY / self.T
        return result

    def sigma2(self, variance: str) -> Table:
        """sigma_t^2 of the reverse process (section 3.2), (T + 1,).

        ``fixed-large`` is beta_t, best for x_0 ~ N(0, I); ``fixed-small`` is beta_tilde_t, best for x_0 one point.
        At t = 1 both are beta_tilde_2, the variance of the decoder (Eq. 13) in the paper's code: beta_tilde_1 is 0.

        Raises:
            ArgumentError: it is neither, as one that is learned.
        """
        tables = {"fixed-large": self.beta, "fixed-small": self.beta_tilde}
        if variance not in tables:
            raise ArgumentError(f"the variance is {variance!r}; only {' and '.join(tables)} have tables")
        result = tables[variance].copy()
        if self.T > 1:
            result[1] = self.beta_tilde[2]
        else:
            result[1] = self.beta[1]
        return result

    def respaced(self, timesteps: Sequence[int]) -> Schedule:
        """The chain that visits only these t (ascending, in 1..T), with alpha_bar as at those t.

        beta becomes 1 - alpha_bar_t / alpha_bar_s for neighbours s < t (Nichol and Dhariwal 2021, section 4).

        Raises:
            ArgumentError: a step is outside 1..T, repeated, or out of order.
        """
        steps = np.asarray([0, *timesteps], dtype=np.int64)
        if len(steps) < 2 or steps[-1] > self.T or (np.diff(steps) <= 0).any():
            raise ArgumentError(f"timesteps {list(timesteps)[:8]}... must ascend within 1..{self.T}, without repeats")
        alpha_bar = self.alpha_bar[steps]
        beta = np.zeros_like(alpha_bar)
        beta[1:] = 1 - alpha_bar[1:] / alpha_bar[:-1]
        consecutive = np.diff(steps) == 1
        beta[1:][consecutive] = self.beta[steps[1:][consecutive]]
        return Schedule(beta, alpha_bar, self.timesteps[steps], self.trained or self)


def _log(table: Table) -> Table:
    with np.errstate(divide="ignore"):
        result: Table = np.log(table)
    return result


def from_betas(betas: Sequence[float] | Table) -> Schedule:
    """The schedule of given beta_1..beta_T, each in (0, 1)."""
    beta = np.concatenate([[0.0], np.asarray(betas, dtype=np.float64)])
    return Schedule(beta, np.cumprod(1 - beta), np.arange(len(beta)))


def linear(T: int = 1000, start: float = 1e-4, end: float = 0.02) -> Schedule:
    """Section 4: beta from ``start`` to ``end`` in T equal steps."""
    return from_betas(np.linspace(start, end, T, dtype=np.float64))


def cosine(T: int = 1000, s: float = 0.008) -> Schedule:
    """Nichol and Dhariwal 2021, Eq. 17: alpha_bar_t = f(t) / f(0), f(t) = cos^2((t/T + s) / (1 + s) pi/2)."""
    t = np.arange(T + 1, dtype=np.float64)
    f = np.cos((t / T + s) / (1 + s) * np.pi / 2) ** 2
    return from_betas(np.minimum(1 - f[1:] / f[:-1], 0.999))


def from_config(config: DiffusionConfig) -> Schedule:
    """The schedule that a configuration names.

    Raises:
        InputError: so little of x_0 is left in x_T that float32 cannot undo it.
    """
    if config.schedule == "cosine":
        schedule = cosine(config.timesteps)
    else:
        schedule = linear(config.timesteps, config.beta_start, config.beta_end)
    if schedule.alpha_bar[-1] < LEAST_ALPHA_BAR:
        raise InputError(
            f"diffusion: {config.timesteps} steps up to beta_end {config.beta_end:g} leave alpha_bar_T = "
            f"{schedule.alpha_bar[-1]:.3g}; it must be at least {LEAST_ALPHA_BAR:g}: use fewer steps, or smaller ones"
        )
    return schedule
