"""How long the program takes to answer, beside ``import torch``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ddpm_cli.pixels import encode_png, to_image
from ddpm_cli.rng import generator

from .measure import Table, in_turn

LIMITS = {"ddpm --help": 0.2, "ddpm noise picture.png": 0.4}


def tables() -> Iterator[Table]:
    """Whole processes, from start to exit."""
    program = [sys.executable, "-m", "ddpm_cli"]
    with tempfile.TemporaryDirectory() as name:
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
        things = {what: lambda args=args: _run(args) for what, args in commands.items()}
        times = in_turn(things, 11)
    torch = times["python -c 'import torch'"].median
    rows = tuple(
        (f"`{what}`", str(t), f"{t.median / torch:.3f}", f"{LIMITS[what]} s" if what in LIMITS else "")
        for what, t in times.items()
    )
    yield Table(
        "Start-up",
        "Whole processes in turn, 11 times after a first; median (least to most). The picture has 512x512 pixels.",
        ("command", "time", "of `import torch`", "aim"),
        rows,
    )


def _photo() -> np.ndarray:
    """Something smooth with a little noise, which packs about as a photo does."""
    y, x = np.mgrid[0:512, 0:512] / 512
    waves = np.stack([np.sin(7 * x + 3 * y), np.cos(5 * y * x), np.sin(9 * y)], axis=2)
    noise = generator(0, "benchmark").normal(0, 0.03, waves.shape)
    return ((waves + noise).clip(-1, 1) * 127 + 128).astype(np.uint8)


def _run(args: list[str]) -> None:
    subprocess.run(args, check=True, capture_output=True)
