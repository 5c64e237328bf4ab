"""``ddpm train`` as a process: what it finds, says and refuses. What it computes is tested elsewhere."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_cli.training.compiling import Compiled
from helpers.process import Ddpm

TINY = ("--batch-size", "4", "--steps", "3", "--sample-every", "0", "--device", "cpu", "--precision", "fp32")


def plan(ddpm: Ddpm, *args: str | Path) -> dict[str, object]:
    done = ddpm("train", *args, "--dry-run", "--json", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    data: dict[str, object] = json.loads(done.stdout)
    return data


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of six colour pictures of several sizes, a note, and a picture that is cut off."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    rng = np.random.Generator(np.random.Philox(5))
    for i in range(6):
        pixels = rng.integers(0, 256, (40 + 3 * i, 50, 3), np.uint8)
        Image.fromarray(pixels).save(folder / ("more" if i % 2 else ".") / f"{i}.{'PNG' if i % 3 else 'jpg'}")
    (folder / "notes.txt").write_text("hello")
    (folder / "broken.png").write_bytes((folder / "more" / "1.PNG").read_bytes()[:500])
    return folder


def test_dry_run_says_what_it_would_do_and_writes_nothing(ddpm: Ddpm, photos: Path, tmp_path: Path) -> None:
    done = ddpm("train", photos, "--dry-run")
    assert done.returncode == 0, done.stderr
    for words in (
        "6 of 32x32, RGB",
        "tiny: channels 32, 64, 64, 64",
        "parameters",
        "memory",
        "about",
        "1,000 steps",
        "t by importance",
        "1 skipped",
        "broken.png",
        "1 other file ignored",
        str(tmp_path / "ddpm-out"),
    ):
        assert words in done.stderr, words
    assert not (tmp_path / "ddpm-out").exists()


def test_the_papers_presets(ddpm: Ddpm, photos: Path) -> None:
    data = plan(ddpm, photos, "--preset", "cifar10")
    assert data["cost"]["parameters"] == 35_746_307
    assert data["train"]["batch_size"] == 128
    assert data["train"]["ema"] == 0.9999
    assert data["train"]["warmup"] == 5000
    assert data["diffusion"]["variance"] == "fixed-large"
    assert data["cadence"]["steps"] == 800_000


def test_options_reach_the_run(ddpm: Ddpm, photos: Path) -> None:
    options = [
        "--size",
        "16x24",
        "--channels",
        "1",
        "--lr",
        "0.01",
        "--warmup",
        "7",
        "--ema",
        "0.5",
        "--dropout",
        "0.3",
    ]
    options += ["--no-flip", "--predict", "v", "--variance", "fixed-small", "--schedule", "cosine", "--timesteps", "50"]
    data = plan(ddpm, photos, *options, "--seed", "9", "--batch-size", "6", "--accumulate", "2", "--precision", "fp32")
    assert data["data"]["shape"] == [6, 16, 24, 1]
    assert data["unet"]["sample_size"] == [16, 24]
    assert data["unet"]["dropout"] == 0.3
    assert (
        data["diffusion"] | {"schedule": "cosine", "timesteps": 50, "predict": "v", "variance": "fixed-small"}
        == data["diffusion"]
    )
    wanted = {"lr": 0.01, "warmup": 7, "ema": 0.5, "flip": False, "seed": 9, "batch_size": 6}
    assert data["train"] | wanted == data["train"]
    assert data["execution"] == {"processes": 1, "accumulate": 2, "recompute": False, "compile": False}


def test_the_digits_are_not_mirrored_unless_asked(ddpm: Ddpm) -> None:
    assert plan(ddpm, "builtin:digits")["train"]["flip"] is False
    assert plan(ddpm, "builtin:digits", "--flip")["train"]["flip"] is True


def test_training_ends_with_the_command_that_samples(ddpm: Ddpm, photos: Path, tmp_path: Path) -> None:
    done = ddpm("train", photos, "-o", "run", "--size", "8", *TINY)
    assert done.returncode == 0, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last == "ddpm sample -m run -n 64 -o grid.png"
    sampled = ddpm(*last.split()[1:], "--sampler", "ddim", "--steps", "2")
    assert sampled.returncode == 0, sampled.stderr
    with Image.open(tmp_path / "grid.png") as sheet:
        assert sheet.mode == "RGB"


def test_a_folder_of_one_image(ddpm: Ddpm, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    Image.new("L", (8, 8), 77).save(tmp_path / "one" / "a.png")
    done = ddpm("train", "one", *TINY, "--json")
    assert done.returncode == 0, done.stderr
    assert "fewer images than a batch has places" in done.stderr
    assert json.loads(done.stdout)["step"] == 3


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_fine_tuning_from_a_run_and_from_its_checkpoint(ddpm: Ddpm, tmp_path: Path, channels: int) -> None:
    rng = np.random.Generator(np.random.Philox(6))
    np.save(tmp_path / "a.npy", rng.integers(0, 256, (4, 8, 8, channels), np.uint8))
    first = ddpm("train", "a.npy", "-o", "first", *TINY, "--json")
    assert first.returncode == 0, first.stderr
    for number, start in enumerate(("first", json.loads(first.stdout)["checkpoint"])):
        done = ddpm("train", "a.npy", "-o", f"second{number}", "--from", start, *TINY)
        assert done.returncode == 0, done.stderr
        config = json.loads((tmp_path / f"second{number}" / "config.json").read_text())
        assert config["from"] == start
    larger = plan(ddpm, "a.npy", "--from", "first", "--size", "16")
    assert larger["unet"]["sample_size"] == 16
    wrong = ddpm("train", "a.npy", "--from", "first", "--channels", "1" if channels != 1 else "3", "-o", "third")
    assert wrong.returncode == 3
    assert f"--channels {channels}" in wrong.stderr
    both = ddpm("train", "a.npy", "--from", "first", "--preset", "tiny", "-o", "third")
    assert both.returncode == 2
    assert "--preset" in both.stderr


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["nowhere"], 3, ["nowhere"]),
        (["empty"], 3, ["empty"]),
        (["texts"], 3, ["texts", ".txt"]),
        (["photos/0.jpg"], 3, ["photos/0.jpg", "folder"]),
        (["photos", "--preset", "cifar10", "--size", "28"], 3, ["28x28", "32x32", "--size"]),
        (["photos", "--size", "0"], 2, ["0"]),
        (["photos", "--size", "99999"], 2, ["99999"]),
        (["photos", "--lr", "-1"], 2, ["lr", "-1"]),
        (["photos", "--ema", "1"], 2, ["ema"]),
        (["photos", "--accumulate", "999"], 2, ["accumulate", "999"]),
        (["photos", "-o", "photos"], 2, ["photos", "no run"]),
        (["photos", "-o", "photos/notes.txt"], 2, ["notes.txt"]),
        (["photos", "-o", "no/such/run"], 7, ["no/such/run"]),
        (["photos", "--from", "nowhere"], 3, ["nowhere"]),
        (["photos", "--batch-size", "1000000", "--size", "256"], 3, ["memory", "--batch-size"]),
    ],
    ids=str,
)
def test_bad_input(ddpm: Ddpm, photos: Path, tmp_path: Path, options: list[str], code: int, words: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").touch()
    before = sorted(path for path in tmp_path.rglob("*") if "ddpm-cache" not in str(path))
    done = ddpm("train", *options)
    assert done.returncode == code, done.stderr
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path for path in tmp_path.rglob("*") if "ddpm-cache" not in str(path)) == before


# Compiled networks.


def train_afresh(env: dict[str, str], folder: Path, *options: str | Path) -> subprocess.CompletedProcess[str]:
    """In a process that is not forked: PyTorch's compiler reads the environment when it is imported."""
    command = [sys.executable, "-m", "ddpm_cli", "train", "builtin:digits", *options]
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=600)


def test_a_network_that_cannot_be_compiled(ddpm_env: dict[str, str], tiny_run: Path, tmp_path: Path) -> None:
    options = ("--from", tiny_run, "-o", "run", "--batch-size", "4", "--steps", "2", "--device", "cpu", "--compile")
    done = train_afresh(ddpm_env | {"CXX": "/nonexistent"}, tmp_path, *options)
    assert done.returncode == 2, done.stderr
    assert "--compile" in done.stderr
    assert "C++ compiler" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_network_trains_as_the_other_does(
    ddpm_env: dict[str, str], tiny_run: Path, tmp_path: Path, precision: str
) -> None:
    options = ["--batch-size", "8", "--steps", "6", "--log-every", "1", "--sample-every", "0", "--precision", precision]
    options += ["--dropout", "0.2", "--device", "cpu"]
    said = []
    for folder, more in (("plain", []), ("first", ["--compile"]), ("second", ["--compile"])):
        done = train_afresh(ddpm_env, tmp_path, "--from", tiny_run, "-o", folder, *options, *more)
        assert done.returncode == 0, done.stderr
        said.append(done.stderr)
    metrics = [
        [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        for folder in ("plain", "first", "second")
    ]
    for name, tolerance in (("loss", 1e-3), ("grad_norm", 1e-2)):
        values = [[line[name] for line in lines] for lines in metrics]
        for compiled in values[1:]:
            np.testing.assert_allclose(compiled, values[0], rtol=tolerance if precision == "fp32" else 3e-2)
    for text in said[1:]:
        assert re.search(r"compiled in .*pays from [\d,]+ steps on|not used: compiling took", " ".join(text.split()))
    assert any((tmp_path / "ddpm-cache" / "compiled").iterdir()), "kept for the next run"


def test_what_compiling_came_to() -> None:
    faster, slower, wrong = (
        Compiled(60.0, *times, 0.01) for times in ((0.5, 0.4, 0.01), (0.4, 0.5, 0.01), (0.5, 0.4, 0.02))
    )
    assert faster.kept
    assert faster.steps_to_earn == 600
    assert not slower.kept
    assert not wrong.kept
