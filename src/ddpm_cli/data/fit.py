"""One image: what a look at it tells, and how it becomes pixels of a given size."""

from __future__ import annotations

import contextlib
import io
import warnings
from dataclasses import dataclass
from typing import IO

import numpy as np
from PIL import ExifTags, Image

from ..core.pixels import FORMATS, MAX_PIXELS, MAX_SIDE, Pixels, Raster, decode, to_channels, to_image, upright
from .sources.source import Item

ENLARGED = "smaller than the size asked for, so enlarged"
FLATTENED = "transparency put on white (4 channels keep it)"
GREYED = "colour turned into grey (3 channels keep it)"
REDUCED = "16 bits a channel reduced to 8"


@dataclass(frozen=True)
class Look:
    """What is known of an image before it is decoded to be used.

    Args:
        size: (height, width) as shown, after EXIF orientation.
        grey: stored without colour.
        transparent: some pixel is not opaque.
        notes: what decoding loses.
    """

    size: tuple[int, int]
    grey: bool
    transparent: bool
    notes: tuple[str, ...] = ()


def look(item: Item) -> Look:
    """Look at an image: its header where that tells enough, all of it where only the pixels tell.

    Raises:
        InputError: it cannot be read.
    """
    if not isinstance(item, np.ndarray):
        if (known := _header(item)) is not None:
            return known
        item.seek(0)
    raster = _raster(item)
    height, width, _ = raster.pixels.shape
    return Look((height, width), raster.is_grey, raster.has_alpha, _notes(raster))


def fit(item: Item, size: tuple[int, int], channels: int) -> tuple[Pixels, list[str]]:
    """Decode an image and make it uint8 (*size, channels): scaled to cover ``size``, then cropped at its centre.

    Returns:
        the pixels, and notes on what was done that the user should know.

    Raises:
        InputError: it cannot be read.
    """
    raster = _reduced(item, max(size)) or _raster(item)
    notes = list(_notes(raster))
    height, width, stored = raster.pixels.shape
    if height < size[0] or width < size[1]:
        notes.append(ENLARGED)
    if channels != 4 and raster.has_alpha:
        notes.append(FLATTENED)
    if channels == 1 and not raster.is_grey:
        notes.append(GREYED)
    if (height, width) == size:
        return to_channels(raster, channels), notes
    # In the image's own channels, at 8 bits: resizing before transparency is put on white needs the least memory.
    pixels = raster.pixels if raster.pixels.dtype == np.uint8 else to_channels(raster, stored)
    return to_channels(Raster(cover(pixels, size)), channels), notes


def cover(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Scale an image (H, W, C) until it just covers ``size``, and crop it at the centre. Nothing is squashed.

    Lanczos reduces: of PIL's filters it keeps most of the detail that the small image can hold, and lets least of the
    rest alias into it. Bicubic enlarges, with less ringing. An alpha channel weighs its colours (PIL premultiplies),
    so that what is invisible does not bleed into what is not.
    """
    height, width = pixels.shape[:2]
    scale = max(size[0] / height, size[1] / width)
    if scale == 1:
        top, left = (height - size[0]) // 2, (width - size[1]) // 2
        return pixels[top : top + size[0], left : left + size[1]]
    crop_height, crop_width = min(size[0] / scale, height), min(size[1] / scale, width)
    top, left = (height - crop_height) / 2, (width - crop_width) / 2
    box = (left, top, min(left + crop_width, width), min(top + crop_height, height))
    method = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    # Far larger images are averaged over whole pixels first, down to 3 times the size: much faster, hardly different.
    resized = np.asarray(to_image(pixels).resize((size[1], size[0]), method, box, reducing_gap=3.0))
    return resized if resized.ndim == 3 else resized[:, :, None]


def _header(file: IO[bytes]) -> Look | None:
    """What the header says of a plain image, or None if it takes the pixels to know (or to say what is wrong)."""
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(file, formats=FORMATS) as image:
            if (
                image.mode not in ("1", "L", "RGB", "CMYK", "YCbCr")
                or image.has_transparency_data
                or ";16" in str(image.tile)
                or getattr(image, "n_frames", 1) > 1
                or not _is_bounded(image)
            ):
                return None
            # A PNG may have its EXIF data behind the pixels; that is not worth decoding it for a statistic.
            known = image.format != "PNG" or "exif" in image.info
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1) if known else 1
            width, height = image.size if orientation < 5 else image.size[::-1]
            return Look((height, width), image.mode in ("1", "L"), False)
    return None


def _raster(item: Item) -> Raster:
    if isinstance(item, np.ndarray):
        return Raster(item)
    # In memory, because formats with tables at the end seek, which is slow in a compressed archive. Whoever opened the
    # item has seen to it that it is not too large.
    return decode(io.BytesIO(item.read()))


def _reduced(item: Item, side: int) -> Raster | None:
    """A JPEG at 1/2, 1/4 or 1/8 of its size, which its decoder makes in a fraction of the time; None if not possible.

    At least twice ``side`` is left of its shorter side for a proper resize.
    """
    if isinstance(item, np.ndarray):
        return None
    is_jpeg = item.read(3) == b"\xff\xd8\xff"
    item.seek(0)
    if not is_jpeg:
        return None
    # Whatever is wrong with it, the full decoder says.
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(item, formats=("JPEG",)) as image:
            if image.format == "JPEG" and min(image.size) >= 4 * side and _is_bounded(image):
                image.draft(None, (2 * side, 2 * side))
                shown = upright(image)
                values = np.asarray(shown if shown.mode == "L" else shown.convert("RGB"))
                return Raster(values if values.ndim == 3 else values[:, :, None])
    item.seek(0)
    return None


def _is_bounded(image: Image.Image) -> bool:
    return max(image.size) <= MAX_SIDE and image.width * image.height <= MAX_PIXELS


def _notes(raster: Raster) -> tuple[str, ...]:
    notes = raster.note.split(", ") if raster.note else []
    if raster.pixels.dtype != np.uint8:
        notes.append(REDUCED)
    return tuple(notes)
