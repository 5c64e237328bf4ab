"""What a pack says of itself. It is written last: a folder without it is no pack, or not yet one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from ...core.pixels import MAX_SIDE
from ..tally import Skip

MANIFEST, NAMES, FIRST_SHARD = "manifest.json", "names.jsonl", "images-00000.u8"
JOURNAL = "pack-journal.jsonl"  # only while it is made
_FORMAT, _SCHEMA = "ddpm-pack", 2


@dataclass(frozen=True)
class Manifest:
    """What is in a pack.

    Args:
        shape: (N, H, W, C) of its images.
        digest: of their pixels.
        made_from: which source in which state, at which size and channels, as `cache.name_of` has it.
        shard_images: images and holes in each file of pixels but the last.
        holes: positions of images that could not be read, ascending.
        names_bytes: size of the file of names, which has those of the holes too.
        notes, skipped: as `Images` has them.
    """

    shape: tuple[int, int, int, int]
    digest: str
    made_from: str
    shard_images: int
    holes: tuple[int, ...]
    names_bytes: int
    notes: tuple[tuple[str, int], ...]
    skipped: tuple[Skip, ...]

    @property
    def row(self) -> int:
        """Bytes of an image."""
        return self.shape[1] * self.shape[2] * self.shape[3]

    @property
    def positions(self) -> int:
        """Images and holes."""
        return self.shape[0] + len(self.holes)

    def encode(self) -> bytes:
        """The content of the file."""
        return json.dumps({"format": _FORMAT, "schema": _SCHEMA} | asdict(self), indent=1).encode()

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The manifest of a pack.

        Raises:
            OSError: there is none that can be read.
            ValueError, KeyError, TypeError: it is damaged, or of another version.
        """
        try:
            data = json.loads((folder / MANIFEST).read_bytes())
        except RecursionError as error:
            raise ValueError("the manifest is nested too deeply") from error
        if not isinstance(data, dict) or (data["format"], data["schema"]) != (_FORMAT, _SCHEMA):
            raise ValueError("the manifest is of another kind or version")
        return cls._checked(data)

    @classmethod
    def _checked(cls, data: Mapping[str, Any]) -> Self:
        n, height, width, channels = map(int, data["shape"])
        manifest = cls(
            shape=(n, height, width, channels),
            digest=str(data["digest"]),
            made_from=str(data["made_from"]),
            shard_images=int(data["shard_images"]),
            holes=tuple(map(int, data["holes"])),
            names_bytes=int(data["names_bytes"]),
            notes=tuple((str(text), int(count)) for text, count in data["notes"]),
            skipped=tuple(map(Skip.from_json, data["skipped"])),
        )
        makes_sense = (
            min(n, height, width, manifest.shard_images) > 0
            and max(height, width) <= MAX_SIDE
            and channels in (1, 3, 4)
            and manifest.positions < 2**48
            and manifest.names_bytes >= manifest.positions * len('""\n')
            and all(a < b for a, b in pairwise([-1, *manifest.holes, manifest.positions]))
        )
        if not makes_sense:
            raise ValueError("the manifest contradicts itself")
        return manifest


def is_pack(folder: Path) -> bool:
    """Whether a folder is, or was, or was to become a pack, by its files' names and its manifest's first words."""
    try:
        if (folder / FIRST_SHARD).is_file() or (folder / JOURNAL).is_file():
            return True
        with (folder / MANIFEST).open("rb") as file:
            return f'"format": "{_FORMAT}"'.encode() in file.read(64)
    except OSError:
        return False
