"""Images of any kind and place, found, looked at, and packed into files of uint8 pixels of one size.

`open_images` does it all; those who show progress go step by step: `find_source`, `scan`, `auto_size`,
`auto_channels`, `pack`. Nothing here imports torch.
"""

from __future__ import annotations

from pathlib import Path

from ..core.progress import Stage
from .order import read_ahead, reading_order
from .packs.cache import cache_folder
from .packs.reader import Images
from .packs.writer import discard_pack, former_pack, pack
from .sources import find_source
from .sources.builtin import builtin
from .sources.source import ACCEPTED, Source
from .survey import Spread, Survey, auto_channels, auto_size, scan
from .tally import Skip

__all__ = [
    "ACCEPTED",
    "Images",
    "Skip",
    "Source",
    "Spread",
    "Stage",
    "Survey",
    "auto_channels",
    "auto_size",
    "builtin",
    "cache_folder",
    "discard_pack",
    "find_source",
    "former_pack",
    "open_images",
    "pack",
    "read_ahead",
    "reading_order",
    "scan",
]


def open_images(
    name: str | Path, size: tuple[int, int] | None = None, channels: int | None = None, *, limit: int = 64
) -> Images:
    """All images of a source, uint8 at one size; packed the first time, opened at once from then on.

    Args:
        name: a folder, of images or of a pack, a .zip, .tar, .npy or .npz file, or ``builtin:digits``.
        size: (height, width); None takes what `auto_size` proposes, at most ``limit`` a side.
        channels: 1 grey, 3 RGB or 4 RGBA; None takes what `auto_channels` proposes.

    Raises:
        InputError: there are no images that can be read.
        DiskError: the pack cannot be written.
    """
    source = find_source(name)
    survey = scan(source).result()
    return pack(source, survey, size or auto_size(survey, limit), channels or auto_channels(survey)).result()
