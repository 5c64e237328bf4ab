"""From files here to one commit of a repository on the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import CommitOperationAdd, constants, get_token

from ..errors import ArgumentError, HubError
from .client import REQUEST_SECONDS, RepoName, api, host, hub_errors, patiently

_LICENCE = ("license", "license_name", "license_link")


def require_token() -> None:
    """Refuse to publish without a token, before the work is done that is to be published.

    Raises:
        HubError: there is none, or the Hub is not to be asked.
    """
    if constants.HF_HUB_OFFLINE:
        raise HubError("HF_HUB_OFFLINE is set, so nothing can be published")
    if get_token() is None:
        raise HubError(f"pushing to {host()} needs a token: set HF_TOKEN to one that may write")


def licence(name: RepoName) -> dict[str, str]:
    """What the page of a repository says of its licence, as fields of its front matter; nothing if it is not there.

    Raises:
        HubError: the Hub cannot be reached, or refuses.
    """
    client = api()
    if not patiently(name, lambda: client.repo_exists(name.repo)):
        return {}
    page = patiently(name, lambda: client.model_info(name.repo, timeout=REQUEST_SECONDS)).card_data
    fields = {} if page is None else page.to_dict()  # type: ignore[no-untyped-call]
    return {field: fields[field] for field in _LICENCE if isinstance(fields.get(field), str)}


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
            f"{host()}, or name another repository"
        )
    with hub_errors(name):
        commit = client.create_commit(name.repo, operations, commit_message=message)
    return f"{name.repo}@{commit.oid}"
