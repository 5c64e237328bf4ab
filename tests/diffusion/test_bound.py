"""The bound's terms against Gaussian KLs, closed forms, and the paper's own code written anew."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from ddpm_cli.config import FIXED_VARIANCES, PREDICTIONS
from ddpm_cli.core.pixels import to_float
from ddpm_cli.diffusion import bound
from ddpm_cli.diffusion.bound import bits_per_dim, l_simple, prior_kl
from ddpm_cli.diffusion.process import (
    FROM_X_0,
    Diffusion,
    Reverse,
    Times,
    at,
    p_mean,
    p_theta,
    q_posterior_mean,
    q_sample,
)
from ddpm_cli.diffusion.schedule import Schedule, cosine, linear
from ddpm_cli.diffusion.spacing import spaced_steps
from helpers import paper_code

SEEDS = [0, 1, 20201123]
PAPER = linear()
SHORT = linear(20, 0.01, 0.3)
SCHEDULES = {
    "linear": PAPER,
    "cosine": cosine(),
    "short": SHORT,
    "respaced": PAPER.respaced(spaced_steps(linear(), 37)),
}
GREY = 128 / 127.5 - 1  # pixel 128, the nearest to 0 that there is
CLIPPED = pytest.mark.parametrize("clip", [True, False], ids=["clipped", "free"])
VARIANCE = pytest.mark.parametrize("variance", FIXED_VARIANCES)

# An expectation over eps ~ N(0, 1) as a sum over a fine grid: each node is an image of one pixel.
NODES = torch.linspace(-9, 9, 3001, dtype=torch.float64).reshape(-1, 1, 1, 1)
WEIGHTS = torch.softmax(-(NODES.flatten() ** 2) / 2, 0)
# x_0 and eps with exactly the first two moments of independent Gaussians of mean 0 and variance 1.
MOMENTS_X_0, MOMENTS_EPS = torch.tensor([[-1, -1, 1, 1], [-1, 1, -1, 1]], dtype=torch.float64).reshape(2, 4, 1, 1, 1)
# In float32 x_t is off by 1e-7, and x_0_hat by 1 / sqrt(alpha_bar_t) as much: up to 157 times.
RTOL = {torch.float32: 1e-4, torch.float64: 1e-9}

Network = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture(params=SCHEDULES, ids=str)
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return SCHEDULES[request.param]


def reverse_kl(d: Diffusion, x_0: Tensor, x_0_hat: Tensor, t: Times) -> Tensor:
    """L_{t-1} of a given x_0_hat and the fixed variance."""
    return bound.reverse_kl(d, x_0, Reverse(x_0_hat, at(d.sigma2, t, x_0_hat)), t)


def decoder_nll(d: Diffusion, x_0: Tensor, x_0_hat: Tensor) -> Tensor:
    """L_0 of a given x_0_hat and the fixed variance, in float64 as evaluation asks for it."""
    return bound.decoder_nll(x_0.double(), Reverse(x_0_hat.double(), float(d.sigma2[1])))


def pixels(seed: int, *shape: int) -> Tensor:
    """Random images of pixel values, black and white among them, float64 in [-1, 1]."""
    values = np.random.default_rng(seed).integers(0, 256, shape)
    values.flat[:2] = 0, 255
    return torch.from_numpy(values / 127.5 - 1)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def every_step(s: Schedule, x: Tensor, first: int) -> tuple[np.ndarray, Tensor]:
    """t = first..T, each as often as there are images, and the images once for each t."""
    t = np.arange(first, s.T + 1)
    return t.repeat(len(x)), x.repeat(len(t), 1, 1, 1)


def kl_terms(d: Diffusion, denoiser: Network, x_0: Tensor, eps: Tensor) -> Tensor:
    """The sum of L_{t-1} over t = 2..T with the same eps at every t, bits/dim, (B,)."""
    parts = []
    for x, noise in zip(x_0.split(64), eps.split(64), strict=True):
        t, x = every_step(d.schedule, x, 2)
        noise = every_step(d.schedule, noise, 2)[1]
        x_0_hat = p_theta(d, denoiser, q_sample(d.schedule, x, t, noise), t).x_0_hat
        terms = bits_per_dim(reverse_kl(d, x, x_0_hat, t), x[0].numel())
        parts.append(terms.reshape(d.schedule.T - 1, -1).sum(0))
    return torch.cat(parts)


def expected_bound(d: Diffusion, denoiser: Network, value: float) -> tuple[float, float, float]:
    """E over eps of L_T, of the sum of L_{t-1}, and of L_0, for an image whose pixels are ``value``, bits/dim."""
    x_0 = torch.full_like(NODES, value)
    x_0_hat = p_theta(d, denoiser, q_sample(d.schedule, x_0, 1, NODES), 1).x_0_hat
    prior = bits_per_dim(prior_kl(d, x_0), 1)
    decoder = bits_per_dim(decoder_nll(d, x_0, x_0_hat), 1)
    rate = kl_terms(d, denoiser, x_0, NODES)
    return tuple(float((WEIGHTS * part).sum()) for part in (prior, rate, decoder))


# --- L_T --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", SEEDS)
def test_prior_is_the_kl_of_the_end_and_the_standard_normal(schedule: Schedule, seed: int, dtype: torch.dtype) -> None:
    x_0 = pixels(seed, 5, 3, 4, 2)
    alpha_bar = torch.tensor(schedule.alpha_bar[-1])
    q_T = Normal(alpha_bar.sqrt() * x_0, (1 - alpha_bar).sqrt())
    expected = kl_divergence(q_T, Normal(0.0, 1.0)).flatten(1).sum(1)
    ours = prior_kl(Diffusion(schedule), x_0.to(dtype))
    assert ours.shape == (5,)
    assert ours.dtype == dtype
    # The generic formula subtracts logarithms: near alpha_bar = 0 it keeps 1e-16 of 1, over these 24 dimensions.
    rtol = 1e-9 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(ours.double(), expected, rtol=rtol, atol=24e-16)


def test_prior_of_a_grey_image_is_tiny_and_positive() -> None:
    for dtype in [torch.float32, torch.float64]:
        for value in [GREY, -GREY, 0.0]:
            x_0 = torch.full((2, 3, 32, 32), value, dtype=dtype)
            bits = bits_per_dim(prior_kl(Diffusion(PAPER), x_0), 3072)
            assert (bits > 0).all()
            np.testing.assert_allclose(bits.double().numpy(), 5.8748e-10 + 2.911236e-5 * value**2, rtol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_prior_is_linear_in_the_mean_square_of_the_image(seed: int) -> None:
    x_0 = pixels(seed, 4, 3, 8, 8)
    bits = bits_per_dim(prior_kl(Diffusion(PAPER), x_0), 192)
    expected = 2.911236e-5 * x_0.square().flatten(1).mean(1) + 5.8748e-10
    torch.testing.assert_close(bits, expected, rtol=1e-6, atol=0)


# --- L_{t-1} ----------------------------------------------------------------------------------------------------------


@VARIANCE
def test_reverse_terms_are_the_kl_of_posterior_and_p_theta(schedule: Schedule, variance: str) -> None:
    d = Diffusion(schedule, variance=variance)
    t = np.arange(2, schedule.T + 1)
    shape = len(t), 2, 4, 4
    x_0, x_0_hat, x_t = pixels(0, *shape), pixels(1, *shape), normal(2, *shape)
    sigma_q, sigma_p = (torch.from_numpy(v[t]).sqrt().reshape(-1, 1, 1, 1) for v in (schedule.beta_tilde, d.sigma2))
    q = Normal(q_posterior_mean(schedule, x_0, x_t, t), sigma_q)
    p = Normal(p_mean(d, x_0_hat, x_t, t), sigma_p)
    expected = kl_divergence(q, p).flatten(1).sum(1)
    torch.testing.assert_close(reverse_kl(d, x_0, x_0_hat, t), expected, rtol=1e-8, atol=1e-12)


@VARIANCE
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reverse_terms_with_a_t_for_each_image_are_those_with_one_for_all(variance: str, dtype: torch.dtype) -> None:
    d = Diffusion(PAPER, variance=variance)
    t = np.array([2, 1000, 1, 57, 2])  # 1 is not a reverse term; it must not disturb the others
    x_0, x_0_hat = pixels(3, 5, 1, 4, 4).to(dtype), pixels(4, 5, 1, 4, 4).to(dtype)
    together = reverse_kl(d, x_0, x_0_hat, t)
    assert together.dtype == dtype
    for row, step in enumerate(t.tolist()):
        if step > 1:
            alone = reverse_kl(d, x_0[row : row + 1], x_0_hat[row : row + 1], step)
            torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-6, atol=0)


@VARIANCE
def test_no_reverse_term_is_negative_and_only_the_smallest_variance_reaches_zero(variance: str) -> None:
    x_0 = pixels(5, 2, 1, 4, 4)
    for t in range(2, 1001):
        at_best = reverse_kl(Diffusion(PAPER, variance=variance), x_0, x_0, t)
        assert (at_best == 0).all() if variance == "fixed-small" else (at_best > 0).all()


# --- L_0 --------------------------------------------------------------------------------------------------------------


@given(st.floats(-3, 3), st.sampled_from(sorted(SCHEDULES)), st.sampled_from(FIXED_VARIANCES))
def test_probabilities_of_all_pixel_values_add_up_to_one(mean: float, name: str, variance: str) -> None:
    values = torch.arange(256, dtype=torch.float64).reshape(-1, 1, 1, 1) / 127.5 - 1
    nll = decoder_nll(Diffusion(SCHEDULES[name], variance=variance), values, torch.full_like(values, mean))
    # The least probability of 1e-12 is what many of the 256 have instead of less.
    assert float((-nll).exp().sum()) == pytest.approx(1, abs=1e-9)


def test_decoder_is_the_mass_of_the_normal_distribution_in_the_bin() -> None:
    d = Diffusion(PAPER)
    means = torch.linspace(-1.05, 1.05, 2101, dtype=torch.float64).reshape(-1, 1, 1, 1)
    true = Normal(means, math.sqrt(PAPER.beta_tilde[2]))
    half = 1 / 255
    for pixel in (0, 1, 128, 254, 255):
        x = pixel / 127.5 - 1
        above = torch.zeros_like(means) if pixel == 255 else 1 - true.cdf(torch.tensor(x + half))
        below = torch.zeros_like(means) if pixel == 0 else true.cdf(torch.tensor(x - half))
        ours = (-decoder_nll(d, torch.full_like(means, x), means)).exp()
        # The paper's code approximates the distribution function by tanh, at each edge with an error below 4e-4.
        edges = 1 if pixel in (0, 255) else 2
        worst = float((ours - (1 - above - below).flatten()).abs().max())
        assert 1e-4 < worst < edges * 4e-4


def test_outermost_bins_are_open() -> None:
    d, far = Diffusion(PAPER), torch.full((1, 1, 1, 1), 5.0)
    black, white = to_float(torch.tensor([0, 255], dtype=torch.uint8)).reshape(2, 1, 1, 1, 1)
    assert decoder_nll(d, white, far).item() == pytest.approx(0, abs=1e-12)
    assert decoder_nll(d, black, -far).item() == pytest.approx(0, abs=1e-12)
    # Their neighbours' bins are closed.
    for inner in (1, 254):
        x = to_float(torch.tensor(inner, dtype=torch.uint8)).reshape(1, 1, 1, 1)
        assert decoder_nll(d, x, far * x.sign()).item() == pytest.approx(-math.log(1e-12))


@pytest.mark.parametrize("seed", SEEDS)
def test_black_and_white_are_each_others_mirror(seed: int) -> None:
    d, x_0 = Diffusion(SHORT), pixels(seed, 3, 1, 8, 8)
    x_0_hat = x_0 + 0.1 * normal(seed, 3, 1, 8, 8)
    torch.testing.assert_close(decoder_nll(d, x_0, x_0_hat), decoder_nll(d, -x_0, -x_0_hat), rtol=1e-9, atol=0)


def test_a_pixel_never_costs_more_than_the_floor() -> None:
    x_0 = torch.full((2, 3, 4, 4), 0.5)
    nll = decoder_nll(Diffusion(PAPER), x_0, -x_0)
    assert nll.tolist() == pytest.approx([-48 * math.log(1e-12)] * 2)


def test_decoder_is_float64_and_float32_images_lose_little() -> None:
    x_0 = pixels(6, 4, 3, 8, 8)
    x_0_hat = x_0 + 0.01 * normal(6, 4, 3, 8, 8)
    exact, rounded = (decoder_nll(Diffusion(PAPER), x_0.to(t), x_0_hat.to(t)) for t in (torch.float64, torch.float32))
    assert exact.dtype == rounded.dtype == torch.float64
    # x_0 - x_0_hat is off by 1e-7, of sigma_1 = 0.0074.
    torch.testing.assert_close(rounded, exact, rtol=1e-4, atol=0)


@VARIANCE
def test_both_variances_decode_with_beta_tilde_2(variance: str) -> None:
    x_0, edge = torch.zeros(1, 1, 1, 1, dtype=torch.float64), 1 / 255 / math.sqrt(PAPER.beta_tilde[2])
    cube = edge + 0.044715 * edge**3
    expected = -math.log(math.tanh(math.sqrt(2 / math.pi) * cube))
    assert decoder_nll(Diffusion(PAPER, variance=variance), x_0, x_0).item() == pytest.approx(expected, rel=1e-12)


# --- the whole bound --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@CLIPPED
@VARIANCE
@pytest.mark.parametrize("name", ["linear", "short", "cosine"])
def test_the_bound_is_that_of_the_papers_code(name: str, variance: str, clip: bool, dtype: torch.dtype) -> None:
    schedule = SCHEDULES[name]
    T = schedule.T
    x_0, eps = pixels(7, 2, 3, 4, 4), normal(7, T, 2, 3, 4, 4)
    theirs = paper_code.bound(
        schedule.beta[1:],
        lambda x, i: 0.9 * x + 0.2 * np.sin(3 * x + i),
        x_0.numpy(),
        eps.numpy(),
        large=variance == "fixed-large",
        clip=clip,
    )
    prior = bits_per_dim(prior_kl(Diffusion(schedule), x_0.to(dtype)), 48).double()
    torch.testing.assert_close(prior, torch.from_numpy(theirs.prior), rtol=1e-6, atol=1e-15)

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        return 0.9 * x_t + 0.2 * torch.sin(3 * x_t + (t - 1).reshape(-1, 1, 1, 1))

    d = Diffusion(schedule, variance=variance, clip=clip)
    t = np.arange(1, T + 1)
    for image in range(2):
        x, noise = x_0[image].expand(T, -1, -1, -1).to(dtype), eps[:, image].to(dtype)
        x_0_hat = p_theta(d, network, q_sample(schedule, x, t, noise), t).x_0_hat
        nats = reverse_kl(d, x, x_0_hat, t).double()
        nats[0] = decoder_nll(d, x[:1], x_0_hat[:1])
        bits, expected = bits_per_dim(nats, 48), torch.from_numpy(theirs.terms[image])
        torch.testing.assert_close(bits, expected, rtol=RTOL[dtype], atol=1e-12)
        torch.testing.assert_close(bits.sum(), expected.sum(), rtol=RTOL[dtype] / 10, atol=0)
        mse = (x - x_0_hat).square().flatten(1).mean(1).double()
        torch.testing.assert_close(mse, torch.from_numpy(theirs.mse[image]), rtol=RTOL[dtype], atol=1e-12)


# --- closed forms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pixel", "variance", "total"),
    [
        (128, "fixed-small", 1.305665),
        (128, "fixed-large", 1.792084),
        (127, "fixed-small", 1.305665),
        (0, "fixed-small", 0.509937),
        (0, "fixed-large", 0.996356),
        (255, "fixed-small", 0.509937),
        (255, "fixed-large", 0.996356),
    ],
)
@pytest.mark.parametrize("predict", PREDICTIONS)
def test_a_constant_image_and_a_network_that_knows_it(predict: str, pixel: int, variance: str, total: float) -> None:
    d = Diffusion(PAPER, predict, variance)
    x_0 = to_float(torch.full((1, 1, 8, 8), pixel, dtype=torch.uint8))

    def perfect(x_t: Tensor, t: Tensor) -> Tensor:
        answer: Tensor = FROM_X_0[predict](PAPER, x_0.double(), x_t, t.numpy())
        return answer

    bits = bits_per_dim(prior_kl(d, x_0), 64) + kl_terms(d, perfect, x_0.double(), normal(0, 1, 1, 8, 8))
    bits += bits_per_dim(decoder_nll(d, x_0, x_0), 64)
    assert bits.item() == pytest.approx(total, abs=6e-7)


@pytest.mark.parametrize(("variance", "total"), [("fixed-small", 14.672920), ("fixed-large", 13.991483)])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_network_that_returns_0_not_clipped(seed: int, variance: str, total: float) -> None:
    # x_0_hat - x_0 is then eps sqrt(1 - alpha_bar) / sqrt(alpha_bar) whatever x_0 is, so the sum of L_{t-1} over
    # t = 2..T is a constant plus a multiple of the mean of eps^2: exactly the expectation if every eps is -1 or 1.
    x_0 = pixels(seed, 2, 1, 4, 4)
    bits = kl_terms(Diffusion(PAPER, variance=variance, clip=False), zero, x_0, normal(seed, 2, 1, 4, 4).sign())
    np.testing.assert_allclose(bits.numpy(), total, atol=6e-7)


@pytest.mark.parametrize(("variance", "total"), [("fixed-small", 10.030913), ("fixed-large", 9.355567)])
def test_a_network_that_returns_0_clipped_on_grey(variance: str, total: float) -> None:
    assert sum(expected_bound(Diffusion(PAPER, variance=variance), zero, GREY)) == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_standard_normal_data_and_the_best_network_cost_their_information(name: str) -> None:
    # For x_0 ~ N(0, I) the best x_0_hat is sqrt(alpha_bar_t) x_t, and fixed-large is then the true variance of
    # q(x_{t-1} | x_t): every L_{t-1} is the information that x_{t-1} has about x_0 beyond x_t,
    # log((1 - alpha_bar_t) / (1 - alpha_bar_{t-1})) / 2 nats. With L_T they add up to I(x_0; x_1) = -log(beta_1) / 2.
    s = SCHEDULES[name]
    d = Diffusion(s, "x0", "fixed-large", clip=False)
    t, x_0 = every_step(s, MOMENTS_X_0, 2)
    x_t = q_sample(s, x_0, t, every_step(s, MOMENTS_EPS, 2)[1])
    x_0_hat = torch.from_numpy(np.sqrt(s.alpha_bar[t])).reshape(-1, 1, 1, 1) * x_t
    terms = reverse_kl(d, x_0, x_0_hat, t).reshape(-1, 4).mean(1)
    steps = np.log((1 - s.alpha_bar[2:]) / (1 - s.alpha_bar[1:-1])) / 2
    np.testing.assert_allclose(terms.numpy(), steps, rtol=1e-8)
    total = prior_kl(d, MOMENTS_X_0).mean() + terms.sum()
    assert total.item() == pytest.approx(-math.log(s.beta[1]) / 2, rel=1e-9)


@VARIANCE
@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0, 1.7])
def test_gaussian_data_and_the_best_network(spread: float, variance: str) -> None:
    # For x_0 ~ N(0, s^2) the squared error of E[x_0 | x_t] is the variance s^2 (1 - ab) / (ab s^2 + 1 - ab).
    d = Diffusion(PAPER, "x0", variance, clip=False)
    ab, ab_before, beta = PAPER.alpha_bar[2:], PAPER.alpha_bar[1:-1], PAPER.beta[2:]
    error = spread**2 * (1 - ab) / (ab * spread**2 + 1 - ab)
    posterior = (1 - ab_before) / (1 - ab) * beta
    sigma2 = beta if variance == "fixed-large" else posterior
    expected = (posterior / sigma2 - 1 - np.log(posterior / sigma2)) / 2
    expected += ab_before * beta**2 / (1 - ab) ** 2 * error / (2 * sigma2)

    t, x_0 = every_step(PAPER, spread * MOMENTS_X_0, 2)
    x_t = q_sample(PAPER, x_0, t, every_step(PAPER, MOMENTS_EPS, 2)[1])
    gain = np.sqrt(ab) * spread**2 / (ab * spread**2 + 1 - ab)
    terms = reverse_kl(d, x_0, torch.from_numpy(gain).repeat_interleave(4).reshape(-1, 1, 1, 1) * x_t, t)
    np.testing.assert_allclose(terms.reshape(-1, 4).mean(1).numpy(), expected, rtol=1e-8, atol=1e-15)


def test_more_steps_bring_the_bound_down_to_the_information_in_the_data() -> None:
    # Black or white with equal chance is 1 bit, and x_1 tells which. The best network's bound is never below it, and
    # nears it as the steps become small.
    def rate(T: int) -> float:
        s = linear(T, 0.1 / T, 20 / T)
        d = Diffusion(s, "x0", "fixed-small")

        def best(x_t: Tensor, t: Tensor) -> Tensor:
            slope = torch.from_numpy(np.sqrt(s.alpha_bar[1:]) / (1 - s.alpha_bar[1:]))
            return torch.tanh(slope[t - 1].reshape(-1, 1, 1, 1) * x_t)

        prior, reverse, _ = expected_bound(d, best, 1.0)
        return prior + reverse

    rates = [rate(T) for T in (50, 100, 200, 400, 800)]
    assert all(few > many > 1 for few, many in pairwise(rates))
    assert rates[-1] < 1.01


# --- units and the loss that trains -----------------------------------------------------------------------------------


def test_256_equally_likely_values_are_eight_bits() -> None:
    nats = torch.tensor([12 * math.log(256), 0.0], dtype=torch.float64)
    assert bits_per_dim(nats, 12).tolist() == pytest.approx([8, 0])


def test_l_simple_is_the_mean_square_of_every_images_error() -> None:
    for predict in PREDICTIONS:
        for seed in SEEDS:
            x_0, eps, t = pixels(seed, 4, 3, 2, 5), normal(seed, 4, 3, 2, 5), np.array([1, 20, 7, 7])

            def network(x_t: Tensor, t: Tensor) -> Tensor:
                return torch.sin(x_t * t.reshape(-1, 1, 1, 1))

            losses = l_simple(Diffusion(SHORT, predict), network, x_0, t, eps)
            assert losses.shape == (4,)
            for image, step in enumerate(t.tolist()):
                signal, noise = math.sqrt(SHORT.alpha_bar[step]), math.sqrt(1 - SHORT.alpha_bar[step])
                squares = []
                for x, e in zip(x_0[image].flatten().tolist(), eps[image].flatten().tolist(), strict=True):
                    target = {"eps": e, "x0": x, "v": signal * e - noise * x}.get(predict)
                    if target is None:  # mu, Eq. 7
                        before, beta = SHORT.alpha_bar[step - 1], SHORT.beta[step]
                        target = math.sqrt(before) * beta / (1 - SHORT.alpha_bar[step]) * x
                        target += math.sqrt(1 - beta) * (1 - before) / noise**2 * (signal * x + noise * e)
                    squares.append((math.sin((signal * x + noise * e) * step) - target) ** 2)
                assert losses[image].item() == pytest.approx(sum(squares) / 30, rel=1e-9)


def learned(x: Tensor, t: Tensor) -> Tensor:
    """A network with something to say about the variance."""
    wave = torch.sin(3 * x + t.reshape(-1, 1, 1, 1))
    return torch.cat([0.9 * x + 0.2 * wave, 0.8 * wave.flip(1)], 1)


def out_of(outputs: Tensor) -> Network:
    return lambda x, t: outputs


def test_t_times_the_mean_of_l_vlb_is_the_bound_without_its_prior() -> None:
    for predict in PREDICTIONS:
        for variance in ["fixed-small", "fixed-large", "learned-range"]:
            d, network = Diffusion(SHORT, predict, variance), learned if variance == "learned-range" else unlearned
            x_0, eps, t = pixels(9, 1, 3, 4, 4).expand(20, -1, -1, -1), normal(9, 20, 3, 4, 4), np.arange(1, 21)
            p = p_theta(d.unclipped, network, q_sample(SHORT, x_0, t, eps), t)
            nats = bound.reverse_kl(d, x_0, p, t)[1:].sum()
            nats += bound.decoder_nll(x_0[:1], Reverse(p.x_0_hat[:1], torch.as_tensor(p.sigma2)[:1])).sum()
            losses = bound.l_vlb(d, network, x_0, t, eps)
            assert 20 * losses.mean().item() == pytest.approx(bits_per_dim(nats, 48).item(), rel=1e-12)


def unlearned(x: Tensor, t: Tensor) -> Tensor:
    return learned(x, t)[:, : x.shape[1]]


def test_l_hybrid_trains_the_prediction_by_l_simple_and_the_variance_by_l_vlb() -> None:
    d, x_0, eps = Diffusion(SHORT, variance="learned-range"), pixels(10, 4, 3, 4, 4), normal(10, 4, 3, 4, 4)
    t = np.array([1, 2, 9, 20])
    gradients = {}
    for name, loss in bound.OBJECTIVES.items():
        outputs = normal(11, 4, 6, 4, 4).requires_grad_()
        value = loss(d, out_of(outputs), x_0, t, eps)
        (gradients[name],) = torch.autograd.grad(value.sum(), outputs)
        gradients[f"value of {name}"] = value.detach()
    simple, vlb, hybrid = (gradients[name] for name in ("simple", "vlb", "hybrid"))
    torch.testing.assert_close(hybrid[:, :3], simple[:, :3])
    torch.testing.assert_close(hybrid[:, 3:], 0.001 * 20 * vlb[:, 3:])
    assert (simple[:, 3:] == 0).all()
    assert (vlb != 0).flatten(1).any(1).all()
    total = gradients["value of simple"] + 0.001 * 20 * gradients["value of vlb"]
    torch.testing.assert_close(gradients["value of hybrid"], total)


@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("variance", ["fixed-large", "learned", "learned-range"])
def test_the_gradient_of_l_vlb_is_that_of_its_values(variance: str, predict: str) -> None:
    d, x_0, eps = Diffusion(SHORT, predict, variance), pixels(12, 3, 1, 2, 2), normal(12, 3, 1, 2, 2)
    t, channels = np.array([1, 5, 20]), 1 + (variance != "fixed-large")
    target = FROM_X_0[predict](SHORT, x_0, q_sample(SHORT, x_0, t, eps), t)
    spread = 0.01 * normal(13, 3, 1, 2, 2) if variance == "learned-range" else 0.1 * normal(13, 3, 1, 2, 2) - 3
    outputs = torch.cat([target + 0.05 * normal(14, 3, 1, 2, 2), spread], 1)[:, :channels].requires_grad_()
    assert torch.autograd.gradcheck(lambda o: bound.l_vlb(d, out_of(o), x_0, t, eps), (outputs,))


def test_the_reverse_terms_of_a_learned_variance_are_kls_too() -> None:
    for d in (Diffusion(SHORT, variance="learned"), Diffusion(SHORT, variance="learned-range")):
        t, x_0, x_t = np.arange(2, 21), pixels(15, 19, 2, 4, 4), normal(15, 19, 2, 4, 4)
        p = p_theta(d, learned, x_t, t)
        mean, sigma = p_mean(d, p.x_0_hat, x_t, t), torch.as_tensor(p.sigma2).sqrt()
        width = torch.from_numpy(np.sqrt(SHORT.beta_tilde[t])).reshape(-1, 1, 1, 1)
        q = Normal(q_posterior_mean(SHORT, x_0, x_t, t), width.expand(x_0.shape))
        expected = kl_divergence(q, Normal(mean, sigma)).flatten(1).sum(1)
        torch.testing.assert_close(bound.reverse_kl(d, x_0, p, t), expected, rtol=1e-8, atol=1e-12)


def test_a_learned_range_at_its_ends_costs_what_the_fixed_variances_cost() -> None:
    x_0, x_t, t = pixels(16, 19, 2, 4, 4), normal(16, 19, 2, 4, 4), np.arange(2, 21)
    for v, variance in ((-1.0, "fixed-small"), (1.0, "fixed-large")):

        def network(x: Tensor, t: Tensor, v: float = v) -> Tensor:
            return torch.cat([unlearned(x, t), torch.full_like(x, v)], 1)

        d, fixed = Diffusion(SHORT, variance="learned-range"), Diffusion(SHORT, variance=variance)
        ours = bound.reverse_kl(d, x_0, p_theta(d, network, x_t, t), t)
        theirs = bound.reverse_kl(fixed, x_0, p_theta(fixed, unlearned, x_t, t), t)
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_l_simple_of_a_network_that_returns_0_is_the_noise_itself() -> None:
    x_0, eps = pixels(8, 3, 1, 4, 4), normal(8, 3, 1, 4, 4)
    losses = l_simple(Diffusion(PAPER), zero, x_0, np.array([1, 500, 1000]), eps)
    torch.testing.assert_close(losses, eps.square().flatten(1).mean(1))


def zero(x_t: Tensor, t: Tensor) -> Tensor:
    return torch.zeros_like(x_t)
