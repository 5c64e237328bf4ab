"""Where packs and surveys are kept: named after what they were made from; what is of no more use goes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Self

from ...core.files import disk_errors
from ...errors import DiskError
from .manifest import MANIFEST, NAMES

if TYPE_CHECKING:
    from ..sources.source import Source

# Raised whenever the same source would give other pixels or another survey.
VERSION = 1

LOCK = ".lock"
_PACKS = "packs"
_STAGED = ".tmp-"
_POLL_SECONDS = 0.05
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
    return cache_folder() / "surveys" / f"{name_of(source)}.json"


def pack_path(source: Source, size: tuple[int, int], channels: int) -> Path:
    """The folder for the packed images of a source in its present state."""
    return cache_folder() / _PACKS / name_of(source, *size, channels)


def make_room(path: Path) -> None:
    """Make the folder that ``path`` will be in, and remove from it what is of no more use.

    That is what nobody has opened for three months, what processes left that died a day ago, and surveys and begun
    packs of an earlier state of the source of ``path``. Whole packs of such a state stay: a run may have begun on them.

    Raises:
        DiskError: the folder cannot be made.
    """
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    for other in path.parent.iterdir():
        with contextlib.suppress(OSError):
            if other.name != path.name and _is_useless(other, path):
                _remove(other)


def mark_used(file: Path) -> None:
    """Note that something of the cache was opened, so that it stays."""
    with contextlib.suppress(OSError):  # a cache that may only be read
        os.utime(file)


def packs() -> Iterator[Path]:
    """The folders of all packs, the one that was used last first."""
    used = []
    with contextlib.suppress(OSError):
        for path in (cache_folder() / _PACKS).iterdir():
            with contextlib.suppress(OSError):
                used.append(((path / MANIFEST).stat().st_mtime_ns, path))
    return (path for _, path in sorted(used, reverse=True))


def former_packs(path: Path) -> Iterator[Path]:
    """The packs of other states of the source of ``path``, at its size and channels, the last used first."""
    return (other for other in packs() if other != path and _is_alike(other, path))


class Lock:
    """A folder that is held until this is closed, and as long as a child that was given ``handle`` lives."""

    def __init__(self, handle: int) -> None:
        self.handle = handle

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.handle)


def lock(folder: Path, seconds: float) -> Lock | None:
    """Make a folder for a pack and hold it for this process; None if another still holds it after so many seconds.

    Raises:
        OSError: the folder cannot be written.
    """
    end = time.monotonic() + seconds
    while (held := _try_lock(folder)) is None and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)
    return held


def _try_lock(folder: Path) -> Lock | None:
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(handle).st_nlink:  # else it was removed meanwhile, and guards nothing
            return Lock(handle)
    except BlockingIOError:
        pass
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None


@contextlib.contextmanager
def unless_empty(folder: Path, *, keep: bool) -> Iterator[None]:
    """Within, a folder is held by `lock`; in the end it goes if nothing was left in it.

    Args:
        keep: whether only the lock goes.
    """
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if [file.name for file in folder.iterdir()] == [LOCK]:
                (folder / LOCK).unlink()
                if not keep:
                    folder.rmdir()


def clear(folder: Path) -> None:
    """Remove a pack from a folder that is held by `lock`, the manifest first: what is left of a pack is none."""
    (folder / MANIFEST).unlink(missing_ok=True)
    for pattern in ("images*.u8", NAMES, "pack-journal.*"):
        for file in folder.glob(pattern):
            file.unlink()


def name_of(source: Source, *settings: int) -> str:
    """What it is of, and in which state: the second part alone changes when the source does."""
    what = json.dumps([VERSION, os.fsencode(source.path).hex(), *settings])
    return "-".join(hashlib.blake2b(text.encode(), digest_size=10).hexdigest() for text in (what, source.fingerprint))


def _is_alike(one: Path, other: Path) -> bool:
    return one.name.split("-")[0] == other.name.split("-")[0]


def _is_useless(other: Path, path: Path) -> bool:
    is_whole = (other / MANIFEST).exists()
    if _is_alike(other, path) and not is_whole:
        return True
    is_left = not is_whole if other.is_dir() else other.name.startswith(_STAGED)
    return _seconds_since_change(other) > (_LEFT_BEHIND_SECONDS if is_left else _UNUSED_SECONDS)


def _seconds_since_change(path: Path) -> float:
    return time.time() - max([path.stat().st_mtime, *(file.stat().st_mtime for file in path.glob("*"))])


def _remove(path: Path) -> None:
    if not path.is_dir():
        path.unlink(missing_ok=True)
    elif (held := lock(path, 0)) is not None:  # else somebody is at work on it
        with held:
            clear(path)
            shutil.rmtree(path, ignore_errors=True)
