"""In which order a data set is read: at random, and yet from neighbouring parts of the disk where it is large.

A set whose pixels fit into memory is read in a uniformly random order. A larger one would come from the disk image by
image, which a spinning or network disk does slowly. Its blocks of about 1 MiB are put in a random order, as many as fit
make a window, and the images of a window are read in a random order: each block is fetched once an epoch, and used
while it is in the page cache. Images of one block come near each other in every epoch, among others each time.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .. import rng

Int64 = npt.NDArray[np.int64]

WINDOW = 2**30
_BLOCK = 2**20


def reading_order(shape: tuple[int, int, int, int], seed: int, places: npt.NDArray[np.int64]) -> Int64:
    """Which image is read at each place of the endless reading of a data set: a pure function of the arguments.

    Place p is in epoch p // N. An epoch has every image once, and an order of its own.

    Args:
        shape: (N, H, W, C) of the data set.
        seed: of all orders.
        places: int64 (B,), from 0.

    Returns:
        Numbers of images, int64 (B,).
    """
    n = shape[0]
    numbers = np.empty(len(places), np.int64)
    epochs, within = np.divmod(places, n)
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch
        numbers[here] = _epoch(shape, seed, epoch, within[here])
    return numbers


def _epoch(shape: tuple[int, int, int, int], seed: int, epoch: int, places: Int64) -> Int64:
    n, height, width, channels = shape
    row = height * width * channels
    if n * row <= WINDOW:
        return rng.permuted(places, n, seed, "order", epoch)
    layout = _Blocks(n, max(1, _BLOCK // row), int(rng.integers(0, n, 1, seed, "order of the short block", epoch)[0]))
    window = max(1, WINDOW // 4 // (layout.size * row))
    of_window = layout.block_at(places) // window
    order = np.empty(len(places), np.int64)
    for number in np.unique(of_window).tolist():
        here = of_window == number
        first, end = layout.start(np.array([number, number + 1]) * window).tolist()
        order[here] = first + rng.permuted(places[here] - first, end - first, seed, "order in a window", epoch, number)
    block = layout.block_at(order)
    full = rng.permuted(block - (block > layout.short), layout.full, seed, "order of blocks", epoch)
    return np.where(block == layout.short, layout.full, full) * layout.size + order - layout.start(block)


class _Blocks:
    """Images 0..n-1 in blocks of one size, with the last, which may be shorter, put among the others.

    Args:
        size: images in a block.
        chosen: 0..n-1, from which follows where the short block stands.
    """

    def __init__(self, n: int, size: int, chosen: int) -> None:
        self.size = size
        self.full, rest = divmod(n, size)
        self.count = self.full + (rest > 0)
        self.short = chosen % self.count if rest else self.count
        self._missing = size - rest

    def start(self, block: Int64) -> Int64:
        """The place at which a block begins, or where all end."""
        block = np.minimum(block, self.count)
        return block * self.size - (block > self.short) * self._missing

    def block_at(self, place: Int64) -> Int64:
        """The block that a place is in."""
        block = place // self.size
        return block + (self.start(block + 1) <= place)
