"""Pictures in a terminal: two pixels to a character in colour, letters of more or less ink where there is none.

It imports rich, and is imported only once something is drawn on a terminal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image
from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import Progress, ProgressColumn
from rich.segment import Segment
from rich.style import Style

from ..core.pixels import Pixels, Raster, sheet_scale, to_channels, to_image

Item = TypeVar("Item")

INKS = " .:-=+*#%@"  # from black to white, as most terminals are dark
MOST_LINES = 32  # of the screen, however high it is: 64 pixels
LINES_LEFT = 3  # of a low screen, for the bar below the picture and a prompt
REFRESHES = 4  # a second


def fitted(pixels: Pixels, columns: int, lines: int) -> Pixels:
    """A picture (H, W, C) as RGB (H', W', 3) of at most ``columns`` x 2 ``lines`` pixels, on white if transparent.

    Large ones are averaged over areas. Tiny ones are enlarged by whole numbers, so that their pixels stay squares,
    until a person sees them.
    """
    rgb = to_channels(Raster(pixels), 3)
    height, width, _ = rgb.shape
    shrink = max(width / columns, height / (2 * lines))
    if shrink > 1:
        size = max(round(width / shrink), 1), max(round(height / shrink), 1)
        return np.asarray(to_image(rgb).resize(size, Image.Resampling.BOX))
    factor = min(sheet_scale((height, width)), columns // width, 2 * lines // height)
    return rgb.repeat(factor, axis=0).repeat(factor, axis=1)


def half_blocks(pixels: Pixels, columns: int, lines: int) -> list[list[Segment]]:
    """A picture (H, W, C) as lines of characters, each the upper half of a cell on the colour of the lower half.

    Below an odd number of rows is the terminal's own background.
    """
    rgb = fitted(pixels, columns, lines)
    drawn = []
    for top in range(0, len(rgb), 2):
        upper, *lower = ([Color.from_rgb(*colour) for colour in row] for row in rgb[top : top + 2].tolist())
        styles = map(Style.from_color, upper, *lower)
        drawn.append([Segment("▀", style) for style in styles])
    return drawn


def shades(pixels: Pixels, columns: int, lines: int) -> list[str]:
    """A picture (H, W, C) as lines of ASCII characters, each as light as the mean of the two pixels of its cell."""
    grey = to_channels(Raster(fitted(pixels, columns, lines)), 1)[:, :, 0]
    pairs = np.concatenate([grey, grey[-1:]])[: (len(grey) + 1) // 2 * 2].reshape(-1, 2, grey.shape[1])
    levels = pairs.astype(np.uint16).sum(axis=1) * len(INKS) // (2 * 255 + 1)
    return ["".join(INKS[level] for level in row) for row in levels.tolist()]


@dataclass(frozen=True, eq=False)
class Preview:
    """A picture (H, W, C) uint8 that rich draws as large, and in as many colours, as the terminal then has."""

    pixels: Pixels

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The lines; none where the terminal is too low for any."""
        lines = min(options.max_height - LINES_LEFT, MOST_LINES)
        if lines < 1:
            return
        if console.no_color or console.color_system is None or options.ascii_only:
            drawn = [[Segment(line)] for line in shades(self.pixels, options.max_width, lines)]
        else:
            drawn = half_blocks(self.pixels, options.max_width, lines)
        for line in drawn:
            yield from line
            yield Segment.line()


class PictureProgress(Progress):
    """A progress bar below a picture, which may be replaced at any time; the newest is drawn at the next refresh."""

    def __init__(self, *columns: ProgressColumn, console: Console) -> None:
        self.preview: Preview | None = None
        super().__init__(*columns, console=console, transient=True, refresh_per_second=REFRESHES)

    def watched(self, items: Iterable[Item], picture: Callable[[Item], Pixels | None]) -> Iterator[Item]:
        """Pass items on, and draw what ``picture`` makes of one whenever that is due; None keeps what is drawn.

        The picture is made before the item is passed on, and not by the thread that draws, since items may change.
        """
        due = time.monotonic()
        for item in items:
            if time.monotonic() >= due:
                pixels = picture(item)
                if pixels is not None:
                    self.preview = Preview(pixels)
                    due = time.monotonic() + 1 / REFRESHES
            yield item

    def get_renderables(self) -> Iterable[RenderableType]:
        """What is drawn, from above to below."""
        if self.preview is not None:
            yield self.preview
        yield from super().get_renderables()
