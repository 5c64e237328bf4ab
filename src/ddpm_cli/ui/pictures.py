"""Pictures made for people: strips and animations of several images, in the format that a file's name asks for."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..core.pixels import encode_png, png_text, to_bytes, to_image
from ..errors import ArgumentError

ANIMATIONS = {".gif": "GIF", ".webp": "WEBP", ".apng": "PNG"}
SHOW_MS, SHORTEST_MS, LONGEST_MS = 3600, 60, 500  # of an animation, about, and of each of its frames
HOLD_MS = 1500


def encode_animation(frames: Sequence[npt.NDArray[Any]], suffix: str, text: Mapping[str, str] | None = None) -> bytes:
    """Frames (H, W, C) uint8 as an endless GIF, WebP or APNG that holds its last frame for a while.

    A few frames are shown for longer each than many. An APNG keeps every level, and ``text`` in its text chunks; the
    others have no place for it. What does not know APNG shows its first frame.
    """
    images = [_animatable(frame) for frame in frames]
    frame_ms = min(max(SHOW_MS // len(images), SHORTEST_MS), LONGEST_MS)
    durations = [frame_ms] * (len(images) - 1) + [HOLD_MS]
    buffer = io.BytesIO()
    settings: dict[str, object] = {"lossless": True}
    if suffix == ".apng":
        settings = {"pnginfo": png_text(text or {}), "compress_level": 3}
    elif suffix == ".gif":
        # Frames are kept as they are, since merging equal ones would change the timing; and where one is transparent,
        # the one before it must not show.
        settings = {"optimize": False, "disposal": 2 if images[0].mode == "RGBA" else 0}
    images[0].save(
        buffer,
        ANIMATIONS[suffix],
        save_all=True,
        append_images=images[1:],
        duration=durations,
        loop=0,
        **settings,
    )
    return buffer.getvalue()


def encode(pixels: npt.NDArray[Any], suffix: str, text: Mapping[str, str]) -> bytes:
    """One picture (H, W, C) as PNG with text chunks, or as a still WebP or GIF; one frame of APNG is a PNG."""
    check_suffix(suffix)
    still = suffix in (".png", ".apng")
    return encode_png(to_image(pixels), text) if still else encode_animation([pixels], suffix)


def check_suffix(suffix: str) -> None:
    """Refuse a suffix that names no format in which pictures are written.

    Raises:
        ArgumentError: it is none of .png, .gif, .webp and .apng.
    """
    if suffix not in (".png", *ANIMATIONS):
        what = f"{suffix!r} is no format that is written" if suffix else "the output's name has no suffix"
        raise ArgumentError(f"{what}; use .png, .gif, .webp or .apng")


def loses_alpha(frames: npt.NDArray[Any], suffix: str) -> bool:
    """Whether pictures (..., C) lose something as a GIF, which knows opaque and invisible pixels and none between."""
    if suffix != ".gif" or frames.shape[-1] not in (2, 4):
        return False
    alpha = frames[..., -1]
    return bool(((alpha > 0) & (alpha < np.iinfo(frames.dtype).max)).any())


GIF_ALPHA = "a GIF has no half-transparent pixels; .webp and .apng keep them"


def chain_frames(visited: Sequence[int], count: int = 60) -> list[int]:
    """Which of the ascending t that a reverse chain visits to show: about ``count``, descending to the first.

    They are evenly spaced in the logarithm of t + T/25. At large t noise turns into other noise, and a few frames are
    enough. The image comes out of it between 0.3 T (the 8x8 digits) or 0.5 T (32x32 in colour) and 0.05 T, where about
    half of the frames are. Spaced in log t itself, half of them would go to the last 5 % of the chain, where a frame
    differs from the next by less than a person sees.
    """
    places = (np.geomspace(26, 1, count) - 1) / 25 * (len(visited) - 1)
    return [visited[place] for place in sorted({round(p) for p in places}, reverse=True)]


def _animatable(frame: npt.NDArray[Any]) -> Image.Image:
    image = to_image(to_bytes(frame))
    return image.convert("RGBA") if image.mode == "LA" else image
