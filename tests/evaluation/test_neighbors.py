"""Nearest neighbours, the data-copying test, and ``ddpm neighbors`` as a process."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shlex
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from ddpm_cli.data import Images
from ddpm_cli.errors import ArgumentError
from ddpm_cli.evaluation import neighbors
from ddpm_cli.evaluation.neighbors import Nearest, Queries, compare, nearest, squared_distances
from helpers.process import Ddpm


def noise(seed: int, n: int, *shape: int, levels: int = 256) -> np.ndarray:
    """Images (n, *shape) of independent pixels below ``levels``."""
    return np.random.Generator(np.random.Philox(seed)).integers(0, levels, (n, *shape), np.uint8)


def search(queries: np.ndarray, images: np.ndarray, k: int, block: tuple[int, int] = neighbors.BLOCK_ROWS) -> Nearest:
    return nearest(Queries.all_of(Images.from_array(queries)), Images.from_array(images), k, block=block).result()


def brute_force(queries: np.ndarray, images: np.ndarray) -> np.ndarray:
    """All squared distances (n, m), in integers."""
    difference = queries[:, None].astype(np.int64) - images[None].astype(np.int64)
    return (difference**2).reshape(len(queries), len(images), -1).sum(axis=2)


# --- the search -------------------------------------------------------------------------------------------------------


def test_distances_are_exact() -> None:
    for shape in [(1, 1, 1), (8, 8, 1), (5, 7, 3), (16, 16, 4), (32, 32, 3)]:
        x, y = noise(1, 7, *shape), noise(2, 9, *shape)
        np.testing.assert_array_equal(squared_distances(x, y), brute_force(x, y))


@pytest.mark.parametrize(("low", "high"), [(0, 255), (0, 0), (255, 255), (128, 129)])
def test_the_extremes_are_exact_too(low: int, high: int) -> None:
    dark, light = np.full((2, 40, 40, 3), low, np.uint8), np.full((3, 40, 40, 3), high, np.uint8)
    assert (squared_distances(dark, light) == (high - low) ** 2 * 4800).all()


def test_one_level_in_one_pixel_of_a_large_image_is_seen() -> None:
    x = noise(3, 1, 256, 256, 3)
    y = x.copy()
    y[0, 200, 100, 1] ^= 1
    found = search(y, np.concatenate([x, y]), 2)
    assert found.indices.tolist() == [[1, 0]]
    assert found.squared.tolist() == [[0, 1]]
    assert found.rmse[0, 1] == math.sqrt(1 / 196608)


def test_the_same_neighbours_as_scikit_learn() -> None:
    queries, images = noise(4, 40, 8, 8, 3), noise(5, 300, 8, 8, 3)
    found = search(queries, images, 5, (16, 64))
    other = NearestNeighbors(n_neighbors=5, algorithm="brute").fit(images.reshape(300, -1).astype(np.float64))
    distances, indices = other.kneighbors(queries.reshape(40, -1).astype(np.float64))
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_allclose(found.rmse, distances / math.sqrt(192), rtol=1e-12)


@given(
    seed=st.integers(0, 2**32), n=st.integers(1, 9), m=st.integers(1, 30), levels=st.sampled_from([1, 2, 3, 256]),
    block=st.tuples(st.integers(1, 10), st.integers(1, 31)), data=st.data(),
)  # fmt: skip
def test_blocks_and_ties_do_not_matter(
    seed: int, n: int, m: int, levels: int, block: tuple[int, int], data: st.DataObject
) -> None:
    """Of equally near images the first in the set comes first, whatever is compared at a time."""
    k = data.draw(st.integers(1, m))
    queries, images = noise(seed, n, 2, 2, 1, levels=levels), noise(seed + 1, m, 2, 2, 1, levels=levels)
    found = search(queries, images, k, block)
    distances = brute_force(queries, images)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(found.indices, order)
    np.testing.assert_array_equal(found.squared, np.take_along_axis(distances, order, axis=1))


@given(seed=st.integers(0, 2**32), m=st.integers(2, 40), block=st.tuples(st.integers(1, 10), st.integers(1, 41)))
def test_a_member_of_the_set_finds_another(seed: int, m: int, block: tuple[int, int]) -> None:
    pixels = noise(seed, m, 2, 2, 1, levels=3)
    images = Images.from_array(pixels)
    found = nearest(Queries.leave_one_out(images, seed), images, 1, block=block).result()
    distances = brute_force(pixels, pixels)
    np.fill_diagonal(distances, np.iinfo(np.int64).max)
    np.testing.assert_array_equal(found.squared[:, 0], distances.min(axis=1))
    np.testing.assert_array_equal(found.indices[:, 0], distances.argmin(axis=1))


def test_the_choice_for_leave_one_out_is_bounded_and_named_by_the_seed() -> None:
    images = Images.from_array(noise(6, 50, 1, 1, 1))
    chosen = [Queries.leave_one_out(images, seed, 10).numbers for seed in (0, 0, 1)]
    assert all(len(set(numbers.tolist())) == 10 and (np.diff(numbers) > 0).all() for numbers in chosen)
    np.testing.assert_array_equal(chosen[0], chosen[1])
    assert (chosen[0] != chosen[2]).any()
    np.testing.assert_array_equal(Queries.leave_one_out(images, 7).numbers, np.arange(50))


def test_progress_adds_up_to_all_pairs() -> None:
    stage = nearest(
        Queries.all_of(Images.from_array(noise(1, 5, 2, 2, 1))),
        Images.from_array(noise(2, 7, 2, 2, 1)),
        1,
        block=(2, 3),
    )
    amounts = list(stage)
    assert sum(amounts) == stage.total == 35
    assert len(amounts) == 9


def test_memory_does_not_grow_with_the_set() -> None:
    """Images come from a function here, as they come from a file elsewhere: 40 times as many, no more memory."""

    def endless(n: int) -> Images:
        def fill(out: np.ndarray, indices: np.ndarray) -> None:
            out[:] = (indices[:, None, None, None] * 7 % 256).astype(np.uint8)

        return Images((n, 8, 8, 1), "none", fill, lambda: map(str, range(n)))

    def peak(n: int) -> int:
        queries = Queries.all_of(Images.from_array(noise(1, 20, 8, 8, 1)))
        tracemalloc.start()
        try:
            nearest(queries, endless(n), 3, block=(20, 250)).result()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1000)
    assert peak(40_000) < 1.2 * peak(1000)


def test_large_images_are_compared_fewer_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "BLOCK_BYTES", 4 * 64)
    queries, images = Queries.all_of(Images.from_array(noise(1, 6, 8, 8, 1))), Images.from_array(noise(2, 9, 8, 8, 1))
    assert list(nearest(queries, images, 2)) == [16, 16, 4, 8, 8, 2]
    monkeypatch.setattr(neighbors, "BLOCK_BYTES", 1)
    assert list(nearest(queries, images, 2)) == [1] * 54


@pytest.mark.parametrize("k", [0, 4])
def test_a_k_that_there_cannot_be(k: int) -> None:
    images = Images.from_array(noise(1, 3, 2, 2, 1))
    with pytest.raises(ArgumentError, match=f"k is {k}; it must be from 1 to 3"):
        nearest(Queries.all_of(images), images, k)
    with pytest.raises(ArgumentError, match="k is 3; it must be from 1 to 2"):
        nearest(Queries.leave_one_out(images, 0), images, 3)


def test_images_of_another_shape_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"the images are \(2, 2, 3\), those to compare them with \(2, 2, 1\)"):
        search(noise(1, 1, 2, 2, 1), noise(1, 1, 2, 2, 3), 1)


# --- the test of data copying -----------------------------------------------------------------------------------------

distances_of = st.lists(st.integers(0, 6), min_size=1, max_size=12).map(lambda values: np.array(values, np.int64))


@given(samples=distances_of, held_out=distances_of)
def test_u_is_the_number_of_pairs_and_z_considers_ties(samples: np.ndarray, held_out: np.ndarray) -> None:
    result = compare(samples, held_out)
    pairs = np.sign(samples[:, None] - held_out[None])
    assert result.u == (pairs > 0).sum() + (pairs == 0).sum() / 2
    assert result.nearer == pytest.approx(((pairs < 0).sum() + (pairs == 0).sum() / 2) / pairs.size)
    together = np.concatenate([samples, held_out])
    if len(set(together.tolist())) == 1:
        assert result.z == 0
        return
    # The variance of a sum of m of the N midranks drawn without replacement, which needs no formula for ties.
    N, m, n = len(together), len(samples), len(held_out)
    midranks = (together[:, None] > together).sum(axis=1) + ((together[:, None] == together).sum(axis=1) + 1) / 2
    variance = m * n / N * midranks.var(ddof=1)
    assert result.z == pytest.approx((result.u - m * n / 2) / math.sqrt(variance))
    assert compare(held_out, samples).z == pytest.approx(-result.z)


def test_z_of_equal_distributions_is_standard_normal() -> None:
    generator = np.random.Generator(np.random.Philox(8))
    z = [compare(generator.integers(0, 50, 60), generator.integers(0, 50, 90)).z for _ in range(2000)]
    assert abs(np.mean(z)) < 4 / math.sqrt(2000)
    assert abs(np.std(z) - 1) < 4 / math.sqrt(4000)


def test_closed_forms() -> None:
    apart = compare(np.arange(5), np.arange(5, 12))
    assert (apart.u, apart.nearer) == (0, 1)
    assert apart.z == pytest.approx(-math.sqrt(3 * 5 * 7 / 13))
    assert compare(np.full(50, 3), np.full(70, 3)).z == 0
    assert compare(np.array([1]), np.array([1])).nearer == 0.5
    assert not compare(np.arange(5), np.arange(100, 105)).is_conclusive
    few, many = compare(np.arange(7), np.arange(100, 107)), compare(np.arange(9), np.arange(100, 109))
    assert few.z == pytest.approx(-math.sqrt(9.8))
    assert few.is_conclusive
    assert few.is_suspicious
    assert many.is_suspicious
    assert compare(np.arange(100, 109), np.arange(9)).is_far


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """The current folder has train.npy (60 images), held-out.npy (40), honest.npy and memorised.npy (30 samples)."""
    train = noise(1, 60, 8, 8, 1)
    np.save(tmp_path / "train.npy", train)
    np.save(tmp_path / "held-out.npy", noise(2, 40, 8, 8, 1))
    np.save(tmp_path / "honest.npy", noise(3, 30, 8, 8, 1))
    np.save(tmp_path / "memorised.npy", (train[:30] // 2 + noise(4, 30, 8, 8, 1) // 2).astype(np.uint8))
    return tmp_path


def test_the_path_goes_to_stdout_and_the_words_to_stderr(ddpm: Ddpm, sets: Path) -> None:
    done = ddpm("neighbors", "memorised.npy", "train.npy", "--held-out", "held-out.npy")
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"neighbors.png\n"
    z = re.search(r"^  z +(-\d+\.\d)$", done.stderr, re.MULTILINE)
    assert z is not None
    assert float(z[1]) < -5
    sentence = "samples are nearer to the training images than held-out ones are: z = "
    assert done.stderr.endswith(f"{sentence}{z[1]}; the model may have memorised\n")
    with Image.open(sets / "neighbors.png") as sheet:
        assert sheet.mode == "RGB"
        assert (sheet.width // 5, sheet.height // 16) > (64, 64 + 13), "16 rows of a sample and 4 neighbours"
    quiet = ddpm("neighbors", "memorised.npy", "train.npy", "-q", "--force")
    assert (quiet.stdout, quiet.stderr) == (b"neighbors.png\n", "")


def test_json_has_what_the_documentation_says(ddpm: Ddpm, sets: Path) -> None:
    done = ddpm("neighbors", "honest.npy", "train.npy", "--held-out", "held-out.npy", "--json", "-o", "a.png")
    data = json.loads(done.stdout)
    page = (Path(__file__).parents[2] / "docs" / "commands" / "neighbors.md").read_text("utf-8")
    keys = [
        name for cell in re.findall(r"^\| (`[^|]+`) \|", page, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)
    ]
    assert list(data) == keys
    samples, held_out, train = (np.load(sets / f"{name}.npy") for name in ("honest", "held-out", "train"))
    near, others = brute_force(samples, train).min(axis=1), brute_force(held_out, train).min(axis=1)
    expected = compare(near, others)
    assert data["z"] == expected.z
    assert data["nearer"] == expected.nearer
    assert data["median_rmse"] == pytest.approx(np.median(np.sqrt(near / 64)))
    assert data["baseline_median_rmse"] == pytest.approx(np.median(np.sqrt(others / 64)))
    assert (data["samples"], data["images"], data["baseline"], data["baseline_images"]) == (30, 60, "held-out", 40)
    assert data["copies"] == []
    assert data["verdict"].startswith("no sign of memorisation: samples are about as near to the training images as")
    assert data["output"] == "a.png"
    assert (sets / "a.png").is_file()


def test_without_held_out_images_the_training_images_stand_in(ddpm: Ddpm, sets: Path) -> None:
    done = ddpm("neighbors", "memorised.npy", "train.npy", "--json")
    data = json.loads(done.stdout)
    train = np.load(sets / "train.npy")
    own = brute_force(train, train)
    np.fill_diagonal(own, np.iinfo(np.int64).max)
    expected = compare(brute_force(np.load(sets / "memorised.npy"), train).min(axis=1), own.min(axis=1))
    assert (data["baseline"], data["baseline_images"], data["z"]) == ("leave-one-out", 60, expected.z)
    assert "without --held-out, each training image stands in for a held-out one, with its nearest" in done.stderr
    assert data["verdict"].startswith("samples are nearer to the training images than these are to each other: z = -")


def test_copies_are_counted_and_named(ddpm: Ddpm, sets: Path) -> None:
    train, samples, held_out = (np.load(sets / f"{name}.npy") for name in ("train", "honest", "held-out"))
    samples[[2, 5]], held_out[7] = train[[11, 42]], train[0]
    (sets / "photos").mkdir()
    for number, pixels in enumerate(train):
        Image.fromarray(pixels[:, :, 0]).save(sets / "photos" / f"{number:02d}\x1b[31m.png")
    np.save(sets / "samples.npy", samples)
    np.save(sets / "with-one.npy", held_out)
    done = ddpm("neighbors", "samples.npy", "photos", "--held-out", "with-one.npy", "--json")
    data = json.loads(done.stdout)
    assert [(copy["sample"], copy["image"]) for copy in data["copies"]] == [
        ("samples[2]", r"11\x1b[31m.png"),
        ("samples[5]", r"42\x1b[31m.png"),
    ]
    assert data["baseline_copies"] == 1
    assert data["verdict"].startswith("2 of 30 samples are copies of training images; as a whole, ")
    assert r"2 of 30 samples equal a training image in every pixel: samples[2] = 11\x1b[31m.png, samples" in done.stderr
    assert "1 of 40 held-out images equal a training image, which hides memorisation" in done.stderr


def test_many_copies_are_named_only_if_that_is_asked_for(ddpm: Ddpm, sets: Path) -> None:
    command = ("neighbors", "train.npy", "train.npy", "--held-out", "held-out.npy")
    few = ddpm(*command)
    assert "60 of 60 samples equal a training image" in few.stderr
    assert "train[4] = train[4] and 55 more\n" in few.stderr
    assert "train[59] = train[59]\n" in ddpm(*command, "-v", "--force").stderr


def test_samples_that_are_too_far(ddpm: Ddpm, sets: Path) -> None:
    np.save(sets / "dark.npy", np.zeros((30, 8, 8, 1), np.uint8))
    done = ddpm("neighbors", "dark.npy", "train.npy", "--held-out", "held-out.npy")
    assert "no sign of memorisation: samples are farther from the training images than held-out ones" in done.stderr


@pytest.mark.parametrize(
    ("train", "held_out", "baseline", "sentence"),
    [
        (1, None, None, "cannot be told: IMAGES has one image only; give --held-out"),
        (1, 1, "held-out", "cannot be told from 3 samples and 1 image to compare them with; take more of both"),
        (2, None, "leave-one-out", "cannot be told from 3 samples and 2 images to compare them with"),
    ],
)
def test_sets_that_are_too_small_to_tell(
    ddpm: Ddpm, tmp_path: Path, train: int, held_out: int | None, baseline: str | None, sentence: str
) -> None:
    np.save(tmp_path / "s.npy", noise(1, 3, 8, 8, 3))
    np.save(tmp_path / "t.npy", noise(2, train, 8, 8, 3))
    np.save(tmp_path / "h.npy", noise(3, held_out or 1, 8, 8, 3))
    options = ("--held-out", "h.npy") if held_out else ()
    done = ddpm("neighbors", "s.npy", "t.npy", "-k", "1", "--json", *options)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["baseline"] == baseline
    assert (data["z"] is None) == (baseline is None)
    assert sentence in data["verdict"]
    assert sentence in done.stderr


def test_the_table_has_all_samples_and_all_neighbours(ddpm: Ddpm, sets: Path) -> None:
    done = ddpm("neighbors", "honest.npy", "train.npy", "-n", "2", "-k", "3", "--csv", "all.csv")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO((sets / "all.csv").read_text())))
    found = search(np.load(sets / "honest.npy"), np.load(sets / "train.npy"), 3)
    assert [(row["sample"], row["rank"], row["neighbor"]) for row in rows] == [
        (f"honest[{i}]", str(rank + 1), f"train[{found.indices[i, rank]}]") for i in range(30) for rank in range(3)
    ]
    assert [float(row["rmse"]) for row in rows] == found.rmse.ravel().tolist()


def test_the_seed_names_the_choice_and_the_rest_is_determined(ddpm: Ddpm, sets: Path) -> None:
    np.save(sets / "many.npy", noise(5, 3000, 8, 8, 1))
    command = ("neighbors", "honest.npy", "many.npy", "--json", "--force")
    first, again, other = (ddpm(*command, "--seed", seed) for seed in ("0", "0", "1"))
    assert "each of 2,000 training images, chosen at random, stands in" in first.stderr
    assert first.stdout == again.stdout
    assert json.loads(first.stdout)["z"] != json.loads(other.stdout)["z"]


@pytest.mark.parametrize(("shape", "what"), [((20, 30, 1), "20x30, grey"), ((8, 8, 3), "8x8, RGB")])
def test_images_that_do_not_fit_are_refused_or_resized(
    ddpm: Ddpm, sets: Path, shape: tuple[int, int, int], what: str
) -> None:
    np.save(sets / "other.npy", noise(6, 20, *shape))
    for images in (("other.npy",), ("train.npy", "--held-out", "other.npy")):
        refused = ddpm("neighbors", "honest.npy", *images)
        assert refused.returncode == 3
        assert f"other.npy: the images are {what}, and the samples' 8x8, grey; --resize scales" in refused.stderr
        assert not (sets / "neighbors.png").exists()
        done = ddpm("neighbors", "honest.npy", *images, "--resize", "-o", f"{len(images)}.png")
        assert done.returncode == 0, done.stderr


def test_samples_of_several_sizes_are_refused(ddpm: Ddpm, sets: Path) -> None:
    (sets / "mixed").mkdir()
    for side in (8, 9):
        Image.new("L", (side, side)).save(sets / "mixed" / f"{side}.png")
    done = ddpm("neighbors", "mixed", "train.npy")
    assert done.returncode == 3
    assert "mixed: the images are 8x8 to 9x9; they decide what the others are compared at" in done.stderr


def test_samples_keep_a_size_that_train_would_not_choose(ddpm: Ddpm, tmp_path: Path) -> None:
    for name in ("s", "t"):
        np.save(tmp_path / f"{name}.npy", noise(len(name), 9, 70, 13, 3))
    done = ddpm("neighbors", "s.npy", "t.npy", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["copies"]) == 9


def test_what_cannot_be_done_is_said_before_the_work(ddpm: Ddpm, sets: Path) -> None:
    (sets / "empty").mkdir()
    (sets / "there.png").write_text("mine")
    for arguments, code, message in [
        ("-k 61", 2, "-k is 61, and train.npy has 60 images"),
        ("-o sheet.jpg", 2, "sheet.jpg"),
        ("-o sheet", 2, "-o sheet"),
        ("-o there.png", 2, "there.png exists already"),
        ("--csv there.png", 2, "there.png exists already"),
        ("--csv neighbors.png", 2, "neighbors.png is named twice"),
        ("-o no/where.png", 7, "there is no folder no"),
        ("--held-out empty", 3, "empty"),
        ("--held-out ''", 2, "--held-out"),
        ("-n 0", 2, "-n"),
        ("--scale 64 -n 30 -k 60", 2, "31,722 pixels"),
    ]:
        done = ddpm("neighbors", "honest.npy", "train.npy", *shlex.split(arguments))
        assert done.returncode == code, (arguments, done.stderr)
        assert message in done.stderr, arguments
        assert (sets / "there.png").read_text() == "mine"
        assert not (sets / "neighbors.png").exists()
        assert done.stdout == b""


@pytest.mark.parametrize("source", ["nowhere", "empty", "text.npy", "builtin:cats"])
@pytest.mark.parametrize("place", [0, 1])
def test_sources_that_cannot_be_used(ddpm: Ddpm, sets: Path, source: str, place: int) -> None:
    (sets / "empty").mkdir()
    (sets / "text.npy").write_text("not an array")
    names = ["honest.npy", "train.npy"]
    names[place] = source
    done = ddpm("neighbors", *names)
    assert done.returncode == 3
    assert source in done.stderr
    assert "Traceback" not in done.stderr
