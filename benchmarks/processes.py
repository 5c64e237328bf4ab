"""``ddpm train`` in two processes of one thread each, beside one process of two threads, on the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddpm_cli.core.rng import integers

from .measure import Table, Times

PROCESSES = 2
ROUNDS = 2
REPORTS = 4  # lines of metrics.jsonl of a run; the first, which holds what comes once, is not counted
IMAGES = 512
AIM = 0.9
ONE, SEVERAL = f"one process of {PROCESSES} threads", f"{PROCESSES} processes of one thread"


@dataclass(frozen=True)
class Case:
    """A preset on random images; so many steps between two lines of metrics.jsonl."""

    preset: str
    side: int
    batch: int
    steps: int


CASES = (Case("tiny", 16, 128, steps=10), Case("cifar10", 32, 32, steps=2))


def tables() -> Iterator[Table]:
    """Images a second of either."""
    yield Table(
        "Two processes on one machine",
        f"`torchrun --nproc-per-node {PROCESSES}` with `OMP_NUM_THREADS=1`, beside one process with "
        f"`OMP_NUM_THREADS={PROCESSES}`: the same cores, and the same batch in all. Images/s as metrics.jsonl has "
        f"them, of {ROUNDS} runs each in turn; median (least to most). One process is the limit here; the aim is "
        f"{AIM:.0%} of it.",
        ("preset, size, batch", "", "images/s", "of one process"),
        tuple(row for case in CASES for row in _rows(case)),
    )


def _rows(case: Case) -> Iterator[tuple[str, ...]]:
    commands = {
        ONE: ([sys.executable, "-m", "ddpm_cli"], PROCESSES),
        SEVERAL: (
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                f"--nproc-per-node={PROCESSES}",
                "-m",
                "ddpm_cli",
            ],
            1,
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as name:
        pixels = integers(0, 256, IMAGES * case.side**2 * 3, 0, "benchmark").astype(np.uint8)
        np.save(f"{name}/images.npy", pixels.reshape(IMAGES, case.side, case.side, 3))
        for number in range(ROUNDS):
            for what, (program, threads) in commands.items():
                run = Path(name) / f"run-{number}-{threads}"
                seconds[what] += _seconds(case, program, threads, f"{name}/images.npy", run)
    times = {what: Times(tuple(values)) for what, values in seconds.items()}
    for what, t in times.items():
        label = f"`{case.preset}`, {case.side}x{case.side}, {case.batch}"
        yield label, what, t.rates(case.batch), f"{times[ONE].median / t.median:.0%}"


def _seconds(case: Case, program: list[str], threads: int, images: str, run: Path) -> Iterator[float]:
    """Those of a step, as each line of metrics.jsonl has them."""
    settings = {
        "--preset": case.preset,
        "--batch-size": case.batch,
        "--steps": REPORTS * case.steps,
        "--log-every": case.steps,
        "--save-every": 0,
        "--sample-every": 0,
        "--device": "cpu",
    }
    options = [str(part) for option in settings.items() for part in option]
    cache = str(run.with_name("cache"))
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "DDPM_CACHE": cache}
    subprocess.run(
        [*program, "train", images, "-o", str(run), *options], check=True, stdout=subprocess.DEVNULL, env=environment
    )
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()[1:]
    return (case.batch / json.loads(line)["images_per_second"] for line in lines)
