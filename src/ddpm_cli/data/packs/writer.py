"""Packing: every image of a source, at one size, in files that are opened at once the next time."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import IO

from ...core.files import check_space, disk_errors, printable, sync, write_file
from ...core.pixels import COLOURS, MAX_SIDE
from ...core.progress import Stage, finished
from ...errors import ArgumentError, DiskError, InputError, LockedError
from ..sources.source import Chunk, Source, no_images
from ..survey import Survey
from ..tally import Tally
from ..workers import Reply, Task, count_workers, run
from . import cache
from .journal import RESERVE_BYTES, Journal, begun_from, remove_journal
from .manifest import JOURNAL, MANIFEST, NAMES, Manifest, is_pack
from .reader import Images, open_pack
from .shards import DIGEST_BYTES, DIGESTS, Shards, digest_of

_BLOCK = 2**16
_WAIT_SECONDS = 0.25
# What the name of an image, and its share of the journal, take on the disk, about.
_NAME_BYTES = 64
# Whether it is in the cache, and what to do when the disk is too small for it.
_ADVICE = {True: "make room, or set DDPM_CACHE to a folder on another disk", False: "make room, or name another folder"}


def pack(
    source: Source,
    survey: Survey,
    size: tuple[int, int],
    channels: int,
    workers: int | None = None,
    *,
    folder: Path | None = None,
) -> Stage[Images]:
    """Make all images of a source uint8 ``(*size, channels)``, in files; at once if that was done before.

    A packing that was killed goes on where it was, and one that another process is at is waited for.
    Each is scaled to cover ``size`` and cropped at its centre; transparency is put on white unless ``channels`` is 4.

    Args:
        survey: of the same source.
        size: (height, width).
        channels: 1 grey, 3 RGB or 4 RGBA.
        workers: processes that decode; 1 is this one alone, None as many as suit the work. The result is the same.
        folder: that the pack is made in: a new or empty one, or one where the same was begun; None is one of the cache.

    Raises:
        ArgumentError: a size or number of channels that makes no sense, or a folder that holds something else.
        InputError: the source is a pack of another size or of other channels; when run, if no image can be read.
        DiskError: when run, if the disk is too full.
    """
    if not all(1 <= side <= MAX_SIDE for side in size):
        raise ArgumentError(f"the size is {size[0]}x{size[1]}; each side must be from 1 to {MAX_SIDE}")
    if channels not in (1, 3, 4):
        raise ArgumentError(f"`channels` is {channels}; it must be 1 (grey), 3 (RGB) or 4 (RGBA)")
    label = f"packing {source.label}"
    if source.pack is not None:
        _check_same(source.label, source.pack, size, channels)
        if folder is None:
            return finished(label, source.pack)
    made_from = cache.name_of(source, *size, channels)
    path = folder or cache.pack_path(source, size, channels)
    if (images := _made(path, made_from)) is not None:
        return finished(label, images)
    if folder is not None:
        _check_free(folder, made_from)
    job = _Job(source, survey, size, channels, path, made_from, in_cache=folder is None)
    return Stage(label, source.extent, _pack(job, workers), in_bytes=source.count is None)


def former_pack(source: Source, size: tuple[int, int], channels: int, digest: str = "") -> Images | None:
    """The pack of an earlier state of a source, if there is none of its present state, or that has not this digest.

    It is the one of the digest, or the last if none is given, and stays in the cache until nobody has opened it for a
    while.
    """
    path = cache.pack_path(source, size, channels)
    if source.pack is not None:
        return None
    present = open_pack(path)
    if present is not None and digest in ("", present.digest):
        return None
    for folder in cache.former_packs(path):
        images = open_pack(folder)
        if images is not None and digest in ("", images.digest):
            cache.mark_used(folder / MANIFEST)
            return images
    return None


def discard_pack(folder: Path, source: Source, size: tuple[int, int], channels: int) -> None:
    """Remove a pack from a folder, if there is one. Other files stay, and so does the begun pack of just this.

    Raises:
        LockedError: another process is making it.
        DiskError: it cannot be removed.
    """
    if not is_pack(folder):
        return
    with disk_errors(folder):
        held = cache.lock(folder, 0)
        if held is None:
            raise LockedError(f"another process is packing into {printable(folder)}; wait for it, or stop it")
        with held:
            is_begun = begun_from(folder) == cache.name_of(source, *size, channels)
            if not is_begun or (folder / MANIFEST).exists():
                cache.clear(folder)


def _check_same(label: str, images: Images, size: tuple[int, int], channels: int) -> None:
    _, height, width, has = images.shape
    if (height, width, has) != (*size, channels):
        raise InputError(
            f"{label} is a pack of {height}x{width} in {COLOURS[has]}, not of {size[0]}x{size[1]} in "
            f"{COLOURS[channels]}; leave `size` and `channels` out, or pack the images again with these"
        )


def _check_free(folder: Path, made_from: str) -> None:
    name = printable(folder)
    with disk_errors(folder):
        if folder.exists() and not folder.is_dir():
            raise ArgumentError(f"{name} is a file; name a folder")
        if not folder.exists() or {path.name for path in folder.iterdir()} <= {cache.LOCK}:
            return
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        if Manifest.read(folder).made_from == made_from:
            return  # a damaged one
    if (folder / JOURNAL).exists() and not (folder / MANIFEST).exists():
        if begun_from(folder) in (made_from, None):  # a torn first line, behind which nothing is
            return
        raise ArgumentError(
            f"{name} holds the begun pack of other images; name another folder, or use `force` to remove it"
        )
    if is_pack(folder):
        raise ArgumentError(f"{name} holds a pack already; name another folder, or use `force` to overwrite it")
    raise ArgumentError(f"{name} holds other files than those of a pack; name a new folder")


@dataclass(frozen=True)
class _Job:
    source: Source
    survey: Survey
    size: tuple[int, int]
    channels: int
    folder: Path
    made_from: str
    in_cache: bool


def _made(folder: Path, made_from: str) -> Images | None:
    """The images of a pack, if it is whole and of just this."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        if Manifest.read(folder).made_from == made_from and (images := open_pack(folder)) is not None:
            cache.mark_used(folder / MANIFEST)
            _remove_leftovers(folder)
            return images
    return None


def _remove_leftovers(folder: Path) -> None:
    """Remove what is left in the folder of a whole pack by a packer that was killed at the very end."""
    with contextlib.suppress(OSError):  # a pack that may only be read
        if (folder / JOURNAL).exists() and (held := cache.lock(folder, 0)) is not None:
            with held:
                if (folder / MANIFEST).exists():
                    remove_journal(folder)


def _pack(job: _Job, workers: int | None) -> Generator[int, None, Images]:
    if job.in_cache:
        cache.make_room(job.folder)
    is_the_users = not job.in_cache and job.folder.exists()
    with disk_errors(job.folder):
        while (held := cache.lock(job.folder, _WAIT_SECONDS)) is None:
            yield 0  # another process packs the same
        with held, cache.unless_empty(job.folder, keep=is_the_users):
            images = _made(job.folder, job.made_from)
            if images is None:
                yield from _write(job, workers, held)
                images = open_pack(job.folder)
    if images is None:
        raise DiskError(f"the packed images in {printable(job.folder)} vanished while they were opened; start again")
    return images


def _write(job: _Job, workers: int | None, held: cache.Lock) -> Generator[int, None, None]:
    shards = Shards.planned(job.folder, job.size[0] * job.size[1] * job.channels)
    journal = Journal(shards, job.made_from)
    missing = max(0, job.survey.images - journal.known)
    need = missing * (shards.row + DIGEST_BYTES + _NAME_BYTES) + RESERVE_BYTES
    check_space(job.folder, need, what="packing the images", advice=_ADVICE[job.in_cache])
    journal.begin()
    account = _Account(job.source.tally.copy())
    source = job.source
    task = Task(source.kind, str(source.path), str(job.folder), job.size, job.channels, shards.images)
    workers = workers or count_workers(task, source.count, source.nbytes)
    work = partial(run, task, workers=workers, held=(held.handle,))
    try:
        with (job.folder / NAMES).open("wb") as names:
            chunks = _named(job.source.chunks(account.tally), names)
            for chunk, reply in _replies(chunks, journal, work):
                account.add(chunk, reply)
                yield chunk.amount
    except BaseException:
        if not sys.is_finalizing():
            journal.salvage()
        raise
    if account.positions == len(account.holes):
        cache.clear(job.folder)
        raise no_images(job.source.label, account.tally)
    journal.flush()
    _finish(job, shards, account)
    journal.remove()


@dataclass
class _Account:
    """What became of all images so far."""

    tally: Tally
    notes: Counter[str] = field(default_factory=Counter)
    holes: list[int] = field(default_factory=list)
    positions: int = 0

    def add(self, chunk: Chunk, reply: Reply) -> None:
        for index, problem in reply.problems:
            self.tally.skip(chunk.names[index], problem, chunk.first + index)
            self.holes.append(chunk.first + index)
        self.notes.update(reply.notes or {})
        self.positions = max(self.positions, chunk.first + len(chunk.names))


def _replies(
    chunks: Iterator[Chunk], journal: Journal, work: Callable[[Iterator[Chunk]], Iterator[tuple[Chunk, Reply]]]
) -> Iterator[tuple[Chunk, Reply]]:
    """Every chunk with what became of it, in an earlier run or by the work that is done now."""
    for chunk in chunks:
        if (reply := journal.reply(chunk)) is None:
            chunks = chain([chunk], chunks)
            break
        yield chunk, reply
    else:
        return  # without the start of any process
    # From here on, a few that were done are among those that were not.
    known: list[tuple[Chunk, Reply]] = []

    def unknown() -> Iterator[Chunk]:
        for chunk in chunks:
            if (reply := journal.reply(chunk)) is None:
                yield chunk
            else:
                known.append((replace(chunk, blob=b""), reply))

    for chunk, reply in work(unknown()):
        journal.add(chunk, reply)
        yield chunk, reply
    yield from known


def _named(chunks: Iterator[Chunk], names: IO[bytes]) -> Iterator[Chunk]:
    """Pass chunks on, and write down the names of their images, one line of JSON each, in order."""
    for chunk in chunks:
        names.writelines(json.dumps(name).encode() + b"\n" for name in chunk.names)
        yield chunk


def _finish(job: _Job, shards: Shards, account: _Account) -> None:
    """Make a pack of what was written: exact sizes, all on the disk, and last of all the manifest."""
    folder, holes = job.folder, sorted(account.holes)
    for number, last in shards.last_images(0, account.positions, set(holes)):
        if not shards.has(last):  # else it would be made longer below, by black images
            raise DiskError(f"{printable(shards.path(number))} was cut while the pack was made; start again")
    for path, size in shards.sizes(account.positions):
        with path.open("ab") as file:
            file.truncate(size)  # longer by the holes at its end
            os.fsync(file.fileno())
    sync(folder / NAMES)
    digest = digest_of(_digests(folder / DIGESTS, holes, account.positions))
    if job.source.pack is not None and digest != job.source.pack.digest:
        cache.clear(folder)
        raise InputError(
            f"{job.source.label} is a damaged pack: its pixels are not those that its digest names; copy it again, "
            "or make it again with ddpm pack"
        )
    manifest = Manifest(
        shape=(account.positions - len(holes), *job.size, job.channels),
        digest=digest,
        made_from=job.made_from,
        shard_images=shards.images,
        holes=tuple(holes),
        names_bytes=(folder / NAMES).stat().st_size,
        notes=tuple(sorted(account.notes.items(), key=lambda note: (-note[1], note[0]))),
        skipped=account.tally.skipped(),
    )
    with contextlib.suppress(PermissionError):  # a folder of the user's, in one that cannot be listed
        sync(folder.parent)
    write_file(folder / MANIFEST, manifest.encode())


def _digests(path: Path, holes: list[int], positions: int) -> Iterator[bytes]:
    """The digests of all images in order, some at a time."""
    with path.open("rb") as file:
        for start, end in pairwise([-1, *holes, positions]):
            file.seek((start + 1) * DIGEST_BYTES)
            for first in range(start + 1, end, _BLOCK):
                yield file.read((min(first + _BLOCK, end) - first) * DIGEST_BYTES)
