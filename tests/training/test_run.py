"""A run folder: what a run leaves in it, how the same command goes on with it, and what is refused."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import threading
import time
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ddpm_cli
from ddpm_cli.checkpoint import Provenance, StoredModel, newest, read_provenance, read_snapshot, run_lock, verify
from ddpm_cli.core.pixels import grid, sheet_scale
from ddpm_cli.errors import ArgumentError, DdpmError, DiskError, DivergedError, InputError, LockedError
from ddpm_cli.training.record import Cadence, check_same_run
from ddpm_cli.training.run import Progress, run
from helpers.checkpoints import differences
from helpers.models import DIFFUSION, random_unet
from helpers.process import Ddpm
from helpers.runs import NETWORK, QUIET, TRAIN, config_of, final, go, images

CPU = torch.device("cpu")


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def logged(folder: Path) -> list[tuple[float, float]]:
    """(step, loss) of each line of metrics.jsonl."""
    return [(line["step"], line["loss"]) for line in metrics(folder)]


def steps_of(folder: Path) -> list[int]:
    return sorted(verify(path) for path in (folder / "checkpoints").iterdir())


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its time of change and its content."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".lock")
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps, each logged, in one go."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    go(folder)
    return folder


# What a run leaves.


def test_what_is_in_a_run_folder(tmp_path: Path) -> None:
    cadence = Cadence(steps=10, log_every=4, save_every=3, sample_every=5, keep=2)
    progress = go(tmp_path / "run", cadence)
    assert [p.step for p in progress] == [*range(11), 10]
    assert [p.step for p in progress if p.advanced] == list(range(1, 11))
    assert [p.step for p in progress if p.report] == [4, 8, 10]
    saved = [int(p.checkpoint.name[5:]) for p in progress if p.checkpoint]
    assert saved in ([3, 6, 9, 10], [3, 6, 10])  # the end waits for that of 9, and tells the last
    assert all(int(p.checkpoint.name[5:]) in range(p.step - 3, p.step + 1) for p in progress if p.checkpoint)
    assert [p.step for p in progress if p.preview] == [5, 10]
    names = {path.name for path in (tmp_path / "run").iterdir()} - {".lock"}
    assert names == {"config.json", "metrics.jsonl", "samples", "checkpoints"}
    assert steps_of(tmp_path / "run") == [9, 10]
    assert progress[-1].checkpoint == final(tmp_path / "run", 10)
    assert [line["step"] for line in metrics(tmp_path / "run")] == [4, 8, 10]
    for line in metrics(tmp_path / "run"):
        assert list(line) == ["step", "loss", "lr", "grad_norm", "images_per_second", "seconds"]
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == {
        "schema": 1,
        "version": ddpm_cli.__version__,
        "unet": {**NETWORK.to_json(), **{k: list(v) for k, v in NETWORK.to_json().items() if isinstance(v, tuple)}},
        "diffusion": DIFFUSION.to_json(),
        "train": replace(TRAIN).to_json(),
        "data": {"digest": images().digest, "shape": [13, 8, 8, 1]},
        "from": None,
        "origin": {"command": [], "images": None, "preset": None},
        "cadence": asdict(cadence),
        "execution": {"processes": 1, "accumulate": 1, "recompute": False, "compile": False, "threads": 1},
    }


def test_a_preview_is_what_the_checkpoint_samples(tmp_path: Path) -> None:
    go(tmp_path / "run", replace(QUIET, steps=4, save_every=2, sample_every=2))
    for step in (2, 4):
        model = ddpm_cli.load(str(final(tmp_path / "run", step)), device="cpu", precision="fp32")
        with Image.open(tmp_path / "run" / "samples" / f"step-{step:08d}.png") as sheet:
            expected = grid(model.sample(16, sampler="ddim"), 4, 4, scale=sheet_scale((8, 8)))[:, :, 0]
            np.testing.assert_array_equal(np.asarray(sheet), expected)


@pytest.mark.parametrize("every", ["log_every", "save_every", "sample_every"])
def test_0_switches_off(tmp_path: Path, every: str) -> None:
    go(tmp_path / "run", replace(Cadence(4, log_every=2, save_every=2, sample_every=2), **{every: 0}))
    assert (tmp_path / "run" / "metrics.jsonl").exists() == (every != "log_every")
    assert steps_of(tmp_path / "run") == ([4] if every == "save_every" else [2, 4])
    assert (tmp_path / "run" / "samples").exists() == (every != "sample_every")


def test_how_often_it_writes_does_not_change_the_weights(tmp_path: Path, uninterrupted: Path) -> None:
    go(tmp_path / "run", Cadence(12, log_every=5, save_every=2, sample_every=3, keep=1))
    ours, theirs = (read_snapshot(final(folder, 12)) for folder in (tmp_path / "run", uninterrupted))
    assert differences(ours, theirs) == []


# The same command again.


@pytest.mark.parametrize("stop_after", [1, 5, 11])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path, uninterrupted: Path, stop_after: int) -> None:
    first = go(tmp_path / "run", stop_after=stop_after)
    assert first[-1] == Progress(stop_after, False, None, final(tmp_path / "run", stop_after), None)
    second = go(tmp_path / "run")
    assert (second[0].step, second[0].advanced) == (stop_after, False)
    assert differences(read_snapshot(final(tmp_path / "run", 12)), read_snapshot(final(uninterrupted, 12))) == []
    assert logged(tmp_path / "run") == logged(uninterrupted)


def test_more_steps_go_on(tmp_path: Path, uninterrupted: Path) -> None:
    for steps in (3, 7, 12):
        go(tmp_path / "run", replace(QUIET, steps=steps))
    assert differences(read_snapshot(final(tmp_path / "run", 12)), read_snapshot(final(uninterrupted, 12))) == []
    assert logged(tmp_path / "run") == logged(uninterrupted)


@pytest.mark.parametrize("steps", [12, 5])
def test_a_run_that_is_done_is_left_as_it_is(tmp_path: Path, uninterrupted: Path, steps: int) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    before = contents(tmp_path / "run" / "checkpoints")
    assert [p.step for p in go(tmp_path / "run", replace(QUIET, steps=steps))] == [12]
    assert contents(tmp_path / "run" / "checkpoints") == before
    assert logged(tmp_path / "run") == logged(uninterrupted)


@pytest.mark.parametrize(
    "tail",
    [b"", b'{"step": 9, "loss"', b'{"step": 9}', b"\xff\xfe\x00", b'"step"\n[9]\n{"step": "9"}\n{"loss": 1}\n\n'],
)
def test_the_log_forgets_what_was_not_saved_and_what_is_torn(tmp_path: Path, uninterrupted: Path, tail: bytes) -> None:
    go(tmp_path / "run", stop_after=6)
    with (tmp_path / "run" / "metrics.jsonl").open("ab") as file:  # as a kill at step 8 leaves it
        for step in (7, 8):
            file.write(json.dumps({"step": step, "loss": 0.5}).encode() + b"\n")
        file.write(tail)
    go(tmp_path / "run")
    assert logged(tmp_path / "run") == logged(uninterrupted)


def test_a_torn_line_of_a_saved_step_is_dropped(tmp_path: Path, uninterrupted: Path) -> None:
    go(tmp_path / "run", stop_after=6)
    log = tmp_path / "run" / "metrics.jsonl"
    log.write_bytes(log.read_bytes()[:-30])
    go(tmp_path / "run")
    assert logged(tmp_path / "run") == [line for line in logged(uninterrupted) if line[0] != 6]


def test_a_run_goes_on_from_the_newest_checkpoint_that_is_whole(
    tmp_path: Path, uninterrupted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    go(tmp_path / "run", replace(QUIET, steps=9, save_every=3))
    os.truncate(final(tmp_path / "run", 9) / "train" / "optimizer.safetensors", 1000)
    first = go(tmp_path / "run", replace(QUIET, save_every=3))[0]
    assert first.step == 6
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "step-00000009/train/optimizer.safetensors has 1000 bytes" in caplog.text
    assert steps_of(tmp_path / "run") == [6, 9, 12]  # 9 was made anew
    assert differences(read_snapshot(final(tmp_path / "run", 12)), read_snapshot(final(uninterrupted, 12))) == []
    assert logged(tmp_path / "run") == logged(uninterrupted)


def test_a_run_whose_every_checkpoint_is_damaged_is_not_started_over(tmp_path: Path) -> None:
    go(tmp_path / "run", replace(QUIET, steps=9, save_every=3))
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        (path / "MANIFEST.json").unlink()
    before = contents(tmp_path / "run")
    with pytest.raises(InputError, match="none of the 3 checkpoints"):
        go(tmp_path / "run")
    assert contents(tmp_path / "run") == before


def test_a_newer_version_goes_on_with_the_run_of_an_older_one(tmp_path: Path) -> None:
    go(tmp_path / "run", stop_after=2)
    file = tmp_path / "run" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"version": "0.0.1"}))
    assert go(tmp_path / "run")[-1].step == 12
    assert json.loads(file.read_text())["version"] == ddpm_cli.__version__


def test_a_run_starts_from_given_weights_and_goes_on_without_them(tmp_path: Path) -> None:
    weights = random_unet(NETWORK, seed=5).state_dict()
    start = StoredModel(NETWORK, DIFFUSION, weights, "somewhere", Provenance(origin="me/there@1"))
    config = replace(config_of(images()), start="somewhere")
    go(tmp_path / "whole", config=config, start=start)
    go(tmp_path / "parts", config=config, start=start, stop_after=4)
    other = {name: tensor * 0 for name, tensor in weights.items()}
    go(
        tmp_path / "parts",
        config=config,
        start=replace(start, weights=other, provenance=Provenance(origin="me/there@2")),
    )
    for name in ("whole", "parts"):
        past = Provenance(12, average=True, start="me/there@1", loss="simple")
        assert read_provenance(final(tmp_path / name, 12)) == past
    ours, theirs = (read_snapshot(final(tmp_path / name, 12)) for name in ("parts", "whole"))
    assert differences(ours, theirs) == []
    assert json.loads((tmp_path / "parts" / "config.json").read_text())["from"] == "somewhere"


def test_what_is_logged_does_not_depend_on_where_a_run_was_stopped(tmp_path: Path) -> None:
    cadence = replace(QUIET, log_every=5)
    go(tmp_path / "whole", cadence)
    go(tmp_path / "parts", cadence, stop_after=7)
    go(tmp_path / "parts", cadence)
    whole, parts = (
        [{k: line[k] for k in ("step", "loss", "lr")} for line in metrics(tmp_path / name)]
        for name in ("whole", "parts")
    )
    assert whole == parts
    assert [line["step"] for line in whole] == [5, 10, 12]


def test_a_run_that_has_kept_nothing_may_begin_with_other_settings(tmp_path: Path) -> None:
    stranger = config_of(images(), lr=900.0)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text(json.dumps(stranger.to_json()))
    assert go(tmp_path / "run")[-1].step == 12


def test_stopped_before_the_first_step(tmp_path: Path, uninterrupted: Path) -> None:
    stop = threading.Event()
    stop.set()
    data = images()
    seen = list(run(tmp_path / "run", config_of(data), QUIET, data, CPU, None, stop))
    assert [p.step for p in seen] == [0, 0]
    assert steps_of(tmp_path / "run") == [0]
    go(tmp_path / "run")
    assert differences(read_snapshot(final(tmp_path / "run", 12)), read_snapshot(final(uninterrupted, 12))) == []


def test_max_time_saves_and_stops(tmp_path: Path, uninterrupted: Path) -> None:
    began = time.monotonic()
    seen = go(tmp_path / "run", replace(QUIET, steps=10**6, max_time=0.5))
    assert time.monotonic() - began < 30
    step = seen[-1].step
    assert 0 < step < 10**6
    assert steps_of(tmp_path / "run") == [step]
    if step <= 12:  # on a slow machine
        go(tmp_path / "run")
        assert differences(read_snapshot(final(tmp_path / "run", 12)), read_snapshot(final(uninterrupted, 12))) == []


# What is refused.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": replace(TRAIN, lr=0.5)}, ["train.lr was 0.002 and is now 0.5"]),
        (
            {"train": replace(TRAIN, batch_size=5, seed=4, flip=False)},
            [
                "train.batch_size was 4 and is now 5",
                "train.seed was 3 and is now 4",
                "train.flip was true and is now false",
            ],
        ),
        ({"unet": replace(NETWORK, dropout=0.0)}, ["unet.dropout was 0.2 and is now 0.0"]),
        (
            {"unet": replace(NETWORK, block_out_channels=(8, 8))},
            ["unet.block_out_channels was [8, 16] and is now [8, 8]"],
        ),
        ({"diffusion": replace(DIFFUSION, timesteps=21)}, ["diffusion.timesteps was 20 and is now 21"]),
        ({"start": "other"}, ['from was null and is now "other"']),
        ({"digest": "blake2b-256:" + "0" * 64}, ["a run with other images. Give those, as they were"]),
        (
            {"digest": "blake2b-256:" + "0" * 64, "shape": (14, 8, 8, 1), "train": replace(TRAIN, ema=0.8)},
            ["the images are others", "data.shape was [13, 8, 8, 1] and is now [14, 8, 8, 1]", "train.ema was 0.9 and"],
        ),
    ],
)
def test_other_settings_are_named_with_both_values(
    tmp_path: Path, uninterrupted: Path, changes: dict[str, Any], words: list[str]
) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    before = contents(tmp_path / "run")
    config = replace(config_of(images()), **changes)
    with pytest.raises(ArgumentError) as caught:
        go(tmp_path / "run", config=config)
    assert caught.value.exit_code == 2
    for word in words:
        assert word in str(caught.value)
    assert str(caught.value).count(" was ") == sum(" was " in word for word in words)
    assert contents(tmp_path / "run") == before


def test_a_run_from_before_t_was_sampled_in_two_ways_goes_on(tmp_path: Path, uninterrupted: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    old = json.loads(file.read_text())
    del old["train"]["t_sampling"]
    file.write_text(json.dumps(old))
    go(tmp_path / "run", replace(QUIET, steps=13))
    assert steps_of(tmp_path / "run")[-1] == 13
    file.write_text(json.dumps(old))
    other = replace(config_of(images()), train=replace(TRAIN, t_sampling="importance"))
    with pytest.raises(ArgumentError, match=r'train\.t_sampling was "uniform" and is now "importance"'):
        go(tmp_path / "run", config=other)


def test_a_config_that_is_damaged_is_refused(tmp_path: Path, uninterrupted: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    for text in ("", "{", "[]", '{"train": NaN}'):
        (tmp_path / "run" / "config.json").write_text(text)
        with pytest.raises(InputError, match=r"config\.json"):
            go(tmp_path / "run")
    whole = json.loads((uninterrupted / "config.json").read_text())
    for wrong, name in (
        ({}, "config.json: .* is missing"),
        (whole | {"train": whole["train"] | {"lr": "fast"}}, "train: lr is 'fast'"),
        (whole | {"train": whole["train"] | {"lr": -1.0}}, r"config\.json: training: lr is -1.0"),
        (whole | {"unet": whole["unet"] | {"dropout": None}}, "unet: dropout is None"),
        (whole | {"data": whole["data"] | {"shape": [1, 2, 3]}}, "data: shape is"),
        (whole | {"data": 3}, "data is 3"),
        (whole | {"optimizer": "lion", "version": "0.9.0"}, r"unknown field 'optimizer'.*written by ddpm 0\.9\.0"),
        (whole | {"schema": 2, "version": "9.9.9"}, r"newer ddpm \(9\.9\.9\)"),
    ):
        (tmp_path / "run" / "config.json").write_text(json.dumps(wrong))
        with pytest.raises(InputError, match=name):
            go(tmp_path / "run")


def test_checkpoints_of_another_network_without_their_config(tmp_path: Path, uninterrupted: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copytree(uninterrupted / "checkpoints", tmp_path / "run" / "checkpoints")
    before = contents(tmp_path / "run")
    with pytest.raises(DdpmError, match="step-00000012") as caught:
        go(tmp_path / "run", config=config_of(images(), replace(NETWORK, block_out_channels=(8, 8))))
    assert caught.value.exit_code in (2, 3)
    assert contents(tmp_path / "run") == before
    assert go(tmp_path / "run")[0].step == 12  # those of this network are as good as ever


@pytest.mark.parametrize("stranger", ["photo.png", "checkpoint", "model.safetensors", ".hidden"])
def test_a_folder_that_holds_something_else_is_not_touched(tmp_path: Path, stranger: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / stranger).write_text("precious")
    with pytest.raises(ArgumentError, match=f"not empty and holds no run .*{stranger}"):
        go(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == [stranger]


def test_folders_that_a_run_may_begin_in(tmp_path: Path) -> None:
    for leftovers in ([], [".lock"], [".lock", ".lock-owner.json", "checkpoints", ".tmp-77-deadbeef"]):
        folder = tmp_path / str(len(leftovers))
        folder.mkdir()
        for name in leftovers:
            (folder / name).mkdir() if name == "checkpoints" else (folder / name).write_text("")
        check_same_run(folder, config_of(images()))
        go(folder, replace(QUIET, steps=1))
        assert not list(folder.glob(".tmp*"))
    check_same_run(tmp_path / "new", config_of(images()))
    assert not (tmp_path / "new").exists()


def test_a_run_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("precious")
    with pytest.raises(ArgumentError, match="is a file"):
        go(tmp_path / "run")
    assert (tmp_path / "run").read_text() == "precious"


def test_a_run_that_is_training_is_locked(tmp_path: Path) -> None:
    data = images()
    first = run(tmp_path / "run", config_of(data), QUIET, data, CPU, None, threading.Event())
    next(first)
    next(first)
    with pytest.raises(LockedError, match=f"process {os.getpid()} on "):
        go(tmp_path / "run")
    first.close()
    assert go(tmp_path / "run")[-1].step == 12


def test_a_loss_that_is_not_finite_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    data = images()
    config = config_of(data, lr=1e3, warmup=0)
    with pytest.raises(DivergedError):
        go(tmp_path / "run", replace(QUIET, steps=300, save_every=1, keep=2), config)
    latest = newest(tmp_path / "run")
    assert latest is not None
    assert steps_of(tmp_path / "run")[-1] == metrics(tmp_path / "run")[-1]["step"] == verify(latest)
    assert all(torch.isfinite(tensor).all() for tensor in read_snapshot(latest).weights.values())
    with run_lock(tmp_path / "run"):
        pass  # the lock is free


def test_an_update_that_was_broken_off_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lerp, calls = torch._foreach_lerp_, count(1)

    def fail_at_the_fifth(*arguments: Any) -> None:
        if next(calls) == 5:
            raise MemoryError
        lerp(*arguments)

    monkeypatch.setattr(torch, "_foreach_lerp_", fail_at_the_fifth)
    with pytest.raises(MemoryError):
        go(tmp_path / "run", replace(QUIET, save_every=2))
    assert steps_of(tmp_path / "run") == [2, 4]
    assert go(tmp_path / "run")[0].step == 4


def test_a_save_that_fails_ends_the_run_and_the_folder_can_be_used_again(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "")

    data = images()
    cadence = replace(QUIET, steps=500, save_every=2)
    events = run(tmp_path / "run", config_of(data), cadence, data, CPU, None, threading.Event())
    assert next(event for event in events if event.checkpoint).checkpoint == final(tmp_path / "run", 2)
    monkeypatch.setattr("os.fsync", full)  # while step 4 is being saved, or soon after
    with pytest.raises(DiskError, match=r"step-0000000[46]") as caught:
        next(event for event in events if event.step > 8)
    assert caught.value.exit_code == 7
    monkeypatch.undo()
    assert steps_of(tmp_path / "run") in ([2], [2, 4])
    go(tmp_path / "run")
    assert differences(read_snapshot(final(tmp_path / "run", 12)), read_snapshot(final(uninterrupted, 12))) == []


# The same as a process: exit codes and words.

TINY = ("--batch-size", "4", "--sample-every", "0", "--device", "cpu", "--precision", "fp32", "--log-every", "1")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    path = tmp_path / "pictures.npy"
    np.save(path, np.random.default_rng(7).integers(0, 256, (13, 8, 8), dtype=np.uint8))
    return path


def test_going_on_with_more_and_with_fewer_steps(ddpm: Ddpm, tmp_path: Path, pictures: Path, tiny_run: Path) -> None:
    command = ("train", pictures, "-o", "run", "--from", tiny_run, *TINY)
    first = ddpm(*command, "--steps", "4", "--json")
    assert first.returncode == 0, first.stderr
    checkpoint = f"run/checkpoints/step-{4:08d}"
    assert json.loads(first.stdout) == {"step": 4, "checkpoint": checkpoint, "run": "run"}
    assert "done: 4 steps; more with --steps 8" in first.stderr
    again = ddpm(*command, "--steps", "4", "--json")
    assert again.returncode == 0, again.stderr
    assert "resuming from step 4" in again.stderr
    assert json.loads(again.stdout) == json.loads(first.stdout)
    fewer = ddpm(*command, "--steps", "2")
    assert fewer.returncode == 0, fewer.stderr
    assert "nothing to do: the run is at step 4, beyond --steps 2" in fewer.stderr
    more = ddpm(*command, "--steps", "6")
    assert more.returncode == 0, more.stderr
    assert "resuming from step 4" in more.stderr
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_other_settings_exit_2_and_change_nothing(ddpm: Ddpm, tmp_path: Path, pictures: Path, tiny_run: Path) -> None:
    command = ("train", pictures, "-o", "run", "--from", tiny_run, *TINY, "--steps", "2")
    assert ddpm(*command).returncode == 0
    before = contents(tmp_path / "run")
    other = ddpm(*command, "--lr", "0.5", "--seed", "7")
    assert other.returncode == 2
    assert re.search(r"--lr was 0\.\d+ and is now 0\.5", other.stderr)
    assert "--seed was 0 and is now 7" in other.stderr
    assert "ddpm train" in other.stderr
    np.save(pictures, np.zeros((13, 8, 8), np.uint8))
    shutil.rmtree(tmp_path / "ddpm-cache")  # or it would go on with the images of then
    changed = ddpm(*command)
    assert changed.returncode == 2
    assert "other images. Give those, as they were" in changed.stderr
    assert contents(tmp_path / "run") == before


def test_a_run_goes_on_with_the_images_it_began_with(
    ddpm: Ddpm, tmp_path: Path, pictures: Path, tiny_run: Path
) -> None:
    def command(name: str, steps: str) -> tuple[str | Path, ...]:
        return ("train", pictures, "-o", name, "--from", tiny_run, *TINY, "--steps", steps)

    for name, steps in (("whole", "4"), ("parts", "2")):
        assert ddpm(*command(name, steps)).returncode == 0
    np.save(pictures, np.zeros((14, 8, 8), np.uint8))
    more = ddpm(*command("parts", "4"))
    assert more.returncode == 0, more.stderr
    assert (
        "has changed since the run began: it resumes with the 13 images of then; a new run (-o) would take those"
        in (" ".join(more.stderr.split()))
    )
    assert differences(*(read_snapshot(newest(tmp_path / name) or tmp_path) for name in ("whole", "parts"))) == []
    new = ddpm(*command("new", "2"))
    assert new.returncode == 0
    assert "has changed since it was packed (13 images then); it was packed again" in " ".join(new.stderr.split())


def test_a_dry_run_writes_nothing_into_a_run(ddpm: Ddpm, tmp_path: Path, pictures: Path, tiny_run: Path) -> None:
    command = ("train", pictures, "-o", "run", "--from", tiny_run, *TINY, "--steps", "2")
    assert ddpm(*command, "--dry-run").returncode == 0
    assert not (tmp_path / "run").exists()
    assert ddpm(*command).returncode == 0
    before = contents(tmp_path / "run")
    assert ddpm(*command, "--dry-run").returncode == 0
    assert contents(tmp_path / "run") == before


def test_divergence_exits_5_and_keeps_the_last_checkpoint(
    ddpm: Ddpm, tmp_path: Path, pictures: Path, tiny_run: Path
) -> None:
    command = ("train", pictures, "-o", "run", "--from", tiny_run, *TINY, "--lr", "1000", "--warmup", "0")
    done = ddpm(*command, "--steps", "500", "--save-every", "1")
    assert done.returncode == 5, done.stderr
    assert re.search(r"error: step \d+: the loss or its gradient is not finite, .*--lr \(it was 1000\)", done.stderr)
    assert "Traceback" not in done.stderr
    latest = newest(tmp_path / "run")
    assert latest is not None
    assert all(torch.isfinite(tensor).all() for tensor in read_snapshot(latest).weights.values())


def test_max_time_exits_0_and_says_how_to_go_on(ddpm: Ddpm, tmp_path: Path, pictures: Path, tiny_run: Path) -> None:
    done = ddpm("train", pictures, "-o", "run", "--from", tiny_run, *TINY, "--steps", "100000", "--max-time", "1s")
    assert done.returncode == 0, done.stderr
    found = re.search(r"stopped at step (\d+) of 100,000, saved", done.stderr)
    assert found
    assert steps_of(tmp_path / "run") == [int(found[1])]


def test_damage_is_warned_of_and_none_left_exits_3(ddpm: Ddpm, tmp_path: Path, pictures: Path, tiny_run: Path) -> None:
    command = ("train", pictures, "-o", "run", "--from", tiny_run, *TINY, "--save-every", "2")
    assert ddpm(*command, "--steps", "4").returncode == 0
    os.truncate(final(tmp_path / "run", 4) / "unet" / "diffusion_pytorch_model.safetensors", 99)
    done = ddpm(*command, "--steps", "4")
    assert done.returncode == 0, done.stderr
    assert re.search(r"warning: skipping a damaged checkpoint: .*model.safetensors has 99 bytes", done.stderr)
    assert steps_of(tmp_path / "run") == [2, 4]
    for step in (2, 4):
        (final(tmp_path / "run", step) / "train" / "state.json").write_text("{}")
    done = ddpm(*command, "--steps", "4")
    assert done.returncode == 3
    assert "none of the 2 checkpoints in run/checkpoints is whole" in done.stderr
    assert "state.json" in done.stderr


def test_a_run_folder_that_cannot_be_made_exits_7(ddpm: Ddpm, pictures: Path, tiny_run: Path) -> None:
    done = ddpm("train", pictures, "-o", "/proc/run", "--from", tiny_run, *TINY, "--steps", "2")
    assert done.returncode == 7, done.stderr
    assert "error: cannot write /proc/run" in done.stderr
