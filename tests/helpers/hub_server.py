"""A Hub on the loopback interface, as much of one as huggingface_hub asks for, with faults to order."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import os
import re
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LARGE = (".safetensors", ".bin", ".pt", ".png")  # kept outside git, with a SHA-256


@dataclass(frozen=True)
class Answer:
    """What is sent back.

    Args:
        cut: close the connection after so many bytes of the body.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None


@dataclass
class Fault:
    """What is to go wrong with requests of a method whose path matches.

    Args:
        times: how often; then all is well again.
        answer: sent instead of the right one; None changes the right one by what follows.
        headers: added to the right answer.
        cut: bytes after which it ends.
        flip: position of a byte of the body to be changed.
        delay: seconds before anything is sent.
        trickle: seconds between one 4,000th part of the body and the next.
        whole: send it from its beginning, whatever part was asked for.
    """

    method: str
    path: str
    times: int = 1
    answer: Answer | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    flip: int | None = None
    delay: float = 0
    trickle: float = 0
    whole: bool = False


@dataclass
class Repository:
    """Files by path, and what the Hub says about them."""

    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = False

    @property
    def commit(self) -> str:
        """Changes with the content."""
        listing = sorted((path, git_sha1(data)) for path, data in self.files.items())
        return hashlib.sha1(json.dumps(listing).encode()).hexdigest()


@functools.lru_cache(256)  # large files are asked about again and again
def git_sha1(data: bytes) -> str:
    """How git names a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@functools.lru_cache(256)
def sha256(data: bytes) -> str:
    """How the Hub names the content of a large file."""
    return hashlib.sha256(data).hexdigest()


def entry(path: str, data: bytes) -> dict[str, Any]:
    """A file as the Hub lists it."""
    listed: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git_sha1(data)}
    if path.endswith(LARGE):
        listed["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 134}
    return listed


def as_json(data: object, status: int = 200, **headers: str) -> Answer:
    return Answer(status, json.dumps(data).encode(), {"Content-Type": "application/json", **headers})


def refusal(status: int, code: str) -> Answer:
    """An error as the Hub words it."""
    return as_json({"error": code}, status, **{"X-Error-Code": code, "X-Error-Message": code})


class HubServer:
    """Repositories, faults, and a record of what was asked: (method, path) of each request."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.commits: list[dict[str, Any]] = []
        self.token: str | None = None  # if set, nothing is answered without it
        self._store: dict[str, bytes] = {}
        self._lock = threading.Lock()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:  # not on the screen
                pass

            def _serve(self) -> None:
                hub._serve(self)

            do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @property
    def _bearer(self) -> str:
        return f"Bearer {self.token}"

    def put(self, repo: str, files: Mapping[str, bytes]) -> Repository:
        """Add files to a repository, which is made if it is not there."""
        repository = self.repositories.setdefault(repo, Repository())
        repository.files.update(files)
        return repository

    def fail(self, method: str, path: str, **what: Any) -> None:
        """Order a fault; see `Fault`."""
        self.faults.append(Fault(method, path, **what))

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(handler.path).path)
        with self._lock:
            self.requests.append((handler.command, path))
            fault = self._next_fault(handler.command, path)
        time.sleep(fault.delay)
        if fault.answer is not None:
            answer = fault.answer
        elif self.token and not path.startswith("/store/") and handler.headers.get("Authorization") != self._bearer:
            answer = refusal(401, "RepoNotFound")
        else:
            if fault.whole:
                del handler.headers["Range"]
            with self._lock:
                answer = self._answer(handler, path, body)
        self._send(handler, answer, fault)

    def _next_fault(self, method: str, path: str) -> Fault:
        for fault in self.faults:
            if fault.method == method and fault.times and re.search(fault.path, path):
                fault.times -= 1
                return fault
        return Fault(method, path)

    def _send(self, handler: BaseHTTPRequestHandler, answer: Answer, fault: Fault) -> None:
        body = bytearray(answer.body)
        if fault.flip is not None and fault.flip < len(body):
            body[fault.flip] ^= 1
        headers = {"Content-Length": str(len(body)), **answer.headers, **fault.headers}
        handler.send_response(answer.status)
        for name, value in headers.items():
            if value:
                handler.send_header(name, value)
        handler.end_headers()
        cut = answer.cut if fault.cut is None else fault.cut
        if handler.command != "HEAD":
            with contextlib.suppress(ConnectionError):  # of a client that has heard enough
                _write(handler.wfile, body if cut is None else body[:cut], fault.trickle)
        if cut is not None or "" in headers.values():  # without a length, the end of the body is that of the connection
            handler.wfile.flush()
            handler.close_connection = True

    def _answer(self, handler: BaseHTTPRequestHandler, path: str, body: bytes) -> Answer:
        routes: dict[str, Callable[..., Answer]] = {
            r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?": self._about,
            r"/api/models/([^/]+/[^/]+)/paths-info/(.+)": self._paths,
            r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)": self._file,
            r"/api/repos/create": self._create,
            r"/api/models/([^/]+/[^/]+)/preupload/(.+)": self._before_upload,
            r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch": self._batch,
            r"/store/([0-9a-f]{64})": self._keep,
            r"/verify": lambda request: as_json({}),
            r"/api/models/([^/]+/[^/]+)/commit/(.+)": self._commit,
            r"/api/validate-yaml": lambda request: as_json({"errors": [], "warnings": []}),
            r"/api/whoami-v2": lambda request: as_json({"type": "user", "name": "me", "orgs": []}),
        }
        request = Request(handler.command, handler.headers, body)
        for pattern, route in routes.items():
            if match := re.fullmatch(pattern, path):
                return route(request, *match.groups())
        return refusal(404, "")

    def _found(self, repo: str, revision: str | None) -> Repository | Answer:
        repository = self.repositories.get(repo)
        if repository is None:
            return refusal(404, "RepoNotFound")
        if revision not in (None, "main", repository.commit, repository.commit[:7]):
            return refusal(404, "RevisionNotFound")
        return repository

    def _about(self, request: Request, repo: str, revision: str | None) -> Answer:
        if isinstance(found := self._found(repo, revision), Answer):
            return found
        files = [{"rfilename": path} for path in found.files]
        about = {"id": repo, "modelId": repo, "sha": found.commit, "private": found.private, "tags": []}
        front = found.files.get("README.md", b"").decode().split("---\n")
        page = yaml.safe_load(front[1]) if len(front) > 2 else {}
        return as_json({**about, "downloads": 0, "likes": 0, "siblings": files, "cardData": page})

    def _paths(self, request: Request, repo: str, revision: str) -> Answer:
        if isinstance(found := self._found(repo, revision), Answer):
            return found
        wanted = parse_qs(request.body.decode()).get("paths", [])
        return as_json([entry(path, found.files[path]) for path in wanted if path in found.files])

    def _file(self, request: Request, repo: str, revision: str, path: str) -> Answer:
        if isinstance(found := self._found(repo, revision), Answer):
            return found
        if path not in found.files:
            return Answer(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": found.commit})
        data, listed = found.files[path], entry(path, found.files[path])
        etag = f'"{listed["lfs"]["oid"] if "lfs" in listed else listed["oid"]}"'
        headers = {"ETag": etag, "X-Linked-Etag": etag, "X-Linked-Size": str(len(data)), "X-Repo-Commit": found.commit}
        headers["Accept-Ranges"] = "bytes"
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or ""):
            first = int(asked[1])
            last = int(asked[2]) if asked[2] else len(data) - 1
            if first >= len(data):
                return Answer(416, headers={"Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            return Answer(206, data[first : last + 1], headers)
        return Answer(200, data, headers)

    def _create(self, request: Request) -> Answer:
        asked = json.loads(request.body)
        repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        url = {"url": f"{self.url}/{repo}"}
        if repo in self.repositories:
            return as_json({"error": "You already created this model repo", **url}, 409)
        self.repositories[repo] = Repository(private=bool(asked.get("private") or asked.get("visibility") == "private"))
        return as_json({**url, "name": repo})

    def _before_upload(self, request: Request, repo: str, revision: str) -> Answer:
        return as_json({"files": [
            {"path": f["path"], "shouldIgnore": False, "oid": None,
             "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular"}
            for f in json.loads(request.body)["files"]
        ]})  # fmt: skip

    def _batch(self, request: Request, repo: str) -> Answer:
        objects = []
        for item in json.loads(request.body)["objects"]:
            upload = {"href": f"{self.url}/store/{item['oid']}", "header": {}}
            actions = {"actions": {"upload": upload, "verify": {"href": f"{self.url}/verify"}}}
            objects.append(
                {"oid": item["oid"], "size": item["size"], **({} if item["oid"] in self._store else actions)}
            )
        return as_json({"transfer": "basic", "objects": objects})

    def _keep(self, request: Request, oid: str) -> Answer:
        if hashlib.sha256(request.body).hexdigest() != oid:
            return refusal(400, "BadRequest")
        self._store[oid] = request.body
        return Answer()

    def _commit(self, request: Request, repo: str, revision: str) -> Answer:
        lines = [json.loads(line) for line in request.body.splitlines()]
        self.commits.append(next(line["value"] for line in lines if line["key"] == "header"))
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.put(repo, {value["path"]: base64.b64decode(value["content"])})
            elif line["key"] == "lfsFile":
                self.put(repo, {value["path"]: self._store[value["oid"]]})
        commit = self.repositories[repo].commit
        return as_json({"success": True, "commitOid": commit, "commitUrl": f"{self.url}/{repo}/commit/{commit}"})


def _write(file: BinaryIO, body: bytes, trickle: float) -> None:
    step = max(1, len(body) // 4000) if trickle else len(body) or 1
    for start in range(0, len(body), step):
        file.write(body[start : start + step])
        time.sleep(trickle)


@dataclass(frozen=True)
class Request:
    """What a route needs of a request."""

    method: str
    headers: Any
    body: bytes


@contextmanager
def serving() -> Iterator[HubServer]:
    """A Hub that answers until the block ends."""
    hub = HubServer()
    thread = threading.Thread(target=hub._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub._server.shutdown()
        hub._server.server_close()
        thread.join()


def run_without_sockets(arguments: list[str]) -> int:
    """The program where no socket may be opened."""

    def watch(event: str, _: object) -> None:
        if event.startswith("socket."):
            raise AssertionError(f"{event} was called")

    import ddpm_cli.cli

    sys.addaudithook(watch)
    return ddpm_cli.cli.run(arguments)


def run_by_xet(arguments: list[str]) -> int:
    """The program where a file comes by Xet: the client's own reporter is told as hf_xet tells it."""
    import huggingface_hub.file_download as client
    from huggingface_hub.utils._xet_progress_reporting import XetDownloadProgressReporter

    import ddpm_cli.cli

    def xet_get(*, incomplete_path: Path, expected_size: int, tqdm_class: type, **_: object) -> None:
        with urllib.request.urlopen(os.environ["SOURCE"]) as answer:
            data = answer.read()
        with XetDownloadProgressReporter(
            reconstruction_desc="x", total=expected_size, log_level=40, tqdm_class=tqdm_class
        ) as reporter:
            for tenth in range(1, 11):
                reporter.update_progress(
                    SimpleNamespace(
                        total_bytes=expected_size,
                        total_bytes_completed=expected_size * tenth // 10,
                        total_transfer_bytes_completed=expected_size * tenth // 11,
                        total_bytes_completion_rate=1.0,
                        total_transfer_bytes_completion_rate=1.0,
                    )
                )
        incomplete_path.write_bytes(data)

    client.xet_get = xet_get
    return ddpm_cli.cli.run(arguments)


def run_slowly(arguments: list[str]) -> int:
    """The program on a machine that takes a second to hash a file, and another to look at what came out."""
    import ddpm_cli.cli
    from ddpm_cli.hub import cache

    def slowed(function: Callable[..., str]) -> Callable[..., str]:
        def slow(path: Path, *more: str) -> str:
            time.sleep(1)
            digest = function(path, *more)
            time.sleep(1)
            return digest

        return slow

    cache.sha256, cache._digest = slowed(cache.sha256), slowed(cache._digest)
    return ddpm_cli.cli.run(arguments)
