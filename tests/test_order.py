"""The order of an epoch: every image once, at random, and large data sets read block by block."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm_cli.data import order
from ddpm_cli.data.order import reading_order

Shape = tuple[int, int, int, int]


@pytest.fixture
def small_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 10 blocks of 10 images of 10 bytes; what has more than 400 images is read in them."""
    monkeypatch.setattr(order, "WINDOW", 4000)
    monkeypatch.setattr(order, "_BLOCK", 100)


def epoch(shape: Shape, seed: int, number: int) -> np.ndarray:
    return reading_order(shape, seed, np.arange(shape[0]) + number * shape[0])


def chi_square(counts: np.ndarray) -> float:
    """How many standard deviations the statistic of counts that should be equal is above its mean."""
    expected, freedom = counts.mean(), counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


@given(
    st.integers(1, 3000),
    st.sampled_from([1, 3, 10, 64, 101, 1999, 5000]),
    st.integers(0, 2**40),
    st.integers(0, 2**40),
    st.booleans(),
)
def test_each_epoch_has_every_image_once(n: int, row: int, seed: int, number: int, windowed: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "WINDOW", 4000 if windowed else 2**30)
        patch.setattr(order, "_BLOCK", 100)
        found = epoch((n, row, 1, 1), seed, number)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(np.sort(found), np.arange(n))


@pytest.mark.usefixtures("small_window")
@pytest.mark.parametrize("n", [7, 399, 400, 401, 1003])
def test_the_image_at_a_place_depends_on_nothing_but_the_place(n: int) -> None:
    shape = (n, 10, 1, 1)
    whole = reading_order(shape, 3, np.arange(4 * n))
    rng = np.random.default_rng(0)
    for _ in range(20):
        places = rng.integers(0, 4 * n, 50)
        np.testing.assert_array_equal(reading_order(shape, 3, places), whole[places])
    assert reading_order(shape, 3, np.array([], np.int64)).tolist() == []


def test_it_is_the_same_on_every_machine() -> None:
    assert reading_order((10, 8, 8, 3), 0, np.arange(20)).tolist() == [
        6,
        5,
        0,
        4,
        2,
        8,
        3,
        7,
        9,
        1,
        9,
        7,
        2,
        1,
        3,
        6,
        0,
        5,
        8,
        4,
    ]
    assert reading_order((10**6, 64, 64, 3), 7, np.array([0, 1, 2, 10**6, 5 * 10**11])).tolist() == [
        573250,
        608809,
        195568,
        25381,
        140641,
    ]


@pytest.mark.usefixtures("small_window")
@pytest.mark.parametrize("n", [50, 400, 605])
def test_each_image_comes_at_each_place_equally_often(n: int) -> None:
    parts = 10  # of the epoch, and of the data set
    counts = np.zeros((parts, parts), int)
    for seed in range(300):
        np.add.at(counts, (np.arange(n) * parts // n, epoch((n, 10, 1, 1), seed, 0) * parts // n), 1)
    allowed = 5 if n <= 400 else 200  # in a window, neighbours stay together, so that counts spread more
    assert chi_square(counts) < allowed
    expected = counts.sum() / parts**2
    assert np.abs(counts / expected - 1).max() < 0.25
    # The image that comes last or first is any.
    ends = [epoch((n, 10, 1, 1), seed, 0)[[0, -1]] for seed in range(1000)]
    for end in np.transpose(ends):
        assert chi_square(np.bincount(end * parts // n, minlength=parts)) < 5


@pytest.mark.usefixtures("small_window")
@pytest.mark.parametrize("n", [3, 50, 400])
def test_neighbours_know_nothing_of_each_other(n: int) -> None:
    first, second, later = [], [], []
    for seed in range(max(10, 40_000 // n)):
        one = epoch((n, 10, 1, 1), seed, 0)
        first.append(one[:-1])
        second.append(one[1:])
        later.append(epoch((n, 10, 1, 1), seed, 1)[:-1])
    pairs = np.concatenate(first) * n + np.concatenate(second)
    across = np.concatenate(first) * n + np.concatenate(later)
    steps = (np.concatenate(second) - np.concatenate(first)) % n
    assert (steps != 0).all()
    assert chi_square(np.bincount(steps, minlength=n)[1:]) < 5
    if n <= 50:
        distinct = [a * n + b for a in range(n) for b in range(n) if a != b]
        assert chi_square(np.bincount(pairs, minlength=n * n)[distinct]) < 5
        assert chi_square(np.bincount(across, minlength=n * n)) < 5


@pytest.mark.usefixtures("small_window")
def test_epochs_and_seeds_differ() -> None:
    for n in (300, 1003):
        found = {epoch((n, 10, 1, 1), seed, number).tobytes() for seed in range(5) for number in range(5)}
        assert len(found) == 25


@pytest.mark.usefixtures("small_window")
@pytest.mark.parametrize("n", [410, 1000, 1003, 2000])
def test_a_large_set_is_read_from_the_disk_once(n: int) -> None:
    """A block is used within one window of 100 places, so that a cache of two windows holds it until it is done."""
    for number in range(3):
        blocks = epoch((n, 10, 1, 1), 1, number) // 10
        places = [np.flatnonzero(blocks == block) for block in range(-(-n // 10))]
        assert all(at[-1] - at[0] < 100 for at in places)
        cached: dict[int, None] = {}
        fetched = 0
        for batch in np.array_split(blocks, n // 16):
            for block in np.unique(batch).tolist():
                fetched += block not in cached
                cached.pop(block, None)
                cached[block] = None
                while len(cached) > 20:  # two windows, the least recently used goes
                    del cached[next(iter(cached))]
        assert fetched == -(-n // 10)


@pytest.mark.usefixtures("small_window")
def test_in_a_window_images_of_one_block_are_not_neighbours_more_often_than_chance() -> None:
    blocks = np.stack([epoch((1000, 10, 1, 1), 1, number) for number in range(300)]) // 10
    together = (blocks[:, 1:] == blocks[:, :-1]).mean()
    assert together == pytest.approx(9 / 99, rel=0.05)


@pytest.mark.usefixtures("small_window")
def test_blocks_share_a_window_with_others_each_epoch() -> None:
    windows = np.stack([np.argsort(epoch((1000, 10, 1, 1), 1, number)) for number in range(400)]) // 100
    together = (windows[:, 0] == windows[:, 500]).mean()
    assert together == pytest.approx(9 / 99, abs=0.06)
