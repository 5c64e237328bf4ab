"""Images on one sheet, with labels for rows and columns and a caption below each image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..core.files import printable
from ..core.pixels import MAX_PIXELS, MAX_SIDE, Pixels
from ..errors import ArgumentError
from .plot import COLOURS, INK, Font

LABEL, CAPTION = 15, 13  # heights of the letters, in pixels of the sheet
GAP = 2  # between images
SPACE = 8  # between two labels, and around them
LONGEST = 240  # a label's width in pixels, beyond which it is cut
LINE = 20  # height of the line that holds a caption


@dataclass(frozen=True)
class Caption:
    """The text below an image. A ``marked`` one has a colour that stands out, except on a grey sheet."""

    text: str
    marked: bool = False


@dataclass(frozen=True)
class Layout:
    """Where everything is on a sheet, in pixels.

    Only images are enlarged; all letters have one size. Where images are narrower than their labels, the gaps between
    them grow until the labels fit. The font has Latin letters only: write "lambda" for λ, and "x" for ×.

    Args:
        shape: rows and columns of images.
        size: (H, W, channels) of each image; 1 channel is grey, 2 are grey and alpha, 3 RGB, 4 RGBA.
        scale: how many pixels of the sheet a pixel of an image is wide.
        rows: a label for each row, or none.
        columns: a label for each column, or none. A label also covers the columns after it whose labels are empty.
        corner: what the labels stand for, say "t"; shown only where both rows and columns have labels.
        captions: whether every image has a line of text below it.
        room_for: labels of columns on other sheets that are to be as large as this one.
    """

    shape: tuple[int, int]
    size: tuple[int, int, int]
    scale: int
    rows: Sequence[str] = ()
    columns: Sequence[str] = ()
    corner: str = ""
    captions: bool = False
    room_for: Sequence[str] = ()

    def __post_init__(self) -> None:
        for labels, n, what in zip((self.rows, self.columns), self.shape, ("rows", "columns"), strict=True):
            if labels and len(labels) != n:
                raise ValueError(f"{len(labels)} labels for {n} {what} of images; give one for each, or none")

    @property
    def tile(self) -> tuple[int, int]:
        """(height, width) of an image on the sheet."""
        return self.size[0] * self.scale, self.size[1] * self.scale

    @cached_property
    def side_gap(self) -> int:
        """Between the images of two columns: wide enough for every label."""
        labels = [*_spans(self.columns), *((label, 1) for label in self.room_for)]
        pitches = [-(-(_width(_cut(label)) + SPACE) // columns) for label, columns in labels]
        return max([self._gap, *(pitch - self.tile[1] for pitch in pitches)])

    @property
    def pitch(self) -> tuple[int, int]:
        """(height, width) from an image to the one below it, and to the one beside it."""
        return self.tile[0] + self._row_gap + LINE * self.captions, self.tile[1] + self.side_gap

    @cached_property
    def origin(self) -> tuple[int, int]:
        """(top, left) of the first image.

        A label is centred on its images, so half of the gap that it needs is enough at the left and right edges.
        """
        labels = [*self.rows, self.corner] if self.rows and self.columns else self.rows
        left = max(_width(_cut(label)) for label in labels) + 2 * SPACE if labels else 0
        top = LABEL + SPACE if self.columns else 0
        return top + self._row_gap, left + self._edge

    @property
    def height(self) -> int:
        """Of the sheet."""
        return self.origin[0] + self.shape[0] * self.pitch[0]

    @property
    def width(self) -> int:
        """Of the sheet."""
        return self.origin[1] + self.shape[1] * self.pitch[1] - self.side_gap + self._edge

    @property
    def _gap(self) -> int:
        return SPACE if self.captions else GAP

    @property
    def _row_gap(self) -> int:
        return max(self._gap, LABEL + SPACE // 2 - self.tile[0]) if self.rows else self._gap

    @property
    def _edge(self) -> int:
        return self.side_gap - (self.side_gap - GAP) // 2

    def place(self, row: int, column: int) -> tuple[int, int]:
        """(top, left) of an image."""
        return self.origin[0] + row * self.pitch[0], self.origin[1] + column * self.pitch[1]


def check_size(height: int, width: int, remedy: str) -> None:
    """Refuse, before the work, a sheet that is larger than image viewers, and this program, read.

    Raises:
        ArgumentError: it is; the message ends with the remedy.
    """
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        raise ArgumentError(f"the sheet would have {height:,}x{width:,} pixels, which few programs show; {remedy}")


def draw(layout: Layout, images: Iterable[Pixels], captions: Sequence[Sequence[Caption]] = ()) -> Pixels:
    """The sheet (height, width, channels), white between the images.

    Args:
        images: a row at a time, (columns, H, W, channels) uint8; none is changed but by its scale.
        captions: as many for each row, if the layout has captions.
    """
    sheet = np.full((layout.height, layout.width, layout.size[2]), 255, np.uint8)
    height, width = layout.tile
    for row, tiles in enumerate(images):
        for column, tile in enumerate(tiles):
            top, left = layout.place(row, column)
            sheet[top : top + height, left : left + width] = tile.repeat(layout.scale, 0).repeat(layout.scale, 1)
    _label(sheet, layout)
    font = ImageFont.load_default(CAPTION)
    for row, line in enumerate(captions):
        for column, caption in enumerate(line):
            top, left = layout.place(row, column)
            text = _end(caption.text, layout.pitch[1] - 2, font)
            at = left + width // 2, top + height + LINE // 2 + 1
            _write(sheet, text, at, "mm", font, COLOURS[1] if caption.marked else INK)
    return sheet


def _label(sheet: Pixels, layout: Layout) -> None:
    font = ImageFont.load_default(LABEL)
    (top, left), (height, width) = layout.origin, layout.tile
    edge, baseline = left - layout._edge - SPACE, LABEL + SPACE // 2
    if layout.rows and layout.columns:
        _write(sheet, _cut(layout.corner), (edge, baseline), "rs", font)
    for row, label in enumerate(layout.rows):
        _write(sheet, _cut(label), (edge, top + row * layout.pitch[0] + height // 2), "rm", font)
    column = 0
    for label, columns in _spans(layout.columns):
        middle = left + column * layout.pitch[1] + ((columns - 1) * layout.pitch[1] + width) // 2
        _write(sheet, _cut(label), (middle, baseline), "ms", font)
        column += columns


def _write(
    sheet: Pixels, text: str, at: tuple[int, int], anchor: str, font: Font, colour: tuple[int, ...] = INK
) -> None:
    """Opaque letters on the white of a sheet, anchored at (x, y)."""
    left, top, right, bottom = (round(side) for side in font.getbbox(text, anchor=anchor))
    ink = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(ink).text((-left, -top), text, 255, font, anchor=anchor)
    colours = sheet.shape[2] - (sheet.shape[2] in (2, 4))
    area = sheet[at[1] + top : at[1] + bottom, at[0] + left : at[0] + right, :colours]
    darkness = np.array([255 - level for level in colour[:colours]], np.uint16)
    area[:] = 255 - np.asarray(ink, np.uint16)[:, :, None] * darkness // 255


def _spans(labels: Sequence[str]) -> list[tuple[str, int]]:
    """Each label with the number of columns that it covers."""
    starts = [column for column, label in enumerate(labels) if label or column == 0]
    return [(labels[a], b - a) for a, b in pairwise([*starts, len(labels)])]


def _width(text: str) -> int:
    return int(np.ceil(ImageFont.load_default(LABEL).getlength(text)))


def _cut(text: str) -> str:
    """A label on one line, cut at its end if it is too long."""
    text = printable(text)
    if _width(text) <= LONGEST:
        return text
    while _width(text + "…") > LONGEST:
        text = text[:-1]
    return text + "…"


def _end(text: str, width: int, font: Font) -> str:
    """The text, or as much of its end as there is room for: the names of files in one folder differ at the end."""
    text = printable(text)
    if font.getlength(text) <= width:
        return text
    start = next((i for i in range(1, len(text)) if font.getlength(f"...{text[i:]}") <= width), len(text))
    return f"...{text[start:]}"
