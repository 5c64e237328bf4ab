"""Pictures made for people: strips and animations of several images, in the format that a file's name asks for."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import ArgumentError
from ..pixels import encode_png, to_bytes, to_image

ANIMATIONS = {".gif": "GIF", ".webp": "WEBP"}
SHOW_MS, SHORTEST_MS, LONGEST_MS = 3600, 60, 500  # of an animation, about, and of each of its frames
HOLD_MS = 1500


def encode_animation(frames: Sequence[npt.NDArray[Any]], suffix: str) -> bytes:
    """Frames (H, W, C) uint8 as an endless GIF or WebP that holds its last frame for a while.

    A few frames are shown for longer each than many.
    """
    images = [_animatable(frame) for frame in frames]
    frame_ms = min(max(SHOW_MS // len(images), SHORTEST_MS), LONGEST_MS)
    durations = [frame_ms] * (len(images) - 1) + [HOLD_MS]
    buffer = io.BytesIO()
    settings: dict[str, object] = {"lossless": True}
    if suffix == ".gif":
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
    """One picture (H, W, C) as PNG with text chunks, or as a still WebP or GIF."""
    check_suffix(suffix)
    return encode_png(to_image(pixels), text) if suffix == ".png" else encode_animation([pixels], suffix)


def check_suffix(suffix: str) -> None:
    """Refuse a suffix that names no format in which pictures are written.

    Raises:
        ArgumentError: it is none of .png, .gif and .webp.
    """
    if suffix not in (".png", *ANIMATIONS):
        what = f"{suffix!r} is no format that is written" if suffix else "the output's name has no suffix"
        raise ArgumentError(f"{what}; use .png, .gif or .webp")


def loses_alpha(frames: npt.NDArray[Any], suffix: str) -> bool:
    """Whether pictures (..., C) lose something as a GIF, which knows opaque and invisible pixels and none between."""
    if suffix != ".gif" or frames.shape[-1] not in (2, 4):
        return False
    alpha = frames[..., -1]
    return bool(((alpha > 0) & (alpha < np.iinfo(frames.dtype).max)).any())


GIF_ALPHA = "a GIF has no half-transparent pixels; .webp keeps them"


def chain_frames(visited: Sequence[int], count: int = 60) -> list[int]:
    """Which of the ascending t that a reverse chain visits to show: about ``count``, descending to the first.

    Most of what a person sees happens at small t, so they get closer and closer to each other.
    """
    places = np.linspace(1, 0, count) ** 2 * (len(visited) - 1)
    return [visited[place] for place in sorted({round(p) for p in places}, reverse=True)]


def _animatable(frame: npt.NDArray[Any]) -> Image.Image:
    image = to_image(to_bytes(frame))
    return image.convert("RGBA") if image.mode == "LA" else image
