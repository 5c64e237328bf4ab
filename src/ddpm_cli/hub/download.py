"""From a repository to a folder in the Hub's own cache: only what a model needs, and only what is what it should be."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from huggingface_hub import RepoFile, constants, hf_hub_download
from huggingface_hub.utils.tqdm import tqdm

from ..checkpoint import MAX_JSON_BYTES, NOTES, PICKLED_WEIGHTS, WEIGHTS, largest_weights, weights_file, write_unpickled
from ..core.files import printable
from ..core.progress import Stage, finished
from ..errors import HubError, InputError
from .cache import DIGEST, Pulled, agrees, check_content, found, keep, path_of, place_of, remember, remove
from .client import REQUEST_SECONDS, RepoName, UnreachableError, api, host, patiently

log = logging.getLogger(__name__)

_FLAT = ("config.json", "scheduler_config.json")
_NESTED = ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json")
_WANTED = (*_FLAT, *_NESTED, NOTES, WEIGHTS, PICKLED_WEIGHTS, f"unet/{WEIGHTS}", f"unet/{PICKLED_WEIGHTS}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LOOK_SECONDS = 0.1
_FAREWELL_SECONDS = 2.0


@dataclass(frozen=True)
class _RemoteFile:
    """A file as the Hub lists it.

    Args:
        path: in the repository; one of ours, never made up by a server.
        digest: SHA-256 of its content, or git's SHA-1 where the Hub keeps it in git.
    """

    path: str
    size: int
    digest: str


def fetch(name: RepoName, *, pickles: bool = False) -> Stage[Pulled]:
    """Bring a model's files into the cache; the stage counts bytes. At once where they are there already.

    Where the Hub cannot be reached, what was fetched before is used, with a warning; offline, without asking.

    Args:
        pickles: fetch the weights as a pickle where there is no safetensors file.

    Raises:
        HubError: it cannot be had.
        InputError: it is no model that this program reads.
        DiskError: the cache cannot be written.
    """
    label = f"fetching {name}"
    try:
        commit, files = patiently(name, lambda: _listed(name))
    except UnreachableError as error:  # offline as well
        if (cached := _cached(name)) is None:
            raise
        if not constants.HF_HUB_OFFLINE:
            log.warning("%s; using what was fetched before, %s", error, cached.origin)
        return finished(label, cached)
    documents = _documents(name, files)
    weights = _weights(name, commit, files, pickles)
    missing = sum(file.size for file in (*documents, weights) if file and not path_of(name, commit, file.path))
    return Stage(label, missing, _fetch(name, commit, documents, weights), in_bytes=True)


def _listed(name: RepoName) -> tuple[str, dict[str, _RemoteFile]]:
    """The commit that a revision stands for, and those of its files that a model may have."""
    commit = str(api().model_info(name.repo, revision=name.revision, timeout=REQUEST_SECONDS).sha)
    if not _COMMIT.fullmatch(commit):
        raise HubError(f"{host()} names a commit of {name} that is none: {printable(commit)[:80]!r}")
    files = {}
    for info in api().get_paths_info(name.repo, [*_WANTED], revision=commit):
        if info.path in _WANTED and isinstance(info, RepoFile):
            digest = info.lfs.sha256 if info.lfs else info.blob_id
            if not DIGEST.fullmatch(digest) or info.size < 0:
                raise HubError(f"{host()} lists {info.path} of {name} with a digest or size that is none")
            files[info.path] = _RemoteFile(info.path, info.size, digest)
    return commit, files


def _documents(name: RepoName, files: dict[str, _RemoteFile]) -> list[_RemoteFile]:
    """The configurations, of the nested or else the flat layout."""
    names = _NESTED if "unet/config.json" in files else _FLAT
    if not {"unet/config.json", "config.json"} & files.keys():
        raise InputError(f"{name} holds no model that is read here: neither unet/config.json nor config.json is in it")
    documents = [files[document] for document in (*names, NOTES) if document in files]
    for document in documents:
        if document.size > MAX_JSON_BYTES:
            raise InputError(f"{name}: {document.path} has {document.size:,} bytes; it is no configuration")
    return documents


def _weights(name: RepoName, commit: str, files: dict[str, _RemoteFile], pickles: bool) -> _RemoteFile | None:
    """The weights; None if they were made of a pickle before, and lie in the cache."""
    folder = "unet/" if "unet/config.json" in files else ""
    weights = files.get(folder + WEIGHTS)
    if weights is None and folder + PICKLED_WEIGHTS in files:
        if made := path_of(name, commit, folder + WEIGHTS):
            check_content(made)
            return None
        if not pickles:
            raise InputError(
                f"{name} has its weights only as {folder + PICKLED_WEIGHTS}, a pickle, which is never read unasked; "
                f"ddpm pull --allow-pickle {name} reads it with care and keeps safetensors in its place"
            )
        weights = files[folder + PICKLED_WEIGHTS]
    if weights is None:
        raise InputError(f"{name} has no weights: {folder + WEIGHTS} is not in it")
    return weights


def _fetch(
    name: RepoName, commit: str, documents: list[_RemoteFile], weights: _RemoteFile | None
) -> Generator[int, None, Pulled]:
    for file in documents:
        yield from _fetch_file(name, commit, file)
    pulled = found(name, commit)
    if pulled is None:
        raise HubError(f"{name}: its configuration vanished from the cache while it was read; try again")
    if weights:
        # Refuses a configuration that makes no sense, and what it does not need, before gigabytes are fetched.
        limit = largest_weights(pulled.folder)
        if weights.size > limit:
            raise InputError(f"{name}: {weights.path} has {weights.size:,} bytes; its network has at most {limit:,}")
        yield from _fetch_file(name, commit, weights)
        if weights.path.endswith(PICKLED_WEIGHTS):
            keep(name, weights_file(pulled.folder).with_name(WEIGHTS), partial(write_unpickled, pulled.folder))
    revision = name.revision or constants.DEFAULT_REVISION
    if revision != commit and found(name, revision) != pulled:
        remember(name, revision, commit)
    unpickled = weights is None or weights.path.endswith(PICKLED_WEIGHTS)
    but = ", but for the weights, which were made here of a pickle" if unpickled else ""
    return replace(pulled, checked=f"all agree with the digests that the Hub lists{but}")


def _cached(name: RepoName) -> Pulled | None:
    """What is in the cache of a revision, without asking anyone, compared with the digests that it was stored under."""
    pulled = found(name, name.revision)
    if pulled is None or not weights_file(pulled.folder).is_file():
        return None
    there = [file for file in _WANTED if (pulled.folder / file).is_file()]
    unknown = [file for file in there if not check_content(pulled.folder / file)]
    if unknown:
        return replace(pulled, checked=f"not compared, as the cache has no digest of them: {', '.join(unknown)}")
    return replace(pulled, checked="all agree with the digests that they were stored under")


def _fetch_file(name: RepoName, commit: str, file: _RemoteFile) -> Iterator[int]:
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


def _download(name: RepoName, commit: str, file: _RemoteFile, *, again: bool = False) -> Iterator[int]:
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
    file: _RemoteFile
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
