"""The pixels of a pack on the disk: images one behind the other, in files of bounded size.

An image has a position, the same in every packing of a source; that of one which cannot be read stays a hole. So every
process knows where its images go, and nothing has to be moved in the end.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import weakref
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...core.files import printable
from ...core.pixels import Pixels
from ...errors import InputError

# Some file systems and tools take no larger files, and a file that is copied or lost is lost as a whole.
SHARD_BYTES = 2**31
# Files that stay open, or a quarter of what the process may have open; others are opened each time they are read.
_OPEN = 512
_WRITE_BYTES = 2**20

DIGESTS = "pack-journal.digests"
DIGEST_BYTES = 16


@dataclass(frozen=True)
class Shards:
    """The files of a pack's pixels.

    Args:
        folder: that they are in.
        row: bytes of an image.
        images: how many are in each but the last.
    """

    folder: Path
    row: int
    images: int

    @classmethod
    def planned(cls, folder: Path, row: int) -> Shards:
        """The files for a new pack: as many whole images in each as `SHARD_BYTES` hold, at least one."""
        return cls(folder, row, max(1, SHARD_BYTES // row))

    def path(self, number: int) -> Path:
        """One of the files."""
        return self.folder / f"images-{number:05}.u8"

    def sizes(self, positions: int) -> Iterator[tuple[Path, int]]:
        """Every file of a pack with so many positions, and its size in bytes."""
        for number, first in enumerate(range(0, positions, self.images)):
            yield self.path(number), min(self.images, positions - first) * self.row

    def holding(self, first: int, count: int) -> range:
        """The numbers of the files that ``count`` positions from ``first`` on are in."""
        return range(first // self.images, (first + max(count, 1) - 1) // self.images + 1)

    def last_images(self, first: int, count: int, holes: Container[int]) -> Iterator[tuple[int, int]]:
        """The file and position of the last image, among ``count`` positions from ``first`` on, in each file of them.

        A file that has only holes of them is left out.
        """
        for number in self.holding(first, count):
            start, end = max(first, number * self.images), min(first + count, (number + 1) * self.images)
            last = next((position for position in range(end - 1, start - 1, -1) if position not in holes), None)
            if last is not None:
                yield number, last

    def has(self, position: int) -> bool:
        """Whether the files of a pack that is made are long enough to hold this position's image and its digest."""
        number, index = divmod(position, self.images)
        needed = ((self.path(number), (index + 1) * self.row), (self.folder / DIGESTS, (position + 1) * DIGEST_BYTES))
        try:
            return all(path.stat().st_size >= size for path, size in needed)
        except FileNotFoundError:
            return False


class ShardReader:
    """Reads images by their positions.

    They are read as they are asked for, not mapped: what was read does not count as this process's memory, and a file
    that gets cut meanwhile is an error, where a mapping would end the program (SIGBUS).
    """

    def __init__(self, shards: Shards, positions: int) -> None:
        self._shards = shards
        self._handles: list[int] = []
        weakref.finalize(self, _close, self._handles)
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        most = _OPEN if allowed == resource.RLIM_INFINITY else min(_OPEN, allowed // 4)
        for path, _ in islice(shards.sizes(positions), most):
            self._handles.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def read(self, out: Pixels, positions: npt.NDArray[np.int64]) -> None:
        """Fill ``out`` (B, H, W, C) with the images at ``positions`` (B,).

        Raises:
            InputError: a file has become shorter, or is gone.
        """
        files, offsets = np.divmod(positions, self._shards.images)
        for file in np.unique(files).tolist():
            with self._opened(file) as handle:
                for place in np.flatnonzero(files == file).tolist():
                    if os.preadv(handle, [out[place]], int(offsets[place]) * self._shards.row) != self._shards.row:
                        raise InputError(f"{printable(self._shards.path(file))} was cut while it was read; start again")

    def prefetch(self, first: int, count: int) -> None:
        """Ask the system for ``count`` images from a position on, where it can be asked."""
        if not hasattr(os, "posix_fadvise"):  # macOS
            return
        for file in self._shards.holding(first, count):
            offset = max(first - file * self._shards.images, 0)
            end = min(first + count - file * self._shards.images, self._shards.images)
            with (
                contextlib.suppress(InputError, OSError),
                self._opened(file) as handle,
            ):  # reading will say what is wrong
                row = self._shards.row
                os.posix_fadvise(handle, offset * row, (end - offset) * row, os.POSIX_FADV_WILLNEED)

    @contextlib.contextmanager
    def _opened(self, number: int) -> Iterator[int]:
        if number < len(self._handles):
            yield self._handles[number]
            return
        try:
            handle = os.open(self._shards.path(number), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(
                f"{printable(self._shards.path(number))} is gone ({error.strerror}); start again"
            ) from error
        try:
            yield handle
        finally:
            os.close(handle)


class ShardWriter:
    """Images on their way to their positions, and their digests. Small neighbours are written at once: that saves time.

    Others may write to the same files at the same time, at other positions.
    """

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._file = -1
        self._handle: int | None = None
        self._digests = _open_to_write(shards.folder / DIGESTS)
        self._first = 0
        self._data, self._digest_data = bytearray(), bytearray()

    def add(self, pixels: Pixels, position: int) -> None:
        """Take an image; it is in the file after `flush`."""
        held = len(self._digest_data) // DIGEST_BYTES
        is_next = position == self._first + held and position % self._shards.images
        if not is_next or len(self._data) >= _WRITE_BYTES:
            self.flush()
            self._first = position
        content = pixels.tobytes()
        self._data += content
        self._digest_data += image_digest(content)

    def flush(self) -> None:
        """Write what was taken."""
        if self._data:
            file, offset = divmod(self._first, self._shards.images)
            _write(self._shard(file), self._data, offset * self._shards.row)
            _write(self._digests, self._digest_data, self._first * DIGEST_BYTES)
        self._data.clear()
        self._digest_data.clear()

    def close(self) -> None:
        """Close the files; what was not flushed is lost."""
        _close([self._digests] if self._handle is None else [self._digests, self._handle])

    def _shard(self, number: int) -> int:
        if self._handle is None or number != self._file:
            if self._handle is not None:
                os.close(self._handle)
                self._handle = None
            self._handle, self._file = _open_to_write(self._shards.path(number)), number
        return self._handle


def image_digest(pixels: bytes) -> bytes:
    """The digest of one image's pixels."""
    return hashlib.blake2b(pixels, digest_size=DIGEST_BYTES).digest()


def digest_of(digests: Iterable[bytes]) -> str:
    """The digest of images, from the digests of each in order, which may come joined in parts of any length."""
    digest = hashlib.blake2b(digest_size=32)
    for part in digests:
        digest.update(part)
    return f"images-blake2b-256:{digest.hexdigest()}"


def _open_to_write(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _write(handle: int, content: bytearray, offset: int) -> None:
    with memoryview(content) as data:
        done = 0
        while done < len(data):
            done += os.pwrite(handle, data[done:], offset + done)


def _close(handles: list[int]) -> None:
    for handle in handles:
        os.close(handle)
