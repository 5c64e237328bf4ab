"""Timing things in turn, and the tables that come of it."""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection


@dataclass(frozen=True)
class Times:
    """Seconds of several runs of one thing."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.seconds)

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
        timed = {name: stack.enter_context(_elsewhere(make)) for name, make in makers.items()}
        return _rounds(timed, runs, warm_up)


@contextlib.contextmanager
def _elsewhere(make: Callable[[], Callable[[], object]]) -> Iterator[Callable[[], float]]:
    """What runs a thing once in a process of its own, and returns its seconds."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(make, there), daemon=True)
    process.start()
    there.close()

    def run() -> float:
        here.send("run")
        seconds: float = here.recv()
        return seconds

    try:
        yield run
    finally:
        here.close()
        process.join()


def _serve(make: Callable[[], Callable[[], object]], pipe: Connection) -> None:
    thing = make()
    with contextlib.suppress(EOFError):
        while pipe.recv():
            pipe.send(_timed(thing))


def _timed(thing: Callable[[], object]) -> float:
    began = time.perf_counter()
    thing()
    return time.perf_counter() - began


def _rounds(timed: Mapping[str, Callable[[], float]], runs: int, warm_up: int) -> dict[str, Times]:
    rounds = [{name: thing() for name, thing in timed.items()} for _ in range(warm_up + runs)]
    return {name: Times(tuple(each[name] for each in rounds[warm_up:])) for name in timed}


def _short(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
