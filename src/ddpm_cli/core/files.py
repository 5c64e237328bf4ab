"""Files that are there whole or not at all, and one sentence for each way in which the disk can refuse."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import os
import secrets
import shutil
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from ..errors import ArgumentError, DiskError, InputError

Buffer = bytes | memoryview
Result = TypeVar("Result")

_REASONS = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
    errno.EROFS: "the file system is read-only",
    errno.EFBIG: "the file would be larger than the limit set for this process",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.ENAMETOOLONG: "the name is too long",
}


def is_of_the_disk(error: OSError) -> bool:
    """Whether an error is one of those that `disk_errors` explains."""
    return error.errno in _REASONS


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` inside into a `DiskError` (exit code 7) that names ``path`` and the reason."""
    try:
        yield
    except BrokenPipeError:
        raise  # a reader that has left is no trouble of the disk
    except OSError as error:
        raise DiskError(f"cannot write {printable(path)}: {reason(error)}") from error


def reason(error: OSError) -> str:
    """Why the disk refused, for people."""
    return _REASONS.get(error.errno or 0, error.strerror or str(error))


def check_output(path: Path, *, force: bool) -> None:
    """Refuse an output file that exists (unless ``force``), or whose folder is missing or cannot be written.

    Called before the work is done that the file is for.

    Raises:
        ArgumentError: the file is there already.
        DiskError: it could not be written.
    """
    name, folder = printable(path), path.parent
    with disk_errors(path):  # a name that is too long, or a folder that may not be searched
        if path.is_dir():
            raise ArgumentError(f"{name} is a folder; give the name of a file in it")
        if path.exists() and not path.is_file():
            raise ArgumentError(f"{name} is a device or a pipe, not a file; name a file")
        if path.exists() and not force:
            raise ArgumentError(f"{name} exists already; give another name, or use `force` to overwrite it")
        if not folder.is_dir():
            raise DiskError(f"cannot write {name}: there is no folder {printable(folder)}; make it first")
        if not os.access(folder, os.W_OK):
            read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
            raise DiskError(f"cannot write {name}: {_REASONS[errno.EROFS if read_only else errno.EACCES]}")


def check_distinct(paths: Iterable[Path]) -> None:
    """Refuse outputs of which two would be the same file.

    Raises:
        ArgumentError: names the first that comes twice.
    """
    whole = [path.absolute() for path in paths]
    for path in whole:
        if whole.count(path) > 1:
            raise ArgumentError(f"{printable(path)} is named twice; each output needs a file of its own")


def check_space(folder: Path, need: int, *, what: str, advice: str) -> None:
    """Refuse to begin what will not fit on the disk.

    Args:
        folder: where it is to go; it exists.
        need: bytes.
        what: the work, as the subject of a sentence; ``advice``: what the user can do.

    Raises:
        DiskError: names both numbers.
    """
    free = shutil.disk_usage(folder).free
    if need > free:
        raise DiskError(
            f"{what} needs {need / 2**20:,.1f} MiB in {printable(folder)}, where {free / 2**20:,.1f} MiB are free; "
            f"{advice}"
        )


def write_file(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` by way of a temporary file beside it, flushed to the disk, and one rename."""
    with disk_errors(path):
        temporary = path.parent / f".tmp-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@dataclass(frozen=True)
class Written:
    """A file that was written: its size in bytes, and the SHA-256 of its content in hexadecimal."""

    size: int
    sha256: str


def write_new(path: Path, parts: Iterable[Buffer]) -> Generator[None, None, Written]:
    """Write a new file part by part and flush it to the disk; it is hashed meanwhile, so that nobody need read it back.

    Yields:
        after each part.

    Raises:
        DiskError: the disk is full, or refuses otherwise; or the file is there already.
    """
    digest, size = hashlib.sha256(), 0
    with disk_errors(path), path.open("xb") as file:
        for part in parts:
            digest.update(part)
            size += file.write(part)
            yield
        file.flush()
        os.fsync(file.fileno())
    return Written(size, digest.hexdigest())


def at_once(work: Generator[object, None, Result]) -> Result:
    """Do all the work of a generator, or what is left of it; returns its result."""
    while True:
        try:
            next(work)
        except StopIteration as done:
            return cast(Result, done.value)


def write_csv(path: Path, columns: tuple[str, ...], rows: Iterable[Iterable[object]]) -> None:
    """Write a table to ``path`` as `write_file` does; what is not a number (NaN) is left empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([["" if value != value else value for value in row] for row in rows])  # NaN is not known
    write_file(path, text.getvalue().encode())


def require_file(path: Path) -> None:
    """Refuse what is not there, or is a folder, or a pipe or device, which would be waited for.

    Raises:
        InputError: it is no file.
    """
    if not path.is_file():
        raise InputError(f"{printable(path)} is not a file" if path.exists() else f"{printable(path)} is missing")


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def printable(name: str | Path) -> str:
    """A name from the outside world with control and unprintable characters escaped, safe for any terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in str(name))
