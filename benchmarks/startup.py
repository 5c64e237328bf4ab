"""How long the program takes to answer, beside ``import torch``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ddpm_cli.core.pixels import encode_png, to_image
from ddpm_cli.core.rng import integers, normal

from .measure import Table, in_turn

FIRST_STEP = "ddpm train images, until its first step"
LIMITS = {"ddpm --help": 0.2, "ddpm noise picture.png": 0.4, FIRST_STEP: 4.0}
IMAGES = 1000
_POLL_SECONDS = 0.002


def tables() -> Iterator[Table]:
    """Whole processes, from start to exit, or to the first step of training."""
    program = [sys.executable, "-m", "ddpm_cli"]
    with tempfile.TemporaryDirectory() as name:
        images = Path(name) / "images"
        _make(images)
        train = [*program, "train", str(images), "--batch-size", "64"]
        environment = {**os.environ, "DDPM_CACHE": f"{name}/cache"}
        subprocess.run([*train, "--dry-run"], check=True, capture_output=True, env=environment)
        picture = Path(name) / "picture.png"
        picture.write_bytes(encode_png(to_image(_photo())))
        noise = [*program, "noise", str(picture), "-o", f"{name}/noisy.png", "--force"]
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "ddpm --help": [*program, "--help"],
            "ddpm noise picture.png": noise,
            "python -c 'import numpy, PIL.Image'": [sys.executable, "-c", "import numpy, PIL.Image"],
            "python -c 'import torch'": [sys.executable, "-c", "import torch"],
        }
        things: dict[str, Callable[[], object]] = {
            what: lambda args=args: _run(args) for what, args in commands.items()
        }
        things[FIRST_STEP] = lambda: _first_step(train, Path(name) / "run", environment)
        times = in_turn(things, 11)
    torch = times["python -c 'import torch'"].median
    rows = tuple(
        (f"`{what}`", str(t), f"{t.median / torch:.3f}", f"{LIMITS[what]} s" if what in LIMITS else "")
        for what, t in times.items()
    )
    yield Table(
        "Start-up",
        "Whole processes in turn, 11 times after a first; median (least to most). The picture has 512x512 pixels. "
        f"Training is on a packed folder of {IMAGES:,} images of 32x32 in batches of 64, with the default network, and "
        "is timed until its first line of metrics.jsonl, when it is killed.",
        ("command", "time", "of `import torch`", "aim"),
        rows,
    )


def _photo() -> np.ndarray:
    """Something smooth with a little noise, which packs about as a photo does."""
    y, x = np.mgrid[0:512, 0:512] / 512
    waves = np.stack([np.sin(7 * x + 3 * y), np.cos(5 * y * x), np.sin(9 * y)], axis=2)
    noise = 0.03 * normal(waves.shape, 0, "benchmark")
    return ((waves + noise).clip(-1, 1) * 127 + 128).astype(np.uint8)


def _make(folder: Path) -> None:
    folder.mkdir()
    pixels = integers(0, 256, IMAGES * 32 * 32 * 3, 0, "benchmark").astype(np.uint8).reshape(IMAGES, 32, 32, 3)
    for i, image in enumerate(pixels):
        (folder / f"{i:04d}.png").write_bytes(encode_png(to_image(image)))


def _first_step(train: list[str], run: Path, environment: dict[str, str]) -> None:
    shutil.rmtree(run, ignore_errors=True)
    metrics = run / "metrics.jsonl"
    with subprocess.Popen(
        [*train, "-o", str(run), "--log-every", "1"], stderr=subprocess.DEVNULL, env=environment
    ) as process:
        try:
            while not (metrics.exists() and metrics.stat().st_size):
                assert process.poll() is None, f"it ended with exit code {process.returncode} before its first step"
                time.sleep(_POLL_SECONDS)
        finally:
            process.kill()


def _run(args: list[str]) -> None:
    subprocess.run(args, check=True, capture_output=True)
