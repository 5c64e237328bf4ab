"""A set of images of one size, to be read by number."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from ...core.files import printable
from ...core.pixels import Pixels
from ...errors import InputError
from ..tally import Skip
from .manifest import MANIFEST, NAMES, Manifest
from .shards import ShardReader, Shards, digest_of, image_digest


class Images:
    """Images uint8 (N, H, W, C) in a file, or in memory.

    Args:
        shape: (N, H, W, C).
        digest: names the pixels: equal digests, equal images in equal order.
        skipped: what was left out of them, by reason.
        notes: what was done to them that the user should know, and to how many.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        digest: str,
        fill: Callable[[Pixels, npt.NDArray[np.int64]], None],
        names: Callable[[], Iterator[str]],
        skipped: tuple[Skip, ...] = (),
        notes: tuple[tuple[str, int], ...] = (),
        fetch: Callable[[range], None] = lambda _: None,
    ) -> None:
        self.shape = shape
        self.digest = digest
        self.skipped = skipped
        self.notes = notes
        self._fill = fill
        self._names = names
        self._fetch = fetch
        # The seed and the blocks, counted through all epochs, that `order.read_ahead` has asked for.
        self.asked = 0, range(0)

    @classmethod
    def from_array(cls, pixels: Pixels, names: Sequence[str] | None = None) -> Self:
        """Images that are in memory already, uint8 (N, H, W, C); by default they are named by their numbers.

        Raises:
            InputError: the array is of another type or shape.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3, 4) or not pixels.size:
            raise InputError(f"images must be uint8 (N, H, W, 1|3|4); this is {pixels.dtype} {pixels.shape}")
        n, height, width, channels = pixels.shape
        if names is not None and len(names) != n:
            raise InputError(f"there are {n} images and {len(names)} names")

        def fill(out: Pixels, indices: npt.NDArray[np.int64]) -> None:
            np.take(pixels, indices, axis=0, out=out)

        digest = digest_of(image_digest(row.tobytes()) for row in pixels)
        return cls((n, height, width, channels), digest, fill, lambda: iter(names or map(str, range(n))))

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, indices: npt.ArrayLike) -> Pixels:
        """The images of these numbers (B,), each from 0 to N-1, in this order: a new array (B, H, W, C).

        Raises:
            IndexError: there is no such image.
        """
        numbers = np.asarray(indices, np.int64)
        if numbers.size and (numbers.min() < 0 or numbers.max() >= len(self)):
            raise IndexError(f"image numbers go from 0 to {len(self) - 1}; asked for {numbers.min()}..{numbers.max()}")
        out = np.empty((len(numbers), *self.shape[1:]), np.uint8)
        self._fill(out, numbers)
        return out

    def prefetch(self, ranges: Iterable[range]) -> None:
        """Ask the system to fetch ranges of images, each not empty, that will be read soon; it may or may not."""
        for numbers in ranges:
            self._fetch(numbers)

    def names(self) -> Iterator[str]:
        """The names of all images in order. They come from outside: make them printable before showing them."""
        return self._names()

    def name(self, index: int) -> str:
        """The name of one image."""
        if not 0 <= index < len(self):
            raise IndexError(f"image numbers go from 0 to {len(self) - 1}; asked for {index}")
        return next(islice(self._names(), index, None))


def open_pack(folder: Path) -> Images | None:
    """The images of a pack, or None if there is none, or one that was cut or is of another version."""
    try:
        return read_pack(folder)
    except InputError:
        return None


def read_pack(folder: Path) -> Images:
    """The images of a pack.

    Raises:
        InputError: it is damaged, or of another version; the message says what is wrong with it.
    """
    try:
        manifest = Manifest.read(folder)
        shards = Shards(folder, manifest.row, manifest.shard_images)
        # One after the other: a manifest may speak of more files than there can be.
        for path, size in chain(shards.sizes(manifest.positions), [(folder / NAMES, manifest.names_bytes)]):
            if (found := path.stat().st_size) != size:
                raise InputError(f"{printable(path)} has {found:,} bytes instead of {size:,}")
        reader = ShardReader(shards, manifest.positions)
    except OSError as error:
        name = printable(os.fsdecode(error.filename or folder))
        raise InputError(f"{name} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{printable(folder / MANIFEST)} is damaged, or of another version of ddpm") from error
    holes = np.array(manifest.holes, np.int64)
    before = holes - np.arange(len(holes))  # how many images stand before each hole

    def positions(indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return indices + np.searchsorted(before, indices, side="right")

    def fill(out: Pixels, indices: npt.NDArray[np.int64]) -> None:
        reader.read(out, positions(indices))

    def fetch(numbers: range) -> None:
        first, last = positions(np.array([numbers[0], numbers[-1]])).tolist()
        reader.prefetch(first, last + 1 - first)

    def names() -> Iterator[str]:
        return _read_names(folder / NAMES, frozenset(manifest.holes))

    return Images(manifest.shape, manifest.digest, fill, names, manifest.skipped, manifest.notes, fetch)


def _read_names(file: Path, holes: frozenset[int]) -> Iterator[str]:
    with file.open("rb") as lines:
        for position, line in enumerate(lines):
            if position not in holes:
                yield json.loads(line)
