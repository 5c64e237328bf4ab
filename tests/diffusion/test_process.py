"""The forward process, its posterior, the conversions and p_theta: end points, Bayes, inverses; numpy as torch."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ddpm_cli
from ddpm_cli.config import DiffusionConfig
from ddpm_cli.diffusion.process import (
    FROM_X_0,
    X_0_FROM,
    Diffusion,
    eps_from_x_0,
    network_times,
    p_mean,
    p_theta,
    q_posterior_mean,
    q_sample,
    q_step,
    score_from_x_0,
    v_from_x_0,
    x_0_from_eps,
    x_0_from_mu,
    x_0_from_score,
    x_0_from_v,
)
from ddpm_cli.diffusion.schedule import Schedule, cosine, from_betas, linear
from ddpm_cli.diffusion.spacing import spaced_steps

SEEDS = [0, 1, 20201123]
SIGMAS = 5  # a test of a statistic fails for one seed in two million
U = np.finfo(np.float64).eps
SCHEDULES = {
    "linear": linear(),
    "cosine": cosine(),
    "one step": linear(1),
    "two steps": linear(2, 0.1, 0.5),
    "respaced": linear().respaced(spaced_steps(linear(), 37)),
}

# Every function of (schedule, two images, t), by name.
FUNCTIONS: dict[str, Any] = {
    "q_sample": lambda s, a, b, t: q_sample(s, a, t, b),
    "q_step": lambda s, a, b, t: q_step(s, a, t, b),
    "q_posterior_mean": q_posterior_mean,
    "x_0_from_eps": x_0_from_eps,
    "eps_from_x_0": eps_from_x_0,
    "x_0_from_v": x_0_from_v,
    "v_from_x_0": v_from_x_0,
    "x_0_from_mu": x_0_from_mu,
    "x_0_from_score": x_0_from_score,
    "score_from_x_0": score_from_x_0,
}


@pytest.fixture(params=SCHEDULES, ids=str)
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return SCHEDULES[request.param]


def images(seed: int, *shape: int, dtype: type = np.float64) -> npt.NDArray[Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# --- the forward process ---------------------------------------------------------------------------------------------


def test_at_t_0_there_is_no_noise_yet(schedule: Schedule) -> None:
    for seed in SEEDS:
        x, eps = images(seed, 2, 3, 1, 4, 4)
        assert q_sample(schedule, x, 0, eps).tobytes() == x.tobytes()
        assert q_step(schedule, x, 0, eps).tobytes() == x.tobytes()
        assert q_sample(schedule, x, np.zeros(3, np.int64), eps).tobytes() == x.tobytes()


def test_steps_one_after_the_other_have_the_mean_and_variance_of_eq_4(schedule: Schedule) -> None:
    # A step is affine, so the moments follow exactly: the mean as a step without noise, the variance as the squares of
    # what a step makes of one standard deviation of x_{t-1} and of its own noise.
    zero, one = np.zeros(1), np.ones(1)
    mean, variance = one, zero
    for t in range(1, schedule.T + 1):
        mean = q_step(schedule, mean, t, zero)
        variance = q_step(schedule, np.sqrt(variance), t, zero) ** 2 + q_step(schedule, zero, t, one) ** 2
        np.testing.assert_allclose(q_sample(schedule, one, t, zero), mean, rtol=1e-12)
        np.testing.assert_allclose(q_sample(schedule, zero, t, one) ** 2, variance, rtol=1e-11)


@pytest.mark.parametrize("seed", SEEDS)
def test_samples_of_both_ways_have_those_moments(seed: int) -> None:
    n, x_0, s = 100_000, 0.7, linear(20, 0.01, 0.3)
    random = np.random.default_rng(seed)
    walked = np.full(n, x_0)
    for t in range(1, s.T + 1):
        walked = q_step(s, walked, t, random.standard_normal(n))
        jumped = q_sample(s, np.full(n, x_0), t, random.standard_normal(n))
        mean, variance = math.sqrt(s.alpha_bar[t]) * x_0, 1 - s.alpha_bar[t]
        for x in (walked, jumped):
            # The standard errors of the mean and of the variance of n normal numbers.
            assert abs(x.mean() - mean) <= SIGMAS * math.sqrt(variance / n), (t, seed)
            assert abs(x.var(ddof=1) - variance) <= SIGMAS * variance * math.sqrt(2 / (n - 1)), (t, seed)


def test_the_last_step_of_the_papers_schedule_is_nearly_pure_noise() -> None:
    # Section 4: L_T is about 1e-5 bits/dim; what is left of the data is a factor of sqrt(alpha_bar_T) = 0.00635.
    s = SCHEDULES["linear"]
    assert q_sample(s, np.ones(1), 1000, np.zeros(1))[0] == pytest.approx(0.00635, abs=5e-6)
    assert q_sample(s, np.zeros(1), 1000, np.ones(1))[0] == pytest.approx(0.99998, abs=5e-6)


# --- one definition for numbers, arrays and tensors -------------------------------------------------------------------


def test_numpy_and_torch_agree_to_the_last_bit_and_keep_the_dtype() -> None:
    for dtype in [np.float32, np.float64]:
        for name in FUNCTIONS:
            function, s = FUNCTIONS[name], SCHEDULES["linear"]
            a, b = images(3, 2, 4, 3, 2, 5, dtype=dtype)
            for t in (1, 2, 500, 1000, np.array([1, 1000, 17, 17])):
                array = function(s, a, b, t)
                tensor = function(s, torch.from_numpy(a), torch.from_numpy(b), t)
                assert array.dtype == dtype
                assert tensor.numpy().dtype == dtype
                assert array.tobytes() == tensor.numpy().tobytes(), t
                assert array.shape == a.shape


def test_one_t_for_all_is_the_same_t_for_each(schedule: Schedule) -> None:
    for dtype in [np.float32, np.float64]:
        for name in FUNCTIONS:
            function = FUNCTIONS[name]
            t = np.unique(np.r_[1, schedule.T, np.random.default_rng(0).integers(1, schedule.T + 1, 6)])
            a, b = images(4, 2, len(t), 1, 3, 3, dtype=dtype)
            together = function(schedule, a, b, t)
            for row, step in enumerate(t.tolist()):
                assert together[row].tobytes() == function(schedule, a[row], b[row], step).tobytes()


# --- the posterior, Eq. 6 and 7 --------------------------------------------------------------------------------------


def test_posterior_mean_and_variance_are_those_of_bayes(schedule: Schedule) -> None:
    for seed in SEEDS:
        # q(x_{t-1} | x_t, x_0) is q(x_t | x_{t-1}) q(x_{t-1} | x_0) up to a factor. As a function of x_{t-1} the first
        # is a Gaussian around x_t / sqrt(alpha_t) of variance beta_t / alpha_t; precisions add.
        x_0, x_t = images(seed, 2, 2, 1, 3, 3)
        for t in {2, schedule.T // 2, schedule.T} & set(range(2, schedule.T + 1)):
            step, before = schedule.alpha[t] / schedule.beta[t], 1 / (1 - schedule.alpha_bar[t - 1])
            mean = step * x_t / math.sqrt(schedule.alpha[t]) + before * math.sqrt(schedule.alpha_bar[t - 1]) * x_0
            mean /= step + before
            ours = q_posterior_mean(schedule, x_0, x_t, t)
            np.testing.assert_allclose(ours, mean, rtol=0, atol=1e-11 * np.abs([x_0, x_t]).max())
            assert schedule.beta_tilde[t] == pytest.approx(1 / (step + before), rel=1e-9)


def test_at_t_1_the_posterior_is_the_data(schedule: Schedule) -> None:
    x_0, x_1 = images(0, 2, 2, 1, 3, 3)
    # The factor of x_0 is beta_1 / (1 - (1 - beta_1)): 1 but for a rounding of that difference, and 1 in float32.
    np.testing.assert_allclose(q_posterior_mean(schedule, x_0, x_1, 1), x_0, rtol=2 * U / schedule.beta[1])
    x_0, x_1 = x_0.astype(np.float32), x_1.astype(np.float32)
    assert q_posterior_mean(schedule, x_0, x_1, 1).tobytes() == x_0.tobytes()


def test_the_posterior_leads_from_eq_4_at_t_to_eq_4_before_it(schedule: Schedule) -> None:
    # x_{t-1} = mu_tilde(x_t(x_0, eps), x_0) + sqrt(beta_tilde) z has the mean and variance of q(x_{t-1} | x_0).
    zero, one = np.zeros(1), np.ones(1)
    for t in range(1, schedule.T + 1):
        mean = q_posterior_mean(schedule, one, q_sample(schedule, one, t, zero), t)
        spread = q_posterior_mean(schedule, zero, q_sample(schedule, zero, t, one), t)
        np.testing.assert_allclose(mean, q_sample(schedule, one, t - 1, zero), rtol=1e-10)
        variance = spread**2 + schedule.beta_tilde[t]
        np.testing.assert_allclose(variance, q_sample(schedule, zero, t - 1, one) ** 2, rtol=1e-9, atol=1e-30)


# --- conversions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A short schedule, a step of it, and two numbers on the scale of images, float64 (1, 1)."""

    s: Schedule
    t: int
    a: npt.NDArray[np.float64]
    b: npt.NDArray[np.float64]

    @property
    def signal(self) -> float:
        return math.sqrt(self.s.alpha_bar[self.t])

    @property
    def noise(self) -> float:
        return math.sqrt(1 - self.s.alpha_bar[self.t])

    def tolerance(self, *values: npt.NDArray[np.float64]) -> float:
        """Some roundings of numbers of this size, enlarged by the divisions by sqrt(alpha_bar) and 1 - alpha_bar."""
        size = 1 + max(float(np.abs(v).max()) for v in (self.a, self.b, *values))
        return 32 * U * size / (self.signal * self.noise**2)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    betas = draw(st.lists(st.floats(1e-4, 0.9), min_size=1, max_size=5))
    value = st.floats(-10, 10).map(lambda x: np.array([[x]]))
    return Case(from_betas(betas), draw(st.integers(1, len(betas))), draw(value), draw(value))


@given(cases())
def test_x_0_to_eps_and_back(case: Case) -> None:
    s, t, x_0, x_t = case.s, case.t, case.a, case.b
    eps = eps_from_x_0(s, x_0, x_t, t)
    np.testing.assert_allclose(x_0_from_eps(s, eps, x_t, t), x_0, rtol=0, atol=case.tolerance(eps))


@given(cases())
def test_eps_to_x_0_and_back(case: Case) -> None:
    s, t, eps, x_t = case.s, case.t, case.a, case.b
    x_0 = x_0_from_eps(s, eps, x_t, t)
    np.testing.assert_allclose(eps_from_x_0(s, x_0, x_t, t), eps, rtol=0, atol=case.tolerance(x_0))


@given(cases())
def test_x_0_to_v_and_back(case: Case) -> None:
    s, t, x_0, x_t = case.s, case.t, case.a, case.b
    v = v_from_x_0(s, x_0, x_t, t)
    np.testing.assert_allclose(x_0_from_v(s, v, x_t, t), x_0, rtol=0, atol=case.tolerance(v))


@given(cases())
def test_v_to_x_0_and_back(case: Case) -> None:
    s, t, v, x_t = case.s, case.t, case.a, case.b
    x_0 = x_0_from_v(s, v, x_t, t)
    np.testing.assert_allclose(v_from_x_0(s, x_0, x_t, t), v, rtol=0, atol=case.tolerance(x_0))


@given(cases())
def test_x_0_to_the_posterior_mean_and_back(case: Case) -> None:
    s, t, x_0, x_t = case.s, case.t, case.a, case.b
    mu = q_posterior_mean(s, x_0, x_t, t)
    factor = float(q_posterior_mean(s, np.ones((1, 1)), np.zeros((1, 1)), t)[0, 0])
    tolerance = 32 * U * (1 + np.abs([x_0, x_t, mu]).max()) / factor
    np.testing.assert_allclose(x_0_from_mu(s, mu, x_t, t), x_0, rtol=0, atol=tolerance)


@given(cases())
def test_eq_4_and_its_inverses_agree(case: Case) -> None:
    s, t, x_0, eps = case.s, case.t, case.a, case.b
    x_t = q_sample(s, x_0, t, eps)
    np.testing.assert_allclose(eps_from_x_0(s, x_0, x_t, t), eps, rtol=0, atol=case.tolerance())
    np.testing.assert_allclose(x_0_from_eps(s, eps, x_t, t), x_0, rtol=0, atol=case.tolerance())


@given(cases())
def test_x_t_and_v_are_x_0_and_eps_turned_by_an_angle(case: Case) -> None:
    # The definition of v: (x_t, v) = R (x_0, eps) with cos = sqrt(alpha_bar), sin = sqrt(1 - alpha_bar).
    s, t, x_0, eps = case.s, case.t, case.a, case.b
    x_t = q_sample(s, x_0, t, eps)
    v = v_from_x_0(s, x_0, x_t, t)
    np.testing.assert_allclose(v, case.signal * eps - case.noise * x_0, rtol=0, atol=case.tolerance())
    np.testing.assert_allclose(x_t**2 + v**2, x_0**2 + eps**2, rtol=0, atol=20 * case.tolerance())


@given(cases())
def test_the_score_is_eps_in_other_units_and_back(case: Case) -> None:
    s, t, x_0, x_t = case.s, case.t, case.a, case.b
    score, eps = score_from_x_0(s, x_0, x_t, t), eps_from_x_0(s, x_0, x_t, t)
    np.testing.assert_allclose(score, -eps / case.noise, rtol=1e-12, atol=0)
    np.testing.assert_allclose(x_0_from_score(s, score, x_t, t), x_0, rtol=0, atol=case.tolerance(eps))


@given(cases(), st.sampled_from(sorted(X_0_FROM)), st.sampled_from(sorted(X_0_FROM)))
def test_every_prediction_becomes_every_other_and_comes_back(case: Case, one: str, other: str) -> None:
    s, t, x_0, x_t = case.s, case.t, case.a, case.b
    first = FROM_X_0[one](s, x_0, x_t, t)
    second = FROM_X_0[other](s, X_0_FROM[one](s, first, x_t, t), x_t, t)
    back = FROM_X_0[one](s, X_0_FROM[other](s, second, x_t, t), x_t, t)
    # What rounding does to x_0, on its way back through the steepest of the conversions.
    c_0 = float(q_posterior_mean(s, np.ones((1, 1)), np.zeros((1, 1)), t)[0, 0])
    lost = case.tolerance(first, second) / min(c_0, 1.0)
    np.testing.assert_allclose(back, first, rtol=0, atol=4 * lost / case.noise**2)


def test_the_tables_of_conversions_hold_these_functions() -> None:
    assert X_0_FROM.keys() == FROM_X_0.keys() == {"eps", "x0", "mu", "v", "score"}
    s, (value, x_t) = SCHEDULES["linear"], images(5, 2, 2, 1, 2, 2)
    pairs = {
        "eps": (x_0_from_eps, eps_from_x_0),
        "mu": (x_0_from_mu, q_posterior_mean),
        "v": (x_0_from_v, v_from_x_0),
        "score": (x_0_from_score, score_from_x_0),
    }
    for name, functions in pairs.items():
        assert (X_0_FROM[name], FROM_X_0[name]) == functions
    for table in (X_0_FROM, FROM_X_0):
        assert table["x0"](s, value, x_t, 3) is value


def test_the_score_is_the_gradient_of_log_q(schedule: Schedule) -> None:
    for seed in SEEDS:
        x_0, eps = (torch.from_numpy(x) for x in images(seed, 2, 2, 1, 3, 3))
        for t in {1, (schedule.T + 1) // 2, schedule.T}:
            x_t = q_sample(schedule, x_0, t, eps).requires_grad_()
            signal, noise = math.sqrt(schedule.alpha_bar[t]), math.sqrt(1 - schedule.alpha_bar[t])
            log_q = torch.distributions.Normal(signal * x_0, noise).log_prob(x_t).sum()
            (gradient,) = torch.autograd.grad(log_q, x_t)
            torch.testing.assert_close(
                score_from_x_0(schedule, x_0, x_t.detach(), t), gradient, rtol=1e-9, atol=1e-9 / noise
            )


# --- p_theta ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_mu_theta_without_clipping_is_eq_11(schedule: Schedule, seed: int) -> None:
    x_t, eps = (torch.from_numpy(x) for x in images(seed, 2, 2, 1, 3, 3))
    d = Diffusion(schedule, clip=False)
    for t in range(1, schedule.T + 1):
        x_0_hat = p_theta(d, lambda x, t: eps, x_t, t).x_0_hat
        beta, alpha_bar = schedule.beta[t], schedule.alpha_bar[t]
        mu = (x_t - beta / math.sqrt(1 - alpha_bar) * eps) / math.sqrt(1 - beta)
        # x_0_hat is x_t and eps over sqrt(alpha_bar_t); its factor in Eq. 7 takes that back, its roundings stay.
        atol = 1e-13 / math.sqrt(alpha_bar) + 1e-13 / (1 - alpha_bar)
        torch.testing.assert_close(p_mean(d, x_0_hat, x_t, t), mu, rtol=0, atol=atol)


@pytest.mark.parametrize("predict", FROM_X_0)
def test_a_network_that_is_right_is_understood_whatever_it_predicts(predict: str) -> None:
    s = linear(20, 0.01, 0.3)
    t = np.array([1, 7, 20])
    x_0, eps = (torch.from_numpy(x).clamp(-1, 1) for x in images(6, 2, 3, 1, 4, 4))
    x_t = q_sample(s, x_0, t, eps)
    answer = FROM_X_0[predict](s, x_0, x_t, t)
    for clip in (True, False):
        x_0_hat = p_theta(Diffusion(s, predict, clip=clip), lambda x, t: answer, x_t, t).x_0_hat
        torch.testing.assert_close(x_0_hat, x_0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("predict", FROM_X_0)
def test_it_is_understood_in_a_chain_of_fewer_steps_too(predict: str) -> None:
    # What the network has learned is the trained chain's, of which mu is a mean of the step before.
    trained = linear(20, 0.01, 0.3)
    respaced = Diffusion(trained, predict, clip=False).respaced([1, 5, 20])
    x_0, x_t = (torch.from_numpy(x) for x in images(9, 2, 3, 1, 4, 4))

    def right(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = FROM_X_0[predict](trained, x_0, x, t.numpy())
        return answer

    for t in (2, np.array([1, 2, 3])):
        torch.testing.assert_close(p_theta(respaced, right, x_t, t).x_0_hat, x_0, rtol=0, atol=1e-12)


def test_a_variance_that_is_learned_as_a_range_has_the_fixed_ones_for_ends() -> None:
    for respace in [False, True]:
        s = linear(20, 0.01, 0.3)
        s = s.respaced([1, 4, 5, 17, 20]) if respace else s
        d, x_t = Diffusion(s, variance="learned-range"), torch.zeros(s.T, 2, 3, 3, dtype=torch.float64)
        t = np.arange(1, s.T + 1)
        for v, table in ((-1.0, s.sigma2("fixed-small")), (1.0, s.beta)):
            p = p_theta(d, lambda x, t, v=v: torch.cat([x, torch.full_like(x, v)], 1), x_t, t)
            np.testing.assert_allclose(
                np.asarray(p.sigma2), table[t].reshape(-1, 1, 1, 1) + np.zeros(x_t.shape), rtol=1e-12
            )
        middle = p_theta(d, lambda x, t: torch.zeros(len(x), 4, 3, 3, dtype=x.dtype), x_t, 3)
        assert torch.as_tensor(middle.sigma2)[0, 0, 0, 0].item() == pytest.approx(
            math.sqrt(s.beta[3] * s.beta_tilde[3])
        )


def test_a_learned_variance_is_the_exponential_of_the_outputs_second_half() -> None:
    d, x_t = Diffusion(linear(20), "x0", "learned"), torch.from_numpy(images(10, 2, 1, 3, 3))
    prediction, v = (torch.from_numpy(x) for x in images(11, 2, 2, 1, 3, 3))
    p = p_theta(d, lambda x, t: torch.cat([prediction, v], 1), x_t, 7)
    torch.testing.assert_close(p.x_0_hat, prediction.clamp(-1, 1), rtol=0, atol=0)
    torch.testing.assert_close(torch.as_tensor(p.sigma2), v.exp(), rtol=0, atol=0)


@pytest.mark.parametrize("predict", FROM_X_0)
def test_clipping_bounds_x_0_hat_and_changes_nothing_else(predict: str) -> None:
    s = linear(20, 0.01, 0.3)
    x_t, output = (torch.from_numpy(x) for x in images(7, 2, 3, 1, 4, 4))
    free, clipped = (
        p_theta(Diffusion(s, predict, clip=clip), lambda x, t: output, x_t, 20).x_0_hat for clip in (False, True)
    )
    assert free.abs().max() > 1
    assert (clipped == free.clamp(-1, 1)).all()


def test_the_network_is_asked_at_x_t_and_the_trained_chains_t() -> None:
    full = Diffusion(SCHEDULES["linear"])
    asked: list[tuple[torch.Tensor, torch.Tensor]] = []

    def denoiser(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        asked.append((x, t))
        return x

    x_t = torch.from_numpy(images(8, 3, 1, 2, 2))
    respaced = full.respaced([1, 400, 1000])
    for d, t, expected in [
        (full, 400, [400, 400, 400]),
        (full, np.array([1, 400, 1000]), [1, 400, 1000]),
        (respaced, 2, [400, 400, 400]),
        (respaced, np.array([3, 1, 2]), [1000, 1, 400]),
    ]:
        p_theta(d, denoiser, x_t, t)
        x, times = asked.pop()
        assert x is x_t
        assert times.tolist() == network_times(d, t, x_t).tolist() == expected
        assert times.dtype == torch.int64


def test_a_respaced_diffusion_keeps_all_but_the_steps() -> None:
    d = Diffusion(linear(20, 0.01, 0.3), "v", "fixed-small", clip=False)
    respaced = d.respaced([3, 9])
    assert (respaced.predict, respaced.variance, respaced.clip) == ("v", "fixed-small", False)
    assert respaced.schedule.alpha_bar.tolist() == d.schedule.alpha_bar[[0, 3, 9]].tolist()


def test_from_config_takes_every_field() -> None:
    config = DiffusionConfig(7, "linear", 0.1, 0.3, predict="x0", variance="fixed-small", clip=False)
    d = Diffusion.from_config(config)
    assert d.schedule.beta.tolist() == linear(7, 0.1, 0.3).beta.tolist()
    assert (d.predict, d.variance, d.clip) == ("x0", "fixed-small", False)
    assert d.sigma2.tolist() == d.schedule.beta_tilde.tolist()[:1] + d.schedule.sigma2("fixed-small").tolist()[1:]
    large = Diffusion.from_config(DiffusionConfig(7))
    assert large.sigma2.tolist() == linear(7).sigma2("fixed-large").tolist()


# --- torch stays out --------------------------------------------------------------------------------------------------

WITHOUT_TORCH = """
import sys
import numpy as np
from ddpm_cli.diffusion.process import *
from ddpm_cli.diffusion.schedule import cosine, linear
for s in (linear(10), cosine(10)):
    x, eps = np.ones((2, 1, 2, 2)), np.zeros((2, 1, 2, 2))
    for t in (3, np.array([1, 10])):
        x_t = q_step(s, q_sample(s, x, t, eps), t, eps)
        q_posterior_mean(s, x, x_t, t), score_from_x_0(s, x, x_t, t), x_0_from_mu(s, x, x_t, t)
        x_0_from_eps(s, eps_from_x_0(s, x, x_t, t), x_t, t), x_0_from_v(s, v_from_x_0(s, x, x_t, t), x_t, t)
assert "torch" not in sys.modules
"""


def test_the_forward_process_works_on_arrays_without_torch() -> None:
    env = os.environ | {"PYTHONPATH": str(Path(ddpm_cli.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-W", "error", "-c", WITHOUT_TORCH], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
