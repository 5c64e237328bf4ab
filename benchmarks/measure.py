"""Timing things in turn, and the tables that come of it."""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")


@dataclass(frozen=True)
class Times:
    """Seconds of several runs of one thing, and the most memory in bytes that its process had, if it had its own."""

    seconds: tuple[float, ...]
    peak: int | None = None

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.seconds)

    @property
    def peak_mib(self) -> str:
        """The peak of memory, for a table."""
        return "" if self.peak is None else f"{self.peak / 2**20:,.0f} MiB"

    def rates(self, amount: float) -> str:
        """So much in each run, as the rate of the median run, and of the slowest and the fastest."""
        slowest, fastest = amount / max(self.seconds), amount / min(self.seconds)
        return f"{_three(amount / self.median)} ({_three(slowest)} to {_three(fastest)})"

    def __str__(self) -> str:
        return f"{_short(self.median)} ({_short(min(self.seconds))} to {_short(max(self.seconds))})"


@dataclass(frozen=True)
class Table:
    """A part of docs/benchmarks.md: a heading, what was done, rows of cells with a header row, and a conclusion."""

    title: str
    method: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    conclusion: str = ""

    def to_markdown(self) -> str:
        """The part as text."""
        lines = [f"## {self.title}", "", self.method, ""]
        lines += ["| " + " | ".join(self.header) + " |", "|" + " --- |" * len(self.header)]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join([*lines, "", *([self.conclusion, ""] if self.conclusion else [])])


def in_turn(things: Mapping[str, Callable[[], object]], runs: int, *, warm_up: int = 1) -> dict[str, Times]:
    """Run each thing once, then each again, and so on, so that a machine that slows down slows all of them."""
    timed = {name: lambda thing=thing: _timed(thing) for name, thing in things.items()}
    return _rounds(timed, runs, warm_up)


def apart(makers: Mapping[str, Callable[[], Callable[[], object]]], runs: int, *, warm_up: int = 1) -> dict[str, Times]:
    """As `in_turn`, but each thing is made and run in a process of its own, so that none changes the other's memory.

    Args:
        makers: each is sent to its process, where it makes the thing.
        runs: how often each is timed.
        warm_up: rounds before.
    """
    with contextlib.ExitStack() as stack:
        elsewhere = {name: stack.enter_context(_elsewhere(name, make)) for name, make in makers.items()}
        times = _rounds({name: process.run for name, process in elsewhere.items()}, runs, warm_up)
        return {name: replace(t, peak=elsewhere[name].peak()) for name, t in times.items()}


def one_by_one(makers: Mapping[str, Callable[[], Callable[[], object]]], runs: int) -> dict[str, Times]:
    """As `apart`, but with a new process for each run, so that what all need together need not fit into memory."""
    rounds = [{name: apart({name: make}, 1)[name] for name, make in makers.items()} for _ in range(runs)]
    return {
        name: Times(
            seconds=tuple(each[name].median for each in rounds),
            peak=max(each[name].peak or 0 for each in rounds),
        )
        for name in makers
    }


def elsewhere(make: Callable[..., Result], *args: object) -> Result:
    """What a function returns in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(make, *args).result()


def wait_for(device: torch.device) -> None:
    """Until a GPU has done what it was given."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def threads() -> str:
    """How many PyTorch computes with, for a text."""
    import torch

    count = torch.get_num_threads()
    return f"{count} thread{'s' if count > 1 else ''}"


def peak_memory() -> int:
    """The most memory in bytes that this process had, or the largest one that it started and waited for.

    With a GPU in use it is that of the GPU.
    """
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available() and (gpu := torch.cuda.max_memory_allocated()):
        return int(gpu)
    unit = 1 if sys.platform == "darwin" else 1024
    return max(_own_peak(), unit * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


def _own_peak() -> int:
    # Not ru_maxrss where it can be helped: on Linux that begins at the peak of the process that started this one.
    try:
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


@dataclass(frozen=True)
class _Elsewhere:
    """A thing in a process of its own, at the other end of a pipe."""

    name: str
    pipe: Connection

    def run(self) -> float:
        """Run it once; returns its seconds."""
        seconds: float = self._ask("run")
        return seconds

    def peak(self) -> int:
        """The peak of its process's memory so far, in bytes."""
        peak: int = self._ask("peak")
        return peak

    def _ask(self, what: str) -> Any:
        try:
            self.pipe.send(what)
            return self.pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise RuntimeError(f"the process of {self.name!r} ended; what it said is above") from error


@contextlib.contextmanager
def _elsewhere(name: str, make: Callable[[], Callable[[], object]]) -> Iterator[_Elsewhere]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(make, there))
    process.start()
    there.close()
    try:
        yield _Elsewhere(name, here)
    finally:
        here.close()
        process.join()


def _serve(make: Callable[[], Callable[[], object]], pipe: Connection) -> None:
    thing = make()
    with contextlib.suppress(EOFError):
        while what := pipe.recv():
            pipe.send(_timed(thing) if what == "run" else peak_memory())


def _timed(thing: Callable[[], object]) -> float:
    began = time.perf_counter()
    thing()
    return time.perf_counter() - began


def _rounds(timed: Mapping[str, Callable[[], float]], runs: int, warm_up: int) -> dict[str, Times]:
    rounds = [{name: thing() for name, thing in timed.items()} for _ in range(warm_up + runs)]
    return {name: Times(tuple(each[name] for each in rounds[warm_up:])) for name in timed}


def _short(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _three(number: float) -> str:
    """With three digits, if it has a point."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
