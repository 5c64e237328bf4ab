"""A folder that holds a pack already, as ``ddpm pack`` makes it: opened without a look at what it was made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ...errors import InputError
from ..packs.manifest import JOURNAL, MANIFEST, is_pack
from ..packs.reader import Images, read_pack
from ..tally import Tally
from .arrays import open_rows
from .source import CHUNK_BYTES, CHUNK_IMAGES, Chunk, Format, Source


@dataclass(frozen=True, eq=False)
class Packed(Source):
    """A pack, with its images."""

    images: Images

    @property
    def kind(self) -> str:
        return "pack"

    @property
    def pack(self) -> Images:
        return self.images

    def chunks(self, tally: Tally) -> Iterator[Chunk]:
        n, *row = self.images.shape
        step = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // (row[0] * row[1] * row[2])))
        names = self.images.names()
        for first in range(0, n, step):
            blob = self.images.take(range(first, min(first + step, n)))
            shape = (row[0], row[1], row[2])
            yield Chunk(first, tuple(islice(names, len(blob))), shape, blob=blob.tobytes(), amount=len(blob))


def open_packed(path: Path, label: str) -> Packed:
    """Open a pack that the user has named.

    Raises:
        InputError: it is damaged, or not finished.
    """
    if (path / JOURNAL).exists() and not (path / MANIFEST).exists():
        raise InputError(f"{label} is a pack that is not finished; run the same ddpm pack again to resume it")
    try:
        images = read_pack(path)
    except InputError as error:
        raise InputError(
            f"{label} is a damaged pack: {error}; copy it again, or make it again with ddpm pack"
        ) from error
    n, height, width, channels = images.shape
    return Packed(path, label, n, n * height * width * channels, images.digest, Tally(), images)


PACKED = Format("pack", is_pack, open_packed, open_rows)
