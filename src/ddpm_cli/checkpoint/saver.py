"""Checkpoints that are written while training continues."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import torch

from .layout import Provenance
from .store import Snapshot, publish
from .weights import Tensors

log = logging.getLogger(__name__)

STAGED_BYTES = 16  # a parameter, on the host: copies of its weight, average and two moments, all float32


class Saver:
    """Publishes the checkpoints of a run in a thread of its own, one at a time, while training continues.

    As a context manager it waits on leaving for the save under way, whatever the reason for leaving.

    Args:
        run: the run folder; ``keep`` and ``past`` are those of `publish`.
    """

    def __init__(self, run: Path, *, keep: int, past: Provenance) -> None:
        self._run, self._keep, self._past = run, keep, past
        self._pool = ThreadPoolExecutor(1, "ddpm-saving")
        self._under_way: Future[Path] | None = None

    def begin(self, snapshot: Snapshot) -> None:
        """Copy a snapshot to the host's memory and begin to write the copy. Waits for the save before it, if any.

        Raises:
            DiskError: the save before it failed.
        """
        self.finished(wait=True)
        self._under_way = self._pool.submit(publish, self._run, staged(snapshot), keep=self._keep, past=self._past)

    def finished(self, *, wait: bool = False) -> Path | None:
        """The checkpoint that was published since this was last asked, or None.

        Args:
            wait: wait for a save that is under way.

        Raises:
            DiskError: the disk is full or refuses otherwise. Earlier checkpoints are untouched.
        """
        if self._under_way is None or not (wait or self._under_way.done()):
            return None
        done, self._under_way = self._under_way, None
        return done.result()

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        self._pool.shutdown()
        try:
            self.finished(wait=True)
        except Exception as lost:
            if error is None:
                raise
            log.warning("the last checkpoint was not saved: %s", lost)  # beside the error that ends the run


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
