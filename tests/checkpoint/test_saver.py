"""Checkpoints are written while training continues: of the step that was asked for, one at a time, none lost."""

from __future__ import annotations

import copy
import errno
import logging
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from ddpm_cli.checkpoint import Provenance, Saver, newest, read_snapshot
from ddpm_cli.checkpoint import saver as module
from ddpm_cli.errors import DiskError, LockedError
from helpers.checkpoints import differences, random_snapshot


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "checkpoints").mkdir()
    return tmp_path


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Nothing is written before it is set."""
    opened, publishing = threading.Event(), module.publishing

    def wait(*arguments: Any, **options: Any) -> Generator[None, None, Path]:
        assert opened.wait(60)
        return (yield from publishing(*arguments, **options))

    monkeypatch.setattr(module, "publishing", wait)
    return opened


def saver(run: Path) -> Saver:
    return Saver(run, keep=2, past=Provenance())


def folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def test_what_is_saved_is_the_step_that_was_asked_for(run: Path, gate: threading.Event) -> None:
    snapshot = random_snapshot(1, 5)
    before = copy.deepcopy(snapshot)
    with saver(run) as saving:
        saving.begin(snapshot)
        for tensors in (snapshot.ema, snapshot.weights, snapshot.optimizer):
            for tensor in tensors.values():
                tensor.add_(1)  # training continues
        assert saving.finished() is None
        gate.set()
        assert saving.finished(wait=True) == folder(run, 5)
        assert saving.finished(wait=True) is None  # it was told
    assert differences(read_snapshot(folder(run, 5)), before) == []


def test_one_at_a_time_and_leaving_waits_for_the_last(run: Path) -> None:
    snapshots = [random_snapshot(step, step) for step in range(1, 6)]
    with saver(run) as saving:
        for snapshot in snapshots:
            saving.begin(snapshot)
            there = newest(run)
            assert there == (folder(run, snapshot.step - 1) if snapshot.step > 1 else None) or there == folder(
                run, snapshot.step
            )
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000004", "step-00000005"]
    assert differences(read_snapshot(folder(run, 5)), snapshots[-1]) == []


@pytest.mark.parametrize("then", ["asked", "the next save", "left", "left with an error"])
def test_a_save_that_fails_is_never_silent(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, then: str
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "")

    with saver(run) as saving:
        saving.begin(random_snapshot(1, 1))
    monkeypatch.setattr("os.fsync", full)

    def save() -> None:
        with saver(run) as saving:
            saving.begin(random_snapshot(2, 2))
            if then == "asked":
                saving.finished(wait=True)
            elif then == "the next save":
                saving.begin(random_snapshot(3, 3))
            elif then == "left with an error":
                raise LockedError("training's own")

    with pytest.raises(LockedError if then == "left with an error" else DiskError) as caught:
        save()
    monkeypatch.undo()
    warned = [record.levelno for record in caplog.records]
    assert warned == ([logging.WARNING] if then == "left with an error" else [])
    assert "step-00000002" in (caplog.text or str(caught.value))
    assert newest(run) == folder(run, 1)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000001"]
