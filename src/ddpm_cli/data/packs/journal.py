"""What of a packing is done and safe on the disk, so that one that was killed goes on where it was."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from ...core.files import sync
from ..sources.source import Chunk
from ..workers import Reply
from . import cache
from .manifest import JOURNAL, MANIFEST
from .shards import DIGESTS, Shards

RESERVE = "pack-journal.reserve"
RESERVE_BYTES = 2**16  # kept free for the last lines, should the disk get full

# What a power failure or a SIGKILL may cost is the work since the last flush: so many bytes, chunks or seconds.
FLUSH_BYTES = 2**28
FLUSH_CHUNKS = 512
FLUSH_SECONDS = 10.0


class Journal:
    """One line of JSON for each chunk that is packed, written after its pixels were flushed to the disk.

    If the folder holds anything but the begun packing of just this, or if a file of that has become shorter than it
    says, all of it is removed.

    Args:
        shards: where the pixels go, in a folder that is held by `cache.lock`.
        made_from: what is packed, and how.
    """

    def __init__(self, shards: Shards, made_from: str) -> None:
        self._shards = shards
        header = json.dumps({"made_from": made_from, "shard_images": shards.images}).encode() + b"\n"
        self._done, self._end = _read(shards.folder / JOURNAL, header)
        if not self._end or (shards.folder / MANIFEST).exists() or not self._is_whole():
            cache.clear(shards.folder)
            self._done, self._end = {}, 0
        # How many images were packed when it was opened.
        self.known = sum(entry.count - len(entry.reply.problems) for entry in self._done.values())
        # Lines of pixels that may not be on the disk, the files of these, and lines that only wait to be written.
        self._lines: list[bytes] = []
        self._touched: set[int] = set()
        self._safe: list[bytes] = [] if self._end else [header]
        self._bytes, self._time = 0, time.monotonic()

    def begin(self) -> None:
        """Say in the folder what is packed there, and take the room that `salvage` will need."""
        self.flush()
        (self._shards.folder / RESERVE).write_bytes(bytes(RESERVE_BYTES))

    def reply(self, chunk: Chunk) -> Reply | None:
        """What became of a chunk in an earlier run; None if it is to be packed."""
        entry = self._done.pop(chunk.first, None)
        return entry.reply if entry and entry.count == len(chunk.names) else None

    def add(self, chunk: Chunk, reply: Reply) -> None:
        """Note that a chunk is packed; flushed now and then."""
        count = len(chunk.names)
        entry = {"first": chunk.first, "count": count, "problems": reply.problems, "notes": reply.notes or {}}
        self._lines.append(json.dumps(entry).encode() + b"\n")
        self._touched.update(self._shards.holding(chunk.first, count))
        self._bytes += count * self._shards.row
        is_due = self._bytes >= FLUSH_BYTES or len(self._lines) >= FLUSH_CHUNKS
        if is_due or time.monotonic() - self._time >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Flush the pixels to the disk, and then what is known of them."""
        # Taken out first: Linux reports once that writing back has failed, so after that no flush can vouch for them.
        lines, self._lines = self._lines, []
        touched, self._touched = sorted(self._touched), set()
        if lines:
            for path in [self._shards.folder / DIGESTS, *map(self._shards.path, touched)]:
                with contextlib.suppress(FileNotFoundError):  # where all were holes
                    sync(path)
            self._safe += lines
        if self._safe:
            self._append()
        self._bytes, self._time = 0, time.monotonic()

    def salvage(self) -> None:
        """Flush what can be, at an error or interrupt."""
        with contextlib.suppress(OSError):
            (self._shards.folder / RESERVE).unlink(missing_ok=True)
            self.flush()

    def remove(self) -> None:
        """Remove it, since the pack is whole."""
        remove_journal(self._shards.folder)

    def _append(self) -> None:
        with (self._shards.folder / JOURNAL).open("ab") as file:
            file.truncate(self._end)  # of what an append that failed may have left
            file.writelines(self._safe)
            file.flush()
            os.fsync(file.fileno())
        self._end += sum(map(len, self._safe))
        self._safe.clear()
        sync(self._shards.folder)

    def _is_whole(self) -> bool:
        """Whether all files are as long as is said, as they are not where one was cut, or not copied."""
        ends: dict[int, int] = {}
        for first, entry in self._done.items():
            holes = {first + index for index, _ in entry.reply.problems}
            for shard, last in self._shards.last_images(first, entry.count, holes):
                ends[shard] = max(last, ends.get(shard, last))
        return all(map(self._shards.has, ends.values()))


def remove_journal(folder: Path) -> None:
    """Remove what only the making of a pack needs."""
    for name in (JOURNAL, RESERVE, DIGESTS):
        (folder / name).unlink(missing_ok=True)


def begun_from(folder: Path) -> str | None:
    """What a folder holds the begun packing of; None if there is none, or none of which anything is known."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError), (folder / JOURNAL).open("rb") as file:
        return str(json.loads(file.readline())["made_from"])
    return None


@dataclass(frozen=True)
class _Entry:
    count: int
    reply: Reply


def _read(file: Path, header: bytes) -> tuple[dict[int, _Entry], int]:
    """The entries of a journal by the position that they begin at, and where the last of them ends.

    Nothing if it does not begin with this header; what is torn, and what follows it, does not count.
    """
    done: dict[int, _Entry] = {}
    end = 0
    with contextlib.suppress(FileNotFoundError), file.open("rb") as lines:
        if lines.readline() == header:
            end = len(header)
            for line in lines:
                if (found := _parse(line)) is None:
                    break
                first, done[first] = found
                end += len(line)
    return done, end


def _parse(line: bytes) -> tuple[int, _Entry] | None:
    if not line.endswith(b"\n"):
        return None
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        entry = json.loads(line)
        problems = tuple((int(index), str(text)) for index, text in entry["problems"])
        reply = Reply(problems=problems, notes={str(text): int(n) for text, n in entry["notes"].items()})
        return int(entry["first"]), _Entry(int(entry["count"]), reply)
    return None
