"""A folder of images: listed in one fixed order, links followed once, and files opened without ever waiting for one."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ...core.files import printable
from ...core.pixels import MAX_FILE_BYTES
from ...errors import InputError
from ..tally import Tally
from .source import (
    CHUNK_BYTES,
    CHUNK_IMAGES,
    Chunk,
    Format,
    Opener,
    Source,
    UnreachableError,
    is_image_name,
    no_images,
)

TOO_LARGE = f"more than {MAX_FILE_BYTES // 2**20} MiB"


@dataclass(frozen=True, eq=False)
class Folder(Source):
    """A folder and its subfolders. ``names`` are relative to it, ``sizes`` in bytes."""

    names: list[str]
    sizes: array[int]

    @property
    def kind(self) -> str:
        return "folder"

    def chunks(self, tally: Tally) -> Iterator[Chunk]:
        first = weight = 0
        for index, size in enumerate(self.sizes):
            weight += size
            if weight >= CHUNK_BYTES or index + 1 - first == CHUNK_IMAGES or index + 1 == len(self.names):
                yield Chunk(first, tuple(self.names[first : index + 1]), amount=index + 1 - first)
                first, weight = index + 1, 0


def find_folder(path: Path, label: str) -> Folder:
    """List the images below ``path``: the files of a folder by name, then its subfolders by name.

    Raises:
        InputError: the folder cannot be read, or has no images.
    """
    tally, names, sizes = Tally(), [], array("Q")
    digest = hashlib.blake2b(digest_size=16)
    for name, info in _walk(path, tally):
        if stat.S_ISREG(info.st_mode) and not is_image_name(name):
            tally.ignore(name)
        elif not stat.S_ISREG(info.st_mode):
            if is_image_name(name):
                tally.skip(name, "not a regular file")
        else:
            names.append(name)
            sizes.append(info.st_size)
            # The mode, since chmod changes nothing else of these, and may make a file readable that was not.
            mode = stat.S_IMODE(info.st_mode)
            digest.update(os.fsencode(f"{name}\0{info.st_size}\0{info.st_mtime_ns}\0{mode}\0"))
    if not names:
        raise no_images(label, tally)
    return Folder(path, label, len(names), sum(sizes), digest.hexdigest(), tally, names, sizes)


@contextlib.contextmanager
def _open(path: str) -> Iterator[Opener]:
    yield lambda chunk, index: open_file(path, chunk.names[index])


@contextlib.contextmanager
def open_file(root: str, name: str) -> Iterator[IO[bytes]]:
    """One file of a folder.

    Raises:
        InputError: it is gone, may not be read, is empty, too large, or has become something that is not a file.
        UnreachableError: it cannot be opened or read for another reason, which may not last.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO that nobody writes to would wait for ever.
        handle = os.open(f"{root}/{name}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError("it has vanished") from error
    except PermissionError as error:
        raise InputError(f"cannot be opened ({error.strerror})") from error
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise InputError("not a regular file") from error  # a socket
        raise UnreachableError(
            f"{printable(name)} cannot be opened: {error.strerror}; try again, or remove it"
        ) from error
    with os.fdopen(handle, "rb") as file:
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode):
            raise InputError("not a regular file")
        check_size(info.st_size)
        try:
            yield file
        except OSError as error:
            raise UnreachableError(
                f"{printable(name)} cannot be read: {error.strerror}; try again, or remove it"
            ) from error


def check_size(size: int) -> None:
    """Refuse a file or archive member that is empty or too large to be read."""
    if size == 0:
        raise InputError("empty file")
    if size > MAX_FILE_BYTES:
        raise InputError(TOO_LARGE)


def _walk(root: Path, tally: Tally) -> Iterator[tuple[str, os.stat_result]]:
    """Everything below ``root`` that is not a folder, by its name relative to it."""
    pending = [""]
    seen: set[tuple[int, int]] = set()
    while pending:
        folder = pending.pop()
        try:
            info = (root / folder).stat()
            if (info.st_dev, info.st_ino) in seen:
                continue  # a link back, or a second link to the same folder
            seen.add((info.st_dev, info.st_ino))
            with os.scandir(root / folder) as entries:
                found = sorted(entry.name for entry in entries)  # the entries themselves take ten times the memory
        except OSError as error:
            if not folder:
                raise InputError(f"the folder {printable(root)} cannot be read: {error.strerror}") from error
            tally.skip(folder, f"folder that cannot be read ({error.strerror})")
            continue
        if folder and {"checkpoints", "config.json"} <= set(found):
            continue  # a run folder; what the program itself samples into it is no data
        folders = []
        for entry in found:
            name = folder + entry
            try:  # without a Path, which for a million files takes seconds
                info = os.stat(f"{root}/{name}")  # noqa: PTH116
            except OSError:
                if is_image_name(name):
                    tally.skip(name, "link that leads nowhere" if (root / name).is_symlink() else "it has vanished")
                continue
            if stat.S_ISDIR(info.st_mode):
                folders.append(name + "/")
            else:
                yield name, info
        pending += reversed(folders)


FOLDER = Format("folder", Path.is_dir, find_folder, _open)
