"""The schedule's tables against closed forms, published numbers, diffusers' tables, and each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm_cli.config import DiffusionConfig
from ddpm_cli.diffusion import spacing
from ddpm_cli.diffusion.schedule import Schedule, cosine, from_betas, from_config, linear
from ddpm_cli.diffusion.spacing import spaced_steps
from ddpm_cli.errors import ArgumentError

SCHEDULES = {
    "linear": linear(),
    "cosine": cosine(),
    "cosine 4000": cosine(4000),
    "one step": linear(1),
    "two steps": linear(2),
    "respaced": linear().respaced(spaced_steps(linear(), 37)),
}

betas = st.lists(st.floats(1e-6, 0.999), min_size=1, max_size=60)


@st.composite
def steps_within(draw: st.DrawFn, T: int) -> list[int]:
    """Ascending steps of 1..T, at least one."""
    return sorted(draw(st.sets(st.integers(1, T), min_size=1)))


@pytest.fixture(params=SCHEDULES, ids=str)
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return SCHEDULES[request.param]


def test_tables_begin_with_the_data_itself(schedule: Schedule) -> None:
    T = schedule.T
    for table in (schedule.beta, schedule.alpha, schedule.alpha_bar, schedule.beta_tilde, schedule.snr):
        assert table.shape == (T + 1,)
        assert table.dtype == np.float64
    assert schedule.beta[0] == 0
    assert schedule.alpha_bar[0] == 1
    assert schedule.snr[0] == math.inf
    assert schedule.timesteps[0] == 0
    assert ((schedule.beta[1:] > 0) & (schedule.beta[1:] < 1)).all()
    assert (np.diff(schedule.alpha_bar) < 0).all()


def test_alpha_bar_is_the_exponential_of_a_sum_of_logarithms(schedule: Schedule) -> None:
    np.testing.assert_allclose(schedule.alpha_bar, np.exp(np.cumsum(np.log1p(-schedule.beta))), rtol=1e-10)


def test_beta_tilde_makes_the_posterior_consistent_with_the_forward_process(schedule: Schedule) -> None:
    # Bayes for Gaussians: precision of x_{t-1} given x_t and x_0 = that of the prior q(x_{t-1}|x_0) + that of the
    # likelihood q(x_t|x_{t-1}), alpha_t / beta_t. At t = 1 the prior is a point.
    t = np.arange(2, schedule.T + 1)
    precision = 1 / (1 - schedule.alpha_bar[t - 1]) + schedule.alpha[t] / schedule.beta[t]
    np.testing.assert_allclose(schedule.beta_tilde[t], 1 / precision, rtol=1e-9)
    assert schedule.beta_tilde[1] == 0
    assert (schedule.beta_tilde <= schedule.beta).all()


def test_importance_is_a_probability_that_follows_the_signal(schedule: Schedule) -> None:
    p = schedule.importance
    assert p.shape == (schedule.T + 1,)
    assert p[0] == 0
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert (schedule.T * p[1:] >= 0.1).all()  # so that no weight exceeds ten
    assert (np.diff(p[1:]) <= 0).all()
    rest = p[1:] - 0.1 / schedule.T
    np.testing.assert_allclose(rest * np.sqrt(schedule.alpha_bar[1]), rest[0] * np.sqrt(schedule.alpha_bar[1:]))


def test_importance_makes_gradients_less_noisy() -> None:
    """The best guess of eps for x_0 ~ N(0, s^2) errs by a s^2 / (a s^2 + 1 - a), as does the gradient's square."""
    for name in ["linear", "cosine", "cosine 4000"]:
        for s2 in [0.01, 0.05, 0.2, 1.0]:
            schedule = SCHEDULES[name]
            a, p, T = schedule.alpha_bar[1:], schedule.importance[1:], schedule.T
            error = a * s2 / (a * s2 + 1 - a)
            uniform, least = error.mean(), np.sqrt(error).mean() ** 2
            ours = (error / (T * p)).mean()  # E_p [w^2 error], where w = 1 / (T p)
            assert least <= ours < uniform
            # Of what any p could save, more than half.
            assert uniform - ours > 0.5 * (uniform - least)


def test_snr_inverts_to_alpha_bar(schedule: Schedule) -> None:
    np.testing.assert_allclose(1 / (1 + 1 / schedule.snr[1:]), schedule.alpha_bar[1:], rtol=1e-12)
    assert (np.diff(schedule.snr[1:]) < 0).all()


# alpha_bar of the paper's schedule by the t of section 2 (t - 1 in code that counts from 0), to the digits given.
LINEAR_ALPHA_BAR = {
    1: 0.9999,
    11: 0.99780657,
    51: 0.96995149,
    101: 0.89514159,
    251: 0.52142303,
    501: 0.077796658,
    751: 0.0033001584,
    1000: 4.0358298e-05,
}


def test_linear_schedule_has_the_known_alpha_bar() -> None:
    for t, expected in LINEAR_ALPHA_BAR.items():
        assert linear().alpha_bar[t] == pytest.approx(expected, rel=1e-7)


def test_linear_schedule_has_the_papers_ends_and_known_variances() -> None:
    schedule = linear()
    assert (schedule.T, schedule.beta[1], schedule.beta[1000]) == (1000, 1e-4, 0.02)
    np.testing.assert_allclose(np.diff(schedule.beta[1:]), (0.02 - 1e-4) / 999, rtol=1e-9)
    assert math.sqrt(schedule.alpha_bar[501]) == pytest.approx(0.278921, abs=5e-7)
    assert math.sqrt(1 - schedule.alpha_bar[501]) == pytest.approx(0.960314, abs=5e-7)
    assert schedule.beta_tilde[2] == pytest.approx(5.453188e-05, rel=1e-7)
    assert math.log(schedule.beta_tilde[2]) == pytest.approx(-9.816725, abs=5e-7)
    assert schedule.beta_tilde[488] == pytest.approx(0.00979, abs=5e-6)
    assert schedule.beta_tilde[1000] == pytest.approx(0.02, abs=5e-5)


def test_alpha_bar_is_that_of_diffusers() -> None:
    for ours, name in [(linear(), "linear"), (cosine(), "squaredcos_cap_v2"), (cosine(50), "squaredcos_cap_v2")]:
        from diffusers import DDPMScheduler

        theirs = DDPMScheduler(num_train_timesteps=ours.T, beta_schedule=name)
        np.testing.assert_allclose(theirs.betas.numpy(), ours.beta[1:], rtol=2e-7)
        # In float32 a step rounds beta, 1 - beta and the product, by 2^-24 of each: relative to alpha that adds up to
        bound = 2**-24 * np.cumsum(2 + 1 / ours.alpha[1:])
        assert (np.abs(theirs.alphas_cumprod.numpy() / ours.alpha_bar[1:] - 1) <= bound).all()


@pytest.mark.parametrize("T", [1, 2, 10, 1000, 4000])
def test_cosine_schedule_follows_its_formula_where_it_is_not_clipped(T: int) -> None:
    schedule = cosine(T)

    def f(t: int) -> float:
        return math.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2

    unclipped = [t for t in range(T + 1) if schedule.beta[t] < 0.999]
    for t in unclipped:
        assert schedule.alpha_bar[t] == pytest.approx(f(t) / f(0), rel=1e-9)
    assert len(unclipped) == T  # f(T) = 0, so beta_T would be 1
    assert schedule.beta[T] == 0.999
    assert schedule.alpha_bar[T] > 0


def test_from_betas_keeps_them_and_counts_from_one() -> None:
    schedule = from_betas([0.5, 0.25])
    assert schedule.beta.tolist() == [0, 0.5, 0.25]
    assert schedule.alpha.tolist() == [1, 0.5, 0.75]
    assert schedule.alpha_bar.tolist() == [1, 0.5, 0.375]
    assert schedule.beta_tilde.tolist() == [0, 0, 0.5 / 0.625 * 0.25]
    assert schedule.timesteps.tolist() == [0, 1, 2]


def test_from_config_builds_what_the_configuration_names() -> None:
    cases = [
        (DiffusionConfig(), linear()),
        (DiffusionConfig(timesteps=7, beta_start=0.1, beta_end=0.3), linear(7, 0.1, 0.3)),
        (DiffusionConfig(timesteps=7, schedule="cosine"), cosine(7)),
    ]
    for config, expected in cases:
        assert from_config(config).beta.tolist() == expected.beta.tolist()


def test_sigma2_is_one_of_the_two_extremes_except_at_the_decoder(schedule: Schedule) -> None:
    large, small = schedule.sigma2("fixed-large"), schedule.sigma2("fixed-small")
    assert (large[2:] == schedule.beta[2:]).all()
    assert (small[2:] == schedule.beta_tilde[2:]).all()
    decoder = schedule.beta_tilde[2] if schedule.T > 1 else schedule.beta[1]
    assert large[1] == small[1] == decoder > 0
    assert (large >= small).all()


def test_sigma2_leaves_the_schedule_as_it_is() -> None:
    schedule = linear(4)
    before = schedule.beta.copy(), schedule.beta_tilde.copy()
    for variance in ("fixed-large", "fixed-small"):
        schedule.sigma2(variance)[:] = -1
    assert (schedule.beta == before[0]).all()
    assert (schedule.beta_tilde == before[1]).all()


def test_respacing_with_all_steps_changes_no_bit(schedule: Schedule) -> None:
    same = schedule.respaced(range(1, schedule.T + 1))
    for name in ("beta", "alpha_bar", "beta_tilde", "timesteps", "snr"):
        assert getattr(same, name).tobytes() == getattr(schedule, name).tobytes(), name


@given(betas.flatmap(lambda b: st.tuples(st.just(b), steps_within(len(b)))))
def test_respacing_keeps_alpha_bar_and_stays_a_schedule(case: tuple[list[float], list[int]]) -> None:
    all_betas, steps = case
    original = from_betas(all_betas)
    schedule = original.respaced(steps)
    assert schedule.alpha_bar.tolist() == original.alpha_bar[[0, *steps]].tolist()
    assert schedule.timesteps.tolist() == [0, *steps]
    # One step from s to t of the new chain is the steps s+1..t of the old one, one after the other.
    for i, (s, t) in enumerate(zip([0, *steps], steps, strict=False), start=1):
        assert schedule.alpha[i] == pytest.approx(np.prod(original.alpha[s + 1 : t + 1]), rel=1e-9, abs=1e-12)


@given(st.data())
def test_two_respacings_are_one(data: st.DataObject) -> None:
    original = from_betas(data.draw(betas))
    first = data.draw(steps_within(original.T))
    second = data.draw(steps_within(len(first)))
    twice = original.respaced(first).respaced(second)
    once = original.respaced([first[i - 1] for i in second])
    assert twice.timesteps.tolist() == once.timesteps.tolist()
    assert twice.alpha_bar.tolist() == once.alpha_bar.tolist()
    np.testing.assert_allclose(twice.beta, once.beta, rtol=1e-12)


def test_respacing_refuses_steps_that_are_no_chain() -> None:
    for steps in [[], [0], [0, 1], [-1], [11], [1, 1], [2, 1], [1, 11], [10, 1]]:
        with pytest.raises(ArgumentError, match=r"ascend within 1\.\.10"):
            linear(10).respaced(steps)


@given(st.integers(1, 3000).flatmap(lambda T: st.tuples(st.just(T), st.integers(1, T))))
def test_uniform_steps_are_even_and_end_at_the_last(case: tuple[int, int]) -> None:
    T, count = case
    steps = spaced_steps(linear(T, 1e-4, 1e-3), count)
    assert len(steps) == count
    assert steps[-1] == T
    assert all(type(step) is int for step in steps)
    if count > 1:
        assert steps[0] == 1
        gaps = np.diff(steps)
        assert gaps.min() >= 1
        assert gaps.max() - gaps.min() <= 1
        assert linear(T).respaced(steps).timesteps.tolist() == [0, *steps]


def test_every_spacing_of_every_count_is_a_chain_of_so_many_steps() -> None:
    for schedule in [linear(), cosine(200), linear(20, 0.01, 0.3), linear(1, 0.5)]:
        for name in spacing.SPACINGS:
            for count in range(1, schedule.T + 1):
                steps = spaced_steps(schedule, count, name)
                assert len(steps) == count
                assert schedule.respaced(steps).timesteps.tolist() == [0, *steps]  # which refuses what does not ascend
                assert steps[-1] == schedule.T
            assert steps == list(range(1, schedule.T + 1))


def test_spacings_are_what_their_names_say() -> None:
    s = linear()
    assert spaced_steps(s, 5, "trailing") == [200, 400, 600, 800, 1000]
    roots = np.sqrt(spaced_steps(s, 20, "quad"))
    np.testing.assert_allclose(np.diff(roots)[2:], (math.sqrt(1000) - 1) / 19, rtol=0.05)
    logs = np.log(s.snr[spaced_steps(s, 20, "logsnr")])
    np.testing.assert_allclose(np.diff(logs)[6:], (logs[-1] - logs[0]) / 19, rtol=0.05)


def test_a_count_that_is_not_there_is_refused() -> None:
    for count in [0, -1, 11]:
        with pytest.raises(ArgumentError, match=rf"`steps` is {count}; this model has steps 1 to 10"):
            spaced_steps(linear(10), count)
