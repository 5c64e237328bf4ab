"""From files here to one commit of a repository on the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, EvalResult, ModelCard, ModelCardData, constants, get_token

from ..errors import HubError
from .client import REQUEST_SECONDS, RepoName, api, host, hub_errors, patiently

_TASK = "unconditional-image-generation"
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


@dataclass(frozen=True)
class Page:
    """What is known of a repository that is there already.

    Args:
        private: whether only its owner sees it.
        licence: its owner's choice, as fields of the front matter of its page.
    """

    private: bool
    licence: Mapping[str, str | list[str]]


@dataclass(frozen=True)
class FrontMatter:
    """What the Hub reads of a model's page, for its search and for the metrics that it shows.

    Args:
        name: of the model.
        library: that loads it; None if none does.
        licence: as of `Page`.
        bits_per_dim: the variational bound, and the images that it was measured on.
    """

    name: str
    library: str | None
    licence: Mapping[str, str | list[str]]
    bits_per_dim: tuple[float, str] | None

    def above(self, text: str) -> str:
        """A page, README.md, with this front matter above its text."""
        results = []
        if self.bits_per_dim:
            value, images = self.bits_per_dim
            results = [EvalResult(_TASK, "images", images, "bits_per_dim", value, metric_name="bits/dim")]
        data = ModelCardData(
            model_name=self.name,
            library_name=self.library,
            pipeline_tag=_TASK,
            tags=["ddpm", "diffusion", _TASK],
            eval_results=results or None,
            **self.licence,  # type: ignore[arg-type]
        )
        return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))


def page_of(name: RepoName) -> Page | None:
    """What is there already under a name; None if nothing.

    Raises:
        HubError: the Hub cannot be reached, or refuses.
    """
    client = api()
    if not patiently(name, lambda: client.repo_exists(name.repo)):
        return None
    about = patiently(name, lambda: client.model_info(name.repo, timeout=REQUEST_SECONDS))
    fields = {} if about.card_data is None else about.card_data.to_dict()  # type: ignore[no-untyped-call]
    return Page(bool(about.private), {field: fields[field] for field in _LICENCE if fields.get(field)})


def push(name: RepoName, files: Mapping[str, Path | bytes], *, private: bool, message: str) -> str:
    """Put files into a repository, which is made if it is not there, in one commit.

    Args:
        files: by path in the repository. Files of other names that are there already stay.
        private: whether only its owner may see it, if it is made now.
        message: of the commit, one line.

    Returns:
        ``user/repo@commit``.

    Raises:
        HubError: the Hub refuses, or cannot be reached. After a time-out the commit may be there all the same.
    """
    require_token()
    client = api()
    operations = [CommitOperationAdd(path, content) for path, content in sorted(files.items())]
    patiently(name, lambda: client.create_repo(name.repo, private=private, exist_ok=True))
    with hub_errors(name):
        commit = client.create_commit(name.repo, operations, commit_message=message)
    return f"{name.repo}@{commit.oid}"
