"""The reverse chain as generators (whoever iterates sees every step and may stop at any), and the table of samplers.

A sampler takes x_T and a source of noise, and knows neither seeds nor devices nor files. `SAMPLERS` is all that the
rest of the program knows of them: to add one, write its function and its row. No torch at import.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ArgumentError
from .process import Diffusion, eps_from_x_0, p_mean, p_theta, q_sample, q_step, score_from_x_0

if TYPE_CHECKING:
    import torch

    from .process import Denoiser

    # z ~ N(0, I) of x_T's shape for the trained chain's step t: draw 0 in the step that leaves it, others besides.
    Noise = Callable[[int, int], torch.Tensor]


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
        step = ancestral_step(d, denoiser, x_t, t, noise)
        x_t = step.x_t
        yield step


def ancestral_step(d: Diffusion, denoiser: Denoiser, x_t: torch.Tensor, t: int, noise: Noise, draw: int = 0) -> Step:
    """One step of Algorithm 2, from x_t to x_{t-1} ~ p_theta(x_{t-1} | x_t); its mean where that is x_0."""
    p = p_theta(d, denoiser, x_t, t)
    before = p_mean(d, p.x_0_hat, x_t, t)
    if t > 1:
        before = before + p.sigma2**0.5 * noise(_trained(d, t), draw)
    return Step(_trained(d, t - 1), before, p.x_0_hat)


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
            x_t = x_t + math.sqrt(sigma2) * noise(_trained(d, t), 0)
        yield Step(_trained(d, t - 1), x_t, x_0_hat)


def dpm_solver_pp(d: Diffusion, denoiser: Denoiser, x_T: torch.Tensor, noise: Noise) -> Iterator[Step]:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): the probability-flow ODE to second order, without any noise.

    With lambda_t = log(alpha_t / sigma_t), alpha_t = sqrt(alpha_bar_t) and sigma_t = sqrt(1 - alpha_bar_t), a step is
    x_{t-1} = (sigma_{t-1} / sigma_t) x_t + alpha_{t-1} (1 - e^{-h}) D, h = lambda_{t-1} - lambda_t. D is x_0_hat,
    extrapolated to the middle of the step by means of the one before. The first step knows of none, and the last,
    where h is infinite, ends at x_0_hat: these two are DDIM's.
    """
    alpha, sigma = np.sqrt(d.schedule.alpha_bar), np.sqrt(1 - d.schedule.alpha_bar)
    half_log_snr = np.log(d.schedule.snr) / 2
    x_t, previous = x_T, None
    for t in range(d.schedule.T, 0, -1):
        x_0_hat = p_theta(d, denoiser, x_t, t).x_0_hat
        D = x_0_hat
        if previous is not None and t > 1:
            r = (half_log_snr[t] - half_log_snr[t + 1]) / (half_log_snr[t - 1] - half_log_snr[t])
            D = x_0_hat + (x_0_hat - previous) / float(2 * r)
        shrink = float(sigma[t - 1] / sigma[t])
        x_t = shrink * x_t + float(alpha[t - 1] - shrink * alpha[t]) * D
        previous = x_0_hat
        yield Step(_trained(d, t - 1), x_t, x_0_hat)


def langevin(
    d: Diffusion, denoiser: Denoiser, x_T: torch.Tensor, noise: Noise, corrector_steps: int = 1, snr: float = 0.2
) -> Iterator[Step]:
    """Algorithm 2 with steps of Langevin dynamics at each x_t, t >= 1, that it arrives at (section 3.2).

    They lead x_t towards q(x_t), of whose log density the network knows the gradient: predictor and corrector (Song et
    al. 2021, section 4.2).

    Args:
        corrector_steps: Langevin steps at each t, each of which asks the network once.
        snr: how long they are (see `langevin_step`).
    """
    x_t = x_T
    for t in range(d.schedule.T, 0, -1):
        step = ancestral_step(d, denoiser, x_t, t, noise)
        x_t = step.x_t
        if t > 1:
            for draw in range(1, corrector_steps + 1):
                x_t = langevin_step(d, denoiser, x_t, t - 1, noise(_trained(d, t - 1), draw), snr)
        yield replace(step, x_t=x_t)


def langevin_step(
    d: Diffusion, denoiser: Denoiser, x_t: torch.Tensor, t: int, z: torch.Tensor, snr: float
) -> torch.Tensor:
    """x_t + delta score + sqrt(2 delta) z with score = -eps_theta / sqrt(1 - alpha_bar_t); t >= 1.

    delta = 2 snr^2 (1 - alpha_bar_t), annealed as in Song and Ermon 2019 (section 4.3): as eps_theta is about as
    long as z, the score moves x_t by the share ``snr`` of what the noise moves it, at every t.
    """
    score = score_from_x_0(d.schedule, p_theta(d, denoiser, x_t, t).x_0_hat, x_t, t)
    delta = 2 * snr**2 * float(1 - d.schedule.alpha_bar[t])
    return x_t + delta * score + math.sqrt(2 * delta) * z


def repaint(
    d: Diffusion,
    denoiser: Denoiser,
    x_T: torch.Tensor,
    noise: Noise,
    x_0: torch.Tensor,
    known: torch.Tensor,
    rounds: int = 10,
) -> Iterator[Step]:
    """RePaint (Lugmayr et al. 2022, algorithm 1): Algorithm 2 where the known pixels of x_0 are noised, not made.

    At each x_t those pixels are drawn from q(x_t | x_0). So that the others come to agree with them, the chain goes
    back and down again along `repaint_walk`.

    Args:
        x_0: the image, of which only the known pixels count.
        known: 1 where x_0 is known, 0 where it is to be made; broadcast over x_0.
        rounds: how often each stretch of the chain is gone down.

    Yields:
        a step each time that the chain goes down; the last one has the known pixels of x_0 as they are.
    """
    x_t, t = x_T, d.schedule.T
    for draw, to in enumerate(repaint_walk(d.schedule.T, rounds)):
        if to > t:
            x_t = q_step(d.schedule, x_t, to, noise(_trained(d, to), 2 * draw + 1))
        else:
            step = ancestral_step(d, denoiser, x_t, t, noise, 2 * draw + 1)
            there = x_0 if to == 0 else q_sample(d.schedule, x_0, to, noise(step.t, 2 * draw + 2))
            x_t = known * there + (1 - known) * step.x_t
            yield replace(step, x_t=x_t)
        t = to


JUMP = 10  # steps that `repaint` goes back at a time


def repaint_walk(T: int, rounds: int) -> Iterator[int]:
    """Where the chain of `repaint` goes from T: down to 0, each stretch of 10 steps, or of all, ``rounds`` times."""
    jump = min(JUMP, T - 1)
    left = dict.fromkeys(range(1, T - jump + 1, JUMP), rounds - 1)
    t = T
    while t > 0:
        t -= 1
        yield t
        if left.get(t, 0) > 0:
            left[t] -= 1
            for _ in range(jump):
                t += 1
                yield t


def _trained(d: Diffusion, t: int) -> int:
    """The t of the trained chain."""
    return int(d.schedule.timesteps[t])


@dataclass(frozen=True)
class Setting:
    """A number that one sampler alone takes.

    Args:
        name: of the function's parameter; on the command line ``corrector_steps`` is ``--corrector-steps``.
        default: its value if none is given. An int stands for whole numbers, a float for any.
        low: the least value.
        high: the largest value.
        help: what it is, as the help text says it.
        open: whether ``low`` itself is excluded.
    """

    name: str
    default: int | float
    low: float
    high: float
    help: str
    open: bool = False

    @property
    def whole(self) -> bool:
        """Whether only whole numbers make sense."""
        return isinstance(self.default, int)

    @property
    def range(self) -> str:
        """The allowed values in words."""
        if self.high == math.inf:
            return f"above {self.low:g}" if self.open else f"at least {self.low:g}"
        return f"above {self.low:g}, up to {self.high:g}" if self.open else f"from {self.low:g} to {self.high:g}"

    def is_typed(self, value: object) -> bool:
        """Whether a value is a number of the right kind."""
        return type(value) is int or (type(value) is float and not self.whole)

    def check(self, value: float) -> None:
        """Refuse a value that makes no sense.

        Raises:
            ArgumentError: it is no number of the right kind, or out of range.
        """
        if not (self.is_typed(value) and self.low <= value <= self.high and not (self.open and value == self.low)):
            kind = "a whole number, " if self.whole else ""
            raise ArgumentError(f"`{self.name}` is {value}; it must be {kind}{self.range}")


@dataclass(frozen=True)
class Sampler:
    """A row of the table of samplers.

    Args:
        name: as the user gives it.
        run: the generator: ``run(d, denoiser, x_T, noise, **settings)``.
        about: what it is, in a few words.
        steps: how many of the T steps it takes by default; None for all.
        spacing: how these are spread by default, one of `SPACINGS`.
        settings: what it alone can be told.
        ancestral: whether it draws x_{t-1} with the variance of p_theta.
        is_random: of its settings, by name: whether two chains from one x_t may end at two images.
    """

    name: str
    run: Callable[..., Iterator[Step]]
    about: str
    steps: int | None = None
    spacing: str = "uniform"
    settings: tuple[Setting, ...] = ()
    ancestral: bool = False
    is_random: Callable[..., bool] = lambda **_: True


DEFAULT_SAMPLER = "ddpm"

SAMPLERS: dict[str, Sampler] = {
    sampler.name: sampler
    for sampler in (
        Sampler("ddpm", ancestral, "Algorithm 2 of the paper", ancestral=True),
        Sampler(
            "ddim",
            ddim,
            "DDIM (Song et al. 2020), good from 20 steps",
            steps=50,
            settings=(Setting("eta", 0.0, 0, 1, "Noise added at each step: 0 none, 1 as much as Algorithm 2."),),
            is_random=lambda eta: eta > 0,
        ),
        Sampler(
            "dpm++",
            dpm_solver_pp,
            "DPM-Solver++(2M) (Lu et al. 2022), best in 10 to 20 steps",
            steps=20,
            spacing="logsnr",
            is_random=lambda: False,
        ),
        Sampler(
            "langevin",
            langevin,
            "Algorithm 2 with Langevin steps at each t (predictor-corrector, Song et al. 2021)",
            steps=100,
            settings=(
                Setting("corrector_steps", 1, 1, math.inf, "Langevin steps at each t."),
                Setting("snr", 0.2, 0, 1, "Signal-to-noise ratio of a Langevin step, which sets its size.", open=True),
            ),
            ancestral=True,
        ),
    )
}


def own_settings() -> dict[str, dict[str, Setting]]:
    """The settings that belong to some samplers only: by the setting's name, then by the sampler's."""
    found: dict[str, dict[str, Setting]] = {}
    for sampler in SAMPLERS.values():
        for setting in sampler.settings:
            found.setdefault(setting.name, {})[sampler.name] = setting
    return found
