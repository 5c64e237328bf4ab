"""In which order a data set is read: at random, and yet from neighbouring parts of the disk where it is large.

A set whose pixels fit into memory is read in a uniformly random order. A larger one would come from the disk image by
image, which a spinning or network disk does slowly. Its blocks of about 1 MiB are put in a random order, as many as fit
make a window, and the images of a window are read in a random order. `read_ahead` asks the system for each block, as a
whole, one window before its images are read: so it is fetched once an epoch, as long as the page cache keeps two
windows. Images of one block come near each other in every epoch, among others each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ..core import rng
from .packs.reader import Images

Int64 = npt.NDArray[np.int64]
UInt32 = npt.NDArray[np.uint32]

UNIFORM_BYTES = 2**30
WINDOW = 2**28
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
    epochs, within = np.divmod(places, n)
    numbers = np.zeros(len(places), np.int64)
    if n == 1:  # a batch has as many epochs as images
        return numbers
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch
        if _is_small(shape):
            numbers[here] = _order(n, seed, "order", epoch)[within[here]]
        else:
            numbers[here] = _in_windows(_Blocks.of(shape, seed, epoch), within[here])
    return numbers


def read_ahead(images: Images, seed: int, places: Int64) -> None:
    """Ask the system for what `reading_order` reads soon, block by block, where it reads in blocks.

    That is what remains of the window of the first place, and as much again as is read until the last. What was asked
    for at the last call is not asked for again.

    Args:
        seed, places: as for `reading_order`; the places ascending.
    """
    if not len(places) or _is_small(images.shape):
        return
    (first_epoch, last_epoch), within = np.divmod(places[[0, -1]], len(images))
    first, last = _Blocks.of(images.shape, seed, int(first_epoch)), _Blocks.of(images.shape, seed, int(last_epoch))
    of_first, of_last = first.block_at(within)[0], last.block_at(within)[1]
    start = int(first_epoch * first.count + of_first // first.window * first.window)
    end = int(last_epoch * last.count + of_last + 1 + last.window)
    asked_seed, asked = images.asked
    fresh = asked.stop if asked_seed == seed and start in asked else start
    images.prefetch(_ranges(images.shape, seed, range(fresh, end)))
    images.asked = seed, range(start, max(fresh, end))


def _is_small(shape: tuple[int, int, int, int]) -> bool:
    return shape[0] * shape[1] * shape[2] * shape[3] <= UNIFORM_BYTES


@lru_cache(maxsize=2)  # the orders that one batch takes its images from, seldom more
def _order(n: int, seed: int, purpose: str, *index: int) -> UInt32:
    """The random order of 0..n-1 of a name, 4 bytes a number while it is in use."""
    order = rng.permutation(n, seed, purpose, *index).astype(np.uint32)
    order.flags.writeable = False
    return order


def _in_windows(blocks: _Blocks, places: Int64) -> Int64:
    of_window = blocks.block_at(places) // blocks.window
    order = np.empty(len(places), np.int64)
    for number in np.unique(of_window).tolist():
        here = of_window == number
        first, end = blocks.start(np.array([number, number + 1]) * blocks.window).tolist()
        name = "order in a window", blocks.epoch, number
        order[here] = first + _order(end - first, blocks.seed, *name)[places[here] - first]
    block = blocks.block_at(order)
    return blocks.stored(block) * blocks.size + order - blocks.start(block)


def _ranges(shape: tuple[int, int, int, int], seed: int, numbers: range) -> Iterator[range]:
    """The images of some blocks, which are counted through all epochs."""
    epochs, within = np.divmod(np.array(numbers, np.int64), _Blocks.of(shape, seed, 0).count)
    for epoch in np.unique(epochs).tolist():
        blocks = _Blocks.of(shape, seed, epoch)
        for stored in np.sort(blocks.stored(within[epochs == epoch])).tolist():
            yield range(stored * blocks.size, min((stored + 1) * blocks.size, shape[0]))


class _Blocks:
    """Images 0..n-1 in blocks of one size, with the last, which may be shorter, put among the others.

    Args:
        n: how many images.
        row: bytes of an image.
        seed, epoch: of the order that the blocks have.
    """

    def __init__(self, n: int, row: int, seed: int, epoch: int) -> None:
        self.seed, self.epoch = seed, epoch
        self.size = max(1, _BLOCK // row)
        # How many blocks make a window.
        self.window = max(1, WINDOW // (self.size * row))
        self.full, rest = divmod(n, self.size)
        self.count = self.full + (rest > 0)
        chosen = int(rng.integers(0, n, 1, seed, "order of the short block", epoch)[0])
        self.short = chosen % self.count if rest else self.count
        self._missing = self.size - rest

    @classmethod
    def of(cls, shape: tuple[int, int, int, int], seed: int, epoch: int) -> _Blocks:
        return cls(shape[0], shape[1] * shape[2] * shape[3], seed, epoch)

    def stored(self, block: Int64) -> Int64:
        """Which block of the pack is read as this one."""
        stored = np.full(len(block), self.full)
        whole = block != self.short
        among = block[whole] - (block[whole] > self.short)
        stored[whole] = _order(self.full, self.seed, "order of blocks", self.epoch)[among]
        return stored

    def start(self, block: Int64) -> Int64:
        """The place at which a block begins, or where all end."""
        block = np.minimum(block, self.count)
        return block * self.size - (block > self.short) * self._missing

    def block_at(self, place: Int64) -> Int64:
        """The block that a place is in."""
        block = place // self.size
        return block + (self.start(block + 1) <= place)
