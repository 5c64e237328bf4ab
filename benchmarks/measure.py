"""Timing things in turn, and the tables that come of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


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
    seconds: dict[str, list[float]] = {name: [] for name in things}
    for run in range(-warm_up, runs):
        for name, thing in things.items():
            began = time.perf_counter()
            thing()
            if run >= 0:
                seconds[name].append(time.perf_counter() - began)
    return {name: Times(tuple(values)) for name, values in seconds.items()}


def _short(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
