"""Where packs and surveys are kept: named after what they were made from, published whole, outdated ones removed."""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import DiskError
from ..files import disk_errors, sync
from .source import Source

# Raised whenever the same source would give other pixels or another survey.
VERSION = 1

_STAGED = ".tmp-"
_LEFT_BEHIND_SECONDS = 24 * 3600
_UNUSED_SECONDS = 90 * 24 * 3600


def cache_folder() -> Path:
    """$DDPM_CACHE, or $XDG_CACHE_HOME/ddpm, or ~/.cache/ddpm.

    Raises:
        DiskError: none is set, and the user has no home folder.
    """
    if chosen := os.environ.get("DDPM_CACHE"):
        return Path(chosen).absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (base if base.is_absolute() else Path.home() / ".cache") / "ddpm"
    except RuntimeError as error:
        raise DiskError("there is no home folder to keep packed images in; set DDPM_CACHE to a folder") from error


def survey_path(source: Source) -> Path:
    """The file for what is known of a source in its present state."""
    return cache_folder() / "surveys" / f"{_name(source)}.json"


def pack_path(source: Source, size: tuple[int, int], channels: int) -> Path:
    """The folder for the packed images of a source in its present state."""
    return cache_folder() / "packs" / _name(source, *size, channels)


def make_room(path: Path) -> None:
    """Make the folder that ``path`` will be published in, and remove from it what is of no more use.

    That is what was made like ``path`` from an earlier state of its source, what processes left that died, and what
    nobody has opened for three months.

    Raises:
        DiskError: the folder cannot be made.
    """
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    outdated = path.name.split("-")[0] + "-"
    for other in path.parent.iterdir():
        with contextlib.suppress(OSError):
            is_outdated = other.name.startswith(outdated) and other.name != path.name
            kept = _LEFT_BEHIND_SECONDS if other.name.startswith(_STAGED) else _UNUSED_SECONDS
            if is_outdated or _seconds_since_change(other) > kept:
                _remove(other)


def mark_used(file: Path) -> None:
    """Note that something of the cache was opened, so that it stays."""
    with contextlib.suppress(OSError):  # a cache that may only be read
        os.utime(file)


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` to be filled and then given to `publish`; whatever happens, it does not stay."""
    folder = _beside(path)
    remove = functools.partial(_remove, folder)
    atexit.register(remove)  # an interrupt may end the program before a suspended generator is closed
    try:
        folder.mkdir()
        yield folder
    finally:
        remove()
        atexit.unregister(remove)


def publish(folder: Path, path: Path, is_valid: Callable[[Path], bool]) -> None:
    """Give a staged folder its final name, flushed to the disk, unless a valid one has come to have it meanwhile."""
    for file in folder.iterdir():
        sync(file)
    sync(folder)
    for attempts_left in reversed(range(5)):
        try:
            folder.rename(path)
            break
        except OSError:  # a folder cannot be renamed onto one that is not empty
            if is_valid(path):
                break
            if not attempts_left:
                raise
        with contextlib.suppress(FileNotFoundError):
            damaged = path.rename(_beside(path))
            _remove(damaged)
    sync(path.parent)


def _name(source: Source, *settings: int) -> str:
    """What it is of, and in which state: the second part alone changes when the source does."""
    what = json.dumps([VERSION, os.fsencode(source.path).hex(), *settings])
    return "-".join(hashlib.blake2b(text.encode(), digest_size=10).hexdigest() for text in (what, source.fingerprint))


def _beside(path: Path) -> Path:
    return path.with_name(f"{_STAGED}{path.name}-{secrets.token_hex(4)}")


def _seconds_since_change(path: Path) -> float:
    return time.time() - max([path.stat().st_mtime, *(file.stat().st_mtime for file in path.glob("*"))])


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
