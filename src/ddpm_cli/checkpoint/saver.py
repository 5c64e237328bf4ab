"""Checkpoints that are written while training continues."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import cast

import torch

from ..core.files import at_once
from .layout import Provenance
from .store import Snapshot, publishing
from .weights import Tensors

log = logging.getLogger(__name__)

STAGED_BYTES = 16  # a parameter, on the host: copies of its weight, average and two moments, all float32


class Saver:
    """Publishes the checkpoints of a run, one at a time, in a thread that takes the time that training leaves.

    As a context manager it waits on leaving for the save under way, whatever the reason for leaving. Whoever waits does
    the rest of the work itself: on a busy machine the thread's turn might not come for minutes.

    Args:
        run: the run folder; ``keep`` and ``past`` are those of `publish`.
    """

    def __init__(self, run: Path, *, keep: int, past: Provenance) -> None:
        self._run, self._keep, self._past = run, keep, past
        self._pool = ThreadPoolExecutor(1, "ddpm-saving", _step_back)
        self._awaited = threading.Event()
        self._work: Generator[None, None, Path] | None = None
        self._under_way: Future[Path | None] = Future()

    def begin(self, snapshot: Snapshot) -> None:
        """Copy a snapshot to the host's memory and begin to write the copy. Waits for the save before it, if any.

        Raises:
            DiskError: the save before it failed.
        """
        self.finished(wait=True)
        self._awaited.clear()
        self._work = publishing(self._run, staged(snapshot), keep=self._keep, past=self._past)
        self._under_way = self._pool.submit(self._until_awaited, self._work)

    def finished(self, *, wait: bool = False) -> Path | None:
        """The checkpoint that was published since this was last asked, or None.

        Args:
            wait: wait for a save that is under way.

        Raises:
            DiskError: the disk is full or refuses otherwise. Earlier checkpoints are untouched.
        """
        if self._work is None or not (wait or self._under_way.done()):
            return None
        work, self._work = self._work, None
        self._awaited.set()
        if self._under_way.cancel():  # its turn has not come at all
            return at_once(work)
        return self._under_way.result() or at_once(work)

    def _until_awaited(self, work: Generator[None, None, Path]) -> Path | None:
        """Do the work until somebody waits for it; the checkpoint, or None where a part of the work is left."""
        while not self._awaited.is_set():
            try:
                next(work)
            except StopIteration as done:
                return cast(Path, done.value)
        return None

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        try:
            self.finished(wait=True)
        except Exception as lost:
            if error is None:
                raise
            log.warning("the last checkpoint was not saved: %s", lost)  # beside the error that ends the run
        finally:
            self._pool.shutdown()


def _step_back() -> None:
    """Have this thread run where the processors have nothing else to do. Only Linux can; elsewhere it shares them."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # in some containers it may not
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def staged(snapshot: Snapshot) -> Snapshot:
    """A copy in the host's memory, which later steps do not change."""

    def copies(tensors: Tensors) -> Tensors:
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}

    with torch.no_grad():
        return replace(
            snapshot,
            ema=copies(snapshot.ema),
            weights=copies(snapshot.weights),
            optimizer=copies(snapshot.optimizer),
        )
