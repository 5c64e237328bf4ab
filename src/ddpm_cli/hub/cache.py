"""The Hub's cache on this machine: where the client keeps a repository's files, and whether they are what they were."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.file_download import repo_folder_name

from ..core.files import disk_errors, printable, sha256, write_file
from ..errors import DiskError, InputError
from .client import RepoName

DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

_BLOCK = 2**20


@dataclass(frozen=True)
class Pulled:
    """A model's files in the cache.

    Args:
        folder: of diffusers' layout, nested or flat.
        origin: ``user/repo@commit``.
        checked: what its files were compared with, for people.
    """

    folder: Path
    origin: str
    checked: str = ""


def found(name: RepoName, revision: str | None) -> Pulled | None:
    """What is in the cache of a revision, without asking anyone; None if there is nothing, or no configuration."""
    for config in ("unet/config.json", "config.json"):
        if path := path_of(name, revision, config):
            folder = path.parents[config.count("/")]
            return Pulled(folder, f"{name.repo}@{folder.name}")
    return None


def path_of(name: RepoName, revision: str | None, file: str) -> Path | None:
    """Where a file of a revision lies in the cache, if it does."""
    try:
        path = try_to_load_from_cache(name.repo, file, revision=revision)
    except ValueError:  # its note of which commit a branch stands for is no text
        return None
    return Path(path) if isinstance(path, str) else None


def place_of(name: RepoName, commit: str, file: str) -> Path:
    """Where the client puts a file of a commit, whatever lies there."""
    return _folder(name) / "snapshots" / commit / file


def agrees(path: Path, digest: str) -> bool:
    """Whether a file is there and has this digest; another process may remove it, having found that it is damaged.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return path.is_file() and _digest(path, digest) == digest  # a pipe or a device would be read for ever
    except FileNotFoundError:
        return False
    except OSError as error:
        raise InputError(f"{printable(path)} cannot be read: {error.strerror}") from error


def _digest(path: Path, expected: str) -> str:
    """The digest of a file in the form that ``expected`` has: SHA-256, or git's SHA-1 of its content."""
    is_sha256 = len(expected) == 64
    digest = hashlib.sha256() if is_sha256 else hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def check_content(path: Path) -> bool:
    """Refuse a file of the cache whose content is not what its name says; False if that says nothing.

    Raises:
        InputError: it was altered, or cannot be read.
    """
    expected = content_of(path).name
    if not path.is_symlink() or not DIGEST.fullmatch(expected):
        return False
    if not agrees(path, expected):
        raise InputError(f"{printable(path)} was altered: its content is not what was fetched; delete it")
    return True


def contents_of(name: RepoName) -> Path:
    """Where the contents of a repository's files lie in the cache, each named by its digest."""
    return _folder(name) / "blobs"


def _folder(name: RepoName) -> Path:
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name.repo, repo_type="model")


def content_of(path: Path) -> Path:
    """Where a name in the cache leads to, one step: a content of this repository, named by its digest.

    That may itself lead on to a store that repositories share, which has names of another kind, and is not ours.
    """
    return path.parent / path.readlink() if path.is_symlink() else path


def remove(name: RepoName, path: Path) -> None:
    """Remove a file of the cache: the name that leads to its content, and the content if the client put it there."""
    content = content_of(path)
    with disk_errors(path):
        if content.parent.resolve() == contents_of(name).resolve():
            content.unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def keep(name: RepoName, place: Path, write: Callable[[Path], None]) -> None:
    """Make a file of the cache as the client does: its digest names the content, and a link in its place leads there.

    So it is compared with that name whenever it is used. Others see it whole or not at all.

    Args:
        write: makes the file at the path that it is given.
    """
    contents, mark = contents_of(name), f".tmp-{os.getpid()}-{secrets.token_hex(4)}"
    staged, link = contents / mark, place.with_name(mark)
    with disk_errors(place):
        try:
            write(staged)
            content = contents / sha256(staged)
            try:
                link.symlink_to(os.path.relpath(content, place.parent))
            except OSError:  # of a file system without links; the client's own files are no links there either
                staged.replace(place)
                return
            staged.replace(content)
            link.replace(place)
        finally:
            staged.unlink(missing_ok=True)
            link.unlink(missing_ok=True)


def remember(name: RepoName, revision: str, commit: str) -> None:
    """Note in the cache which commit a branch or tag stands for, as the client does; if it can be written."""
    path = _folder(name) / "refs" / revision
    with contextlib.suppress(OSError, DiskError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, commit.encode())
