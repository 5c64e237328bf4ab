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
        HubError: as for `hub_errors`, and of what never ends: a file that grows beyond its size, and one that does not
            grow, be it that the Hub is silent, trickles, or begins it again and again.
    """
    events: queue.SimpleQueue[int | Exception | None] = queue.SimpleQueue()
    left = threading.Event()
    moved = 0

    class Bar(tqdm):
        """What the client takes for a progress bar: of bytes written, and of bytes on their way to that."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            if left.is_set():
                raise InterruptedError
            events.put(int(n or 0))

        def update_transfer(self, n: float | None = 1) -> None:
            nonlocal moved
            moved += int(n or 0)
            self.update(0)

        def set_transfer_postfix_str(self, *args: Any, **kwargs: Any) -> None:
            pass

    def work() -> None:
        try:
            hf_hub_download(
                name.repo,
                file.path,
                revision=commit,
                library_name="ddpm",
                force_download=again,
                tqdm_class=Bar,
            )
        except Exception as error:
            events.put(error)
        else:
            events.put(None)

    contents = contents_of(name)
    done = most = others = 0
    heard = time.monotonic()
    thread = threading.Thread(target=work, daemon=True, name="ddpm-download")
    thread.start()
    try:
        while (event := _next(events)) is not None:
            if isinstance(event, Exception):
                with hub_errors(name):
                    raise event
            done += event
            if done > file.size:
                raise HubError(f"{name}: {file.path} does not end where it should, after {file.size:,} bytes")
            if done + moved > most:
                most, heard = done + moved, time.monotonic()
            elif (there := _bytes_under_way(contents)) > others:  # of another process, which the client waits for
                others, heard = there, time.monotonic()
            elif time.monotonic() - heard > SILENT_SECONDS:
                raise UnreachableError(
                    f"{host()} sent nothing new of {file.path} of {name} for {SILENT_SECONDS:.0f} s; try again later"
                )
            if event:
                yield event
    finally:
        left.set()
        thread.join(_FAREWELL_SECONDS)  # time to remove what it has of the file


def _next(events: queue.SimpleQueue[int | Exception | None]) -> int | Exception | None:
    """What comes next within a second; else 0."""
    try:
        return events.get(timeout=1)
    except queue.Empty:
        return 0


def _bytes_under_way(contents: Path) -> int:
    """What has come of all files that are being fetched into a folder, by whomever."""
    total = 0
    for path in contents.glob("*.incomplete"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total
