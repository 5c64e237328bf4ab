"""Messages, warnings, progress and pictures, on stderr. rich is imported only once something is drawn on a terminal."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from ..core import threads
from ..core.files import printable
from ..core.progress import Stage

if TYPE_CHECKING:
    from rich.console import Console

    from ..core.pixels import Pixels

Item = TypeVar("Item")
T = TypeVar("T")

PLAIN_LINE_SECONDS = 10.0


@dataclass(frozen=True)
class _Course(Generic[Item]):
    """What is shown of items as they pass; see `Screen.progress`."""

    total: int
    label: str
    start: int
    amount: Callable[[Item], int]
    note: Callable[[Item], str | None]
    in_bytes: bool
    picture: Callable[[Item], Pixels | None] | None


@dataclass(frozen=True)
class Screen:
    """How much is said: -1 quiet (errors only), 0 normal, 1 verbose."""

    verbosity: int = 0

    def say(self, text: str) -> None:
        """A line of information, unless quiet."""
        if self.verbosity >= 0:
            _write(text)

    def detail(self, text: str) -> None:
        """A line for those who asked for more."""
        if self.verbosity > 0:
            _write(text)

    def warn(self, text: str) -> None:
        """A warning, unless quiet."""
        if self.verbosity >= 0:
            _write(f"warning: {text}")

    def table(self, rows: Sequence[tuple[str, str]]) -> None:
        """Names and values, aligned."""
        for line in aligned(rows):
            self.say(f"  {line}")

    def progress(
        self,
        items: Iterable[Item],
        total: int,
        label: str,
        *,
        start: int = 0,
        amount: Callable[[Item], int] = lambda item: 1,
        note: Callable[[Item], str | None] = lambda item: None,
        in_bytes: bool = False,
        picture: Callable[[Item], Pixels | None] | None = None,
    ) -> Iterator[Item]:
        """Pass items on while showing how far they are: a bar on a terminal, a plain line now and then elsewhere.

        Args:
            total: what ``amount`` of all items adds up to, from ``start`` on.
            note: what to show of an item beside the bar; None keeps what was shown last.
            in_bytes: whether amounts are bytes, and shown as such.
            picture: what an item looks like, (H, W, C) uint8; None keeps the picture before it. It is asked a few times
                a second, and only where there is a terminal to draw on; where there is none, a line says so.
        """
        course = _Course(total, label, start, amount, note, in_bytes, picture)
        if self.verbosity < 0:
            yield from items
        elif fixed := _why_lines_stay():
            if picture is not None:
                self.say(f"no preview is drawn: {fixed}")
            yield from _lines(items, course)
        else:
            yield from _bar(items, course)

    def picture(self, pixels: Pixels) -> None:
        """Draw a picture (H, W, C) uint8 on a terminal, unless quiet; `progress` says it where there is none."""
        if self.verbosity < 0 or not sys.stderr.isatty():
            return
        from .preview import Preview

        with contextlib.suppress(OSError, ValueError):
            _console().print(Preview(pixels))


def shown(stage: Stage[T], screen: Screen) -> T:
    """The result of a stage, whose work is done now and shown."""
    if stage.total:
        for _ in screen.progress(stage, stage.total, stage.label, amount=lambda done: done, in_bytes=stage.in_bytes):
            pass
    return stage.result()


def aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Names and values as lines."""
    width = max((len(name) for name, _ in rows), default=0)
    return [f"{name:<{width}}  {printable(value)}" for name, value in rows]


def open_screen(verbosity: int) -> Screen:
    """The screen of a command; shows what the library logs as warnings too. Of several processes only rank 0 talks."""
    from ..core.distributed import rank  # not at the top: it needs numpy

    screen = Screen(verbosity if rank() == 0 else -1)

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            screen.warn(record.getMessage())

    logger = logging.getLogger("ddpm_cli")
    logger.handlers = [Handler()]
    logger.propagate = False
    chosen = threads.prepare()
    screen.detail(
        f"threads: {chosen.count or chosen.cores}, {chosen.count_reason}; {chosen.wait}, {chosen.wait_reason}"
    )
    return screen


def error(text: str) -> None:
    """An error, which is always shown."""
    _write(f"error: {text}")


def duration(seconds: float) -> str:
    """A length of time for people: 8 s, 12 min, 3.5 h, 2.1 days."""
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 9.5 else f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    days = seconds / 86_400
    return f"{seconds / 3600:.1f} h" if days < 2 else f"{days:.1f} days" if days < 9.95 else f"{days:,.0f} days"


def plural(count: int, noun: str) -> str:
    """A count of something: 1 image, 1,797 images."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def size(n_bytes: float) -> str:
    """An amount of memory for people, in powers of 1024."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}" if n_bytes >= 10 or unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} TiB"


def as_json(data: object) -> str:
    """One line of JSON; numbers that are not finite become null."""
    return json.dumps(_finite(data), allow_nan=False)


def _finite(data: object) -> object:
    if isinstance(data, float) and not -float("inf") < data < float("inf"):
        return None
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    return [_finite(value) for value in data] if isinstance(data, list | tuple) else data


def _write(text: str) -> None:
    # A reader that has left, or a terminal that was closed, is no reason to end the work and lose it.
    with contextlib.suppress(OSError, ValueError):
        print("\n".join(printable(line) for line in text.split("\n")), file=sys.stderr, flush=True)


def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def _why_lines_stay() -> str | None:
    """Why what was written to stderr cannot be drawn over; None if it can."""
    if not sys.stderr.isatty():
        return "stderr is no terminal"
    kind = os.environ.get("TERM", "")
    return f"TERM={kind} is a terminal that cannot go back" if kind.lower() in ("dumb", "unknown") else None


def _bar(items: Iterable[Item], course: _Course[Item]) -> Iterator[Item]:
    from rich import progress as rich

    columns = (
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(),
        rich.DownloadColumn(binary_units=True) if course.in_bytes else rich.MofNCompleteColumn(),
        rich.TextColumn("{task.fields[note]}", markup=False),
        rich.TextColumn("left"),
        rich.TimeRemainingColumn(compact=True),
    )
    if course.picture is None:
        bar = rich.Progress(*columns, console=_console(), transient=True)
    else:
        from .preview import PictureProgress

        bar = pictured = PictureProgress(*columns, console=_console())
        items = pictured.watched(items, course.picture)
    task = bar.add_task(printable(course.label), total=course.total, completed=course.start, note="")
    with contextlib.suppress(OSError):
        bar.start()
    try:
        for item in items:
            shown = course.note(item)
            with contextlib.suppress(OSError):
                bar.update(task, advance=course.amount(item))
                if shown is not None:
                    bar.update(task, note=shown)
            yield item
    finally:
        with contextlib.suppress(OSError):
            bar.stop()


def _lines(items: Iterable[Item], course: _Course[Item]) -> Iterator[Item]:
    total, start, done, shown = course.total, course.start, course.start, ""
    began = last = time.monotonic()
    for item in items:
        done += course.amount(item)
        shown = course.note(item) or shown
        now = time.monotonic()
        if now - last >= PLAIN_LINE_SECONDS:
            last = now
            left = (now - began) * (total - done) / max(done - start, 1)
            far = f"{size(done)} of {size(total)}" if course.in_bytes else f"{done}/{total}"
            _write(f"{course.label}: {far}{', ' + shown if shown else ''}, {duration(left)} left")
        yield item
