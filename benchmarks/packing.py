"""Packing a folder of images: speed beside a torch DataLoader over the files, and growth up to a million images."""

from __future__ import annotations

import io
import itertools
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ddpm_cli.core.rng import integers
from ddpm_cli.data import open_images, reading_order

from .measure import Table, Times, apart

PROCESSES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # as packing has
CHUNK = 100  # files that a process of PIL's decodes at once
LOADED = 128  # images of a batch of the DataLoader, and of one that is read in epoch order
DIFFERENT = 256  # images that are encoded; the files repeat them
PER_FOLDER = 10_000
COUNTS = (1_000, 10_000, 100_000, 1_000_000)
READ = 100_000  # images that are read in epoch order, at most
TINY = 8  # pixels a side of the images that grow in number


@dataclass(frozen=True)
class Case:
    """So many files of a kind, packed at a size."""

    name: str
    kind: str  # of file, as PIL names it
    side: int
    size: int
    count: int

    def make(self, folder: Path) -> None:
        """The files, in folder."""
        _write(folder, [_photo(i, self.side, self.kind) for i in range(64)], self.count, self.kind.lower())


CASES = (
    Case("10,000 PNGs of 32x32, as they are", "PNG", side=32, size=32, count=10_000),
    Case("1,000 JPEGs of 512x512, at 64x64", "JPEG", side=512, size=64, count=1_000),
)


def tables() -> Iterator[Table]:
    """Against a DataLoader, and growth."""
    yield Table(
        "Packing",
        f"The first start on a folder, files read from the page cache, {PROCESSES} processes; median of 3 in turn "
        "(least to most), after a first round. Packing starts new processes, which takes .3 s of its time. The "
        "DataLoader decodes whole files, resizes and gives uint8 tensors in one pass, which is what each epoch of a "
        "training without packing pays. PIL alone decodes (large JPEGs at a smaller scale) and resizes the same files "
        "as packing does, and keeps nothing; both are forked. Memory is that of the largest process; the aim is under "
        "300 MiB.",
        ("", "", "time", "images/s", "times a DataLoader pass", "peak memory"),
        tuple(row for case in CASES for row in _rows(case)),
    )
    yield Table(
        f"Packing from a thousand to a million images of {TINY}x{TINY}",
        f"Grey PNGs, {PER_FOLDER:,} in a folder, one run each in a new process; the second "
        f"start finds the pack. Reading is in epoch order, computed on the way, in batches of {LOADED}, from the page "
        f"cache. PIL alone decodes the same files in {PROCESSES} processes and keeps nothing; writing is the bytes of "
        "the pixels written in order to a file and flushed.",
        (
            "images",
            "first start",
            "peak memory",
            "second start",
            "peak memory",
            "cache on disk",
            "read images/s",
            "PIL alone",
            "writing the bytes alone",
        ),
        tuple(_growth(count) for count in COUNTS),
    )


def _rows(case: Case) -> Iterator[tuple[str, ...]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = folder / "images"
        case.make(images)
        makers: dict[str, Callable[[], Callable[[], object]]] = {
            "packing": partial(_fresh_pack, images, folder / "caches", case.size),
            f"DataLoader, num_workers={PROCESSES}": partial(_loader, images, case.size),
            "PIL alone": partial(_pil, images, case.size),
        }
        times = apart(makers, 3)
    loader = list(times.values())[1].median
    for what, t in times.items():
        yield case.name, what, str(t), t.rates(case.count), f"{loader / t.median:.2f}", t.peak_mib


def _growth(count: int) -> tuple[str, ...]:
    with tempfile.TemporaryDirectory() as name:
        folder, cache = Path(name) / "images", Path(name) / "cache"
        _write(folder, [_encode(_noise(i, (TINY, TINY)), "PNG") for i in range(DIFFERENT)], count, "png")
        first, second = (_once(partial(_pack, folder, cache, TINY)) for _ in range(2))
        read = min(count, READ)
        reading = _once(partial(_reading, folder, cache, read))
        disk = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
        pil = _once(partial(_pil, folder, TINY))
        writing = _once(partial(_writing, Path(name) / "bytes", count * TINY**2))
    return (
        f"{count:,}",
        f"{_seconds(first)} ({count / first.median:,.0f} images/s)",
        first.peak_mib,
        _seconds(second),
        second.peak_mib,
        f"{disk / 2**20:,.1f} MiB",
        f"{read / reading.median:,.0f}",
        _seconds(pil),
        _seconds(writing),
    )


def _once(make: Callable[[], Callable[[], object]]) -> Times:
    return apart({"once": make}, 1, warm_up=0)["once"]


def _seconds(times: Times) -> str:
    return f"{times.median:.2f} s"


def _write(folder: Path, files: Sequence[bytes], count: int, suffix: str) -> None:
    """Files that repeat the given ones, in subfolders."""
    for start in range(0, count, PER_FOLDER):
        under = folder / f"{start // PER_FOLDER:03d}"
        under.mkdir(parents=True)
        for i in range(start, min(start + PER_FOLDER, count)):
            (under / f"{i:07d}.{suffix}").write_bytes(files[i % len(files)])
    if hasattr(os, "sync"):
        os.sync()  # or what is timed next would wait for these files to come to the disk


def _noise(number: int, shape: tuple[int, ...]) -> np.ndarray:
    return integers(0, 256, int(np.prod(shape)), number, "benchmark").astype(np.uint8).reshape(shape)


def _photo(number: int, side: int, kind: str) -> bytes:
    """A picture in colour, smooth and with a little noise, as photos are, where it is large."""
    coarse = Image.fromarray(_noise(number, (32, 32, 3)))
    smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))
    grain = _noise(number, smooth.shape) // 16
    return _encode(smooth // 16 * 15 + grain, kind)


def _encode(pixels: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def _pack(folder: Path, cache: Path, size: int) -> Callable[[], object]:
    os.environ["DDPM_CACHE"] = str(cache)
    return lambda: open_images(folder, (size, size))


def _fresh_pack(folder: Path, caches: Path, size: int) -> Callable[[], object]:
    """A first start each time it is called."""
    number = itertools.count()
    return lambda: _pack(folder, caches / str(next(number)), size)()


def _reading(folder: Path, cache: Path, count: int) -> Callable[[], object]:
    os.environ["DDPM_CACHE"] = str(cache)
    images = open_images(folder, (TINY, TINY))

    def run() -> None:
        for start in range(0, count, LOADED):
            images.take(reading_order(images.shape, 0, np.arange(start, min(start + LOADED, count))))

    return run


class Files:
    """What each training without packing does: the files, decoded and resized when they are asked for."""

    def __init__(self, folder: Path, size: int) -> None:
        self._paths = _paths(folder)
        self._size = size

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> np.ndarray:
        return _decoded(self._paths[index], self._size)


def _loader(folder: Path, size: int) -> Callable[[], object]:
    import torch.utils.data  # here, so that the other sides' memory is without it

    def run() -> None:
        files = Files(folder, size)
        loader = torch.utils.data.DataLoader(
            files, LOADED, shuffle=True, num_workers=PROCESSES, multiprocessing_context="fork"
        )
        assert sum(len(batch) for batch in loader) == len(files)

    return run


def _pil(folder: Path, size: int) -> Callable[[], object]:
    def run() -> None:
        with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("fork")) as pool:
            paths = iter(_paths(folder))
            chunks = iter(lambda: list(itertools.islice(paths, CHUNK)), [])
            for _ in pool.map(partial(_decode_all, size=size), chunks):
                pass

    return run


def _writing(file: Path, size: int) -> Callable[[], object]:
    def run() -> None:
        piece = bytes(2**20)
        with file.open("wb") as out:
            for start in range(0, size, len(piece)):
                out.write(piece[: size - start])
            out.flush()
            os.fsync(out.fileno())

    return run


def _paths(folder: Path) -> list[str]:
    """The files that `_write` made; `rglob` would take longer than PIL does."""
    return [file.path for under in os.scandir(folder) for file in os.scandir(under.path)]


def _decode_all(paths: Sequence[str], size: int) -> None:
    for path in paths:
        _decoded(path, size, draft=True)


def _decoded(path: str, size: int, *, draft: bool = False) -> np.ndarray:
    """An image at a size. ``draft``: as packing does, a JPEG at a smaller scale, down to twice the size, by Lanczos."""
    with Image.open(path) as image:
        if draft:
            image.draft(None, (2 * size, 2 * size))
        if image.mode not in ("L", "RGB"):
            image = image.convert("RGB")
        if image.size != (size, size):
            method = Image.Resampling.LANCZOS if draft else Image.Resampling.BICUBIC
            image = image.resize((size, size), method, reducing_gap=3.0)
        return np.array(image)
