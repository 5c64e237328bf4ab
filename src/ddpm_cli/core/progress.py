"""Work that takes a while and says how far it is."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Stage(Generic[T]):
    """A piece of work with a result. Iterating over it does the work and yields how much was done, a part of ``total``.

    ``for amount in stage: ...`` and then ``stage.result()``; or only ``stage.result()``, which does what is left.

    Args:
        label: what is being done, for people.
        total: what the amounts add up to; 0 if the result was there already.
        in_bytes: whether the amounts are bytes; else they are whatever ``label`` speaks of.
    """

    def __init__(self, label: str, total: int, work: Generator[int, None, T], *, in_bytes: bool = False) -> None:
        self.label = label
        self.total = total
        self.in_bytes = in_bytes
        self._work = work
        self._result: T | None = None

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        try:
            return next(self._work)
        except StopIteration as end:
            if end.value is not None:
                self._result = end.value
            raise

    def result(self) -> T:
        """The result; what is left of the work is done first."""
        for _ in self:
            pass
        if self._result is None:
            raise RuntimeError(f"{self.label} ended with an error, so it has no result")
        return self._result


def later(label: str, work: Callable[[], T]) -> Stage[T]:
    """A stage of work that is too short to be shown, done when its result is asked for."""

    def run() -> Generator[int, None, T]:
        return work()
        yield 0

    return Stage(label, 0, run())


def finished(label: str, result: T) -> Stage[T]:
    """A stage whose result was there already."""
    return later(label, lambda: result)
