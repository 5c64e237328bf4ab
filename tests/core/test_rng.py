"""Randomness: a pure function of its name, made by exact operations alone, and as random as it claims to be."""

from __future__ import annotations

import hashlib
import math
import os
import struct
import subprocess
import sys
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ddpm_cli
from ddpm_cli.core import rng

SEEDS = [0, 20201123]
SIGMAS = 5  # a test of a statistic fails for one seed in two million
MANY = 10_000_000

names = st.tuples(
    st.integers(0, 2**63 - 1),
    st.text("abcdefghijklmnopqrstuvwxyz-_", min_size=1, max_size=12),
    st.lists(st.integers(0, 2**62), max_size=3).map(tuple),
)


# What rng computes, once more in Python's integers and in floats that are rounded to float32 after each operation. All
# of it is thereby shown to be exact: no fused multiply-add, no logarithm or sine of a library's own.


def philox(counter: tuple[int, ...], key: tuple[int, ...]) -> list[int]:
    """Philox-4x64 with 10 rounds, as Salmon, Moraes, Dror and Shaw (2011) define it."""
    (a, b, c, d), (k, l) = counter, key  # noqa: E741
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
        a, b, c, d = (second >> 64) ^ b ^ k, second % 2**64, (first >> 64) ^ d ^ l, first % 2**64
        k, l = (k + 0x9E3779B97F4A7C15) % 2**64, (l + 0xBB67AE8584CAA73B) % 2**64  # noqa: E741
    return [a, b, c, d]


def words(number: int, seed: int, purpose: str, *index: int) -> list[int]:
    key = struct.unpack("<2Q", hashlib.blake2b(f"{seed},{purpose}".encode(), digest_size=16).digest())
    rest = (*index, *[0] * (3 - len(index)))
    blocks = (philox(((len(index) << 62) + block, *rest), key) for block in count(1))
    return list(islice((word for block in blocks for word in block), number))


def single(x: float) -> float:
    """The float32 nearest to x: a sum, product or root of float32s that is rounded twice is rounded right."""
    return struct.unpack("f", struct.pack("f", x))[0]  # type: ignore[no-any-return]


def polynomial(coefficients: tuple[float, ...], x: float) -> float:
    value = single(coefficients[0])
    for coefficient in coefficients[1:]:
        value = single(single(value * x) + single(coefficient))
    return value


def box_muller(word: int) -> list[float]:
    low, high = struct.unpack("<2i", struct.pack("<Q", word))
    v = single(single(low) + 0.5)
    m, power = math.frexp(abs(v))
    if m < single(2 / 3):
        m, power = 2 * m, power - 1
    f = single(m - 1)
    log = single(single(polynomial(rng._LOG, f) * f) - single(single(rng._LOG_OF_2) * (power - 31)))
    radius = math.copysign(single(math.sqrt(log)), v)
    t = single(single(high) * 2.0**-31)
    square = single(t * t)
    cosine = single(polynomial(rng._COSINE, square) * single(1 - square))
    return [single(radius * cosine), single(radius * single(polynomial(rng._SINE, square) * t))]


def test_philox_is_the_published_one() -> None:
    zero, ones = [0] * 4, [0xFFFFFFFFFFFFFFFF] * 4  # two of the authors' known answers
    assert philox(tuple(zero), (0, 0)) == [
        0x16554D9ECA36314C,
        0xDB20FE9D672D0FDC,
        0xD7E772CEE186176B,
        0x7E68B68AEC7BA23B,
    ]
    assert philox(tuple(ones), (ones[0], ones[0])) == [
        0x87B092C3013FE90B,
        0x438C3C67BE8D0224,
        0x9CC7D7C69CD777B6,
        0xA09CAEBF594F0BA0,
    ]


@given(names, st.integers(0, 30))
def test_every_draw_is_made_of_the_words_of_its_name_by_exact_operations(
    name: tuple[int, str, tuple[int, ...]], size: int
) -> None:
    seed, purpose, index = name
    known = words(64, seed, purpose, *index)
    assert rng.words(size, seed, purpose, *index).tolist() == known[:size]
    assert (
        rng.uniform(size, seed, purpose, *index).tolist() == [word / 2**53 for word in (w >> 11 for w in known)][:size]
    )
    numbers = [z for word in known for z in box_muller(word)]
    assert rng.normal((size,), seed, purpose, *index).tolist() == numbers[:size]
    assert rng.torch_seed(seed, purpose, *index) == known[0] >> 1
    for low, span in [(-3, 1), (0, 2), (1, 1000), (7, 2**62 + 1), (-(2**62), 2**63 - 1)]:
        taken = [word for word in words(150, seed, purpose, *index) if word < 2**64 // span * span]
        drawn = rng.integers(low, low + span, size, seed, purpose, *index)
        assert drawn.dtype == np.int64
        assert drawn.tolist() == [low + word % span for word in taken[:size]]
    bits = max(size - 1, 0).bit_length()
    order = rng.permutation(size, seed, purpose, *index)
    assert order.dtype == np.int64
    assert order.tolist() == sorted(range(size), key=lambda i: (known[i] >> bits, i))


def test_normal_numbers_are_exact_for_every_kind_of_word() -> None:
    ends = [0, 1, 2, 3, 2**23, 2**24 - 1, 2**24 + 1, 2**30, 0x55555555, 0x2AAAAAAB, 2**31 - 64, 2**31 - 1]
    halves = ends + [2**32 - 1 - end for end in ends]
    drawn = np.array([low | high << 32 for low in halves for high in halves], np.uint64)
    made = np.empty((len(drawn), 2), np.float32)
    rng._box_muller(drawn, made)
    expected = [box_muller(word) for word in drawn.tolist()]
    assert (made == np.array(expected)).all()
    assert 6.6 < np.abs(made).max() < 6.7
    # What is true of the numbers themselves, whatever they are computed with.
    u = np.abs((drawn & np.uint64(2**32 - 1)).astype(np.uint32).view(np.int32).astype(np.float64) + 0.5) / 2**31
    t = (drawn >> np.uint64(32)).astype(np.uint32).view(np.int32) / 2**31
    radius = np.sqrt(-2 * np.log(u))
    for found, exact in zip(np.abs(made).T, [np.cos(t * np.pi / 2), np.abs(np.sin(t * np.pi / 2))], strict=True):
        # Numbers below 0.001 come of a u that is nearly 1, which float32 has no digits for.
        np.testing.assert_allclose(found, radius * exact, rtol=3e-6, atol=4e-4)
        np.testing.assert_allclose(found[radius > 0.01], (radius * exact)[radius > 0.01], rtol=3e-4, atol=1e-6)


def test_the_numbers_behind_a_seed_stay_the_same_in_every_release() -> None:
    # Not a property but a promise: a seed and an index name the same image for ever.
    name = (0, "x_T", 0)
    assert rng.words(2, *name).tolist() == [2499113848567085644, 6182706461249327637]
    assert (rng.normal((4,), *name) == np.float32([-1.7814618, -0.80757844, -0.876196, -1.5379894])).all()
    rows = [[0.04888412, -0.2871664, -1.6098683], [-1.5306759, -0.72940034, 0.43568015]]
    assert (rng.normal_batch((3,), 7, "z", [(5, 1000), (6, 1)]) == np.float32(rows)).all()
    assert rng.uniform(2, *name).tolist() == [0.13547723319525218, 0.3351651888563343]
    assert rng.integers(1, 1001, 6, *name).tolist() == [645, 638, 996, 729, 586, 726]
    assert rng.integers(-(2**62), 2**62, 1, *name).tolist() == [-2112572169860302260]
    assert rng.permutation(10, *name).tolist() == [0, 2, 1, 9, 4, 8, 6, 3, 7, 5]
    assert rng.torch_seed(*name) == 1249556924283542822
    digest = hashlib.sha256(rng.normal((1000, 1001), 1, "many").astype("<f4").tobytes()).hexdigest()
    assert digest == "49f93687465aaec955c42a260fc94aa1597f42a3541fc249bc0452641aa7b2f8"


@given(names, st.lists(names, max_size=3))
def test_a_draw_depends_on_its_name_alone(name: tuple[int, str, tuple[int, ...]], others: list[tuple]) -> None:
    def draw(seed: int, purpose: str, index: tuple[int, ...]) -> bytes:
        return rng.normal((3, 2), seed, purpose, *index).tobytes()

    first = draw(*name)
    for other in [*others, (name[0], name[1], (*name[2][:2], 0))]:
        assert (draw(*other) == first) == (other == name)
    assert draw(*name) == first


def test_neither_reads_nor_moves_the_global_generator() -> None:
    np.random.seed(1)  # noqa: NPY002
    before = rng.normal((4,), 0, "a").tobytes()
    state = np.random.get_state()[1].tobytes()  # type: ignore[union-attr] # noqa: NPY002
    np.random.seed(2)  # noqa: NPY002
    assert rng.normal((4,), 0, "a").tobytes() == before
    np.random.seed(1)  # noqa: NPY002
    assert np.random.get_state()[1].tobytes() == state  # type: ignore[union-attr] # noqa: NPY002


def test_neither_the_hash_seed_nor_the_processor_plays_a_part() -> None:
    code = (
        "from ddpm_cli.core import rng; print(rng.normal((9, 99), 3, 'z', 1).tobytes().hex(), rng.torch_seed(3, 'd'))"
    )
    expected = f"{rng.normal((9, 99), 3, 'z', 1).tobytes().hex()} {rng.torch_seed(3, 'd')}"
    # numpy then does without the vector instructions that older processors lack.
    baseline = {"NPY_DISABLE_CPU_FEATURES": " ".join(_extensions())}
    for variables in ({"PYTHONHASHSEED": "0"}, {"PYTHONHASHSEED": "4294967295"}, baseline):
        env = os.environ | variables | {"PYTHONPATH": str(Path(ddpm_cli.__file__).parents[1])}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


def _extensions() -> list[str]:
    simd = np.show_config("dicts")["SIMD Extensions"]  # type: ignore[index]
    return list(simd.get("found", []))


@given(st.permutations(range(8)), st.integers(1, 8), st.sampled_from(SEEDS))
def test_noise_does_not_depend_on_how_it_is_batched(order: list[int], batch: int, seed: int) -> None:
    whole = rng.normal_batch((2, 3), seed, "z", [(5, i) for i in range(8)])
    for start in range(0, 8, batch):
        some = order[start : start + batch]
        part = rng.normal_batch((2, 3), seed, "z", [(5, i) for i in some])
        assert part.tobytes() == whole[some].tobytes()
    odd = rng.normal_batch((1, 7), seed, "z", [(5, i) for i in range(8)])  # half of the last word is left over
    for i in range(8):
        assert whole[i].tobytes() == rng.normal((2, 3), seed, "z", 5, i).tobytes()
        assert odd[i].tobytes() == rng.normal((1, 7), seed, "z", 5, i).tobytes()
    assert whole.dtype == np.float32


def test_noise_has_any_shape() -> None:
    assert rng.normal_batch((3, 8, 8), 0, "z", []).shape == (0, 3, 8, 8)
    assert rng.normal_batch((0, 8), 0, "z", [(1,), (2,)]).shape == (2, 0, 8)
    assert rng.normal((), 0, "z").shape == ()
    # One that is computed in several pieces begins as a shorter one does.
    large = rng.normal((3, 9999), 0, "z", 4)
    assert large.ravel()[:1001].tobytes() == rng.normal((7, 11, 13), 0, "z", 4).tobytes()
    assert large.flags.c_contiguous


def cdf(x: np.ndarray) -> np.ndarray:
    """The cumulative distribution function of the standard normal distribution, to 1e-7."""
    grid = np.linspace(-7, 7, 14_001)
    return np.interp(x, grid, [0.5 * math.erfc(-each / math.sqrt(2)) for each in grid.tolist()])


def largest_deviation(uniform: np.ndarray) -> float:
    """Kolmogorov's statistic of numbers that should be uniform in (0, 1), times sqrt(n): beyond 2.5 once in 130,000."""
    n = len(uniform)
    uniform = np.sort(uniform)
    return max((np.arange(1, n + 1) / n - uniform).max(), (uniform - np.arange(n) / n).max()) * math.sqrt(n)


@pytest.fixture(scope="module")
def many() -> np.ndarray:
    return rng.normal((MANY,), 1, "many")


def shares_are_right(x: np.ndarray) -> None:
    for bound in (0, 0.001, 0.1, 1, 2, 3, 4, 4.5):
        share = 0.5 * math.erfc(bound / math.sqrt(2))
        error = SIGMAS * (share * (1 - share) / len(x)) ** 0.5 + 1e-7
        assert abs((x > bound).mean() - share) < error, bound
        assert abs((x < -bound).mean() - share) < error, -bound


def moments_are_right(x: np.ndarray) -> None:
    # Mean and variance of the first powers of a standard normal number.
    x = x.astype(np.float64)
    for power, mean, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (5, 0, 945), (6, 15, 10_170)]:
        assert abs((x**power).mean() - mean) < SIGMAS * (variance / len(x)) ** 0.5, power


def test_ten_million_normal_numbers_have_the_shape_of_a_normal_distribution(many: np.ndarray) -> None:
    moments_are_right(many)
    shares_are_right(many)
    assert largest_deviation(cdf(many[:2_000_000])) < 2.5
    assert 5 < np.abs(many).max() < 6.66


def test_normal_numbers_are_as_fine_as_float32(many: np.ndarray) -> None:
    assert len(np.unique(many)) > 2**23
    # Near 1 and near 0 the last bits are any, and so are the first that are lost when a number is cut to bfloat16.
    bits = many.view(np.uint32)
    for low, high in [(0.001, 0.002), (0.01, 0.02), (0.125, 0.25), (0.5, 1), (1, 2), (2, 3)]:
        inside = bits[(np.abs(many) > low) & (np.abs(many) < high)]
        assert chi_square_is_plausible(np.bincount(inside & 15, minlength=16))


def test_two_numbers_of_a_word_are_independent(many: np.ndarray) -> None:
    one, other = many[::2].astype(np.float64), many[1::2].astype(np.float64)
    radius = np.exp(-(one**2 + other**2) / 2)
    angle = np.arctan2(other, one) / (2 * np.pi) + 0.5
    assert largest_deviation(radius[:1_000_000]) < 2.5
    assert largest_deviation(angle[:1_000_000]) < 2.5
    cells = (radius * 32).astype(int).clip(0, 31) * 32 + (angle * 32).astype(int).clip(0, 31)
    assert chi_square_is_plausible(np.bincount(cells, minlength=1024))


@pytest.mark.parametrize("seed", SEEDS)
def test_numbers_that_many_images_begin_with_are_normal_too(seed: int) -> None:
    x = rng.normal_batch((20,), seed, "m", [(step, row) for step in range(100) for row in range(100)])
    moments_are_right(x.ravel())
    shares_are_right(x.ravel())
    correlation = np.corrcoef(x.T.astype(np.float64))
    assert np.abs(correlation - np.eye(20)).max() < SIGMAS / len(x) ** 0.5


@pytest.mark.parametrize("seed", SEEDS)
def test_draws_of_different_names_are_uncorrelated(seed: int) -> None:
    n = 20_000
    others = [(seed, "b"), (seed + 1, "a"), (seed, "a", 0), (seed, "a", 1), (seed, "a", 0, 1), (seed, "a", 1, 0)]
    draws = [rng.normal((n,), seed, "a"), *(rng.normal((n,), *name) for name in others)]
    correlation = np.corrcoef(np.stack(draws))
    assert np.abs(correlation - np.eye(len(draws))).max() < SIGMAS / n**0.5
    # A draw is not another one moved along, either.
    for lag in (1, 2, 4, 8):
        assert abs(np.corrcoef(draws[0][lag:], draws[1][:-lag])[0, 1]) < SIGMAS / (n - lag) ** 0.5
        assert abs(np.corrcoef(draws[0][lag:], draws[0][:-lag])[0, 1]) < SIGMAS / (n - lag) ** 0.5


def chi_square_is_plausible(counts: np.ndarray) -> bool:
    """Whether counts of equally likely outcomes scatter as they should, neither more nor less."""
    expected = counts.sum() / len(counts)
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    freedom = len(counts) - 1
    # Wilson and Hilferty: the cube root of chi^2 per degree of freedom is nearly normal.
    spread = 2 / (9 * freedom)
    return abs((chi2 / freedom) ** (1 / 3) - (1 - spread)) < SIGMAS * spread**0.5


@pytest.mark.parametrize("seed", SEEDS)
def test_integers_and_uniform_numbers_are_uniform(seed: int) -> None:
    steps = np.concatenate([rng.integers(1, 1001, 64, seed, "t", step) for step in range(500)])
    assert (steps.min(), steps.max()) == (1, 1000)
    assert chi_square_is_plausible(np.bincount((steps - 1) // 20, minlength=50))
    # Without the rejection, numbers below 2^62 would come twice as often as they should.
    wide = rng.integers(0, 3 * 2**61, 30_000, seed, "wide")
    assert chi_square_is_plausible(np.bincount(wide // 2**57, minlength=48))
    assert largest_deviation(rng.uniform(100_000, seed, "u")) < 2.5


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6])
def test_permutations_are_permutations_and_all_orders_equally_likely(n: int) -> None:
    orders = np.stack([rng.permutation(n, 0, "epoch", epoch) for epoch in range(max(200, 10 * math.factorial(n)))])
    assert (np.sort(orders, axis=1) == np.arange(n)).all()
    _, counts = np.unique(orders @ 10 ** np.arange(n), return_counts=True)
    counts = np.concatenate([counts, np.zeros(math.factorial(n) - len(counts), int)])
    assert n == 1 or chi_square_is_plausible(counts)


@pytest.mark.parametrize("n", [100, 1797])
def test_each_number_is_anywhere_in_a_permutation_and_after_any_other(n: int) -> None:
    orders = np.stack([rng.permutation(n, 3, "epoch", epoch) for epoch in range(4000)])
    for place in (0, 1, n // 2, n - 1):
        assert chi_square_is_plausible(np.bincount(orders[:, place] * 20 // n, minlength=20))
    steps = (np.diff(orders, axis=1) % n).ravel()
    assert (steps != 0).all()
    assert chi_square_is_plausible(np.bincount(steps, minlength=n)[1:])


def test_a_permutation_of_a_million_has_every_number_once() -> None:
    order = rng.permutation(10**6, 0, "epoch", 0)
    assert (np.sort(order) == np.arange(10**6)).all()
    assert abs(np.corrcoef(order, np.arange(10**6))[0, 1]) < SIGMAS / 1000
