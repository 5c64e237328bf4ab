"""The bound of a data set: the paper's code with the same noise, closed forms, and nothing that batches change."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm_cli.config import FIXED_VARIANCES
from ddpm_cli.core import rng
from ddpm_cli.core.distributed import World
from ddpm_cli.data import Images
from ddpm_cli.diffusion.process import Diffusion, q_sample
from ddpm_cli.diffusion.schedule import linear
from ddpm_cli.errors import ArgumentError, InputError
from ddpm_cli.evaluation.bits_per_dim import Bound, Floats, Pairs, PartialBound, Protocol, prior
from ddpm_cli.evaluation.bits_per_dim import measure as run
from ddpm_cli.network.denoiser import NetworkDenoiser
from helpers import paper_code
from helpers.models import random_unet, tiny

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


class Recorder(PartialBound):
    """A tally that remembers what was added to it."""

    def __init__(self, protocol: Protocol) -> None:
        super().__init__(protocol)
        self.added: list[tuple[Pairs, Floats, Floats]] = []

    def add(self, block: int, pairs: Pairs, bits: Floats, mse: Floats) -> None:
        super().add(block, pairs, bits, mse)
        self.added.append((pairs, bits, mse))


def table(
    denoiser: Network, d: Diffusion, images: Images, n: int, *, seed: int = 0, batch_size: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """The terms, bits/dim, and the squared errors of the first n images, both (n, T); every pair once, in order."""
    tally = Recorder(Protocol(n, d.schedule.T, seed=seed))
    amounts = list(run(denoiser, d, images, tally, batch_size=batch_size, device=CPU))
    T = d.schedule.T
    assert sum(amounts) == n * T
    assert max(amounts) <= batch_size
    assert tally.missing == 0
    pairs, bits, mse = zip(*tally.added, strict=True)
    assert np.concatenate([pair.image for pair in pairs]).tolist() == np.arange(n).repeat(T).tolist()
    assert np.concatenate([pair.t for pair in pairs]).tolist() == list(range(1, T + 1)) * n
    assert all((pair.weight == 1).all() for pair in pairs)
    return np.concatenate(bits).reshape(n, T), np.concatenate(mse).reshape(n, T)


def summed(prior_bits: Floats, bits: Floats, mse: Floats) -> Bound:
    """What a tally makes of the tables (n, T)."""
    n, T = bits.shape
    tally = PartialBound(Protocol(n, T))
    for index, block in enumerate(tally.blocks):
        image, t = np.divmod(np.arange(block.start * T, block.stop * T), T)
        tally.add(index, Pairs(image, t + 1, np.ones(len(t))), bits[image, t], mse[image, t])
    return tally.bound(prior_bits)


def measure(
    denoiser: Network,
    d: Diffusion,
    images: Images,
    seed: int = 0,
    batch_size: int = 500,
    terms: int | None = None,
) -> Bound:
    tally = PartialBound(Protocol(len(images), d.schedule.T, terms, seed))
    assert sum(run(denoiser, d, images, tally, batch_size=batch_size, device=CPU)) == len(images) * (
        terms or d.schedule.T
    )
    return tally.bound(prior(d, images, len(images)))


# --- which noise, which pairs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 20, 64])
def test_noise_belongs_to_the_image_and_t(batch_size: int) -> None:
    images, seen = random_images(3), []

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        seen.append(x_t)
        return zero(x_t, t)

    list(run(network, D, images, PartialBound(Protocol(3, 20, seed=11)), batch_size=batch_size, device=CPU))
    x_t = torch.cat(seen).reshape(3, 20, 3, 4, 6)
    t = np.arange(1, 21)
    for i in range(3):
        noise = np.stack([rng.normal((3, 4, 6), 11, "bound", i, int(step)) for step in t])
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
    denoiser = NetworkDenoiser(random_unet(tiny(), 3), "fp32")
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

    for _ in run(network, D, random_images(2), PartialBound(Protocol(2, 20)), batch_size=16, device=CPU):
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()


# --- the numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [True, False], ids=["clipped", "free"])
@VARIANCE
@pytest.mark.parametrize("name", ["paper", "short"])
def test_the_bound_is_that_of_the_papers_code_with_the_same_noise(name: str, variance: str, clip: bool) -> None:
    d = Diffusion({"paper": PAPER, "short": SHORT}[name], variance=variance, clip=clip)
    T, images = d.schedule.T, random_images(3, seed=4)
    eps = np.stack([[rng.normal((3, 4, 6), 5, "bound", i, t) for i in range(3)] for t in range(1, T + 1)])
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


@pytest.mark.parametrize(("variance", "total"), [("fixed-small", 10.030913), ("fixed-large", 9.355567)])
@pytest.mark.parametrize("terms", [None, 60])
def test_a_network_that_returns_0_clipped_on_grey_within_its_standard_error(
    terms: int | None, variance: str, total: float
) -> None:
    # The expectation by quadrature is in test_bound; here it is measured, from noise.
    images = Images.from_array(np.full((100, 4, 4, 1), 128, np.uint8))
    bound = measure(zero, Diffusion(PAPER, variance=variance), images, 1, 4096, terms)
    assert bound.stderr is not None
    assert bound.stderr < 0.08
    assert abs(bound.bits_per_dim - total) <= SIGMAS * bound.stderr


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


# --- estimates --------------------------------------------------------------------------------------------------------


def gaussian_best(d: Diffusion, spread: float) -> Network:
    """What the best network says of x_0 ~ N(0, spread^2)."""

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        ab = torch.from_numpy(d.schedule.alpha_bar)[t].reshape(-1, 1, 1, 1).float()
        return ab.sqrt() * spread**2 / (ab * spread**2 + 1 - ab) * x_t

    return network


def gaussian_images(n: int, seed: int, spread: float = 0.3) -> Images:
    """Images of 2x2 whose pixels are Gaussian, each image with a contrast of its own."""
    random = np.random.default_rng(seed)
    values = spread * random.standard_normal((n, 2, 2, 1)) * random.uniform(0.5, 1.5, (n, 1, 1, 1))
    return Images.from_array(np.clip(np.rint((values + 1) * 127.5), 0, 255).astype(np.uint8))


@pytest.mark.parametrize("terms", [1, 2, 7, 19, 20])
def test_an_image_has_so_many_different_terms_each_by_its_chance(terms: int) -> None:
    n = 3000
    tally = Recorder(Protocol(n, 20, terms))
    list(run(each_pixel, D, random_images(n, shape=(1, 1, 1)), tally, batch_size=4096, device=CPU))
    drawn = np.concatenate([pairs.t for pairs, *_ in tally.added]).reshape(n, terms)
    assert (np.diff(drawn, axis=1) > 0).all()
    assert drawn.min() >= 1
    assert drawn.max() <= 20
    first = sum(map(len, tally.rounds[-2]))  # a round of many, whose chances are all the same
    last = slice(n - sum(map(len, tally.rounds[-1])) - first, n - sum(map(len, tally.rounds[-1])))
    chances = tally.chances(len(tally.rounds) - 2)
    assert chances.sum() == pytest.approx(terms, abs=1e-8)
    assert ((chances > 0) & (chances <= 1)).all()
    shares = np.bincount(drawn[last].ravel(), minlength=21)[1:] / first
    assert (np.abs(shares - chances) <= SIGMAS * np.sqrt(chances * (1 - chances) / first) + 1e-9).all()
    weights = np.concatenate([pairs.weight for pairs, *_ in tally.added]).reshape(n, terms)
    np.testing.assert_allclose(weights[last], 1 / chances[drawn[last] - 1])


def test_an_estimate_from_all_terms_is_the_bound_itself() -> None:
    images = random_images(20)
    ours, exact = measure(each_pixel, D, images, terms=20), measure(each_pixel, D, images)
    np.testing.assert_allclose(ours.per_image, exact.per_image, rtol=1e-6)
    np.testing.assert_allclose(ours.terms, exact.terms, rtol=1e-6)


@pytest.mark.parametrize("terms", [1, 3, 10])
def test_the_parts_of_an_estimate_add_up(terms: int) -> None:
    bound = measure(each_pixel, D, random_images(30), terms=terms)
    assert bound.bits_per_dim == pytest.approx(bound.prior + bound.rate + bound.decoder, rel=1e-12)
    assert bound.evaluations == 30 * terms


@pytest.mark.parametrize("terms", [1, 4])
def test_an_estimate_is_right_on_average(terms: int) -> None:
    # The same images with 300 seeds: the terms' noise and choice are all that differs.
    images, d = gaussian_images(40, 1), Diffusion(SHORT, "x0", "fixed-small")
    network = gaussian_best(d, 0.3)
    exact = np.array([measure(network, d, images, seed, 4096).bits_per_dim for seed in range(100)])
    estimates = np.array([measure(network, d, images, seed, 4096, terms).bits_per_dim for seed in range(300)])
    error = estimates.mean() - exact.mean()
    assert abs(error) <= SIGMAS * math.hypot(exact.std() / 10, estimates.std(ddof=1) / math.sqrt(300))


@pytest.mark.parametrize("terms", [1, 4])
def test_the_standard_error_of_an_estimate_covers_the_truth(terms: int) -> None:
    # 300 data sets of one kind. The truth is the mean over very many images, with every term.
    d = Diffusion(SHORT, "x0", "fixed-small")
    network, n, repeats = gaussian_best(d, 0.3), 64, 300
    truth = measure(network, d, gaussian_images(20_000, 10_000), 0, 8192)
    errors = []
    for repeat in range(repeats):
        bound = measure(network, d, gaussian_images(n, repeat), repeat, 4096, terms)
        assert bound.stderr is not None
        errors.append((bound.bits_per_dim - truth.bits_per_dim) / bound.stderr)
    covered = np.mean(np.abs(errors) <= 1.96)
    assert abs(covered - 0.95) <= SIGMAS * math.sqrt(0.95 * 0.05 / repeats)
    assert abs(np.mean(errors)) <= SIGMAS / math.sqrt(repeats) * 1.2


def test_what_was_learned_makes_estimates_better() -> None:
    # Against 20 terms that are drawn evenly, which all have the same chance. Beside both, every term.
    d, n, terms = Diffusion(PAPER, "x0", "fixed-small"), 256, 20
    images, network = gaussian_images(n, 2), gaussian_best(d, 0.3)
    first = prior(d, images, n)
    bits, _ = table(network, d, images, n, batch_size=8192)
    exact = first + bits.sum(1)
    starts = np.random.default_rng(3).integers(0, 50, n)
    even = first + 50 * np.stack([row[start::50].sum() for row, start in zip(bits, starts, strict=True)])
    ours = measure(network, d, images, 0, 8192, terms).per_image
    late = slice(64, None)
    assert (ours - exact)[late].std() < 0.25 * (even - exact)[late].std()


def test_terms_are_learned_in_rounds_that_double() -> None:
    protocol = Protocol(1000, 100, 10)
    ends = np.cumsum([sum(map(len, blocks)) for blocks in protocol.rounds()])
    assert ends.tolist() == [8, 16, 32, 64, 128, 256, 512, 1000]
    images = [image for blocks in protocol.rounds() for block in blocks for image in block]
    assert images == list(range(1000))
    assert len(Protocol(10**6, 1000).rounds()[0]) <= 128


@pytest.mark.parametrize("terms", [0, -1, 21, 10**9, 2.5, True, "all"])
def test_how_many_terms_there_cannot_be(terms: Any) -> None:
    with pytest.raises(ArgumentError, match=rf"terms is {terms!r}; this model has 20 terms"):
        Protocol(3, 20, terms)


# --- stopping and sharing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("terms", [None, 3])
@pytest.mark.parametrize("stop", [1, 5, 11])
def test_a_tally_goes_on_where_it_was_stopped_bit_for_bit(stop: int, terms: int | None) -> None:
    images, protocol = random_images(100, shape=(2, 2, 1)), Protocol(100, 20, terms)
    whole, parts = PartialBound(protocol), PartialBound(protocol)
    list(run(each_pixel, D, images, whole, batch_size=16, device=CPU))
    work = run(each_pixel, D, images, parts, batch_size=16, device=CPU)
    done = sum(next(work) for _ in range(stop))
    assert parts.missing == 100 * protocol.per_image - done > 0
    list(run(each_pixel, D, images, parts, batch_size=16, device=CPU))
    for name in ("done", "per_image", "sums"):
        assert (getattr(parts, name) == getattr(whole, name)).all()


class Torn(Exception):  # noqa: N818
    pass


def test_an_interrupt_in_the_middle_of_a_sum_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = Pairs(np.array([0, 0, 1]), np.array([1, 2, 1]), np.ones(3))
    add = np.add
    for last in (0, 1):
        tally, calls = PartialBound(Protocol(2, 2)), iter(range(9))

        def torn(*args: Any, calls: Iterator[int] = calls, last: int = last) -> None:
            if next(calls) == last:
                raise Torn
            add.at(*args)

        monkeypatch.setattr(np, "add", SimpleNamespace(at=torn))
        with pytest.raises(Torn):
            tally.add(0, pairs, np.ones(3), np.ones(3))
        monkeypatch.undo()
        assert not tally.settled


def test_a_share_that_fails_changes_nothing() -> None:
    class Lost(World):
        calls = 0

        def all_reduce(self, array: np.ndarray) -> np.ndarray:
            Lost.calls += 1
            if Lost.calls == 3:
                raise Torn
            return array

    images, protocol = random_images(700, shape=(1, 1, 1)), Protocol(700, 20)
    tally = PartialBound(protocol)
    before: dict[str, np.ndarray] = {}

    def work() -> None:
        for _ in run(each_pixel, D, images, tally, batch_size=512, device=CPU, world=Lost(0, 2)):
            before.update({name: getattr(tally, name).copy() for name in ("done", "per_image", "sums")})

    with pytest.raises(Torn):
        work()
    assert tally.settled
    assert tally.missing == sum(len(block) for block in tally.blocks[1::2]) * 20
    for name, array in before.items():
        assert (getattr(tally, name) == array).all()


def test_terms_that_are_all_0_can_be_estimated() -> None:
    # White images and a network that knows them: only the decoder costs something, and its term is not always drawn.
    images = Images.from_array(np.full((30, 1, 1, 1), 255, np.uint8))
    d = Diffusion(PAPER, "x0", "fixed-small")
    for seed in range(10):
        bound = measure(lambda x, t: torch.ones_like(x), d, images, seed, 512, 1)
        assert math.isfinite(bound.bits_per_dim)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_term_that_is_not_finite_is_named(value: float) -> None:
    def network(x_t: Tensor, t: Tensor) -> Tensor:
        return torch.where(t.reshape(-1, 1, 1, 1) == 13, value, x_t)

    with pytest.raises(InputError, match="the term of image 0 at t = 13 is not finite"):
        measure(network, Diffusion(SHORT, clip=False), random_images(3))


def test_of_two_tallies_the_fuller_blocks_are_taken() -> None:
    images, protocol = random_images(700, shape=(1, 1, 1)), Protocol(700, 20)
    whole, first, second = PartialBound(protocol), PartialBound(protocol), PartialBound(protocol)
    list(run(each_pixel, D, images, whole, batch_size=512, device=CPU))
    assert len(whole.blocks) == 4
    for tally, others in ((first, (0, 2)), (second, (1, 3))):
        for block in others:
            images_of = slice(whole.blocks[block].start, whole.blocks[block].stop)
            tally.done[block], tally.sums[block] = whole.done[block], whole.sums[block]
            tally.per_image[images_of] = whole.per_image[images_of]
    first.take(second)
    assert first.missing == 0
    for name in ("done", "per_image", "sums"):
        assert (getattr(first, name) == getattr(whole, name)).all()


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
    roots = np.sqrt(mse)
    assert bound.mean_rmse.tolist() == pytest.approx([127.5 * statistics.fmean(roots[:, t]) for t in range(4)])
    assert bound.rates.tolist() == pytest.approx([bound.prior + math.fsum(bound.terms[t:]) for t in range(1, 5)])


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
