"""Packing: every image of a source, at one size, in one file that is opened at once the next time."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO

from ..errors import ArgumentError, DiskError
from ..files import check_space, disk_errors
from ..pixels import MAX_SIDE
from ..stage import Stage, finished
from . import cache
from .images import MANIFEST, NAMES, PIXELS, SCHEMA, Images, digest_of, open_pack
from .source import Chunk, Source, no_images
from .survey import Survey
from .workers import Task, count_workers, run

ALL_NAMES = "all-names.jsonl"
_BLOCK = 2**22


def pack(
    source: Source, survey: Survey, size: tuple[int, int], channels: int, workers: int | None = None
) -> Stage[Images]:
    """Make all images of a source uint8 (*size, channels), in a file; at once if that was done before.

    Each is scaled to cover ``size`` and cropped at its centre; transparency is put on white unless ``channels`` is 4.

    Args:
        survey: of the same source.
        size: (height, width).
        channels: 1 grey, 3 RGB or 4 RGBA.
        workers: processes that decode; 1 is this one alone, None as many as suit the work. The result is the same.

    Raises:
        ArgumentError: a size or number of channels that makes no sense.
        InputError: when run, if no image can be read.
        DiskError: when run, if the disk is too full.
    """
    if not all(1 <= side <= MAX_SIDE for side in size):
        raise ArgumentError(f"the size is {size[0]}x{size[1]}; each side must be from 1 to {MAX_SIDE}")
    if channels not in (1, 3, 4):
        raise ArgumentError(f"--channels is {channels}; it must be 1 (grey), 3 (RGB) or 4 (RGBA)")
    label = f"packing {source.label}"
    path = cache.pack_path(source, size, channels)
    if (images := open_pack(path)) is not None:
        cache.mark_used(path / MANIFEST)
        return finished(label, images)
    work = _pack(source, survey, size, channels, path, workers)
    return Stage(label, source.extent, work, in_bytes=source.count is None)


def _pack(
    source: Source, survey: Survey, size: tuple[int, int], channels: int, path: Path, workers: int | None
) -> Generator[int, None, Images]:
    row = size[0] * size[1] * channels
    cache.make_room(path)
    check_space(
        path.parent,
        survey.images * row,
        what="packing the images",
        advice="make room, or set DDPM_CACHE to a folder on another disk",
    )
    tally, notes, holes, rows = source.tally.copy(), Counter[str](), list[int](), 0
    with disk_errors(path.parent), cache.staged(path) as folder:
        (folder / PIXELS).touch()
        task = Task(source.kind, str(source.path), str(folder / PIXELS), size, channels)
        with (folder / ALL_NAMES).open("wb") as names:
            chunks = _named(source.chunks(tally), names)
            processes = workers or count_workers(task, source.count, source.nbytes)
            for chunk, reply in run(task, chunks, processes):
                for index, problem in reply.problems:
                    tally.skip(chunk.names[index], problem, chunk.first + index)
                    holes.append(chunk.first + index)
                notes.update(reply.notes or {})
                rows = max(rows, chunk.first + len(chunk.names))
                yield chunk.amount
        n = rows - len(holes)
        if not n:
            raise no_images(source.label, tally)
        _close_holes(folder, sorted(holes), rows, row)
        with (folder / PIXELS).open("rb") as file:
            digest = digest_of(iter(lambda: file.read(_BLOCK), b""))
        manifest = {
            "schema": SCHEMA,
            "shape": [n, *size, channels],
            "digest": digest,
            "names_bytes": (folder / NAMES).stat().st_size,
            "notes": sorted(notes.items(), key=lambda note: (-note[1], note[0])),
            "skipped": [asdict(skip) for skip in tally.skipped()],
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
        cache.publish(folder, path, lambda path: open_pack(path) is not None)
    images = open_pack(path)
    if images is None:
        raise DiskError(f"the packed images in {path} vanished while they were opened; start again")
    return images


def _named(chunks: Iterator[Chunk], names: IO[bytes]) -> Iterator[Chunk]:
    """Pass chunks on, and write down the names of their images, one line of JSON each, in order."""
    for chunk in chunks:
        names.writelines(json.dumps(name).encode() + b"\n" for name in chunk.names)
        yield chunk


def _close_holes(folder: Path, holes: list[int], rows: int, row: int) -> None:
    """Move the images and names behind each hole up, in place and in bounded memory.

    Args:
        holes: numbers of the images that could not be read, ascending.
        rows: number of images with the holes.
        row: bytes of an image.
    """
    with (folder / PIXELS).open("r+b", buffering=0) as file:
        to = 0
        for start, end in zip([0, *(hole + 1 for hole in holes)], [*holes, rows], strict=True):
            if start != to:
                _move(file, start * row, end * row, to * row)
            to += end - start
        file.truncate(to * row)
    gone = set(holes)
    with (folder / ALL_NAMES).open("rb") as source, (folder / NAMES).open("wb") as target:
        target.writelines(line for number, line in enumerate(source) if number not in gone)
    (folder / ALL_NAMES).unlink()


def _move(file: IO[bytes], start: int, end: int, to: int) -> None:
    for position in range(start, end, _BLOCK):
        block = os.pread(file.fileno(), min(_BLOCK, end - position), position)
        os.pwrite(file.fileno(), block, to + position - start)
