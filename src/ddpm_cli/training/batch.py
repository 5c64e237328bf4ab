"""The inputs of a training step, as a pure function of the step: which images, which flips, t and eps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..config import TrainConfig
from ..core import rng
from ..data import Images, read_ahead, reading_order
from ..diffusion.schedule import Schedule


@dataclass(frozen=True, eq=False)
class HostBatch:
    """One step's inputs, drawn on the host: images uint8 (B, H, W, C), t int64 (B,), eps float32 (B, C, H, W).

    They are the batch's rows from ``first`` on. ``weights``, float32 (B,), are those of their losses.
    """

    first: int
    images: torch.Tensor
    t: npt.NDArray[np.int64]
    eps: torch.Tensor
    weights: torch.Tensor


def batch_at(
    images: Images, config: TrainConfig, s: Schedule, step: int, rows: range | None = None, *, pin: bool = False
) -> HostBatch:
    """The inputs of optimizer step ``step`` = 1, 2, ...: a pure function of it.

    The data set is read in a new random order each epoch, without a gap: a batch may span two epochs, or many where
    there are fewer images than the batch has places.

    Args:
        rows: which of the batch's, neighbours; None for all.
    """
    _, height, width, channels = images.shape
    size, seed = config.batch_size, config.seed
    rows = range(size) if rows is None else rows
    mine = slice(rows.start, rows.stop)
    places = np.arange((step - 1) * size, step * size)[mine]
    read_ahead(images, seed, places)
    pixels = images.take(reading_order(images.shape, seed, places))
    if config.flip:
        mirrored = rng.integers(0, 2, size, seed, "flip", step)[mine].astype(bool)
        pixels[mirrored] = pixels[mirrored, :, ::-1]
    t, weights = _times(config, s, step)
    eps = rng.normal_batch((channels, height, width), seed, "eps", [(step, row) for row in rows])

    def tensor(values: npt.NDArray[Any]) -> torch.Tensor:
        made = torch.from_numpy(values)
        return made.pin_memory() if pin else made

    return HostBatch(first=rows.start, images=tensor(pixels), t=t[mine], eps=tensor(eps), weights=tensor(weights[mine]))


def _times(config: TrainConfig, s: Schedule, step: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """t of each row of a step's whole batch, and the weight of its loss: 1 where t is uniform, else 1 / (T p(t))."""
    size = config.batch_size
    if config.t_sampling == "uniform":
        return rng.integers(1, s.T + 1, size, config.seed, "t", step), np.ones(size, np.float32)
    drawn = rng.uniform(size, config.seed, "t", step)
    # The sum of p is 1 but for rounding, and drawn is below 1.
    t = np.minimum(np.searchsorted(np.cumsum(s.importance), drawn, side="right"), s.T)
    return t, (1 / (s.T * s.importance[t])).astype(np.float32)
