"""From files here to one commit of a repository on the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import CommitOperationAdd, constants, get_token

from ..errors import HubError
from .client import RepoName, api, hub_errors, patiently


def require_token() -> None:
    """Refuse to publish without a token, before the work is done that is to be published.

    Raises:
        HubError: there is none.
    """
    if get_token() is None:
        raise HubError(f"pushing to {constants.ENDPOINT} needs a token: set HF_TOKEN to one that may write")


def push(name: RepoName, files: Mapping[str, Path | bytes], *, private: bool, message: str) -> str:
    """Put files into a repository, which is made if it is not there, in one commit.

    Args:
        files: by path in the repository. Files of other names that are there already stay.
        private: whether only its owner sees a repository that is made now.
        message: of the commit, one line.

    Returns:
        ``user/repo@commit``.

    Raises:
        HubError: the Hub refuses, or cannot be reached; then nothing of the commit is there.
    """
    require_token()
    client = api()
    operations = [CommitOperationAdd(path, content) for path, content in sorted(files.items())]
    patiently(name, lambda: client.create_repo(name.repo, private=private, exist_ok=True))
    with hub_errors(name):
        commit = client.create_commit(name.repo, operations, commit_message=message, revision=name.revision)
    return f"{name.repo}@{commit.oid}"
