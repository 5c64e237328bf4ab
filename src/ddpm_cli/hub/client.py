"""The Hub's client: names of repositories, the settings of huggingface_hub, and one sentence for each of its errors."""

from __future__ import annotations

import contextlib
import functools
import re
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.utils import logging
from huggingface_hub.utils.tqdm import disable_progress_bars

from ..core.files import disk_errors, is_of_the_disk, printable
from ..errors import ArgumentError, DdpmError, HubError

REQUEST_SECONDS = float(constants.HF_HUB_ETAG_TIMEOUT)  # the client's own limit for the answer to a question, 10 s
ANSWER_SECONDS = 60.0  # for the answer to a commit, and to all that the client sets no limit for

_CHUNK_BYTES = 2**16  # how much of a file is said to have come at a time; the client's own 10 MiB can take minutes

WAITS = (1.0, 2.0, 4.0)  # seconds before it is asked again

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"(?!.*\.\.)[\w][\w./-]{0,250}", re.ASCII)
_RESOLVED = re.compile(r"/resolve/([0-9a-f]{40})/")
_ETAG = re.compile(r"[\w+=-]{1,250}", re.ASCII)
# What the client stumbles with over an answer that is none of the Hub's.
_STUMBLES = (ValueError, LookupError, TypeError, AttributeError, OSError)
_HTTPError: type[Exception] = errors.HfHubHTTPError.__mro__[1]  # of whichever HTTP library the client is built on


class UnreachableError(HubError):
    """The Hub gave no answer, or none that says anything about what was asked for."""


class BusyError(UnreachableError):
    """The Hub said that it cannot answer now."""


@dataclass(frozen=True)
class RepoName:
    """A repository and which state of it.

    Args:
        repo: ``user/repo``.
        revision: a branch, tag or commit; None for the main branch.
    """

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


def parse(spec: str) -> RepoName | None:
    """``user/repo`` or ``user/repo@revision`` as a repository; None if it has another form."""
    repo, _, revision = spec.partition("@")
    if not _NAME.fullmatch(repo) or ".." in repo or "--" in repo or repo.endswith((".git", ".", "-")):
        return None
    if "@" in spec and not _REVISION.fullmatch(revision):
        return None
    return RepoName(repo, revision or None)


def require(spec: str, revision: str | None = None) -> RepoName:
    """The repository that a user names.

    Raises:
        ArgumentError: it is no repository's name, or the revision none.
    """
    name = parse(spec)
    if name is None:
        raise ArgumentError(f"'{printable(spec)[:100]}' is no repository; give it as user/repo")
    if revision is None:
        return name
    if name.revision is not None:
        raise ArgumentError(f"{name} names a revision already; leave out `revision` ({printable(revision)[:100]})")
    if not _REVISION.fullmatch(revision):
        raise ArgumentError(f"'{printable(revision)[:100]}' is no revision; give a branch, a tag or a commit")
    return replace(name, revision=revision)


@functools.cache
def api() -> huggingface_hub.HfApi:
    """The client, with our settings for this whole process.

    Raises:
        HubError: HF_ENDPOINT, the token or the proxy is of no use.
    """
    if not _is_address(constants.ENDPOINT):
        raise HubError(f"HF_ENDPOINT is '{printable(constants.ENDPOINT)[:100]}'; it must be an address, https://...")
    if not (huggingface_hub.get_token() or "").isascii():
        raise HubError("the token for the Hub has characters that no token has; check HF_TOKEN")
    # Its warnings and bars are for people who use it directly; here errors end in one sentence.
    disable_progress_bars()
    warnings.filterwarnings("ignore", module="huggingface_hub")
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    constants.DOWNLOAD_CHUNK_SIZE = _CHUNK_BYTES
    try:
        base = huggingface_hub.get_session()
    except ValueError as error:  # which the HTTP library says of a proxy's address
        raise HubError(f"the proxy that the environment names is of no use: {printable(str(error))[:200]}") from error
    hooks = {"request": base.event_hooks["request"], "response": [*base.event_hooks["response"], _guard]}
    client: Any = type(base)
    huggingface_hub.set_client_factory(lambda: client(event_hooks=hooks, follow_redirects=True, timeout=ANSWER_SECONDS))
    return huggingface_hub.HfApi(library_name="ddpm")


@contextlib.contextmanager
def hub_errors(name: RepoName | str) -> Iterator[None]:
    """Turn whatever the client raises into a `HubError`, or a `DiskError` where the disk refused.

    Args:
        name: what was asked for.
    """
    try:
        yield
    except DdpmError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and (is_of_the_disk(error) or error.filename is not None):
            with disk_errors(Path(constants.HF_HUB_CACHE)):
                raise
        explained = _explained(error, str(name))
        if explained is None:
            raise
        raise explained from error


def patiently(name: RepoName | str, ask: Callable[[], T]) -> T:
    """What the Hub answers, asked again a little later where it says at once that it cannot answer now."""
    for wait in WAITS:
        began = time.monotonic()
        try:
            with hub_errors(name):
                return ask()
        except BusyError:
            if time.monotonic() - began > REQUEST_SECONDS:  # the client was patient itself
                raise
            time.sleep(wait)
    with hub_errors(name):
        return ask()


def _is_address(text: str) -> bool:
    try:
        address = urlsplit(text)
        return address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    except ValueError:
        return False


def host() -> str:
    """The Hub's address, for people: without a user's name and password."""
    address = urlsplit(constants.ENDPOINT)  # which `api` has found to be one
    return printable(address._replace(netloc=address.netloc.rpartition("@")[2]).geturl())


def _explained(error: Exception, name: str) -> HubError | None:
    """The error as one sentence; None if it says nothing of the Hub.

    The client wraps errors in others, the innermost known one says what happened.
    """
    where = host()
    known = [*_chain(error)]
    for cause in known:
        if isinstance(cause, errors.GatedRepoError):
            return HubError(f"{name} is gated: ask for access on {where}/{name.partition('@')[0]}, and set HF_TOKEN")
        if isinstance(cause, errors.RepositoryNotFoundError):
            token = "set HF_TOKEN" if huggingface_hub.get_token() is None else "use a token that may read it"
            return HubError(f"{where} has no model {name}, or it is private: check the name, or {token}")
        if isinstance(cause, errors.RevisionNotFoundError):
            return HubError(f"{name}: the repository has no such revision; name a branch, a tag or a commit")
        if isinstance(cause, errors.RemoteEntryNotFoundError):
            return HubError(f"{name}: a file that was listed is not there; try again")
    for cause in known:
        if isinstance(cause, errors.HfHubHTTPError) and cause.response is not None:
            return _answered(cause.response.status_code, name)
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return UnreachableError(f"{name} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it")
        if isinstance(cause, _HTTPError):
            kind = type(cause).__name__
            slow = "no answer in time" if "Timeout" in kind else printable(str(cause) or kind)
            return UnreachableError(
                f"{where} cannot be reached for {name}: {slow[:200]}; check the network and HF_ENDPOINT"
            )
    if not isinstance(error, _STUMBLES):
        return None
    return UnreachableError(
        f"{where} answered in a way that is not the Hub's ({type(error).__name__}: {printable(str(error))[:160]}); "
        "is HF_ENDPOINT right, or a login page in between?"
    )


def _answered(status: int, name: str) -> HubError:
    where = host()
    if status == 401:
        return HubError(f"{where} does not accept the token for {name} (401); check HF_TOKEN")
    if status == 403:
        return HubError(f"{where} forbids access to {name} (403); check what HF_TOKEN may do")
    if status == 429:
        return BusyError(f"{where} asks to slow down (429); try {name} again later, or set HF_TOKEN")
    if status >= 500:
        return BusyError(f"{where} has trouble of its own ({status}); try {name} again later")
    return HubError(f"{where} refuses the request for {name} ({status})")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _guard(response: Any) -> None:
    """Refuse an answer whose headers, which the client makes names of files of, would lead out of its cache."""
    for header in ("etag", "x-linked-etag") if response.request.method == "HEAD" else ():
        etag = response.headers.get(header)
        if etag is not None and not _ETAG.fullmatch(etag.removeprefix("W/").strip('"')):
            raise HubError(f"{host()} sends an ETag that is none: {printable(etag)[:80]}")
    commit, asked = response.headers.get("x-repo-commit"), _RESOLVED.search(response.request.url.path)
    if commit is not None and asked and commit != asked[1]:
        raise HubError(f"{host()} sends a file of commit {printable(commit)[:80]} where {asked[1]} was asked for")
