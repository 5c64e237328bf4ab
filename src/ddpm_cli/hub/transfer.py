"""One file of a repository: fetched by the client into its cache, and compared with what the Hub lists."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.utils.tqdm import tqdm

from ..errors import HubError
from .cache import agrees, path_of, place_of, remove
from .client import RepoName, patiently

_LOOK_SECONDS = 0.1
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
    """Fetch a file unless the cache has it, and compare it with its digest; yields bytes as they come.

    A damaged file is fetched once more, which is not counted.

    Raises:
        HubError: it cannot be had, or arrived damaged twice.
    """
    place = place_of(name, commit, file.path)
    if path_of(name, commit, file.path) is None:
        yield from _download(name, commit, file)
    if agrees(place, file.digest):
        return
    if not (place.is_symlink() and place.is_file()):  # else the client puts another content behind the link
        place.unlink(missing_ok=True)
    for _ in _download(name, commit, file, again=True):
        yield 0
    if not agrees(place, file.digest):
        remove(name, place)  # before anyone takes it for whole
        raise HubError(
            f"{name}: {file.path} arrived damaged twice: its content is not what the Hub lists; try again later"
        )


def _download(name: RepoName, commit: str, file: RemoteFile, *, again: bool = False) -> Iterator[int]:
    """The client's download, in a thread that no exit waits for; yields bytes as they come.

    `snapshot_download` would start threads of its own, for which Python waits at its end: an interrupt would take as
    long as the Hub is silent.
    """
    progress, future, told = _Progress(name, file), Future[str](), 0

    def download() -> str:
        return hf_hub_download(
            name.repo,
            file.path,
            revision=commit,
            library_name="ddpm",
            force_download=again,
            tqdm_class=progress.bar(),
        )

    def work() -> None:
        try:
            future.set_result(patiently(name, download))
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=work, daemon=True, name="ddpm-download")
    thread.start()
    try:
        while not future.done():
            wait([future], _LOOK_SECONDS)
            if progress.written > told:
                yield progress.written - told
                told = progress.written
        future.result()
        yield file.size - told
    finally:
        progress.left = True
        thread.join(_FAREWELL_SECONDS)  # time to remove what it has of a file


@dataclass
class _Progress:
    """What the client's bars say of a download; they end it when nobody listens any more, or it has no end."""

    name: RepoName
    file: RemoteFile
    written: int = 0
    left: bool = False

    def bar(self) -> type[tqdm]:
        """A class for bars that draw nothing."""
        progress = self

        class Bar(tqdm):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                # Where the client unpacks what comes, another bar counts what comes over the network.
                self._counts = not str(kwargs.get("name")).endswith(".transfer")
                self._written = 0
                super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

            def update(self, n: float | None = 1) -> None:
                if progress.left:
                    raise InterruptedError
                if self._counts:
                    self._written += int(n or 0)
                    if self._written > progress.file.size:
                        raise HubError(f"{progress.name}: {progress.file.path} is longer than the Hub lists")
                    progress.written = max(progress.written, self._written)

        return Bar
