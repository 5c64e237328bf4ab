"""The same command resumes: on another machine, in a later release, from another folder, and by the folder alone.

These runs are given no --device and no --precision: what the machine decides belongs to what is tested.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_cli.checkpoint import newest, read_snapshot
from ddpm_cli.cli import run
from ddpm_cli.core import threads
from ddpm_cli.training import record
from ddpm_cli.training.presets import PRESETS
from helpers.checkpoints import differences

RELEASES = Path(__file__).parents[1] / "data" / "releases"
COMMAND = ("train", "images", "-o", "run", "--sample-every", "0", "--batch-size", "4", "-q")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a few images, and a preset that is small."""
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(5).integers(0, 256, (6, 8, 8), np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "images" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(PRESETS, "tiny", replace(PRESETS["tiny"], channels=(8, 8), groups=4, steps=6))
    return tmp_path


def has_bf16(monkeypatch: pytest.MonkeyPatch, has: bool) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": has})


def config(folder: str = "run") -> dict[str, dict[str, object]]:
    data: dict[str, dict[str, object]] = json.loads((Path(folder) / "config.json").read_text())
    return data


def step_of(folder: str = "run") -> int:
    latest = newest(Path(folder))
    assert latest is not None
    return int(latest.name.removeprefix("step-"))


@pytest.mark.parametrize("first", [True, False])
def test_on_a_machine_with_and_without_bfloat16(here: Path, monkeypatch: pytest.MonkeyPatch, first: bool) -> None:
    has_bf16(monkeypatch, first)
    assert run([*COMMAND, "--steps", "2"]) == 0
    before = config()
    assert before["train"]["precision"] == ("bf16" if first else "fp32")
    has_bf16(monkeypatch, not first)
    assert run([*COMMAND, "--steps", "4"]) == 0
    after = config()
    assert step_of() == 4
    assert after["train"] == before["train"]
    assert run([*COMMAND, "--precision", "fp32" if first else "bf16"]) == 2


def test_after_a_release_that_changes_a_preset(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run([*COMMAND, "--preset", "tiny", "--steps", "2"]) == 0
    before = config()
    train = replace(PRESETS["tiny"].train, lr=0.5, warmup=1, ema=0.1, t_sampling="uniform")
    changed = replace(PRESETS["tiny"], channels=(16, 8), dropout=0.5, variance="fixed-small", train=train)
    monkeypatch.setitem(PRESETS, "tiny", changed)
    monkeypatch.setattr(record, "__version__", "0.2.0")
    assert run([*COMMAND, "--preset", "tiny", "--steps", "4"]) == 0
    for part in ("unet", "diffusion", "train"):
        assert config()[part] == before[part]
    assert step_of() == 4
    assert config()["version"] == "0.2.0" != before["version"]
    assert run([*COMMAND, "--preset", "small"]) == 2


def test_the_folder_alone_resumes_from_anywhere(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--steps", "4", "--save-every", "2", "--keep", "9"]
    assert run([*COMMAND, *options]) == 0
    shutil.copytree("run", "copy")
    shutil.rmtree("copy/checkpoints/step-00000004")
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert run(["train", "-o", "../copy", "-q"]) == 0
    assert step_of("../copy") == 4, "as many steps as were asked for"
    ours, theirs = (newest(here / name) for name in ("copy", "run"))
    assert ours
    assert theirs
    assert differences(read_snapshot(ours), read_snapshot(theirs)) == []
    assert run(["train", "-o", "../copy", "--steps", "5", "-q"]) == 0
    assert step_of("../copy") == 5
    assert config("../copy")["origin"]["command"] == [*COMMAND[1:], *options]


def test_a_refusal_names_the_options_and_the_command_that_began_the_run(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*COMMAND, "--steps", "2"]) == 0
    capsys.readouterr()
    assert run([*COMMAND, "--lr", "0.125", "--seed", "9", "--size", "16", "--channels", "3"]) == 2
    said = capsys.readouterr().err
    for words in (
        "--lr was 0.002 and is now 0.125",
        "--seed was 0",
        "--size was 8x8 and is now 16x16",
        "--channels was 1",
    ):
        assert words in said
    assert "ddpm train images -o run" in said
    assert run(["train", "-o", "nothing-here"]) == 2
    assert "nothing-here" in capsys.readouterr().err
    assert not Path("nothing-here").exists()


def test_a_variable_of_the_environment_is_given_as_an_option_is(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run([*COMMAND, "--steps", "2"]) == 0
    monkeypatch.setenv("DDPM_TRAIN_LR", "0.125")
    assert run([*COMMAND, "--steps", "3"]) == 2


def test_the_images_of_a_run_that_are_gone_are_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*COMMAND, "--steps", "2"]) == 0
    (here / "images").rename(here / "moved")
    assert run(["train", "-o", "run", "--steps", "3"]) == 3
    assert "images" in capsys.readouterr().err
    assert run(["train", "moved", "-o", "run", "--steps", "3", "-q"]) == 0, "the same images under another name"
    assert step_of() == 3


def test_the_number_of_threads_is_kept_where_it_can_be(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*COMMAND, "--steps", "2"]) == 0
    assert config()["execution"]["threads"] == torch.get_num_threads() == 1
    monkeypatch.setattr(threads, "available_cores", lambda: 1)
    edited = config()
    edited["execution"]["threads"] = 2
    (here / "run" / "config.json").write_text(json.dumps(edited))
    capsys.readouterr()
    assert run([*COMMAND[:-1], "--steps", "3"]) == 0
    assert "2 threads" in capsys.readouterr().err
    (here / "run" / "config.json").write_text(json.dumps(edited))
    monkeypatch.setattr(threads, "available_cores", lambda: 2)
    monkeypatch.setattr(threads, "set_by_user", lambda: False)
    try:
        assert run([*COMMAND, "--steps", "4"]) == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_a_run_of_release_0_1_resumes_and_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(RELEASES / "0.1", tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "cache"))
    for has in (True, False):
        has_bf16(monkeypatch, has)
        assert run(["sample", "-m", "run", "-n", "2", "--sampler", "ddim", "--steps", "3", "-o", f"{has}.png"]) == 0
    assert run(["train", "-o", "run"]) == 2, "it does not say where its images are"
    capsys.readouterr()
    command = ["train", "images", "-o", "run", "--batch-size", "4", "--keep", "1", "--sample-every", "0", "-q"]
    assert run([*command, "--steps", "8"]) == 0
    assert step_of() == 8
    assert config()["train"]["precision"] == "bf16"
    assert run(["train", "-o", "run", "--steps", "9", "-q"]) == 0, "now it does"
    assert step_of() == 9
    metrics = [json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert metrics[:3] == [2, 4, 6]
