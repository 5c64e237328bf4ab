"""Sampling and training beside other programs, with the choice of core/threads.py and with OpenMP's defaults."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .measure import Table, Times

ROUNDS = 3
LOOP = "while True: pass"
TORCH = """
import torch
x, layer = torch.randn(64, 32, 16, 16), torch.nn.Conv2d(32, 32, 3, padding=1)
with torch.no_grad():
    while True:
        layer(x)
"""
WORK = {
    "sampling": "sample -m builtin:digits -n 64 --sampler ddim --steps 40 -o {folder}/x.npy --force -q",
    "training": "train builtin:digits --preset tiny --batch-size 64 --steps 20 --sample-every 0 -o {folder}/run -q",
}
OURS, DEFAULTS = "ddpm", "OpenMP's defaults"
# Those of GNU's runtime and of LLVM's, which must be said for the choice not to be made.
SETTINGS = {OURS: {}, DEFAULTS: {"GOMP_SPINCOUNT": "300000", "KMP_BLOCKTIME": "200"}}
CONTROLS = "OMP_", "GOMP_", "KMP_", "MKL_"


@dataclass(frozen=True)
class Scene:
    """What else runs: so many copies of a program, and the cores that ours may use (all: None)."""

    name: str
    program: str = ""
    copies: int = 0
    cores: int | None = None


def scenes() -> tuple[Scene, ...]:
    """Those of this machine."""
    return (
        Scene("nothing else"),
        Scene("two other PyTorch processes at their defaults", TORCH, 2),
        Scene("two busy loops per core", LOOP, 2 * (os.cpu_count() or 1)),
        Scene("one core (taskset)", cores=1),
    )


def tables() -> Iterator[Table]:
    """Seconds of a whole command."""
    rows = (row for scene in scenes() for work in WORK for row in _rows(scene, work))
    yield Table(
        "On a machine that is doing something else",
        "A whole command, with its start: `ddpm sample` of 64 digits in 40 steps, `ddpm train` of 20 steps of 64 "
        f"digits. {ROUNDS} pairs in turn; median (least to most). The defaults are the same program with "
        f"`GOMP_SPINCOUNT=300000`, as a thread of OpenMP spins unless it is told otherwise.",
        ("beside", "", "threads", "seconds", "of the defaults"),
        tuple(rows),
    )


def _rows(scene: Scene, work: str) -> Iterator[tuple[str, ...]]:
    seconds: dict[str, list[float]] = {name: [] for name in SETTINGS}
    with _beside(scene):
        for _ in range(ROUNDS):
            for name, settings in SETTINGS.items():
                seconds[name].append(_seconds(scene, WORK[work], settings))
    times = {name: Times(tuple(values)) for name, values in seconds.items()}
    for name, t in times.items():
        spread = f"{t.median:.1f} ({min(seconds[name]):.1f} to {max(seconds[name]):.1f})"
        yield scene.name, work, name, spread, f"{t.median / times[DEFAULTS].median:.2f}"


@contextlib.contextmanager
def _beside(scene: Scene) -> Iterator[None]:
    others = [subprocess.Popen([sys.executable, "-c", scene.program], env=_environ()) for _ in range(scene.copies)]
    try:
        if others:
            time.sleep(5)  # until they compute
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def _seconds(scene: Scene, words: str, settings: dict[str, str]) -> float:
    pinned = ["taskset", "-c", "0"] if scene.cores == 1 and shutil.which("taskset") else []
    with tempfile.TemporaryDirectory() as folder:
        command = [*pinned, sys.executable, "-m", "ddpm_cli", *words.format(folder=Path(folder)).split()]
        began = time.perf_counter()
        subprocess.run(command, env=_environ() | settings, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began


def _environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(CONTROLS)}
