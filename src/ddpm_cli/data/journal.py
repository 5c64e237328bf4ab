"""What of a packing is done and safe on the disk, so that one that was killed goes on where it was."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..files import sync
from .manifest import JOURNAL
from .shards import DIGESTS, Shards
from .source import Chunk
from .workers import Reply

RESERVE = "pack-journal.reserve"
_RESERVE_BYTES = 2**16  # kept free for the last lines, should the disk get full

# What a power failure or a SIGKILL may cost is the work since the last flush: so many bytes, chunks or seconds.
FLUSH_BYTES = 2**28
FLUSH_CHUNKS = 512
FLUSH_SECONDS = 10.0


class Journal:
    """One line of JSON for each chunk that is packed, written after its pixels were flushed to the disk.

    Args:
        shards: where the pixels go.
        made_from: what is packed, and how.
    """

    def __init__(self, shards: Shards, made_from: str) -> None:
        self._shards = shards
        begun = is_begun(shards, made_from)
        self._done = _read(shards.folder / JOURNAL) if begun else {}
        # How many positions were done when it was opened.
        self.known = sum(json.loads(line)["count"] for line in self._done.values())
        self._lines: list[bytes] = [] if begun else [_header(shards, made_from)]
        self._bytes, self._time = 0, time.monotonic()
        self._touched: set[int] = set()

    def begin(self) -> None:
        """Say in the folder what is packed there, and take the room that `salvage` will need."""
        self.flush()
        (self._shards.folder / RESERVE).write_bytes(bytes(_RESERVE_BYTES))

    def reply(self, chunk: Chunk) -> Reply | None:
        """What became of a chunk in an earlier run; None if it is to be packed."""
        line = self._done.pop(chunk.first, None)
        if line is None:
            return None
        entry = json.loads(line)
        if entry["count"] != len(chunk.names):
            return None
        return Reply(problems=tuple((int(index), str(text)) for index, text in entry["problems"]), notes=entry["notes"])

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
        if self._lines:
            for path in [self._shards.folder / DIGESTS, *map(self._shards.path, sorted(self._touched))]:
                with contextlib.suppress(FileNotFoundError):  # where all were holes
                    sync(path)
            with (self._shards.folder / JOURNAL).open("ab") as file:
                file.writelines(self._lines)
                file.flush()
                os.fsync(file.fileno())
            sync(self._shards.folder)
        self._lines.clear()
        self._touched.clear()
        self._bytes, self._time = 0, time.monotonic()

    def salvage(self) -> None:
        """Flush what can be, at an error or interrupt."""
        with contextlib.suppress(OSError):
            (self._shards.folder / RESERVE).unlink()
            self.flush()

    def remove(self) -> None:
        """Remove it, since the pack is whole."""
        for name in (JOURNAL, RESERVE, DIGESTS):
            (self._shards.folder / name).unlink()


def begun_from(folder: Path) -> str | None:
    """What a folder holds the begun packing of."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError), (folder / JOURNAL).open("rb") as file:
        return str(json.loads(file.readline())["made_from"])
    return None


def is_begun(shards: Shards, made_from: str) -> bool:
    """Whether a folder holds the begun packing of just this, in these files."""
    with contextlib.suppress(OSError), (shards.folder / JOURNAL).open("rb") as file:
        return file.readline() == _header(shards, made_from)
    return False


def _header(shards: Shards, made_from: str) -> bytes:
    return json.dumps({"made_from": made_from, "shard_images": shards.images}).encode() + b"\n"


def _read(file: Path) -> dict[int, bytes]:
    """The lines of a journal by the position that they begin at; what is torn, and what follows it, is cut off."""
    done: dict[int, bytes] = {}
    with file.open("r+b") as lines:
        end = len(lines.readline())
        for line, first in _whole(lines):
            done[first] = line
            end += len(line)
        lines.truncate(end)
    return done


def _whole(lines: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
    for line in lines:
        try:
            entry = json.loads(line)
            first = int(entry["first"])
            if not {"count", "problems", "notes"} <= entry.keys():
                return
        except (ValueError, KeyError, TypeError, AttributeError):
            return
        if not line.endswith(b"\n"):
            return
        yield line, first
