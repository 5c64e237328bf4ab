"""From a repository to a folder in the Hub's own cache: only what a model needs, and only what is what it should be."""

from __future__ import annotations

import logging
import re
from collections.abc import Generator
from dataclasses import replace
from functools import partial

from huggingface_hub import RepoFile, constants

from ..checkpoint import MAX_JSON_BYTES, NOTES, PICKLED_WEIGHTS, WEIGHTS, largest_weights, weights_file, write_unpickled
from ..core.files import printable
from ..core.progress import Stage, finished
from ..errors import HubError, InputError
from .cache import DIGEST, Pulled, check_content, found, keep, path_of, remember
from .client import REQUEST_SECONDS, RepoName, UnreachableError, api, host, patiently
from .transfer import RemoteFile, fetch_file

log = logging.getLogger(__name__)

_FLAT = ("config.json", "scheduler_config.json")
_NESTED = ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json")
_WANTED = (*_FLAT, *_NESTED, NOTES, WEIGHTS, PICKLED_WEIGHTS, f"unet/{WEIGHTS}", f"unet/{PICKLED_WEIGHTS}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


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


def _listed(name: RepoName) -> tuple[str, dict[str, RemoteFile]]:
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
            files[info.path] = RemoteFile(info.path, info.size, digest)
    return commit, files


def _documents(name: RepoName, files: dict[str, RemoteFile]) -> list[RemoteFile]:
    """The configurations, of the nested or else the flat layout."""
    names = _NESTED if "unet/config.json" in files else _FLAT
    if not {"unet/config.json", "config.json"} & files.keys():
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
    name: RepoName, commit: str, documents: list[RemoteFile], weights: RemoteFile | None
) -> Generator[int, None, Pulled]:
    for file in documents:
        yield from fetch_file(name, commit, file)
    pulled = found(name, commit)
    if pulled is None:
        raise HubError(f"{name}: its configuration vanished from the cache while it was read; try again")
    if weights:
        # Refuses a configuration that makes no sense, and what it does not need, before gigabytes are fetched.
        limit = largest_weights(pulled.folder)
        if weights.size > limit:
            raise InputError(f"{name}: {weights.path} has {weights.size:,} bytes; its network has at most {limit:,}")
        yield from fetch_file(name, commit, weights)
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
