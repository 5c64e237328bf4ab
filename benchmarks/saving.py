"""What a checkpoint costs in the middle of training, and how soon sampling begins from a run; beside an earlier build.

``DDPM_EARLIER=SRC`` names the folder ``src`` of the earlier build; without it only this one is measured.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddpm_cli.core.rng import integers

from .measure import Table, Times, in_turn

KEEP = 3  # checkpoints that are there when the measurement begins, as in the middle of a long run
QUIET, WINDOW, SAVES = 10, 10, 2  # steps before the first save, and from a save to the next
RUNS = 3
NAMES = ("before", "now")


@dataclass(frozen=True)
class Build:
    """A build of the program, and a run folder of its own."""

    source: Path
    folder: Path

    def ddpm(self, *words: object) -> None:
        """Run the program."""
        command = [sys.executable, "-m", "ddpm_cli", *map(str, words)]
        environment = {**os.environ, "PYTHONPATH": str(self.source), "DDPM_CACHE": str(self.folder / "cache")}
        subprocess.run(command, check=True, capture_output=True, env=environment)

    def train(self, images: Path, steps: int, save_every: int) -> None:
        """Train, or resume, up to a step."""
        options = ("--preset", "cifar10", "--batch-size", 16, "--sample-every", 0, "--log-every", 1, "--keep", KEEP)
        where = ("-o", self.folder / "run", "--steps", steps, "--save-every", save_every)
        self.ddpm("train", images, *options, *where)

    def newest(self) -> int:
        """The step that the run has reached."""
        return max(int(path.name[5:]) for path in (self.folder / "run" / "checkpoints").glob("step-*"))

    def lost(self, images: Path) -> float:
        """Seconds that training lost for each of some saves: by how much the steps after one took longer."""
        start = -(-self.newest() // WINDOW) * WINDOW  # saves are due at multiples
        if start > self.newest():
            self.train(images, start, 0)
        self.train(images, start + WINDOW * (1 + SAVES) + 1, WINDOW)
        lines = map(json.loads, (self.folder / "run" / "metrics.jsonl").read_text("ascii").splitlines())
        at = {line["step"]: line["seconds"] for line in lines}
        took = [at[step] - at[step - 1] for step in range(start + 2, start + WINDOW * (1 + SAVES) + 1)]
        quiet, others = took[1 : WINDOW - 1], took[WINDOW - 1 :]
        return (sum(others) - len(others) * statistics.median(quiet)) / SAVES


def tables() -> Iterator[Table]:
    """Seconds that training loses, and seconds until a first image."""
    with tempfile.TemporaryDirectory() as name:
        images = Path(name) / "images.npy"
        pixels = integers(0, 256, 64 * 32 * 32 * 3, 0, "benchmark").astype(np.uint8)
        np.save(images, pixels.reshape(64, 32, 32, 3))
        builds = _builds(Path(name))
        for build in builds.values():
            build.train(images, KEEP, 1)
        rounds = [{which: build.lost(images) for which, build in builds.items()} for _ in range(RUNS)]
        lost = {which: Times(tuple(each[which] for each in rounds)) for which in builds}
        first = ("-n", 1, "--sampler", "ddim", "--steps", 1, "--force", "-q", "-o", f"{name}/x.png")
        things = {
            which: lambda build=build: build.ddpm("sample", "-m", build.folder / "run", *first)
            for which, build in builds.items()
        }
        things["import torch"] = lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True)
        times = in_turn(things, 7)
    torch = times.pop("import torch")
    yield Table(
        "Saving, and sampling from a run",
        f"A run of the `cifar10` network in batches of 16 that keeps {KEEP} checkpoints of 545 MiB. Training: the "
        f"seconds by which the {WINDOW} steps after a save took longer than as many before the first, for each of "
        f"{SAVES} saves, {RUNS} times. Sampling: a whole process that makes one image in one step, without the "
        f"{torch.median:.2f} s of `import torch`; 7 times after a first. Median (least to most), in turn.",
        ("build", "training loses, a save", "sampling begins after"),
        tuple((which, str(lost[which]), str(_beyond(times[which], torch))) for which in builds),
        _verdict(lost, {which: _beyond(t, torch) for which, t in times.items()}),
    )


def _builds(folder: Path) -> dict[str, Build]:
    sources = [Path(__file__).parents[1] / "src"]
    if earlier := os.environ.get("DDPM_EARLIER"):
        sources.insert(0, Path(earlier).absolute())
    builds = {}
    for which, source in zip(NAMES[-len(sources) :], sources, strict=True):
        (folder / which).mkdir()
        builds[which] = Build(source, folder / which)
    return builds


def _beyond(times: Times, torch: Times) -> Times:
    return Times(tuple(seconds - torch.median for seconds in times.seconds))


def _verdict(lost: dict[str, Times], first: dict[str, Times]) -> str:
    if len(lost) < len(NAMES):
        return ""
    before, now = NAMES
    return (
        f"Aims, and what was measured: at most 0.1 of what training lost before "
        f"({lost[now].median / lost[before].median:.2f}), and 0.5 of the time that sampling took to begin "
        f"({first[now].median / first[before].median:.2f})."
    )
