"""The samplers: exact moments for Gaussian data, special cases that are equal, diffusers' schedulers step by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
from torch import Tensor

from ddpm_cli.config import FIXED_VARIANCES, PREDICTIONS
from ddpm_cli.diffusion.process import Diffusion, p_theta
from ddpm_cli.diffusion.samplers import (
    JUMP,
    Step,
    ancestral,
    ddim,
    dpm_solver_pp,
    langevin,
    langevin_step,
    repaint,
    repaint_walk,
)
from ddpm_cli.diffusion.schedule import Schedule, cosine, from_betas, linear
from ddpm_cli.network.denoiser import NetworkDenoiser
from helpers.models import random_unet, tiny, write_model

SEEDS = [0, 1, 20201123]
SIGMAS = 5  # a test of a statistic fails for one seed in two million
PAPER = linear()
SHORT = linear(20, 0.01, 0.3)
UNEVEN = PAPER.respaced([1, 2, 10, 11, 12, 90, 91, 400, 999, 1000])
SCHEDULES = {"linear": PAPER, "cosine": cosine(200), "short": SHORT, "uneven": UNEVEN, "one step": linear(1, 0.5)}
OF_DIFFUSERS = [predict for predict in PREDICTIONS if predict != "mu"]
VARIANCE = pytest.mark.parametrize("variance", FIXED_VARIANCES)
CLIPPED = pytest.mark.parametrize("clip", [True, False], ids=["clipped", "free"])

Network = Callable[[Tensor, Tensor], Tensor]
Sampler = Callable[..., Iterator[Step]]


@pytest.fixture(params=SCHEDULES, ids=str)
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return SCHEDULES[request.param]


def best_for_gaussian(s: Schedule, mean: float, variance: float) -> Network:
    """The network that cannot be better for data N(mean, variance) a pixel: eps_theta = E[eps | x_t]."""
    tables = {t: i for i, t in enumerate(s.timesteps.tolist())}

    def denoiser(x_t: Tensor, t: Tensor) -> Tensor:
        ab = s.alpha_bar[tables[int(t[0])]]
        return math.sqrt(1 - ab) * (x_t - math.sqrt(ab) * mean) / (ab * variance + 1 - ab)

    return denoiser


def moments(sampler: Sampler, d: Diffusion, denoiser: Network, start: tuple[float, float]) -> list[tuple[float, float]]:
    """Mean and variance of x_{T-1}, ..., x_0, exactly, for x_T of the mean and variance ``start``.

    A chain of an affine network is affine in x_T and in each step's noise. Row 0 of the batch is the chain without any
    of them, row 1 has one standard deviation at x_T, row 1 + t the noise 1 in the step that leaves the chain's t alone:
    what a row has more than row 0 are the coefficients, and the variance is the sum of their squares.
    """
    rows = d.schedule.T + 2
    row_of = {step: 1 + t for t, step in enumerate(d.schedule.timesteps.tolist())}
    mean, variance = start
    x_T = torch.full((rows, 1, 1, 1), mean, dtype=torch.float64)
    x_T[1] += math.sqrt(variance)

    def noise(step: int, draw: int = 0) -> Tensor:
        z = torch.zeros_like(x_T)
        z[row_of[step]] = 1
        return z

    result = []
    for step in sampler(d, denoiser, x_T, noise):
        x = step.x_t.flatten()
        result.append((x[0].item(), (x[1:] - x[0]).square().sum().item()))
    return result


# --- Gaussian data ----------------------------------------------------------------------------------------------------


@VARIANCE
@pytest.mark.parametrize(("mean", "spread"), [(0.0, 1.0), (0.4, 0.2), (-0.9, 0.01)])
def test_ancestral_moments_are_those_of_algorithm_2(
    schedule: Schedule, mean: float, spread: float, variance: str
) -> None:
    d = Diffusion(schedule, variance=variance, clip=False)
    expected, m, v = [], 0.0, 1.0
    for t in range(schedule.T, 0, -1):
        alpha, beta, ab = schedule.alpha[t], schedule.beta[t], schedule.alpha_bar[t]
        # x_{t-1} = (x_t - beta_t / sqrt(1 - ab_t) eps_theta) / sqrt(alpha_t) + sigma_t z, with the best eps_theta
        share = beta / (ab * spread**2 + 1 - ab)
        m = (m - share * (m - math.sqrt(ab) * mean)) / math.sqrt(alpha)
        v *= (1 - share) ** 2 / alpha
        if t > 1:
            v += beta if variance == "fixed-large" else beta * (1 - schedule.alpha_bar[t - 1]) / (1 - ab)
        expected.append((m, v))
    ours = moments(ancestral, d, best_for_gaussian(schedule, mean, spread**2), (0, 1))
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-10)


def test_ddim_moments_are_those_of_its_equation(schedule: Schedule) -> None:
    for mean, spread in [(0.0, 1.0), (0.4, 0.2), (-0.9, 0.01)]:
        for eta in [0.0, 0.3, 1.0]:
            d = Diffusion(schedule, clip=False)
            expected, m, v = [], 0.0, 1.0
            for t in range(schedule.T, 0, -1):
                ab, before = schedule.alpha_bar[t], schedule.alpha_bar[t - 1]
                sigma2 = eta**2 * (1 - before) / (1 - ab) * (1 - ab / before)
                # x_0_hat = mean + x_0_share (x_t - sqrt(ab) mean), eps_theta = eps_share (x_t - sqrt(ab) mean)
                x_0_share = math.sqrt(ab) * spread**2 / (ab * spread**2 + 1 - ab)
                eps_share = math.sqrt(1 - ab) / (ab * spread**2 + 1 - ab)
                slope = math.sqrt(before) * x_0_share + math.sqrt(1 - before - sigma2) * eps_share
                m = math.sqrt(before) * mean + slope * (m - math.sqrt(ab) * mean)
                v = slope**2 * v + sigma2
                expected.append((m, v))
            ours = moments(partial(ddim, eta=eta), d, best_for_gaussian(schedule, mean, spread**2), (0, 1))
            np.testing.assert_allclose(ours, expected, rtol=1e-8, atol=1e-9)


def test_samples_get_the_mean_and_variance_of_the_data_as_steps_become_small() -> None:
    for sampler, variance, side in [
        (ancestral, "fixed-large", 1),
        (ancestral, "fixed-small", -1),
        (ddim, "fixed-large", -1),
    ]:
        mean, spread, errors = 0.4, 0.2, []
        for T in (250, 500, 1000):
            s = linear(T, 0.1 / T, 20 / T)
            d = Diffusion(s, variance=variance, clip=False)
            m, v = moments(sampler, d, best_for_gaussian(s, mean, spread**2), (0, 1))[-1]
            assert m == pytest.approx(
                mean, abs=math.sqrt(s.alpha_bar[T]) * mean
            )  # x_T starts without what is left of it
            errors.append(v / spread**2 - 1)
        # Steps half as large, an error half as large. The two variances are the extremes: one too wide, one too narrow.
        assert 0 < side * errors[2] < 0.04
        assert 0.45 < errors[1] / errors[0] < 0.6
        assert 0.45 < errors[2] / errors[1] < 0.6


def test_standard_normal_data_and_fixed_large_keep_variance_one(schedule: Schedule) -> None:
    # Section 3.2: beta_t is the best sigma_t^2 for x_0 ~ N(0, I). Then p_theta reverses q exactly, every x_t has
    # variance 1, and x_0 = sqrt(alpha_1) x_1 lacks the noise that the last step does not add.
    d = Diffusion(schedule, clip=False)
    *chain, (m, v) = moments(ancestral, d, best_for_gaussian(schedule, 0, 1), (0, 1))
    np.testing.assert_allclose([v for _, v in chain], 1, rtol=1e-9)
    assert v == pytest.approx(schedule.alpha[1], rel=1e-9)
    assert m == 0


def test_for_one_point_every_chain_has_the_marginals_of_q(schedule: Schedule) -> None:
    for sampler in [ancestral, ddim, partial(ddim, eta=0.3), partial(ddim, eta=1)]:
        # Section 3.2: beta_tilde_t is the best sigma_t^2 for one point. Then x_{t-1} is drawn from
        # q(x_{t-1} | x_t, x_0),
        # and DDIM is made so that x_t ~ q(x_t | x_0) for any eta and any steps. The end is the point itself.
        d, point = Diffusion(schedule, variance="fixed-small", clip=False), 0.7
        ab = schedule.alpha_bar[::-1]
        start = math.sqrt(ab[0]) * point, 1 - ab[0]
        chain = moments(sampler, d, best_for_gaussian(schedule, point, 0), start)
        expected = np.stack([np.sqrt(ab[1:]) * point, 1 - ab[1:]], axis=1)
        np.testing.assert_allclose(chain, expected, rtol=1e-8, atol=1e-11)


def test_ddim_shrinks_standard_normal_data_by_the_angles_of_its_steps(schedule: Schedule) -> None:
    # With cos(angle_t) = sqrt(alpha_bar_t), x_0_hat = cos x_t and eps_theta = sin x_t: a step multiplies by the cosine
    # of the angle between its two ends.
    d = Diffusion(schedule, clip=False)
    angles = np.arccos(np.sqrt(schedule.alpha_bar))
    expected = np.cumprod(np.cos(np.diff(angles[::-1])) ** 2)
    chain = moments(ddim, d, best_for_gaussian(schedule, 0, 1), (0, 1))
    np.testing.assert_allclose([v for _, v in chain], expected, rtol=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("sampler", [ancestral, partial(ddim, eta=0.5)], ids=["ancestral", "ddim"])
def test_samples_have_the_moments_that_were_propagated(sampler: Sampler, seed: int) -> None:
    n, mean, variance = 50_000, 0.4, 0.04
    d, denoiser = Diffusion(SHORT, clip=False), best_for_gaussian(SHORT, mean, variance)
    source = torch.Generator().manual_seed(seed)

    def noise(t: int = 0, draw: int = 0) -> Tensor:
        return torch.randn(n, 1, 1, 1, generator=source)

    m, v = moments(sampler, d, denoiser, (0, 1))[-1]
    *_, last = sampler(d, denoiser, noise(), noise)
    x_0 = last.x_t.double()
    # The standard errors of the mean and of the variance of n normal numbers.
    assert abs(x_0.mean().item() - m) <= SIGMAS * math.sqrt(v / n), seed
    assert abs(x_0.var().item() - v) <= SIGMAS * v * math.sqrt(2 / (n - 1)), seed


# --- special cases ----------------------------------------------------------------------------------------------------


def some_network(x_t: Tensor, t: Tensor) -> Tensor:
    """Any function of x_t and t, smooth and of the size of noise, that mixes neighbouring pixels."""
    mixed = 0.8 * x_t + 0.3 * x_t.roll(1, -1) - 0.2 * x_t.roll(1, -2)
    return mixed * torch.sigmoid(t.to(x_t.dtype) / 200).reshape(-1, 1, 1, 1) + 0.2 * torch.sin(5 * mixed)


@dataclass
class NoiseByStep:
    """The same noise for the same step, however often it is asked for; and what it was asked for."""

    like: Tensor
    seed: int

    def __post_init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, t: int, draw: int = 0) -> Tensor:
        self.asked.append(t)
        source = torch.Generator().manual_seed(1000 * self.seed + t + 10**6 * draw)
        return torch.randn(self.like.shape, dtype=self.like.dtype, generator=source)


def start(seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 3, 4, 6, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@CLIPPED
@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("seed", SEEDS)
def test_ddim_with_eta_1_is_ancestral_with_the_small_variance(seed: int, predict: str, clip: bool) -> None:
    d, x_T = Diffusion(SHORT, predict, "fixed-small", clip), start(seed)
    for one, other in zip(
        ancestral(d, some_network, x_T, NoiseByStep(x_T, seed)),
        ddim(d, some_network, x_T, NoiseByStep(x_T, seed), eta=1),
        strict=True,
    ):
        assert one.t == other.t
        torch.testing.assert_close(one.x_t, other.x_t, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(one.x_0_hat, other.x_0_hat, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler", [ancestral, partial(ddim, eta=0.5)], ids=["ancestral", "ddim"])
@VARIANCE
def test_a_chain_respaced_to_all_steps_changes_no_bit(variance: str, sampler: Sampler) -> None:
    d, x_T = Diffusion(SHORT, variance=variance), start(1, torch.float32)
    same = d.respaced(list(range(1, 21)))
    for one, other in zip(
        sampler(d, some_network, x_T, NoiseByStep(x_T, 1)),
        sampler(same, some_network, x_T, NoiseByStep(x_T, 1)),
        strict=True,
    ):
        assert one.t == other.t
        assert one.x_t.numpy().tobytes() == other.x_t.numpy().tobytes()


def test_ddim_without_eta_asks_for_no_noise() -> None:
    def refuse(t: int, draw: int) -> Tensor:
        raise AssertionError(f"noise for step {t}")

    x_T = start(2, torch.float32)
    *_, first = ddim(Diffusion(SHORT), some_network, x_T, refuse)
    *_, again = ddim(Diffusion(SHORT), some_network, x_T, refuse)
    assert (first.x_t == again.x_t).all()
    *_, other = ddim(Diffusion(SHORT), some_network, start(3, torch.float32), refuse)
    assert not (first.x_t == other.x_t).all()


@pytest.mark.parametrize("sampler", [ancestral, partial(ddim, eta=0.5)], ids=["ancestral", "ddim"])
def test_steps_are_those_of_the_trained_chain_and_the_last_adds_no_noise(sampler: Sampler) -> None:
    x_T = start(3)
    for d, steps in [
        (Diffusion(SHORT), list(range(20, 0, -1))),
        (Diffusion(SHORT).respaced([1, 7, 20]), [20, 7, 1]),
        (Diffusion(SHORT).respaced([9]), [9]),
        (Diffusion(linear(1, 0.5)), [1]),
    ]:
        noise, asked = NoiseByStep(x_T, 3), []

        def network(x: Tensor, t: Tensor, asked: list[int] = asked) -> Tensor:
            assert t.tolist() == [t[0]] * len(x)
            asked.append(int(t[0]))
            return some_network(x, t)

        chain = list(sampler(d, network, x_T, noise))
        assert asked == steps
        assert [step.t for step in chain] == [*steps[1:], 0]
        assert noise.asked == steps[:-1]
        # Section 3.3: the end of sampling shows mu_theta(x_1, 1), which is x_0_hat.
        torch.testing.assert_close(chain[-1].x_t, chain[-1].x_0_hat, rtol=1e-12, atol=1e-12)


def test_every_step_tells_what_the_network_took_the_image_to_be() -> None:
    for sampler in [ancestral, partial(ddim, eta=0.5)]:
        d, x_t = Diffusion(SHORT), start(4)
        for t, step in zip(range(20, 0, -1), sampler(d, some_network, x_t, NoiseByStep(x_t, 4)), strict=True):
            assert (step.x_0_hat == p_theta(d, some_network, x_t, t).x_0_hat).all()
            assert step.x_0_hat.abs().max() <= 1
            x_t = step.x_t


@pytest.mark.parametrize("sampler", [ancestral, ddim])
def test_a_chain_goes_no_further_than_it_is_asked_to(sampler: Sampler) -> None:
    calls = 0

    def network(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return some_network(x, t)

    x_T = start(5)
    before = x_T.clone()
    chain = sampler(Diffusion(SHORT), network, x_T, NoiseByStep(x_T, 5))
    assert calls == 0
    assert [next(chain).t, next(chain).t] == [19, 18]
    assert calls == 2
    assert (x_T == before).all()


# --- DPM-Solver++ -----------------------------------------------------------------------------------------------------


def evenly_in_log_snr(steps: int) -> Schedule:
    """A chain whose log SNR falls from 8 to -8 in equal steps."""
    alpha_bar = 1 / (1 + np.exp(-np.linspace(8, -8, steps)))
    return from_betas(1 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]]))


def test_the_error_shrinks_at_the_order_of_the_solver() -> None:
    for sampler, order in [(ddim, 1), (dpm_solver_pp, 2)]:
        # The probability-flow ODE of N(mean, variance) keeps what a number is in standard deviations from
        # sqrt(ab) mean.
        mean, variance, errors = 0.4, 0.3, []
        for steps in (20, 40, 80, 160):
            s = evenly_in_log_snr(steps)
            deviation = np.sqrt(s.alpha_bar * variance + 1 - s.alpha_bar)
            x_T = torch.tensor([[-1.0], [0.0], [2.0]], dtype=torch.float64)
            z = (x_T - math.sqrt(s.alpha_bar[-1]) * mean) / deviation[-1]
            *_, at_1, _end = sampler(
                Diffusion(s, clip=False), best_for_gaussian(s, mean, variance), x_T, NoiseByStep(x_T, 0)
            )
            exact = math.sqrt(s.alpha_bar[1]) * mean + deviation[1] * z
            errors.append(float((at_1.x_t - exact).abs().max()))
        for coarse, fine in pairwise(errors):
            assert coarse / fine == pytest.approx(2**order, rel=0.25)
        assert errors[-1] < (2e-2 if order == 1 else 1e-3)


def test_the_first_and_the_last_step_of_dpm_solver_are_those_of_ddim() -> None:
    for steps in [1, 2]:
        x_T = start(10)
        d = Diffusion(PAPER).respaced([1000] if steps == 1 else [400, 1000])
        for one, other in zip(
            dpm_solver_pp(d, some_network, x_T, NoiseByStep(x_T, 0)),
            ddim(d, some_network, x_T, NoiseByStep(x_T, 0)),
            strict=True,
        ):
            torch.testing.assert_close(one.x_t, other.x_t, rtol=1e-9, atol=1e-9)


# --- Langevin dynamics ------------------------------------------------------------------------------------------------


def test_langevin_steps_lead_to_the_variance_of_q_but_for_their_length() -> None:
    for snr in [0.1, 0.5]:
        for t in [1, 12, 20]:
            # With score (ab^.5 mean - x) / V, a step makes (1 - delta / V)^2 v + 2 delta of a variance v. That
            # leads from
            # anywhere to V / (1 - delta / 2V), and the mean to that of q.
            s, mean, variance = SHORT, 0.4, 0.3
            d, denoiser = Diffusion(s, clip=False), best_for_gaussian(s, mean, variance)
            V = s.alpha_bar[t] * variance + 1 - s.alpha_bar[t]
            delta = 2 * snr**2 * (1 - s.alpha_bar[t])
            # Rows: without noise, with a noise of 1 in the first of all steps, in the second, ...
            steps = math.ceil(20 / -math.log(1 - delta / V))
            x = torch.full((steps + 1, 1), 5.0, dtype=torch.float64)
            for number in range(steps):
                z = torch.zeros_like(x)
                z[number + 1] = 1
                x = langevin_step(d, denoiser, x, t, z, snr)
            assert x[0].item() == pytest.approx(math.sqrt(s.alpha_bar[t]) * mean, abs=1e-6)
            assert (x[1:] - x[0]).square().sum().item() == pytest.approx(V / (1 - delta / (2 * V)), rel=1e-6)


def test_the_corrector_mends_what_too_few_steps_have_done() -> None:
    s = PAPER.respaced([1, 250, 500, 750, 1000])
    variance, n = 0.04, 100
    d, denoiser = Diffusion(s, variance="fixed-small", clip=False), best_for_gaussian(s, 0, variance)

    def error(sampler: Sampler) -> float:
        source = torch.Generator().manual_seed(14)
        x_T = torch.randn(n, 1, 20, 20, dtype=torch.float64, generator=source)
        *_, at_250, _at_1, _at_0 = sampler(d, denoiser, x_T, lambda t, draw: torch.randn(x_T.shape, generator=source))
        expected = s.alpha_bar[2] * variance + 1 - s.alpha_bar[2]
        return abs(at_250.x_t.square().mean().item() / expected - 1)

    assert error(partial(langevin, corrector_steps=5, snr=0.2)) < error(ancestral) / 5


def test_langevin_goes_on_from_where_the_ancestral_step_has_come() -> None:
    d, x_T = Diffusion(SHORT), start(15)
    noise = NoiseByStep(x_T, 15)
    first = next(langevin(d, some_network, x_T, NoiseByStep(x_T, 15), corrector_steps=2, snr=0.3))
    expected = next(ancestral(d, some_network, x_T, noise)).x_t
    for draw in (1, 2):
        expected = langevin_step(d, some_network, expected, 19, noise(19, draw), 0.3)
    assert (first.x_t == expected).all()
    *_, last = langevin(d, some_network, x_T, noise)
    assert (last.x_t - last.x_0_hat).abs().max() < 1e-12  # the last step is not followed by noise


# --- RePaint ----------------------------------------------------------------------------------------------------------


def test_the_walk_of_repaint() -> None:
    for T, rounds in [(1, 3), (5, 4), (50, 1), (250, 10), (1000, 2)]:
        walk = [T, *repaint_walk(T, rounds)]
        assert walk[-1] == 0
        assert min(walk[:-1], default=1) >= 1
        assert max(walk) == T
        down = [(a, b) for a, b in pairwise(walk) if b < a]
        up = [(a, b) for a, b in pairwise(walk) if b > a]
        assert all(abs(a - b) == 1 for a, b in pairwise(walk))
        assert len(down) == len(up) + T
        jump = min(JUMP, T - 1)  # a shorter chain goes back to its beginning
        assert len(up) == len(range(1, T - jump + 1, JUMP)) * (rounds - 1) * jump
        assert len(up) > 0 or T == 1 or rounds == 1


def test_known_pixels_come_back_unchanged() -> None:
    x_T, x_0 = start(16), start(17).clamp(-1, 1)
    known = torch.zeros(1, 1, 4, 6, dtype=torch.float64)
    known[..., :3] = 1
    steps = list(repaint(Diffusion(SHORT, clip=False), some_network, x_T, NoiseByStep(x_T, 16), x_0, known, 3))
    assert (steps[-1].x_t[..., :3] == x_0[..., :3]).all()
    assert not (steps[-1].x_t[..., 3:] == x_0[..., 3:]).any()
    assert [step.t for step in steps] == [t for before, t in pairwise([20, *repaint_walk(20, 3)]) if t < before]


def test_unknown_pixels_come_to_agree_with_known_ones() -> None:
    # Two pixels, jointly normal with correlation rho: if the left one is a, the right one is N(rho a, 1 - rho^2).
    rho, a, n, s = 0.9, 1.5, 20_000, linear(100, 1e-3, 0.2)
    covariance = torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64)

    def denoiser(x_t: Tensor, t: Tensor) -> Tensor:
        ab = s.alpha_bar[int(t[0])]
        marginal = ab * covariance + (1 - ab) * torch.eye(2, dtype=torch.float64)
        return math.sqrt(1 - ab) * (x_t @ torch.linalg.inv(marginal))

    source = torch.Generator().manual_seed(18)
    x_T = torch.randn(n, 1, 1, 2, dtype=torch.float64, generator=source)
    x_0, known = torch.full_like(x_T, a), torch.tensor([1.0, 0.0], dtype=torch.float64)
    d = Diffusion(s, variance="fixed-small", clip=False)

    def right(rounds: int) -> Tensor:
        noise = lambda t, draw: torch.randn(x_T.shape, dtype=x_T.dtype, generator=source)  # noqa: E731
        *_, last = repaint(d, denoiser, x_T, noise, x_0, known, rounds)
        return last.x_t[..., 1].flatten()

    once, often = right(1), right(10)
    assert often.mean().item() == pytest.approx(rho * a, abs=0.1)
    assert abs(once.mean().item() - rho * a) > 3 * abs(often.mean().item() - rho * a)
    assert often.var().item() == pytest.approx(1 - rho**2, rel=0.25)


# --- diffusers --------------------------------------------------------------------------------------------------------

THEIR_NAMES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
# Their tables are float32, and the small differences 1 - alpha_bar_t are taken after that rounding.
ATOL = 1e-4


def settings(d: Diffusion) -> dict[str, Any]:
    """The settings of diffusers' schedulers that describe a diffusion whose beta is linear."""
    beta = d.schedule.beta
    return {
        "num_train_timesteps": d.schedule.T,
        "beta_start": beta[1],
        "beta_end": beta[-1],
        "prediction_type": THEIR_NAMES[d.predict],
        "clip_sample": d.clip,
    }


def assert_steps_equal(ours: Iterator[Step], theirs: Callable[[Tensor, int], Tensor], x_T: Tensor, T: int) -> None:
    """Compare each step with that of ``theirs(x_t, t)`` from the same x_t."""
    x_t, t = x_T, T
    for step in ours:
        atol = ATOL * max(1.0, float(x_t.abs().max()))
        torch.testing.assert_close(step.x_t, theirs(x_t, t), rtol=0, atol=atol, msg=lambda m, t=t: f"t = {t}: {m}")
        x_t, t = step.x_t, step.t


@CLIPPED
@VARIANCE
@pytest.mark.parametrize("predict", OF_DIFFUSERS)
@pytest.mark.parametrize("steps", [range(1, 101), [1, 2, 10, 11, 12, 60, 99, 100]], ids=["all", "uneven"])
def test_ancestral_steps_are_those_of_diffusers(steps: list[int], predict: str, variance: str, clip: bool) -> None:
    d, x_T = Diffusion(linear(100, 1e-3, 0.1), predict, variance, clip), start(6, torch.float32)
    scheduler = DDPMScheduler(variance_type=variance.replace("-", "_"), **settings(d))
    scheduler.set_timesteps(timesteps=[t - 1 for t in reversed(steps)])
    source, same_source = (torch.Generator().manual_seed(7) for _ in range(2))

    def theirs(x_t: Tensor, t: int) -> Tensor:
        output = some_network(x_t, torch.full((2,), t))
        return scheduler.step(output, t - 1, x_t, generator=source).prev_sample

    ours = ancestral(
        d.respaced(list(steps)), some_network, x_T, lambda t, draw: torch.randn(x_T.shape, generator=same_source)
    )
    assert_steps_equal(ours, theirs, x_T, 100)


@CLIPPED
@pytest.mark.parametrize("predict", OF_DIFFUSERS)
@pytest.mark.parametrize("steps", [range(1, 101), [1, 2, 10, 11, 12, 60, 99, 100]], ids=["all", "uneven"])
def test_ancestral_steps_with_a_learned_variance_are_those_of_diffusers(
    steps: list[int], predict: str, clip: bool
) -> None:
    d, x_T = Diffusion(linear(100, 1e-3, 0.1), predict, "learned-range", clip), start(6, torch.float32)
    scheduler = DDPMScheduler(variance_type="learned_range", **settings(d))
    scheduler.set_timesteps(timesteps=[t - 1 for t in reversed(steps)])
    source, same_source = (torch.Generator().manual_seed(7) for _ in range(2))

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([some_network(x, t), torch.sin(9 * x)], 1)

    def theirs(x_t: Tensor, t: int) -> Tensor:
        output = network(x_t, torch.full((2,), t))
        return scheduler.step(output, t - 1, x_t, generator=source).prev_sample

    ours = ancestral(
        d.respaced(list(steps)), network, x_T, lambda t, draw: torch.randn(x_T.shape, generator=same_source)
    )
    assert_steps_equal(ours, theirs, x_T, 100)


@CLIPPED
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("predict", OF_DIFFUSERS)
@pytest.mark.parametrize(
    ("steps", "spacing"),
    [(range(1, 101), "leading"), (range(1, 101, 4), "leading"), (range(4, 101, 4), "trailing")],
    ids=["all", "every 4th, first kept", "every 4th, last kept"],
)
def test_ddim_steps_are_those_of_diffusers(steps: range, spacing: str, predict: str, eta: float, clip: bool) -> None:
    # Only even spacing: for another one diffusers' DDIM takes the wrong step to be the previous one.
    d, x_T = Diffusion(linear(100, 1e-3, 0.1), predict, clip=clip), start(8, torch.float32)
    scheduler = DDIMScheduler(timestep_spacing=spacing, **settings(d))
    scheduler.set_timesteps(len(steps))
    assert scheduler.timesteps.tolist() == [t - 1 for t in reversed(steps)]
    noise = NoiseByStep(x_T, 8)

    def theirs(x_t: Tensor, t: int) -> Tensor:
        output = some_network(x_t, torch.full((2,), t))
        z = noise(t) if eta else None
        done = scheduler.step(output, t - 1, x_t, eta, use_clipped_model_output=True, variance_noise=z)
        return done.prev_sample

    ours = ddim(d.respaced(list(steps)), some_network, x_T, NoiseByStep(x_T, 8), eta)
    assert_steps_equal(ours, theirs, x_T, steps[-1])


@VARIANCE
def test_a_thousand_steps_end_where_those_of_diffusers_end(variance: str) -> None:
    d, x_T = Diffusion(PAPER, variance=variance), start(9, torch.float32)
    scheduler = DDPMScheduler(variance_type=variance.replace("-", "_"), **settings(d))
    source, same_source = (torch.Generator().manual_seed(9) for _ in range(2))
    x_t = x_T
    for t in range(1000, 0, -1):
        x_t = scheduler.step(some_network(x_t, torch.full((2,), t)), t - 1, x_t, generator=source).prev_sample
    *_, last = ancestral(d, some_network, x_T, lambda t, draw: torch.randn(x_T.shape, generator=same_source))
    torch.testing.assert_close(last.x_t, x_t, rtol=0, atol=ATOL)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers makes arrays of tensors
@pytest.mark.parametrize("predict", OF_DIFFUSERS)
@pytest.mark.parametrize(
    "steps", [[1, 12, 40, 66, 81, 100], list(range(5, 101, 5)), [50, 100]], ids=["uneven", "every 5th", "two"]
)
def test_dpm_solver_steps_are_those_of_diffusers(steps: list[int], predict: str) -> None:
    d, x_T = Diffusion(linear(100, 1e-3, 0.1), predict, clip=False), start(19, torch.float32)
    known = {name: value for name, value in settings(d).items() if name != "clip_sample"}
    scheduler = DPMSolverMultistepScheduler(final_sigmas_type="zero", **known)
    scheduler.set_timesteps(timesteps=[t - 1 for t in reversed(steps)])
    x_t = x_T
    ours = dpm_solver_pp(d.respaced(steps), some_network, x_T, NoiseByStep(x_T, 0))
    for t, step in zip(reversed(steps), ours, strict=True):
        x_t = scheduler.step(some_network(x_t, torch.full((2,), t)), t - 1, x_t).prev_sample
        atol = ATOL * max(1.0, float(x_t.abs().max()))
        torch.testing.assert_close(step.x_t, x_t, rtol=0, atol=atol, msg=lambda m, t=t: f"t = {t}: {m}")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpm++"])
def test_whole_chains_of_a_network_are_those_of_diffusers_with_its_weights(name: str, tmp_path: Path) -> None:
    ours = random_unet(tiny(3), 20)
    theirs = UNet2DModel.from_pretrained(write_model(tmp_path, ours) / "unet").eval()
    d = Diffusion(linear(100, 1e-3, 0.1), variance="fixed-small", clip=name != "dpm++")
    steps, x_T = list(range(10, 101, 10)), start(20, torch.float32).repeat(1, 1, 2, 2)[:, :, :8, :8]
    noise = NoiseByStep(x_T, 20)
    known = settings(d)
    if name == "dpm++":
        known.pop("clip_sample")
        scheduler = DPMSolverMultistepScheduler(final_sigmas_type="zero", **known)
        scheduler.set_timesteps(timesteps=[t - 1 for t in reversed(steps)])
    else:
        kind = DDPMScheduler if name == "ddpm" else DDIMScheduler
        scheduler = kind(timestep_spacing="trailing", **known)
        scheduler.set_timesteps(len(steps))
    assert scheduler.timesteps.tolist() == [t - 1 for t in reversed(steps)]
    generator, same_generator = (torch.Generator().manual_seed(20) for _ in range(2))
    chain = {
        "ddpm": lambda: ancestral(
            d.respaced(steps),
            NetworkDenoiser(ours, "fp32"),
            x_T,
            lambda *_: torch.randn(x_T.shape, generator=same_generator),
        ),
        "ddim": lambda: ddim(d.respaced(steps), NetworkDenoiser(ours, "fp32"), x_T, noise),
        "dpm++": lambda: dpm_solver_pp(d.respaced(steps), NetworkDenoiser(ours, "fp32"), x_T, noise),
    }[name]()
    x_t = x_T
    with torch.inference_mode():
        for t, step in zip(reversed(steps), chain, strict=True):
            output = theirs(x_t, t - 1).sample
            options = {"ddpm": {"generator": generator}, "ddim": {"use_clipped_model_output": True}}.get(name, {})
            x_t = scheduler.step(output, t - 1, x_t, **options).prev_sample
            atol = ATOL * max(1.0, float(x_t.abs().max()))
            torch.testing.assert_close(step.x_t, x_t, rtol=0, atol=atol, msg=lambda m, t=t: f"t = {t}: {m}")
