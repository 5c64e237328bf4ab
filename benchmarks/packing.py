"""Packing a folder of images: speed beside a plain loop over PIL files, the second start, and memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ddpm_cli.rng import integers

from .measure import Table

COUNTS = (1_000, 10_000)

IMPORTS = "import resource, sys; import ddpm_cli.data; from ddpm_cli.data import open_images\n"
OPEN = "import ddpm_cli.data as d\nif __name__ == '__main__': images = d.open_images(sys.argv[1]); assert len(images)\n"
PEAK = "print(max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))\n"


def tables() -> Iterator[Table]:
    """Packing 1,000 and 10,000 PNGs of 32x32."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for count in COUNTS:
            folder = Path(name) / str(count)
            _make(folder, count)
            environment = {**os.environ, "DDPM_CACHE": f"{name}/cache-{count}"}
            bare, _ = _run(IMPORTS + PEAK, folder, environment)
            plain = _plain_loop(folder)
            first, first_seconds = _run(IMPORTS + OPEN + PEAK, folder, environment)
            _, second_seconds = _run(IMPORTS + OPEN + PEAK, folder, environment)
            _, import_seconds = _run(IMPORTS + PEAK, folder, environment)
            seconds = first_seconds - import_seconds
            rows.append(
                (
                    f"{count:,}",
                    f"{plain:.2f} s",
                    f"{seconds:.2f} s ({count / seconds:,.0f} images/s)",
                    f"{plain / seconds:.2f}",
                    f"{second_seconds - import_seconds:.2f} s",
                    f"{(first - bare) / 1024:.0f} MiB",
                )
            )
    yield Table(
        "Packing PNGs of 32x32",
        f"A folder of random images, read from the page cache, {os.cpu_count()} cores, beside one process that opens, "
        "converts and stacks each file with PIL into memory. Images as small as these cost more to keep account of "
        "than to decode: each is looked at once and then decoded, checked for alpha, depth and orientation, hashed, "
        "and flushed to the disk, and the processes take 0.3 s to start. Memory is the peak of the largest process "
        "above that of the bare imports; the aim is under 300 MiB, at 10,000 images as at 1,000.",
        ("images", "plain PIL loop", "first start", "times faster", "second start", "memory"),
        tuple(rows),
    )


def _make(folder: Path, count: int) -> None:
    folder.mkdir()
    for i in range(count):
        pixels = integers(0, 256, 32 * 32 * 3, i, "benchmark").astype(np.uint8).reshape(32, 32, 3)
        Image.fromarray(pixels).save(folder / f"{i:05d}.png")


def _plain_loop(folder: Path) -> float:
    began = time.perf_counter()
    images = []
    for path in sorted(folder.iterdir()):
        with Image.open(path) as image:
            images.append(np.asarray(image.convert("RGB")))
    assert np.stack(images).shape[1:] == (32, 32, 3)
    return time.perf_counter() - began


def _run(code: str, folder: Path, environment: dict[str, str]) -> tuple[int, float]:
    """Run a script on a folder; returns its peak memory in KiB and its seconds."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write(code)
        script.flush()
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, script.name, str(folder)], env=environment, capture_output=True, text=True, check=True
        )
        return int(done.stdout), time.perf_counter() - began
