"""One file of a repository: fetched by the client, watched while it comes, and compared with what the Hub lists."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.utils.tqdm import tqdm

from ..errors import HubError
from .cache import agrees, contents_of, path_of, place_of, remove
from .client import REQUEST_SECONDS, SILENT_SECONDS, WAITS, BusyError, RepoName, UnreachableError, host, hub_errors

_FAREWELL_SECONDS = 2.0


@dataclass(frozen=True)
class RemoteFile:
    """A file as the Hub lists it.

    Args:
        path: in the repository; one of ours, never made up by a server.
        digest: SHA-256 of its content, or git's SHA-1 where the Hub keeps it in git.
    """

    path: str
    size: int
    digest: str


def fetch_file(name: RepoName, commit: str, file: RemoteFile) -> Iterator[int]:
    """One file, compared with its digest; a damaged one is fetched once more, and takes the place of the other."""
    cached = path_of(name, commit, file.path) is not None
    place = place_of(name, commit, file.path)
    for again in (False, True):
        done = 0
        for amount in _patiently_download(name, commit, file, again):
            done += amount
            yield amount if not cached and not again else 0
        if agrees(place, file.digest):
            yield 0 if cached or again else file.size - done
            return
        if not (place.is_symlink() and place.is_file()):  # else the client puts another content behind the link
            place.unlink(missing_ok=True)
    remove(name, place)  # before anyone takes it for whole
    raise HubError(f"{name}: {file.path} arrived damaged twice: its content is not what the Hub lists; try again later")


def _patiently_download(name: RepoName, commit: str, file: RemoteFile, again: bool) -> Iterator[int]:
    """As `_download`. The client is patient where it asks about a file, and not where it fetches it."""
    for wait in WAITS:
        began = time.monotonic()
        try:
            yield from _download(name, commit, file, again)
            return
        except BusyError:
            if time.monotonic() - began > REQUEST_SECONDS:
                raise
            time.sleep(wait)
    yield from _download(name, commit, file, again)


def _download(name: RepoName, commit: str, file: RemoteFile, again: bool) -> Iterator[int]:
    """The client's download in a thread of its own; yields the bytes as they come.

    The thread is a daemon, so that an interrupt need not wait long for it, and ends when nobody listens any more.

    Raises:
        HubError: as for `hub_errors`, and of what never ends (`_Watch`).
    """
    events: _Events = queue.SimpleQueue()
    left = threading.Event()
    bar = _bar(events, left)

    def work() -> None:
        try:
            hf_hub_download(
                name.repo, file.path, revision=commit, library_name="ddpm", force_download=again, tqdm_class=bar
            )
        except Exception as error:
            events.put(error)
        else:
            events.put(None)

    watch = _Watch(name, file)
    thread = threading.Thread(target=work, daemon=True, name="ddpm-download")
    thread.start()
    try:
        while (event := _next(events)) is not None:
            if isinstance(event, Exception):
                with hub_errors(name):
                    raise event
            watch.see(event)
            if event.written:
                yield event.written
    finally:
        left.set()
        thread.join(_FAREWELL_SECONDS)  # time to remove what it has of the file


@dataclass(frozen=True)
class _Arrived:
    """Bytes of a file that were written, and bytes on their way to that."""

    written: int = 0
    moved: int = 0


_Events = queue.SimpleQueue[_Arrived | Exception | None]


def _bar(events: _Events, left: threading.Event) -> type[tqdm]:
    """What the client takes for a progress bar; it ends the download when nobody listens any more."""

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            self._tell(_Arrived(written=int(n or 0)))

        def update_transfer(self, n: float | None = 1) -> None:
            self._tell(_Arrived(moved=int(n or 0)))

        def set_transfer_postfix_str(self, *args: Any, **kwargs: Any) -> None:
            pass

        def _tell(self, arrived: _Arrived) -> None:
            if left.is_set():
                raise InterruptedError
            events.put(arrived)

    return Bar


class _Watch:
    """Notices a download that never ends: a file that grows beyond its size, and one that does not grow.

    That may be because the Hub is silent, trickles, or begins it again and again.
    """

    def __init__(self, name: RepoName, file: RemoteFile) -> None:
        self._name, self._file, self._contents = name, file, contents_of(name)
        self._written = self._moved = self._most = self._others = 0
        self._heard = time.monotonic()

    def see(self, arrived: _Arrived) -> None:
        """Take note of what has come, which may be nothing.

        Raises:
            HubError: it is too much.
            UnreachableError: nothing new has come for long.
        """
        name, file = self._name, self._file
        self._written += arrived.written
        self._moved += arrived.moved
        if self._written > file.size:
            raise HubError(f"{name}: {file.path} does not end where it should, after {file.size:,} bytes")
        if self._written + self._moved > self._most:
            self._most, self._heard = self._written + self._moved, time.monotonic()
        elif (there := _bytes_under_way(self._contents)) > self._others:  # of another process, for which this waits
            self._others, self._heard = there, time.monotonic()
        elif time.monotonic() - self._heard > SILENT_SECONDS:
            raise UnreachableError(
                f"{host()} sent nothing new of {file.path} of {name} for {SILENT_SECONDS:.0f} s; try again later"
            )


def _next(events: _Events) -> _Arrived | Exception | None:
    """What comes next within a second; else nothing that has arrived."""
    try:
        return events.get(timeout=1)
    except queue.Empty:
        return _Arrived()


def _bytes_under_way(contents: Path) -> int:
    """What has come of all files that are being fetched into a folder, by whomever."""
    total = 0
    for path in contents.glob("*.incomplete"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total
