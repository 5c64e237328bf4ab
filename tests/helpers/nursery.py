"""Processes that start at once: a server imports torch a single time, and forks a child for each job.

A fresh process spends seconds on importing; a fork of one that has done so is there in milliseconds. The server has
one thread and never computes, so that a fork of it is as good as a fresh process.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import ddpm_cli
from ddpm_cli.network.unet import flops
from ddpm_cli.training.presets import PRESETS

# What a run of the program imports only when it needs it; imported by the server once instead of by each child.
PRELOAD = (
    "torch._dynamo",
    "ddpm_cli.cli.train",
    "ddpm_cli.jobs.train",
    "ddpm_cli.jobs.sample",
    "ddpm_cli.jobs.eval_bpd",
    "ddpm_cli.ui.console",
    "PIL.PngImagePlugin",
    "multiprocessing.pool",
)


@dataclass(frozen=True)
class Child:
    """A process that was started by a `Nursery`, with its output in files."""

    pid: int
    out: Path
    err: Path
    _nursery: Nursery

    def wait(self, timeout: float = 60) -> int:
        """Its exit code, negative for the signal that killed it, as `subprocess` has it."""
        return self._nursery.wait(self, timeout)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    @property
    def stdout(self) -> str:
        """What it has written to stdout so far."""
        return self.out.read_text(errors="backslashreplace")

    @property
    def stderr(self) -> str:
        """What it has written to stderr so far."""
        return self.err.read_text(errors="backslashreplace")


# Where the server finds the program, the helpers, and test modules under the names that pytest gives them.
TESTS = Path(__file__).parents[1]
PATHS = (Path(ddpm_cli.__file__).parents[1], TESTS, TESTS.parent)


class Nursery:
    """The server, for as long as the ``with`` lasts.

    Args:
        folder: for the children's output.
        env: of the server, and so of each child.
    """

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self._folder = folder
        self._env = dict(env)
        self._count = 0
        self._codes: dict[int, int] = {}
        self._running: set[int] = set()

    def __enter__(self) -> Self:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "helpers.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self._env | {"PYTHONPATH": os.pathsep.join(map(str, PATHS))},
        )
        assert self._answer(120) == "ready"
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self._running:
            os.kill(pid, signal.SIGKILL)
        self._server.communicate(timeout=60)

    def ddpm(
        self, *args: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None, stdin: bytes = b""
    ) -> Child:
        """Start ``ddpm ARGS`` in a folder, with ``env`` on top of the server's environment."""
        return self._start("ddpm_cli.cli", "run", [[str(arg) for arg in args]], env or {}, cwd, stdin)

    def call(self, function: Callable[..., int | None], *args: Any, env: Mapping[str, str] | None = None) -> Child:
        """Start a function of a module; its arguments are JSON, and its exit code is what it returns (None: 0)."""
        return self._start(function.__module__, function.__name__, list(args), env or {})

    def ranks(
        self,
        count: int,
        *args: str | Path,
        env: Mapping[str, str],
        cwd: Path | None = None,
        by: Callable[[list[str]], int | None] | None = None,
    ) -> list[Child]:
        """Start ``ddpm ARGS`` as torchrun does, so many times; through a function of a module, where one is given."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        shared = dict(env) | {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        module, function = (by.__module__, by.__name__) if by else ("ddpm_cli.cli", "run")
        return [
            self._start(
                module,
                function,
                [[str(arg) for arg in args]],
                shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)},
                cwd,
            )
            for rank in range(count)
        ]

    def wait(self, child: Child, timeout: float) -> int:
        """See `Child.wait`."""
        if child.pid not in self._codes:
            self._ask({"wait": child.pid})
            try:
                code = self._answer(timeout)
            except TimeoutError:
                child.kill()
                self._answer(60)
                self._running.discard(child.pid)
                raise TimeoutError(f"still running after {timeout} s; its stderr:\n{child.stderr}") from None
            self._running.discard(child.pid)
            self._codes[child.pid] = int(code)
        return self._codes[child.pid]

    def _start(
        self,
        module: str,
        function: str,
        args: list[Any],
        env: Mapping[str, str],
        cwd: Path | None = None,
        stdin: bytes = b"",
    ) -> Child:
        self._count += 1
        given, out, err = (self._folder / f"{self._count}.{kind}" for kind in ("in", "out", "err"))
        given.write_bytes(stdin)
        job = {"module": module, "function": function, "args": args, "env": dict(env), "in": str(given)}
        job["cwd"] = str(cwd or Path.cwd())
        out.touch()
        err.touch()
        self._ask(job | {"out": str(out), "err": str(err)})
        pid = int(self._answer(60))
        self._codes.pop(pid, None)
        self._running.add(pid)
        return Child(pid, out, err, self)

    def _ask(self, job: dict[str, Any]) -> None:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(job).encode() + b"\n")
        self._server.stdin.flush()

    def _answer(self, timeout: float) -> str:
        assert self._server.stdout is not None
        ready, _, _ = select.select([self._server.stdout], [], [], timeout)
        if not ready:
            raise TimeoutError
        answer = self._server.stdout.readline().decode().strip()
        if not answer:
            raise RuntimeError("the server has died")
        return answer


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 60) -> None:
    """Look every two milliseconds whether something has come about."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout} s: {what}")
        time.sleep(0.002)


def serve() -> None:
    """The server: one line of JSON for each job, one line of answer."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for name in PRELOAD:
        importlib.import_module(name)
    flops(PRESETS["tiny"].unet((8, 8), 1), (8, 8))  # imports what torch needs for its meta device
    print("ready", file=answers)
    while line := sys.stdin.buffer.readline():
        job = json.loads(line)
        if "wait" in job:
            _, status = os.waitpid(job["wait"], 0)
            print(os.waitstatus_to_exitcode(status), file=answers)
            continue
        importlib.import_module(job["module"])  # once here, not in every child
        pid = os.fork()
        if pid == 0:
            answers.close()
            live(job)
        print(pid, file=answers)


def live(job: dict[str, Any]) -> None:
    """The child."""
    code = 1
    try:
        for target, path, flags in (
            (0, job["in"], os.O_RDONLY),
            (1, job["out"], os.O_WRONLY),
            (2, job["err"], os.O_WRONLY),
        ):
            os.dup2(handle := os.open(path, flags), target)
            os.close(handle)
        os.chdir(job["cwd"])
        os.environ.update(job["env"])
        # Whatever those who started the tests ignore.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as Python begins
        code = getattr(importlib.import_module(job["module"]), job["function"])(*job["args"]) or 0
    except SystemExit as left:  # of shell completion
        code = int(left.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
