"""Images on one sheet with a name for each row and column."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..core.files import printable
from ..core.pixels import Pixels, grid
from .plot import INK, Font

TEXT = 15  # height of the letters, in pixels of the sheet
GAP = 2  # between images
SPACE = 8  # between two labels, and around them
LONGEST = 240  # a label's width in pixels, beyond which it is cut


def labelled(
    images: Pixels,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    scale: int,
    corner: str = "",
    room_for: Sequence[str] = (),
) -> Pixels:
    """Images on one white sheet, with their columns' labels above and their rows' labels at the left.

    Only images are enlarged, letters have one size. Where images are smaller than their labels, the gaps between them
    grow until the labels fit. The font has Latin letters only: write "lambda" for λ, and "x" for ×.

    Args:
        images: (R, C, H, W, channels) uint8; 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA.
        rows: R labels, or none.
        columns: C labels, or none.
        scale: how many pixels of the sheet a pixel of an image is wide.
        corner: what the labels are of, say "t"; shown only where there are both kinds.
        room_for: labels that columns of other sheets have, which are to be as large as this one.

    Returns:
        The sheet (height, width, channels); the labels and what is white are opaque.
    """
    _check(images, rows, columns)
    n_rows, n_columns, height, width, channels = images.shape
    font = ImageFont.load_default(TEXT)
    rows, columns = [_cut(label, font) for label in rows], [_cut(label, font) for label in columns]
    # Wide enough for the labels, whose middle is that of their image: half of what juts out is on either side, so that
    # half of such a gap is enough at the edges.
    wide_gap = max([GAP, *(_width(label, font) + SPACE - width * scale for label in [*columns, *room_for])])
    high_gap = max(GAP, TEXT + SPACE // 2 - height * scale) if rows else GAP
    flat = images.reshape(n_rows * n_columns, height, width, channels)
    body = grid(flat, n_rows, n_columns, scale=scale, gap=high_gap, column_gap=wide_gap)
    spare = (wide_gap - GAP) // 2
    body = body[:, spare : body.shape[1] - spare]

    corner = _cut(corner, font) if rows and columns else ""
    left = max(_width(label, font) for label in [corner, *rows]) + 2 * SPACE if rows else 0
    top = TEXT + SPACE if columns else 0
    ink = Image.new("L", (left + body.shape[1], top + body.shape[0]))
    pen = ImageDraw.Draw(ink)
    baseline = top - SPACE // 2
    pen.text((left - SPACE, baseline), corner, 255, font, anchor="rs")
    for index, label in enumerate(rows):
        middle = top + high_gap + index * (height * scale + high_gap) + height * scale / 2
        pen.text((left - SPACE, middle), label, 255, font, anchor="rm")
    for index, label in enumerate(columns):
        middle = left + wide_gap - spare + index * (width * scale + wide_gap) + width * scale / 2
        pen.text((middle, baseline), label, 255, font, anchor="ms")
    return _inked(body, np.asarray(ink), channels)


def _check(images: Pixels, rows: Sequence[str], columns: Sequence[str]) -> None:
    for labels, n, what in ((rows, images.shape[0], "rows"), (columns, images.shape[1], "columns")):
        if labels and len(labels) != n:
            raise ValueError(f"{len(labels)} labels for {n} {what} of images; give one for each, or none")


def _inked(body: Pixels, ink: Pixels, channels: int) -> Pixels:
    """The body at the lower right of a white sheet, on which letters are as dark as ``ink`` (H, W) has it."""
    sheet = np.full((*ink.shape, channels), 255, np.uint8)
    colours = channels - (channels in (2, 4))
    sheet[:, :, :colours] -= (ink.astype(np.uint16) * (255 - INK[0]) // 255).astype(np.uint8)[:, :, None]
    sheet[-body.shape[0] :, -body.shape[1] :] = body
    return sheet


def _width(text: str, font: Font) -> int:
    return int(np.ceil(font.getlength(text)))


def _cut(text: str, font: Font) -> str:
    text = printable(text)
    if _width(text, font) <= LONGEST:
        return text
    while _width(text + "…", font) > LONGEST:
        text = text[:-1]
    return text + "…"
