"""A sheet of rows, each an image and, beyond a gap, others to compare it with, with a line of text below each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from ..core.files import printable
from ..core.pixels import MAX_PIXELS, Pixels, Raster, sheet_scale, to_channels, to_image
from ..errors import ArgumentError
from .plot import COLOURS, INK, Font, Pen

TILE = 64  # pixels that the shorter side of an image has at least, so that the text below it has room
_TEXT, _LINE = 13, 20
_MARGIN, _GAP, _WIDE = 12, 6, 22
_FRAME = (205, 205, 205)


@dataclass(frozen=True)
class Caption:
    """The text below an image; ``marked`` in a colour that is seen at once."""

    text: str
    marked: bool = False


@dataclass(frozen=True, eq=False)
class Row:
    """Images uint8 (1 + columns, H, W, C) and the text below each; the first one is what the others belong to."""

    images: Pixels
    captions: tuple[Caption, ...]


@dataclass(frozen=True)
class Layout:
    """Where everything is on a sheet, in pixels.

    Args:
        rows: how many.
        columns: images beside the first one of each row.
        size: (height, width) of an image.
        scale: how many times it is enlarged.
        titles: over the first column, and over the others.
    """

    rows: int
    columns: int
    size: tuple[int, int]
    scale: int
    titles: tuple[str, str]

    @classmethod
    def fitting(
        cls, rows: int, columns: int, size: tuple[int, int], scale: int | None, titles: tuple[str, str]
    ) -> Layout:
        """A layout whose tiny images are enlarged so that a person sees them, unless a ``scale`` is given.

        Raises:
            ArgumentError: such a sheet would be larger than image viewers, and this program, read.
        """
        layout = cls(rows, columns, size, scale or sheet_scale(size, TILE), titles)
        if layout.width * layout.height > MAX_PIXELS:
            raise ArgumentError(
                f"the sheet would be {layout.height}x{layout.width}, which few programs can show; use a smaller `n`, "
                "`k` or `scale`"
            )
        return layout

    @property
    def tile(self) -> tuple[int, int]:
        """(height, width) of an image on the sheet."""
        return self.size[0] * self.scale, self.size[1] * self.scale

    @property
    def height(self) -> int:
        """Of the sheet."""
        return 2 * _MARGIN + _LINE + self.rows * (self.tile[0] + _LINE + _GAP) - _GAP

    @property
    def width(self) -> int:
        """Of the sheet; no less than the titles need."""
        images = self.left(self.columns) + self.tile[1]
        title = self.left(1) + _font().getlength(self.titles[1])
        return max(images, round(title)) + _MARGIN

    def top(self, row: int) -> int:
        """Of the images of a row."""
        return _MARGIN + _LINE + row * (self.tile[0] + _LINE + _GAP)

    def left(self, column: int) -> int:
        """Of the images of a column; 0 is that of the first ones."""
        first = max(self.tile[1], round(_font().getlength(self.titles[0])))
        return _MARGIN + (first + _WIDE + (column - 1) * (self.tile[1] + _GAP) if column else 0)


def draw(layout: Layout, rows: Iterable[Row]) -> Image.Image:
    """The sheet, an RGB image; transparency is put on white."""
    sheet = Image.new("RGB", (layout.width, layout.height), "white")
    pen, font = ImageDraw.Draw(sheet), _font()
    for column, title in enumerate(layout.titles):
        pen.text((layout.left(column), _MARGIN + _LINE // 2 - 2), title, INK, font, anchor="lm")
    height, width = layout.tile
    for number, row in enumerate(rows):
        top = layout.top(number)
        for column, (pixels, caption) in enumerate(zip(row.images, row.captions, strict=True)):
            left = layout.left(column)
            tile = to_image(to_channels(Raster(pixels), 3)).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(tile, (left, top))
            pen.rectangle([left - 1, top - 1, left + width, top + height], outline=_FRAME)
            text = _shortened(printable(caption.text), width + _GAP - 2, pen, font)
            colour = COLOURS[1] if caption.marked else INK
            pen.text((left + width / 2, top + height + _LINE / 2 + 1), text, colour, font, anchor="mm")
    return sheet


def _shortened(text: str, width: int, pen: Pen, font: Font) -> str:
    """The text, or as much of its end as has room: of names in one folder, the ends differ."""
    if pen.textlength(text, font) <= width:
        return text
    start = next((i for i in range(1, len(text)) if pen.textlength(f"...{text[i:]}", font) <= width), len(text))
    return f"...{text[start:]}"


def _font() -> Font:
    return ImageFont.load_default(_TEXT)
