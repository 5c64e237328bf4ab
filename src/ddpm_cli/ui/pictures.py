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
FRAME_MS = 60
HOLD_MS = 1500


def encode_animation(frames: Sequence[npt.NDArray[Any]], suffix: str) -> bytes:
    """Frames (H, W, C) uint8 as an endless GIF or WebP that holds its last frame for a while."""
    images = [_animatable(frame) for frame in frames]
    durations = [FRAME_MS] * (len(images) - 1) + [HOLD_MS]
    buffer = io.BytesIO()
    # Frames are kept as they are: merging equal ones would change the timing.
    settings = {"lossless": True} if suffix == ".webp" else {"optimize": False}
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
        raise ArgumentError(f"cannot write {suffix or 'a name without a suffix'!r}; use .png, .gif or .webp")


def chain_frames(visited: Sequence[int], count: int = 60) -> list[int]:
    """Which of the ascending t that a reverse chain visits to show: about ``count``, descending to the first.

    Most of what a person sees happens at small t, so they get closer and closer to each other.
    """
    places = np.linspace(1, 0, count) ** 2 * (len(visited) - 1)
    return [visited[place] for place in sorted({round(p) for p in places}, reverse=True)]


def _animatable(frame: npt.NDArray[Any]) -> Image.Image:
    image = to_image(to_bytes(frame))
    return image.convert("RGBA") if image.mode == "LA" else image
