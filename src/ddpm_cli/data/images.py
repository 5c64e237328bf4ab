"""A set of images of one size, to be read by number."""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..files import printable
from ..pixels import Pixels
from .source import Skip

SCHEMA = 1
PIXELS, NAMES, MANIFEST = "images.u8", "names.jsonl", "manifest.json"


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
    ) -> None:
        self.shape = shape
        self.digest = digest
        self.skipped = skipped
        self.notes = notes
        self._fill = fill
        self._names = names

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

        digest = digest_of(row.tobytes() for row in pixels)
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

    def names(self) -> Iterator[str]:
        """The names of all images in order. They come from outside: make them printable before showing them."""
        return self._names()

    def name(self, index: int) -> str:
        """The name of one image."""
        if not 0 <= index < len(self):
            raise IndexError(f"image numbers go from 0 to {len(self) - 1}; asked for {index}")
        return next(islice(self._names(), index, None))


def open_pack(folder: Path) -> Images | None:
    """The images of a pack, or None if there is none, or one that was cut or is of another version.

    Images are read from the file as they are asked for, not mapped: what was read does not count as this process's
    memory, and a file that gets cut meanwhile is an error, where a mapping would end the program (SIGBUS).
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        n, height, width, channels = map(int, manifest["shape"])
        complete = (
            manifest["schema"] == SCHEMA
            and (folder / PIXELS).stat().st_size == n * height * width * channels
            and (folder / NAMES).stat().st_size == manifest["names_bytes"]
        )
        if not complete:
            return None
        digest, skipped = str(manifest["digest"]), tuple(map(Skip.from_json, manifest["skipped"]))
        notes = tuple((str(text), int(count)) for text, count in manifest["notes"])
        handle = os.open(folder / PIXELS, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    row = height * width * channels

    def fill(out: Pixels, indices: npt.NDArray[np.int64]) -> None:
        for image, index in zip(out, indices.tolist(), strict=True):
            if os.preadv(handle, [image], index * row) != row:
                raise InputError(f"{printable(folder / PIXELS)} was cut while it was read; start again")

    images = Images((n, height, width, channels), digest, fill, lambda: _read_names(folder / NAMES), skipped, notes)
    weakref.finalize(images, os.close, handle)
    return images


def digest_of(parts: Iterable[bytes]) -> str:
    """The digest of pixels that come in parts, of whichever lengths."""
    digest = hashlib.blake2b(digest_size=32)
    for part in parts:
        digest.update(part)
    return f"blake2b-256:{digest.hexdigest()}"


def _read_names(file: Path) -> Iterator[str]:
    with file.open("rb") as lines:
        for line in lines:
            yield json.loads(line)
