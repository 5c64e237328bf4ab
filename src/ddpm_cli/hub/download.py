"""From a repository to a folder in the Hub's own cache: only what a model needs, and only what is what it should be."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import queue
import re
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import RepoFile, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.utils.tqdm import tqdm

from ..checkpoint import MAX_JSON_BYTES, NOTES, PICKLED_WEIGHTS, WEIGHTS, keep_as_safetensors, largest_weights
from ..errors import HubError, InputError
from ..files import disk_errors, printable, write_file
from ..stage import Stage, finished
from .client import REQUEST_SECONDS, WAITS, BusyError, RepoName, UnreachableError, api, hub_errors, patiently

log = logging.getLogger(__name__)

_FLAT = ("config.json", "scheduler_config.json")
_NESTED = ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json")
_WANTED = (*_FLAT, *_NESTED, NOTES, WEIGHTS, PICKLED_WEIGHTS, f"unet/{WEIGHTS}", f"unet/{PICKLED_WEIGHTS}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_BLOCK = 2**20
_LEFT_BEHIND_SECONDS = 24 * 3600


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


@dataclass(frozen=True)
class Pulled:
    """A model's files in the cache.

    Args:
        folder: of diffusers' layout, nested or flat.
        origin: ``user/repo@commit``.
    """

    folder: Path
    origin: str


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
        if (found := _cached(name)) is None:
            raise
        if not constants.HF_HUB_OFFLINE:
            log.warning("%s; using what was fetched before, %s", error, found.origin)
        return finished(label, found)
    documents = _documents(name, files)
    weights = _weights(name, commit, files, pickles)
    missing = sum(file.size for file in (*documents, weights) if file and not _path(name, commit, file.path))
    return Stage(label, missing, _fetch(name, commit, documents, weights), in_bytes=True)


def _listed(name: RepoName) -> tuple[str, dict[str, RemoteFile]]:
    """The commit that a revision stands for, and those of its files that a model may have."""
    commit = str(api().model_info(name.repo, revision=name.revision, timeout=REQUEST_SECONDS).sha)
    if not _COMMIT.fullmatch(commit):
        raise HubError(f"{constants.ENDPOINT} names a commit of {name} that is none: {printable(commit)[:80]!r}")
    files = {}
    for info in api().get_paths_info(name.repo, [*_WANTED], revision=commit):
        if info.path in _WANTED and isinstance(info, RepoFile):
            digest = info.lfs.sha256 if info.lfs else info.blob_id
            if not _DIGEST.fullmatch(digest) or info.size < 0:
                raise HubError(f"{constants.ENDPOINT} lists {info.path} of {name} with a digest or size that is none")
            files[info.path] = RemoteFile(info.path, info.size, digest)
    return commit, files


def _documents(name: RepoName, files: dict[str, RemoteFile]) -> list[RemoteFile]:
    """The configurations, of the nested or else the flat layout."""
    names = _NESTED if "unet/config.json" in files else _FLAT
    if names[-2] not in files:
        raise InputError(f"{name} holds no model that is read here: neither unet/config.json nor config.json is in it")
    documents = [files[document] for document in (*names, NOTES) if document in files]
    for document in documents:
        if document.size > MAX_JSON_BYTES:
            raise InputError(f"{name}: {document.path} has {document.size:,} bytes; it is no configuration")
    return documents


def _weights(name: RepoName, commit: str, files: dict[str, RemoteFile], pickles: bool) -> RemoteFile | None:
    """The weights; None if they were made of a pickle before, and lie in the cache."""
    folder = "unet/" if "unet/config.json" in files else ""
    weights = files.get(folder + WEIGHTS)
    if weights is None and folder + PICKLED_WEIGHTS in files:
        if _path(name, commit, folder + WEIGHTS):
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
    name: RepoName, commit: str, documents: list[RemoteFile], weights: RemoteFile | None
) -> Generator[int, None, Pulled]:
    for file in documents:
        yield from _fetch_file(name, commit, file)
    pulled = _found(name, commit)
    if pulled is None:
        raise HubError(f"{name}: its configuration vanished from the cache while it was read; try again")
    if weights:
        # Refuses a configuration that makes no sense, and what it does not need, before gigabytes are fetched.
        limit = largest_weights(pulled.folder)
        if weights.size > limit:
            raise InputError(f"{name}: {weights.path} has {weights.size:,} bytes; its network has at most {limit:,}")
        yield from _fetch_file(name, commit, weights)
        if weights.path.endswith(PICKLED_WEIGHTS):
            keep_as_safetensors(pulled.folder)
    _remove_leftovers(pulled.folder.parents[1] / "blobs")
    if name.revision != commit:
        _remember(pulled.folder, name.revision or constants.DEFAULT_REVISION, commit)
    return pulled


def _remove_leftovers(blobs: Path) -> None:
    """Remove what interrupted downloads left long ago: the client begins each under a name of its own."""
    for leftover in blobs.glob("*.incomplete"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _LEFT_BEHIND_SECONDS:
                leftover.unlink()


def _remember(folder: Path, revision: str, commit: str) -> None:
    """Note in the cache which commit a branch or tag stood for, as the client does."""
    path = folder.parents[1] / "refs" / revision
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, commit.encode())


def _fetch_file(name: RepoName, commit: str, file: RemoteFile) -> Iterator[int]:
    """One file, compared with its digest; a damaged one is fetched once more."""
    cached = _path(name, commit, file.path) is not None
    for again in (False, True):
        done = 0
        for amount in _patiently_download(name, commit, file.path, again):
            done += amount
            yield amount if not cached and not again else 0
        path = _path(name, commit, file.path)
        if path and _digest(path, file.digest) == file.digest:
            yield 0 if cached or again else file.size - done
            return
        if path:  # before anyone takes it for whole: the content, and the name that leads to it
            _content(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
    raise HubError(f"{name}: {file.path} arrived damaged twice: its content is not what the Hub lists; try again later")


def _patiently_download(name: RepoName, commit: str, path: str, again: bool) -> Iterator[int]:
    """As `_download`. The client is patient where it asks about a file, and not where it fetches it."""
    for wait in WAITS:
        began = time.monotonic()
        try:
            yield from _download(name, commit, path, again)
            return
        except BusyError:
            if time.monotonic() - began > REQUEST_SECONDS:
                raise
            time.sleep(wait)
    yield from _download(name, commit, path, again)


def _download(name: RepoName, commit: str, path: str, again: bool) -> Iterator[int]:
    """The client's download in a thread of its own; yields the bytes as they come.

    The thread is a daemon, so that an interrupt need not wait for it.
    """
    events: queue.SimpleQueue[int | Exception | None] = queue.SimpleQueue()

    class Bar(tqdm):
        """What the client takes for a progress bar."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            events.put(int(n or 0))

    def work() -> None:
        try:
            hf_hub_download(
                name.repo,
                path,
                revision=commit,
                library_name="ddpm",
                force_download=again,
                tqdm_class=Bar,
            )
        except Exception as error:
            events.put(error)
        else:
            events.put(None)

    threading.Thread(target=work, daemon=True, name="ddpm-download").start()
    while (event := events.get()) is not None:
        if isinstance(event, Exception):
            with hub_errors(name):
                raise event
        yield event


def _cached(name: RepoName) -> Pulled | None:
    """What is in the cache of a revision, without asking anyone, compared with the digests that it was stored under."""
    found = _found(name, name.revision)
    if found is None:
        return None
    for file in _WANTED:
        path = found.folder / file
        # What was made here of a pickle is a plain file, and no link to a content with a digest for its name.
        expected = _content(path).name if path.is_symlink() and path.exists() else ""
        if expected and _digest(path, expected) != expected:
            raise InputError(f"{printable(path)} was altered: its content is not what the Hub listed; delete it")
    return found


def _content(path: Path) -> Path:
    """Where a name in the cache leads to, one step: a content of this repository, named by its digest.

    That may itself lead on to a store that repositories share, which has names of another kind, and is not ours.
    """
    return path.parent / path.readlink() if path.is_symlink() else path


def _found(name: RepoName, revision: str | None) -> Pulled | None:
    for config in ("unet/config.json", "config.json"):
        if path := _path(name, revision, config):
            folder = path.parents[config.count("/")]
            return Pulled(folder, f"{name.repo}@{folder.name}")
    return None


def _path(name: RepoName, revision: str | None, file: str) -> Path | None:
    """Where a file of a revision lies in the cache, if it does."""
    path = try_to_load_from_cache(name.repo, file, revision=revision)
    return Path(path) if isinstance(path, str) else None


def _digest(path: Path, expected: str) -> str:
    """The digest of a file in the form that ``expected`` has: SHA-256, or git's SHA-1 of its content."""
    is_sha256 = len(expected) == 64
    digest = hashlib.sha256() if is_sha256 else hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
