"""Between files' pixels and the paper's numbers: uint8 {0..255} to float [-1, 1] and back, PIL's modes, and grids.

Importing this module does not import torch; `to_float` and `to_levels` take numpy arrays and torch tensors alike.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import struct
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from ..errors import InputError
from .files import printable

if TYPE_CHECKING:
    import torch

    X = TypeVar("X", npt.NDArray[Any], torch.Tensor)

Pixels = npt.NDArray[np.uint8]
P = TypeVar("P", npt.NDArray[np.uint8], npt.NDArray[Any])

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_FILE_BYTES = 256 * 2**20
COLOURS = {1: "grey", 3: "RGB", 4: "RGBA"}  # what so many channels are, for people
MAX_SIDE = 16384
MAX_PIXELS = MAX_SIDE * MAX_SIDE // 2  # Pillow refuses only images that are half as large again
BACKGROUND = 255  # transparent pixels are put on white

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_float(pixels: X, levels: int = 255) -> X:
    """Integer pixels {0..levels} as float32 in [-1, 1] (section 3.3: x / 127.5 - 1)."""
    if isinstance(pixels, np.ndarray):
        return pixels.astype(np.float32) / np.float32(levels / 2) - np.float32(1)
    return pixels.float() / (levels / 2) - 1


def to_levels(x: X, levels: int = 255) -> X:
    """Numbers in [-1, 1] as the nearest of {0..levels}, clipped: the one rounding rule, inverse of `to_float`.

    Returns uint8 for 255 levels, else uint16 (numpy) or int32 (torch).
    """
    scaled = (x + 1) * (levels / 2)
    if isinstance(scaled, np.ndarray):
        return np.rint(scaled).clip(0, levels).astype(np.uint8 if levels == 255 else np.uint16)
    import torch

    return scaled.round().clamp(0, levels).to(torch.uint8 if levels == 255 else torch.int32)


@dataclass(frozen=True)
class Raster:
    """One decoded image.

    Args:
        pixels: (H, W, C), uint8 or uint16; C is 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA.
        note: what was lost in decoding, for the user to know; empty if nothing.
    """

    pixels: npt.NDArray[Any]
    note: str = ""

    @property
    def levels(self) -> int:
        """The value of white: 255 or 65535."""
        return int(np.iinfo(self.pixels.dtype).max)

    @property
    def has_alpha(self) -> bool:
        """Whether any pixel is not opaque; an alpha channel of opaque pixels does not count."""
        translucent = self.pixels[:, :, -1] < self.levels
        return self.pixels.shape[2] in (2, 4) and bool(translucent.any())

    @property
    def is_grey(self) -> bool:
        """Whether the image is stored without colour."""
        return bool(self.pixels.shape[2] <= 2)


def decode(file: str | Path | IO[bytes]) -> Raster:
    """Decode an image: first frame, EXIF orientation applied, no bit and no alpha dropped without a note.

    Raises:
        InputError: not an image of a known format, damaged, too large, or of a kind that has no pixels in {0..2^n-1}.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=FORMATS) as image:
                if max(image.size) > MAX_SIDE:
                    raise InputError(f"more than {MAX_SIDE} pixels a side ({image.width}x{image.height})")
                if image.width * image.height > MAX_PIXELS:
                    raise InputError(f"more than {MAX_SIDE}x{MAX_SIDE // 2} pixels")
                note = _losses(image)
                with _without_stderr() if image.format == "TIFF" else contextlib.nullcontext():
                    return Raster(_array(upright(image)), note)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"not an image that can be read; {', '.join(FORMATS)} are") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"more than {MAX_SIDE}x{MAX_SIDE // 2} pixels") from error
    except MemoryError as error:
        raise InputError("not enough memory to decode it") from error
    except (OSError, SyntaxError, ValueError, EOFError, ArithmeticError, LookupError, TypeError, struct.error) as error:
        # Pillow's decoders meet damaged files with any of these.
        raise InputError(f"damaged image ({error})") from error


def upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation says that it is to be seen. EXIF data that cannot be read say nothing."""
    image.load()
    orientation = None
    with contextlib.suppress(Exception):
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Drop what a library of C prints: libtiff explains there, without its name, what is wrong with a damaged file."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # closed
            stderr = os.dup(2)
            stack.callback(os.close, stderr)
            with open(os.devnull, "wb") as null:  # noqa: PTH123
                os.dup2(null.fileno(), 2)
            stack.callback(os.dup2, stderr, 2)
        yield


def to_bytes(pixels: npt.NDArray[Any]) -> Pixels:
    """Pixels as uint8: those of 16 bits become the nearest of 256 levels over the whole range (65535 -> 255)."""
    return pixels if pixels.dtype == np.uint8 else ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def to_channels(raster: Raster, channels: int) -> Pixels:
    """The image as uint8 (H, W, channels): 1 grey, 3 RGB, 4 RGBA. Transparency is put on white unless it is kept."""
    pixels = to_bytes(raster.pixels)
    alpha = pixels[:, :, -1:] if pixels.shape[2] in (2, 4) else None
    colour = pixels if alpha is None else pixels[:, :, :-1]
    if alpha is not None and channels != 4:
        weight = alpha.astype(np.uint32)
        colour = ((colour * weight + BACKGROUND * (255 - weight) + 127) // 255).astype(np.uint8)
    if channels == 1:
        return colour if colour.shape[2] == 1 else np.asarray(Image.fromarray(colour).convert("L"))[:, :, None]
    if colour.shape[2] == 1:
        colour = np.repeat(colour, 3, axis=2)
    if channels == 3:
        return colour
    return np.concatenate([colour, np.full_like(colour[:, :, :1], 255) if alpha is None else alpha], axis=2)


def to_image(pixels: npt.NDArray[Any]) -> Image.Image:
    """An array (H, W, C), or (H, W), as a picture of the mode that holds it: L, LA, RGB, RGBA or 16-bit grey."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(pixels))


def encode_png(image: Image.Image, text: Mapping[str, str] | None = None) -> bytes:
    """A picture as the bytes of a PNG file, with ``text`` in its text chunks."""
    buffer = io.BytesIO()
    # Noise packs no better at level 6, and takes twice as long.
    image.save(buffer, "PNG", pnginfo=png_text(text or {}), compress_level=3)
    return buffer.getvalue()


def encode_npy(array: npt.NDArray[Any]) -> bytes:
    """An array as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def png_text(text: Mapping[str, str]) -> PngImagePlugin.PngInfo:
    """Text chunks for Pillow to write into a PNG."""
    info = PngImagePlugin.PngInfo()
    for key, value in text.items():
        info.add_itxt(key, value)
    return info


def decode_text(file: Path | IO[bytes]) -> dict[str, str]:
    """The text chunks of a PNG file.

    Raises:
        InputError: not a PNG, or damaged.
    """
    name = printable(file) if isinstance(file, Path) else "it"
    try:
        with Image.open(file, formats=("PNG",)) as image:
            return {key: str(value) for key, value in getattr(image, "text", {}).items()}
    except FileNotFoundError as error:
        raise InputError(f"there is no file {name}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{name} is not a PNG that can be read") from error


def grid_shape(n: int) -> tuple[int, int]:
    """Rows and columns of the most nearly square grid for n images, wider rather than higher."""
    columns = math.ceil(math.sqrt(n))
    return math.ceil(n / columns), columns


def grid(images: P, rows: int, columns: int, *, scale: int = 1, gap: int = 2) -> P:
    """Images (N, H, W, C) on one sheet, row by row, each pixel ``scale`` wide; white between and in empty cells.

    The gap between images and around them is in pixels of the sheet.
    """
    n, height, width, channels = images.shape
    height, width = height * scale, width * scale
    shape = rows * (height + gap) + gap, columns * (width + gap) + gap, channels
    sheet = np.full(shape, np.iinfo(images.dtype).max, images.dtype)
    for index in range(min(n, rows * columns)):
        top = gap + index // columns * (height + gap)
        left = gap + index % columns * (width + gap)
        tile = images[index].repeat(scale, axis=0).repeat(scale, axis=1)
        sheet[top : top + height, left : left + width] = tile
    return sheet


def sheet_scale(size: tuple[int, ...], at_least: int = 32) -> int:
    """How many times tiny images are enlarged on a sheet so that a person sees them: ``at_least`` pixels a side."""
    return math.ceil(at_least / min(size))


def _losses(image: Image.Image) -> str:
    notes = []
    if getattr(image, "n_frames", 1) > 1:
        notes.append("only the first frame is used")
    if image.mode in ("RGB", "RGBA", "LA") and ";16" in str(getattr(image, "tile", "")):
        notes.append("16 bits a channel reduced to 8")
    if image.mode.startswith("I") and "transparency" in image.info:
        notes.append("the level that stands for transparent in 16-bit grey is ignored")
    return ", ".join(notes)


def _array(image: Image.Image) -> npt.NDArray[Any]:
    mode = image.mode
    if mode.startswith("I"):
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise InputError("32-bit integer pixels beyond 65535 have no known scale; save it with 8 or 16 bits")
        return values.astype(np.uint16)[:, :, None]
    if mode == "F":
        raise InputError("floating-point pixels have no known scale; save it with 8 or 16 bits")
    if mode in ("LAB", "HSV"):
        raise InputError(f"colour space {mode} is not read; save it as RGB")
    if image.has_transparency_data:
        kept = "LA" if mode in ("L", "LA", "La", "1") else "RGBA"
    else:
        kept = "L" if mode in ("1", "L") else "RGB"
    values = np.asarray(image.convert(kept))
    if mode in ("P", "PA") and (values[:, :, :1] == values[:, :, 1:3]).all():
        values = values[:, :, 2:]  # a palette of greys
        return values[:, :, :1] if kept == "RGB" else values
    return values[:, :, None] if values.ndim == 2 else values
