"""Images of any kind and place, found, looked at, and packed into files of uint8 pixels of one size.

`open` does it all, stage by stage for those who show progress; `open_images` does it at once.
Nothing here imports torch.
"""

from __future__ import annotations

from ..core.progress import Stage
from .opening import Opened, Opening, open, open_images  # noqa: A004
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
    "Opened",
    "Opening",
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
    "open",
    "open_images",
    "pack",
    "read_ahead",
    "reading_order",
    "scan",
]
