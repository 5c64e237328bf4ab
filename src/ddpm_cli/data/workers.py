"""Chunks of images looked at or packed by several processes, each of which imports numpy and PIL only.

The processes are started with a plain command, not with `multiprocessing`: that would import the caller's main module
into each of them, which fails for a program read from stdin and runs a script without a ``__main__`` guard again.
Requests go to a process's stdin, one line of JSON with the chunk's content behind it; a line of JSON comes back from
its stdout. A process whose stdin ends, because its parent is done or dead, ends too.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from ..core.files import printable
from ..errors import DdpmError, InputError
from .fit import fit, look
from .packs.shards import Shards, ShardWriter
from .sources import opener
from .sources.source import Chunk, Opener, UnreachableError

MAX_WORKERS = 32
# What one process does in a second is not worth the start of others, each of which costs about 0.3 s.
_WORTH_SECONDS = 1.0
_SHARE_SECONDS = 0.5
# Seconds an image, and a byte of its file: headers only, and decoded.
_LOOK_SECONDS = 5e-5, 2e-9
_PACK_SECONDS = 1.5e-4, 2e-8

_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from ddpm_cli.data.workers import main; main()"


@dataclass(frozen=True)
class Task:
    """What is done with every chunk: a look if there is no ``target``, else packing.

    Args:
        kind: of the source.
        path: of the source.
        target: folder of the pack that the images are written into.
        size: (height, width) of the images there.
        channels: of the images there.
        shard_images: how many are in each file there.
    """

    kind: str
    path: str
    target: str | None = None
    size: tuple[int, int] = (0, 0)
    channels: int = 0
    shard_images: int = 1


@dataclass(frozen=True)
class Reply:
    """What became of a chunk.

    Args:
        looks: for a look, (height, width, grey, transparent, notes) of each image that can be read.
        problems: (index in the chunk, why) of each image that cannot.
        notes: for packing, how often something was done that the user should know.
        refused: why the source as a whole cannot be read.
        disk: number of the error that the target met.
    """

    looks: tuple[tuple[int, int, bool, bool, list[str]], ...] = ()
    problems: tuple[tuple[int, str], ...] = ()
    notes: dict[str, int] | None = None
    refused: str | None = None
    disk: int | None = None


Work = Callable[[Chunk], Reply]
Done = Generator[tuple[Chunk, Reply], None, None]


def run(task: Task, chunks: Iterator[Chunk], workers: int, held: tuple[int, ...] = ()) -> Iterator[tuple[Chunk, Reply]]:
    """Do the task on every chunk, in this process or in ``workers`` >= 2 others; in order of completion.

    Args:
        held: handles that the others get. A lock among them is held until the last has ended, though this process be
            killed before.

    Raises:
        InputError: the source as a whole cannot be read.
        OSError: the target cannot be written.
    """
    done = _in_processes(task, chunks, workers, held) if workers > 1 else _here(task, chunks)
    with contextlib.closing(done):
        for chunk, reply in done:
            if reply.refused is not None:
                raise InputError(f"{printable(task.path)}: {reply.refused}")
            if reply.disk is not None:
                raise OSError(reply.disk, os.strerror(reply.disk))
            yield chunk, reply


def count_workers(task: Task, count: int | None, nbytes: int) -> int:
    """How many processes suit a task on so many images of so many bytes in all; 1 means this one alone."""
    an_image, a_byte = _LOOK_SECONDS if task.target is None else _PACK_SECONDS
    seconds = (count or 0) * an_image + nbytes * a_byte
    if seconds < _WORTH_SECONDS:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_WORKERS, int(seconds / _SHARE_SECONDS))


def main() -> None:
    """What a worker process runs: a task from stdin, then chunks, with a reply to each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    # A copy beyond 2, which is free, and would be chosen, where the parent has no stderr.
    requests, replies = sys.stdin.buffer, os.fdopen(fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 3), "wb")
    # What libraries of C print is lost: it would get between the replies, or on the user's screen (libtiff explains
    # there what is wrong with a damaged file, without its name). Python's own traceback is not.
    if sys.stderr is not None:
        sys.stderr = os.fdopen(fcntl.fcntl(2, fcntl.F_DUPFD_CLOEXEC, 3), "w")
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    fields = json.loads(requests.readline() or "null")
    if fields is None:
        return
    task = Task(**fields | {"size": tuple(fields["size"])})
    with contextlib.suppress(BrokenPipeError), contextlib.closing(_here(task, _received(requests))) as done:
        for _, reply in done:
            replies.write(json.dumps(vars(reply)).encode() + b"\n")
            replies.flush()


def _here(task: Task, chunks: Iterator[Chunk]) -> Done:
    with contextlib.ExitStack() as stack:
        work, failure = None, Reply()
        try:
            work = stack.enter_context(_work(task))
        except InputError as error:
            failure = Reply(refused=str(error))
        except OSError as error:
            failure = Reply(disk=error.errno)
        for chunk in chunks:
            yield chunk, work(chunk) if work else failure


@contextlib.contextmanager
def _work(task: Task) -> Iterator[Work]:
    with opener(task.kind, task.path) as read:
        if task.target is None:
            yield lambda chunk: _look(read, chunk)
            return
        shards = Shards(Path(task.target), task.size[0] * task.size[1] * task.channels, task.shard_images)
        with contextlib.closing(ShardWriter(shards)) as writer:
            yield lambda chunk: _pack(read, chunk, writer, task)


def _look(read: Opener, chunk: Chunk) -> Reply:
    looks, problems = [], []
    for index in range(len(chunk.names)):
        try:
            with read(chunk, index) as item:
                seen = look(item)
        except UnreachableError as error:
            return Reply(refused=str(error))
        except InputError as error:
            problems.append((index, str(error)))
        else:
            looks.append((*seen.size, seen.grey, seen.transparent, list(seen.notes)))
    return Reply(tuple(looks), tuple(problems))


def _pack(read: Opener, chunk: Chunk, writer: ShardWriter, task: Task) -> Reply:
    problems, notes = [], dict[str, int]()
    try:
        for index in range(len(chunk.names)):
            try:
                with read(chunk, index) as item:
                    pixels, said = fit(item, task.size, task.channels)
            except UnreachableError:
                raise
            except InputError as error:
                problems.append((index, str(error)))
                continue
            for note in said:
                notes[note] = notes.get(note, 0) + 1
            writer.add(pixels, chunk.first + index)
        writer.flush()
    except UnreachableError as error:
        return Reply(refused=str(error))
    except OSError as error:
        return Reply(disk=error.errno)
    return Reply(problems=tuple(problems), notes=notes)


class _Process:
    """A worker process, and the chunk it is at."""

    def __init__(self, held: tuple[int, ...]) -> None:
        self.chunk: Chunk | None = None
        # In a group of its own, a process is not met by what the terminal sends at Ctrl-C: the parent decides.
        self.popen = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, json.dumps([*map(str, sys.path)])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            process_group=0,
            pass_fds=held,
        )
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        self.requests, self.replies = self.popen.stdin, self.popen.stdout

    def begin(self, task: Task) -> None:
        self._send(json.dumps(asdict(task)).encode() + b"\n")

    def send(self, chunk: Chunk) -> None:
        self.chunk = chunk
        header = vars(chunk) | {"blob": len(chunk.blob)}
        self._send(json.dumps(header).encode() + b"\n" + chunk.blob)

    def receive(self) -> tuple[Chunk, Reply]:
        line = self.replies.readline()
        if not line.endswith(b"\n"):
            raise self._death()
        chunk, self.chunk = self.chunk, None
        assert chunk is not None
        return chunk, Reply(**json.loads(line))

    def _send(self, data: bytes) -> None:
        try:
            self.requests.write(data)
            self.requests.flush()
        except BrokenPipeError:
            raise self._death() from None

    def end(self, *, now: bool) -> None:
        if now:
            self.popen.kill()
        with contextlib.suppress(BrokenPipeError):
            self.requests.close()
        self.replies.close()
        self.popen.wait()

    def _death(self) -> DdpmError:
        code = self.popen.wait()
        reason = f"was ended by signal {-code}, perhaps for want of memory" if code < 0 else f"ended with code {code}"
        names = self.chunk.names if self.chunk else ()
        where = f" at {printable(names[0])}" + (f" .. {printable(names[-1])}" if names[1:] else "") if names else ""
        return DdpmError(f"a process that reads images {reason}{where}")


def _in_processes(task: Task, chunks: Iterator[Chunk], workers: int, held: tuple[int, ...]) -> Done:
    processes: list[_Process] = []
    finished = False
    try:
        with selectors.DefaultSelector() as replies:
            for _ in range(workers):
                processes.append(process := _Process(held))
                process.begin(task)
                replies.register(process.replies, selectors.EVENT_READ, process)
            idle = list(processes)
            # One chunk ahead, so that it is at hand when a process becomes free; never more.
            upcoming = next(chunks, None)
            while upcoming is not None or len(idle) < workers:
                if upcoming is not None and idle:
                    idle.pop().send(upcoming)
                    upcoming = next(chunks, None)
                    continue
                for key, _ in replies.select():
                    process = key.data
                    result = process.receive()
                    idle.append(process)
                    yield result
        finished = True
    finally:
        for process in processes:
            process.end(now=not finished)


def _received(requests: IO[bytes]) -> Iterator[Chunk]:
    while line := requests.readline():
        header: dict[str, Any] = json.loads(line)
        size = header.pop("blob")
        blob = requests.read(size)
        if len(blob) < size:
            return
        for name in ("names", "keys"):
            header[name] = tuple(header[name])
        yield Chunk(**header | {"blob": blob})
