"""The bound of a data set: the paper's code with the same noise, closed forms, and nothing that batches change."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import paper_code
from ddpm_cli import rng
from ddpm_cli.config import FIXED_VARIANCES
from ddpm_cli.data import Images
from ddpm_cli.denoiser import Denoiser
from ddpm_cli.diffusion.process import Diffusion, q_sample
from ddpm_cli.diffusion.schedule import linear
from ddpm_cli.evaluate import Bound, Floats, Terms, gather, prior, terms
from models import random_unet, tiny

SEEDS = [0, 1, 20201123]
SIGMAS = 5  # a test of a statistic fails for one seed in two million
CPU = torch.device("cpu")
PAPER = linear()
SHORT = linear(20, 0.01, 0.3)
D = Diffusion(SHORT)
VARIANCE = pytest.mark.parametrize("variance", FIXED_VARIANCES)

Network = Callable[[Tensor, Tensor], Tensor]


def random_images(n: int, seed: int = 0, shape: tuple[int, int, int] = (4, 6, 3)) -> Images:
    return Images.from_array(np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8))


def each_pixel(x_t: Tensor, t: Tensor) -> Tensor:
    return 0.9 * x_t + 0.2 * torch.sin(3 * x_t + t.reshape(-1, 1, 1, 1))


def zero(x_t: Tensor, t: Tensor) -> Tensor:
    return torch.zeros_like(x_t)


def table(
    denoiser: Network, d: Diffusion, images: Images, n: int, *, seed: int = 0, batch_size: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """The terms, bits/dim, and the squared errors of the first n images, both (n, T); every pair once, in order."""
    parts = list(terms(denoiser, d, images, n, seed, batch_size, CPU))
    image, t = (np.concatenate([getattr(part, name) for part in parts]) for name in ("image", "t"))
    T = d.schedule.T
    assert image.tolist() == np.arange(n).repeat(T).tolist()
    assert t.tolist() == list(range(1, T + 1)) * n
    assert all(len(part.t) == batch_size for part in parts[:-1])
    assert 1 <= len(parts[-1].t) <= batch_size
    return tuple(np.concatenate([getattr(part, name) for part in parts]).reshape(n, T) for name in ("bits", "mse"))


def summed(prior_bits: Floats, bits: Floats, mse: Floats) -> Bound:
    """What `gather` makes of the tables (n, T), in two portions."""
    n, T = bits.shape
    image, t = np.divmod(np.arange(n * T), T)
    whole = Terms(image, t + 1, bits.reshape(-1), mse.reshape(-1))
    cuts = (slice(0, n * T // 3), slice(n * T // 3, None))
    portions = (Terms(whole.image[c], whole.t[c], whole.bits[c], whole.mse[c]) for c in cuts)
    return gather(portions, prior_bits, T)


def measure(denoiser: Network, d: Diffusion, images: Images, seed: int = 0, batch_size: int = 500) -> Bound:
    n = len(images)
    return summed(prior(d, images, n), *table(denoiser, d, images, n, seed=seed, batch_size=batch_size))


# --- which noise, which pairs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 20, 64])
def test_noise_of_an_image_is_one_stream_over_t(batch_size: int) -> None:
    images, seen = random_images(3), []

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        seen.append(x_t)
        return zero(x_t, t)

    list(terms(network, D, images, 3, 11, batch_size, CPU))
    x_t = torch.cat(seen).reshape(3, 20, 3, 4, 6)
    t = np.arange(1, 21)
    for i in range(3):
        noise = rng.generator(11, "bound", i).standard_normal((20, 3, 4, 6), dtype=np.float32)
        x_0 = images.take([i]).transpose(0, 3, 1, 2).repeat(20, 0).astype(np.float32) / np.float32(127.5) - np.float32(
            1
        )
        np.testing.assert_allclose(x_t[i].numpy(), q_sample(SHORT, x_0, t, noise), rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 20, 1000])
def test_terms_do_not_depend_on_the_batch(batch_size: int) -> None:
    images = random_images(5)
    for ours, expected in zip(
        table(each_pixel, D, images, 5, batch_size=batch_size), table(each_pixel, D, images, 5), strict=True
    ):
        np.testing.assert_allclose(ours, expected, rtol=2e-6)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_with_a_network_they_depend_on_it_by_roundings_alone(batch_size: int) -> None:
    denoiser = Denoiser(random_unet(tiny(), 3), "fp32")
    images = random_images(3, shape=(8, 8, 1))
    for ours, expected in zip(
        table(denoiser, D, images, 3, batch_size=batch_size), table(denoiser, D, images, 3), strict=True
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-4)


def test_a_limit_takes_the_first_images_and_changes_nothing_else() -> None:
    images = random_images(5)
    bits, mse = table(each_pixel, D, images, 5)
    first_bits, first_mse = table(each_pixel, D, images, 2)
    np.testing.assert_allclose(first_bits, bits[:2], rtol=2e-6)
    np.testing.assert_allclose(first_mse, mse[:2], rtol=2e-6)
    assert prior(D, images, 2).tolist() == prior(D, images, 5)[:2].tolist()


def test_noise_belongs_to_the_position_and_the_seed() -> None:
    images = random_images(3)
    bits, _ = table(each_pixel, D, images, 3)
    twice = Images.from_array(images.take([0, 0]))
    same, other = table(each_pixel, D, twice, 2)[0]
    np.testing.assert_allclose(same, bits[0], rtol=2e-6)
    assert not np.isclose(other, bits[0], rtol=1e-3).all()
    assert not np.isclose(table(each_pixel, D, images, 3, seed=1)[0], bits, rtol=1e-3).all()


def test_the_network_runs_without_gradients_and_the_caller_keeps_them() -> None:
    def network(x_t: Tensor, t: Tensor) -> Tensor:
        assert torch.is_inference_mode_enabled()
        return each_pixel(x_t, t)

    for _ in terms(network, D, random_images(2), 2, 0, 16, CPU):
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()


# --- the numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [True, False], ids=["clipped", "free"])
@VARIANCE
@pytest.mark.parametrize("name", ["paper", "short"])
def test_the_bound_is_that_of_the_papers_code_with_the_same_noise(name: str, variance: str, clip: bool) -> None:
    d = Diffusion({"paper": PAPER, "short": SHORT}[name], variance=variance, clip=clip)
    T, images = d.schedule.T, random_images(3, seed=4)
    eps = np.stack([rng.generator(5, "bound", i).standard_normal((T, 3, 4, 6), dtype=np.float32) for i in range(3)], 1)
    theirs = paper_code.bound(
        d.schedule.beta[1:],
        lambda x, i: 0.9 * x + 0.2 * np.sin(3 * x + i + 1),
        images.take(range(3)).transpose(0, 3, 1, 2) / 127.5 - 1,
        eps.astype(np.float64),
        large=variance == "fixed-large",
        clip=clip,
    )
    bits, mse = table(each_pixel, d, images, 3, seed=5, batch_size=256)
    # In float32 x_t is off by 1e-7, and x_0_hat by 1 / sqrt(alpha_bar_t) as much: up to 157 times.
    np.testing.assert_allclose(bits, theirs.terms, rtol=1e-4, atol=1e-10)
    np.testing.assert_allclose(mse, theirs.mse, rtol=1e-4, atol=1e-10)
    np.testing.assert_allclose(prior(d, images, 3), theirs.prior, rtol=1e-5)
    ours = summed(prior(d, images, 3), bits, mse)
    np.testing.assert_allclose(ours.per_image, theirs.total, rtol=1e-5)
    assert ours.bits_per_dim == pytest.approx(theirs.total.mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("pixel", "variance", "total"),
    [
        (128, "fixed-small", 1.305665),
        (128, "fixed-large", 1.792084),
        (0, "fixed-small", 0.509937),
        (255, "fixed-large", 0.996356),
    ],
)
def test_constant_images_and_a_network_that_knows_them(pixel: int, variance: str, total: float) -> None:
    images = Images.from_array(np.full((2, 4, 4, 1), pixel, np.uint8))
    value = pixel / 127.5 - 1
    bound = measure(lambda x, t: torch.full_like(x, value), Diffusion(PAPER, "x0", variance), images)
    assert bound.bits_per_dim == pytest.approx(total, abs=2e-6)
    assert bound.stderr == pytest.approx(0, abs=1e-9)
    assert bound.prior == pytest.approx(2.911236e-5 * value**2 + 5.8748e-10, rel=1e-4)
    assert bound.rmse == pytest.approx(np.zeros(1000), abs=1e-4)


@VARIANCE
@pytest.mark.parametrize("seed", SEEDS)
def test_a_network_that_returns_0_costs_what_its_closed_form_says(seed: int, variance: str) -> None:
    # Not clipped, x_0_hat - x_0 is eps sqrt(1 / alpha_bar - 1) for any image, so a term is a constant plus a weight
    # times the mean of eps^2 over D dimensions, which has mean 1 and variance 2 / D. Terms have noise of their own.
    n, dimensions, d = 8, 64, Diffusion(PAPER, variance=variance, clip=False)
    bound = measure(zero, d, random_images(n, seed, (8, 8, 1)), seed)
    t = np.arange(2, 1001)
    ab, beta, sigma2 = PAPER.alpha_bar[t], PAPER.beta[t], d.sigma2[t]
    weights = beta**2 / (2 * sigma2 * (1 - beta) * (1 - ab)) / math.log(2)
    ratio = PAPER.beta_tilde[t] / sigma2
    expected = (weights + (ratio - 1 - np.log(ratio)) / 2 / math.log(2)).sum()
    assert expected == pytest.approx({"fixed-small": 14.672920, "fixed-large": 13.991483}[variance], abs=1e-6)
    stderr = math.sqrt(2 / (n * dimensions) * (weights**2).sum())
    assert abs(bound.rate - expected) <= SIGMAS * stderr, seed
    # The squared errors as well: t by t, with the same standard error of the mean of eps^2.
    scale = 127.5 * np.sqrt(1 / PAPER.alpha_bar[1:] - 1)
    assert (np.abs((bound.rmse / scale) ** 2 - 1) <= 6 * math.sqrt(2 / (n * dimensions))).all(), seed


def test_the_reported_standard_error_covers_the_truth() -> None:
    # 200 data sets of 16 images of the same kind: the mean of all is the truth, nearly; each one's error in its own
    # standard errors has Student's distribution of 15 degrees of freedom, whose standard deviation is sqrt(15 / 13).
    n, repeats, d = 16, 200, Diffusion(SHORT, clip=False)
    images = Images.from_array(np.full((n * repeats, 2, 2, 1), 128, np.uint8))
    bits, mse = table(zero, d, images, n * repeats, batch_size=4096)
    first = prior(d, images, n * repeats)
    truth = (first + bits.sum(1)).mean()
    errors = []
    for start in range(0, n * repeats, n):
        part = slice(start, start + n)
        bound = summed(first[part], bits[part], mse[part])
        assert bound.stderr is not None
        errors.append((bound.bits_per_dim - truth) / bound.stderr)
    expected = math.sqrt(15 / 13)
    # The relative standard error of a standard deviation is sqrt((kurtosis - 1) / 4 n); the kurtosis is 3 + 6 / 11.
    assert abs(np.std(errors) / expected - 1) <= SIGMAS * math.sqrt((2 + 6 / 11) / 4 / repeats)


# --- the prior and the summary ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 1024])
def test_prior_image_by_image(batch_size: int) -> None:
    images = random_images(9)
    x_0 = images.take(range(9)) / 127.5 - 1
    expected = 2.911236e-5 * (x_0**2).mean((1, 2, 3)) + 5.8748e-10
    ours = prior(Diffusion(PAPER), images, 9, batch_size)
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_summary_of_random_numbers(seed: int) -> None:
    random = np.random.default_rng(seed)
    prior_bits, bits, mse = random.random(6), random.random((6, 4)), random.random((6, 4))
    bound = summed(prior_bits, bits, mse)
    totals = [prior_bits[i] + math.fsum(bits[i]) for i in range(6)]
    assert bound.per_image.tolist() == pytest.approx(totals)
    assert bound.bits_per_dim == pytest.approx(statistics.fmean(totals))
    assert bound.bits_per_dim == pytest.approx(bound.prior + bound.rate + bound.decoder)
    assert bound.stderr == pytest.approx(statistics.stdev(totals) / math.sqrt(6))
    assert bound.prior == pytest.approx(statistics.fmean(prior_bits))
    assert bound.decoder == pytest.approx(statistics.fmean(bits[:, 0]))
    assert bound.rate == pytest.approx(math.fsum(bits[:, 1:].flat) / 6)
    assert bound.terms.tolist() == pytest.approx([statistics.fmean(bits[:, t]) for t in range(4)])
    assert bound.rmse.tolist() == pytest.approx([127.5 * math.sqrt(statistics.fmean(mse[:, t])) for t in range(4)])


def test_one_image_has_no_standard_error() -> None:
    bound = measure(each_pixel, D, random_images(1))
    assert bound.stderr is None
    assert bound.per_image.shape == (1,)
    assert bound.bits_per_dim == bound.per_image[0]


def test_a_chain_of_one_step_has_no_rate() -> None:
    bound = measure(each_pixel, Diffusion(linear(1, 0.5)), random_images(2))
    assert bound.rate == 0
    assert bound.terms.shape == (1,)
    assert math.isfinite(bound.bits_per_dim)
