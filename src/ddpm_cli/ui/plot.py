"""Curves with axes, for papers: drawn with PIL at several times their size, and scaled down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Pen: TypeAlias = ImageDraw.ImageDraw
Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

WIDTH, HEIGHT = 640, 480  # of one panel, in pixels of the result
SCALE = 3  # drawn so many times as large
INK, GRID = (32, 32, 32), (225, 225, 225)
COLOURS = ((31, 90, 166), (200, 80, 30), (20, 140, 90), (150, 60, 160), (110, 110, 110))  # of as many curves
_LEFT, _RIGHT, _TOP, _BOTTOM = 78, 20, 42, 58
_TEXT = 17
_DASH = 9


@dataclass(frozen=True)
class Curve:
    """A line through points; ``dashed`` tells it from another in black and white."""

    x: Sequence[float]
    y: Sequence[float]
    name: str = ""
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """A pair of axes, which begin at 0, and the curves in them.

    Args:
        x_label: with the unit; so ``y_label``.
        log_x: the axis is logarithmic, and begins near the least number; so ``log_y``.
    """

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class _Axis:
    """Numbers along a side of a panel; the first and the last are its ends."""

    ticks: list[float]
    log: bool

    def share(self, v: float) -> float:
        """How far along it a number is: 0 at its start, 1 at its end."""
        if not self.log:
            return v / self.ticks[-1]
        return math.log(v / self.ticks[0]) / math.log(self.ticks[-1] / self.ticks[0])


def draw(panels: Sequence[Panel]) -> Image.Image:
    """Panels side by side, an RGB image."""
    sheet = Image.new("RGB", (WIDTH * len(panels) * SCALE, HEIGHT * SCALE), "white")
    for number, panel in enumerate(panels):
        sheet.paste(_panel(panel), (number * WIDTH * SCALE, 0))
    return sheet.resize((WIDTH * len(panels), HEIGHT), Image.Resampling.LANCZOS)


def _panel(panel: Panel) -> Image.Image:
    image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(_TEXT * SCALE)
    x_axis = _axis([v for curve in panel.curves for v in curve.x], log=panel.log_x)
    y_axis = _axis([v for curve in panel.curves for v in curve.y], log=panel.log_y)
    left, right, top, bottom = (side * SCALE for side in (_LEFT, WIDTH - _RIGHT, _TOP, HEIGHT - _BOTTOM))

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x_axis.share(x) * (right - left), bottom - y_axis.share(y) * (bottom - top)

    for x in x_axis.ticks:
        pen.line([place(x, y_axis.ticks[0]), place(x, y_axis.ticks[-1])], GRID, SCALE)
        pen.text((place(x, y_axis.ticks[0])[0], bottom + 8 * SCALE), f"{x:g}", INK, font, anchor="ma")
    for y in y_axis.ticks:
        pen.line([place(x_axis.ticks[0], y), place(x_axis.ticks[-1], y)], GRID, SCALE)
        pen.text((left - 8 * SCALE, place(x_axis.ticks[0], y)[1]), f"{y:g}", INK, font, anchor="rm")
    for curve, colour in zip(panel.curves, COLOURS, strict=False):
        _line(pen, [place(x, y) for x, y in zip(curve.x, curve.y, strict=True)], colour, dashed=curve.dashed)
    pen.rectangle([left, top, right, bottom], outline=INK, width=SCALE)
    pen.text(((left + right) / 2, top / 2), panel.title, INK, font, anchor="mm")
    pen.text(((left + right) / 2, (HEIGHT - 14) * SCALE), panel.x_label, INK, font, anchor="mm")
    _upright(image, panel.y_label, (14 * SCALE, (top + bottom) // 2), font)
    _legend(pen, panel.curves, (right, top), font)
    return image


def _line(pen: Pen, points: list[tuple[float, float]], colour: tuple[int, int, int], *, dashed: bool) -> None:
    if not dashed:
        pen.line(points, colour, 2 * SCALE, joint="curve")
        return
    x, y = np.array(points).T
    walked = np.concatenate([[0.0], np.hypot(np.diff(x), np.diff(y)).cumsum()])
    ends = np.append(np.arange(0, walked[-1], _DASH * SCALE), walked[-1])
    places = list(zip(np.interp(ends, walked, x).tolist(), np.interp(ends, walked, y).tolist(), strict=True))
    for dash in list(pairwise(places))[::2]:
        pen.line(dash, colour, 2 * SCALE)


def _legend(pen: Pen, curves: Sequence[Curve], corner: tuple[int, int], font: Font) -> None:
    right, top = corner
    for row, (curve, colour) in enumerate(zip(curves, COLOURS, strict=False)):
        if curve.name:
            y = top + (18 + 24 * row) * SCALE
            pen.text((right - 14 * SCALE, y), curve.name, INK, font, anchor="rm")
            start = right - 14 * SCALE - pen.textlength(curve.name, font) - 44 * SCALE
            _line(pen, [(start, float(y)), (start + 36 * SCALE, float(y))], colour, dashed=curve.dashed)


def _upright(image: Image.Image, text: str, centre: tuple[int, int], font: Font) -> None:
    left, top, right, bottom = font.getbbox(text)
    label = Image.new("RGB", (int(right - left) + 4, int(bottom - top) + 4), "white")
    ImageDraw.Draw(label).text((2 - left, 2 - top), text, INK, font)
    turned = label.transpose(Image.Transpose.ROTATE_90)
    image.paste(turned, (centre[0] - turned.width // 2, centre[1] - turned.height // 2))


def _axis(numbers: Sequence[float], *, log: bool) -> _Axis:
    """The axis that has room for numbers, all of them above 0 if it is logarithmic."""
    if log and numbers:
        return _Axis(_log_ticks(min(numbers), max(numbers)), log=True)
    return _Axis(_ticks(max(numbers, default=1.0)), log=False)


def _log_ticks(least: float, largest: float) -> list[float]:
    """1, 2 and 5 times powers of ten, from at most the least to at least the largest number."""
    powers = range(math.floor(math.log10(least)), math.ceil(math.log10(largest)) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    first = max(i for i, tick in enumerate(ticks) if tick <= least * (1 + 1e-9))
    last = min(i for i, tick in enumerate(ticks) if tick >= largest * (1 - 1e-9))
    return ticks[first : max(last, first + 1) + 1]


def _ticks(largest: float) -> list[float]:
    """Round numbers from 0 to at least the largest, about six."""
    if not largest > 1e-300 or not math.isfinite(largest):
        return [0.0, 1.0]
    rough = largest / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    return [step * i for i in range(math.ceil(largest / step - 1e-9) + 1)]
