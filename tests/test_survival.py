"""Whatever ends a run, and whenever: the newest checkpoint is whole, and the same command goes on as if nothing were.

Kills, signals, full disks and failing calls, at each moment of a save and at random moments of a run.
"""

from __future__ import annotations

import errno
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError

import ddpm_cli
from ddpm_cli.checkpoint import newest, publish, read_snapshot, run_lock, verify, weights
from ddpm_cli.cli import run as run_cli
from ddpm_cli.cli.training import stopping
from ddpm_cli.errors import DdpmError, DiskError, InputError, LockedError
from nursery import Child, Nursery, wait_until
from test_checkpoint import FILES, differences, random_snapshot

OLD, NEW = 4, 8


def clean_environment(cache: Path) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DDPM_", "_DDPM_"))}
    source = str(Path(ddpm_cli.__file__).parents[1])
    return env | {"DDPM_CACHE": str(cache), "NO_COLOR": "1", "TERM": "dumb", "PYTHONPATH": source}


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    folder = tmp_path_factory.mktemp("nursery")
    with Nursery(folder, clean_environment(folder / "cache")) as server:
        yield server


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirteen grey images of 8x8, so that batches and epochs do not end together."""
    path = tmp_path_factory.mktemp("pictures") / "pictures.npy"
    np.save(path, np.random.default_rng(7).integers(0, 256, (13, 8, 8), dtype=np.uint8))
    return path


def answer(child: Child, timeout: float = 120) -> Any:
    """What a child prints as JSON."""
    assert child.wait(timeout) == 0, child.stderr
    return json.loads(child.stdout)


def leftovers(run: Path) -> list[str]:
    """What is neither a checkpoint nor a file of the run, at any depth."""
    return sorted(str(path.relative_to(run)) for path in run.rglob(".t*"))


# A failure or a kill at each single call of a save.


class Struck(BaseException):
    """What ends a call that was to be survived; never caught by the program."""


class Interceptor:
    """Stands between the writer of checkpoints and the system, and does something instead of call number ``at``.

    Args:
        strike: called with the call's name; raises, or ends the process.
        persistent: whether every later call fails too.
        harmless: calls that do not count.
    """

    SYSTEM = ("open", "fsync", "mkdir", "rename", "replace", "chmod", "unlink", "rmdir")

    def __init__(
        self, at: int, strike: Callable[[str], None], *, persistent: bool = False, harmless: tuple[str, ...] = ()
    ) -> None:
        self.at, self.strike, self.persistent, self.harmless = at, strike, persistent, harmless
        self.calls: list[tuple[str, str]] = []
        self._saved: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> Interceptor:
        for name in self.SYSTEM:
            self._patch(os, name, self._counted(getattr(os, name), name))
        self._patch(io, "open", self._open)
        self._patch(weights, "save_file", self._save_file)
        return self

    def __exit__(self, *_: object) -> None:
        for owner, name, original in self._saved:
            setattr(owner, name, original)

    def _patch(self, owner: Any, name: str, replacement: Any) -> None:
        self._saved.append((owner, name, getattr(owner, name)))
        setattr(owner, name, replacement)

    def _due(self, name: str, subject: object) -> bool:
        if name in self.harmless:
            return False
        path = os.readlink(f"/proc/self/fd/{subject}") if isinstance(subject, int) else str(subject)
        self.calls.append((name, path))
        return len(self.calls) == self.at or (self.persistent and len(self.calls) > self.at)

    def _counted(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if self._due(name, args[0] if args else ""):
                self.strike(name)
            return function(*args, **options)

        return call

    def _open(self, path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        original = next(saved for owner, name, saved in self._saved if owner is io)
        if self._due("open to read" if "r" in mode else "open to write", path):
            self.strike("open to read" if "r" in mode else "open to write")
        file = original(path, mode, *args, **options)
        if "r" not in mode:
            file.write = self._counted(file.write, "write")
            file.flush = self._counted(file.flush, "flush")
        return file

    def _save_file(self, tensors: Any, path: Path) -> None:
        save_file = self._saved[-1][2]
        save_file(tensors, path)
        if self._due("save_file", path):
            os.truncate(path, path.stat().st_size // 2)
            self.strike("save_file")


def fail(name: str) -> None:
    if name == "save_file":
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    code = errno.EIO if name == "open to read" else errno.ENOSPC
    raise OSError(code, os.strerror(code))


def die(_: str) -> None:
    os._exit(9)


def attempt(run: Path, at: int, how: str) -> tuple[str, int]:
    """Publish with call number ``at`` failing: what came of it, and how many calls there were."""
    snapshot = random_snapshot(NEW, NEW)
    if how == "killed":
        pid = os.fork()
        if pid == 0:
            with Interceptor(at, die, harmless=("open to read", "fsync")):  # they change nothing that a kill leaves
                publish(run, snapshot, keep=1)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return {0: "published", 9: "killed"}.get(code, f"code {code}"), 0
    with Interceptor(at, fail, persistent=how == "failing from then on") as interceptor:
        try:
            publish(run, snapshot, keep=1)
        except DiskError:
            return "refused", len(interceptor.calls)
        except BaseException as error:
            return f"{type(error).__name__}: {error}", len(interceptor.calls)
    return "published", len(interceptor.calls)


def sweep(folder: str, how: str, damaged: bool) -> None:
    """In a process of its own: publish with the first, second, ... call failing; print what was wrong after any."""
    template, run = Path(folder) / "template", Path(folder) / "run"
    (template / "checkpoints").mkdir(parents=True)
    publish(template, random_snapshot(OLD, OLD), keep=1)
    if damaged:
        os.truncate(publish(template, random_snapshot(1, NEW), keep=2) / "train" / "state.json", 5)
    expected = {OLD: random_snapshot(OLD, OLD), NEW: random_snapshot(NEW, NEW)}
    problems, outcomes, at = [], [], 0
    while not outcomes or outcomes[-1] != "untouched":
        at += 1
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(template, run)
        outcome, calls = attempt(run, at, how)
        where = f"call {at}: {outcome}"
        found = read_snapshot(newest(run))
        if differences(found, expected[found.step]):
            problems.append(f"{where}: neither the old nor the new one")
        if outcome == "published" and found.step != NEW:
            problems.append(f"{where}: but it is not the newest")
        if outcome not in ("published", "refused", "killed"):
            problems.append(where)
        stray = leftovers(run)
        if stray and outcome != "killed" and how == "failing once" and outcome == "refused":
            problems.append(f"{where}: left {stray}")
        with run_lock(run):
            if leftovers(run):
                problems.append(f"{where}: {leftovers(run)} after the next start")
        publish(run, expected[NEW], keep=1)
        again = read_snapshot(newest(run))
        if differences(again, expected[NEW]):
            problems.append(f"{where}: the next save did not get through")
        done = calls < at if how != "killed" else outcome == "published"
        outcomes.append("untouched" if done else outcome)
    print(json.dumps({"problems": problems, "outcomes": outcomes}))


@pytest.mark.parametrize(
    ("how", "damaged"),
    [("killed", False), ("killed", True), ("failing once", False), ("failing from then on", False)],
)
def test_a_save_may_be_struck_at_each_call(tmp_path: Path, nursery: Nursery, how: str, damaged: bool) -> None:
    result = answer(nursery.call(sweep, str(tmp_path), how, damaged))
    assert result["problems"] == []
    outcomes = result["outcomes"][:-1]
    assert len(outcomes) > 60
    assert set(outcomes) <= ({"killed"} if how == "killed" else {"refused", "published"})
    assert how == "killed" or outcomes.count("refused") > 40
