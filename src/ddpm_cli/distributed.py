"""Several processes that torchrun started: which one this is, and sums over all of them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import numpy.typing as npt

from .errors import ArgumentError, DdpmError

PATIENCE = timedelta(days=30)  # with processes that are slower; one that ends is noticed at once
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class World:
    """Processes that share work.

    Args:
        rank: the number of this one; 0 writes the results.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def owns(self, place: int) -> bool:
        """Whether the piece of work at this place in a list is this process's."""
        return place % self.size == self.rank

    def sum(self, array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """The sum of the arrays of this shape and type that all processes hand in. Can be interrupted while it waits.

        Raises:
            DdpmError: another process has ended.
        """
        if self.size == 1:
            return array
        import torch
        import torch.distributed

        total = torch.from_numpy(np.array(array))
        try:
            work = torch.distributed.all_reduce(total, async_op=True)
            assert work is not None
            while not work.is_completed():
                time.sleep(_POLL_SECONDS)
            work.wait()
        except RuntimeError as error:
            raise DdpmError("another process that shared the work has ended, so this one cannot go on") from error
        result: npt.NDArray[np.generic] = total.numpy()
        return result


ALONE = World()


def rank() -> int:
    """The number of this process as torchrun gave it; 0 without torchrun.

    Raises:
        ArgumentError: RANK is no number.
    """
    return _number("RANK", 0)


def local_device(name: str) -> str:
    """``--device`` for this process: of several on a machine, each has a GPU of its own where it may choose."""
    import torch

    if name in ("auto", "cuda") and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        return f"cuda:{_number('LOCAL_RANK', 0)}"
    return name


@contextlib.contextmanager
def joined() -> Iterator[World]:
    """The processes that torchrun started, for as long as the block lasts; this one alone without torchrun.

    Raises:
        ArgumentError: RANK or WORLD_SIZE is no number.
    """
    size = _number("WORLD_SIZE", 1)
    if size < 2:
        yield ALONE
        return
    import torch.distributed

    torch.distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield World(rank(), size)
    finally:
        torch.distributed.destroy_process_group()


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise ArgumentError(f"{name} is {text!r} in the environment; it must be a whole number, as torchrun sets it")
    return int(text)
