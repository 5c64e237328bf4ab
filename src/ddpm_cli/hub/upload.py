"""From files here to one commit of a repository on the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import CommitOperationAdd, constants, get_token

from ..errors import ArgumentError, HubError
from .client import REQUEST_SECONDS, RepoName, api, hub_errors, patiently


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
        private: whether only its owner may see it; a repository that is there already and public is then refused.
        message: of the commit, one line.

    Returns:
        ``user/repo@commit``.

    Raises:
        ArgumentError: it is to be private, and the repository is public.
        HubError: the Hub refuses, or cannot be reached. After a time-out the commit may be there all the same.
    """
    require_token()
    client = api()
    operations = [CommitOperationAdd(path, content) for path, content in sorted(files.items())]
    patiently(name, lambda: client.create_repo(name.repo, private=private, exist_ok=True))
    if private and not patiently(name, lambda: client.model_info(name.repo, timeout=REQUEST_SECONDS)).private:
        raise ArgumentError(
            f"{name} exists and is public, so --private cannot hide what is pushed; make it private on "
            f"{constants.ENDPOINT}, or name another repository"
        )
    with hub_errors(name):
        commit = client.create_commit(name.repo, operations, commit_message=message, revision=name.revision)
    return f"{name.repo}@{commit.oid}"
