"""The order of an epoch: every image once, at random, and large data sets read block by block."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ddpm_cli import data
from ddpm_cli.config import TrainConfig
from ddpm_cli.data import order
from ddpm_cli.data.order import reading_order
from ddpm_cli.diffusion.schedule import linear
from ddpm_cli.training.batch import batch_at

Shape = tuple[int, int, int, int]


@pytest.fixture
def small_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 10 blocks of 10 images of 10 bytes; what has more than 400 images is read in them."""
    monkeypatch.setattr(order, "UNIFORM_BYTES", 4000)
    monkeypatch.setattr(order, "WINDOW", 1000)
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
        patch.setattr(order, "UNIFORM_BYTES", 4000 if windowed else 2**30)
        patch.setattr(order, "WINDOW", 1000)
        patch.setattr(order, "_BLOCK", 100)
        found = epoch((n, row, 1, 1), seed, number)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(np.sort(found), np.arange(n))


@pytest.mark.usefixtures("small_window")
def test_the_image_at_a_place_depends_on_nothing_but_the_place() -> None:
    for n in (7, 399, 400, 401, 1003):
        shape = (n, 10, 1, 1)
        whole = reading_order(shape, 3, np.arange(4 * n))
        rng = np.random.default_rng(0)
        for _ in range(20):
            places = rng.integers(0, 4 * n, 50)
            np.testing.assert_array_equal(reading_order(shape, 3, places), whole[places])
        assert reading_order(shape, 3, np.array([], np.int64)).tolist() == []


def test_it_is_the_same_on_every_machine() -> None:
    two_epochs = [4, 8, 0, 5, 7, 6, 2, 9, 1, 3, 6, 0, 2, 8, 4, 1, 3, 9, 7, 5]
    assert reading_order((10, 8, 8, 3), 0, np.arange(20)).tolist() == two_epochs
    places = np.array([0, 1, 2, 10**6, 5 * 10**11])
    assert reading_order((10**6, 64, 64, 3), 7, places).tolist() == [778234, 663846, 897037, 931576, 364828]


def test_a_batch_over_many_epochs_takes_no_time() -> None:
    """One image in batches of 128, as in a trial of whether a network can learn it."""
    start = time.perf_counter()
    for step in range(100):
        assert not reading_order((1, 8, 8, 1), 0, np.arange(step * 128, (step + 1) * 128)).any()
    assert time.perf_counter() - start < 0.5


@pytest.mark.usefixtures("small_window")
def test_each_image_comes_at_each_place_equally_often() -> None:
    for n in (50, 400, 605):
        parts = 10  # of the epoch, and of the data set
        counts = np.zeros((parts, parts), int)
        for seed in range(1000):
            np.add.at(counts, (np.arange(n) * parts // n, epoch((n, 10, 1, 1), seed, 0) * parts // n), 1)
        allowed = 5 if n <= 400 else 700  # in a window, neighbours stay together, so that counts spread more
        assert chi_square(counts) < allowed
        expected = counts.sum() / parts**2
        assert np.abs(counts / expected - 1).max() < 0.25
        # The image that comes last or first is any.
        ends = [epoch((n, 10, 1, 1), seed, 0)[[0, -1]] for seed in range(1000)]
        for end in np.transpose(ends):
            assert chi_square(np.bincount(end * parts // n, minlength=parts)) < 5


@pytest.mark.usefixtures("small_window")
def test_neighbours_know_nothing_of_each_other() -> None:
    for n in (3, 50, 400):
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


def asked_for(shape: Shape, size: int, steps: range) -> list[list[range]]:
    """The ranges of images that the system is asked for at each step of a run, or of a part of it."""
    asked: list[list[range]] = []
    images = data.Images(shape, "", lambda *_: None, lambda: iter(()), fetch=lambda numbers: asked[-1].append(numbers))
    for step in steps:
        asked.append([])
        places = np.arange(step * size, (step + 1) * size)
        order.read_ahead(images, 1, places)
    return asked


@pytest.mark.usefixtures("small_window")
def test_each_block_is_asked_for_once_an_epoch_and_before_it_is_read() -> None:
    for n, size in [(410, 250), (1000, 16), (1003, 1), (1003, 37), (2000, 250)]:
        shape, epochs = (n, 10, 1, 1), 3
        steps = epochs * n // size
        requests: list[tuple[int, int]] = []  # (step, block)
        for step, ranges in enumerate(asked_for(shape, size, range(steps))):
            for numbers in ranges:
                assert numbers.start % 10 == 0
                assert numbers.stop == min(numbers.start + 10, n)
                requests.append((step, numbers.start // 10))
        blocks = -(-n // 10)
        for number in range(epochs - 1):
            read = epoch(shape, 1, number) // 10
            for block in range(blocks):
                step = [step for step, other in requests if other == block][number]
                first, last = np.flatnonzero(read == block)[[0, -1]] + number * n
                assert step <= first // size
                assert last - step * size < 200 + size  # the page cache must keep no more than this
        # One window more than is read, at most two where an epoch ends with a short one; never image by image.
        assert len(requests) <= epochs * blocks + 20


@pytest.mark.usefixtures("small_window")
def test_a_resumed_run_asks_for_the_rest_of_its_window() -> None:
    shape = (2000, 10, 1, 1)
    (first, *_), whole = asked_for(shape, 16, range(50, 60)), asked_for(shape, 16, range(60))
    assert {*first} <= {numbers for step in whole[:51] for numbers in step}
    read = set((reading_order(shape, 1, np.arange(800, 1000)) // 10 * 10).tolist())
    assert (
        read
        >= {*(numbers.start for numbers in first)}
        >= set((reading_order(shape, 1, np.arange(800, 900)) // 10 * 10).tolist())
    )


def test_what_fits_into_memory_is_not_asked_for() -> None:
    assert asked_for((1000, 10, 1, 1), 16, range(60)) == [[]] * 60


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.usefixtures("small_window")
def test_a_step_asks_for_whole_blocks_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The images are in files of 33, so that a block may be in two, and one of them cannot be read."""
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("ddpm_cli.data.packs.shards.SHARD_BYTES", 330)
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (500, 10, 1), dtype=np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "images" / f"{index:03}.png")
    (tmp_path / "images" / "044.png").write_bytes(b"")
    images = data.open_images(tmp_path / "images", (10, 1), 1)
    advised: list[tuple[str, int, int]] = []
    advise = os.posix_fadvise

    def recorded(handle: int, offset: int, length: int, advice: int) -> None:
        advise(handle, offset, length, advice)
        assert advice == os.POSIX_FADV_WILLNEED
        advised.append((str(Path(f"/proc/self/fd/{handle}").readlink()), offset, length))

    monkeypatch.setattr(os, "posix_fadvise", recorded)
    config = TrainConfig(batch_size=16, flip=False)
    for step in range(1, 500 // 16):
        batch_at(images, config, linear(10), step)
    wanted = np.zeros(500, int)
    for path, offset, length in advised:
        first = int(Path(path).stem.removeprefix("images-")) * 33 + offset // 10
        assert (offset % 10, length % 10) == (0, 0)
        wanted[first : first + length // 10] += 1
    assert (wanted[:490] >= 1).all()
    assert len(advised) < 120  # and not 500


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
