"""Where the images go that a command makes: a sheet, a file for each, raw arrays, an animation, or stdout."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from ..errors import ArgumentError
from ..files import check_output, disk_errors, printable, write_file
from ..generate import Start, pixels_of, visited
from ..model import Model
from ..pixels import Pixels, encode_png, grid, sheet_scale, to_image
from ..sampling import Sampling
from ..ui.console import Screen
from ..ui.pictures import ANIMATIONS, GIF_ALPHA, chain_frames, encode, encode_animation, loses_alpha
from .options import refuse_terminal

PREVIEWED = 64  # images at most


class Pictures(Protocol):
    """What the images are that a command makes, and how they are laid out."""

    @property
    def n(self) -> int:
        """How many."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a sheet of all."""

    @property
    def scale(self) -> int | None:
        """How many times they are enlarged on it; None chooses."""

    def name(self, place: int) -> str:
        """The file's name, without a suffix, of one of them."""

    def text(self, place: int | None) -> Mapping[str, str]:
        """What goes into the text chunks of one's PNG, or of the sheet's."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Images that are made at once: their places among all, and what `Model.chain` needs to know of them."""

    places: range
    indices: Sequence[int]
    start: Start | None = None


@dataclass(frozen=True, eq=False)
class BatchStep:
    """A step of the chains of the images at ``places``: they are now at t, and x_t, (B, C, H, W)."""

    places: range
    t: int
    x_t: torch.Tensor


def check_pictures(output: Path, pictures: Pictures, *, force: bool) -> None:
    """Refuse, before the work, an output that cannot be written.

    Raises:
        ArgumentError: it exists already, or has a suffix that means nothing.
        DiskError: the disk refuses.
    """
    _ = pictures.grid
    if str(output) == "-":
        refuse_terminal()
    elif not output.suffix and output.is_file():
        raise ArgumentError(f"{printable(output)} is a file without a suffix; name a .png, or a folder")
    elif is_folder(output):
        check_output(output / ".ddpm" if output.exists() else output, force=True)
        taken = next((file for file in _files(output, pictures) if file.exists()), None) if output.exists() else None
        if taken and not force:
            raise ArgumentError(f"{printable(taken)} exists already; name another folder, or use --force")
    elif output.suffix.lower() not in (".png", ".npy", ".npz", *ANIMATIONS):
        names = ", ".join([".png", ".npy", ".npz", *ANIMATIONS])
        raise ArgumentError(f"-o {printable(output)}: use {names}, a folder, or - for stdout")
    else:
        check_output(output, force=force)


def follow(
    model: Model, sampling: Sampling, batches: Sequence[Batch], label: str, screen: Screen, *, preview: bool
) -> Iterator[BatchStep]:
    """All chains, one batch after the other, under one progress bar."""
    total = sum(len(visited(sampling, model.diffusion, b.start.t if b.start else None)) for b in batches)
    steps = (
        BatchStep(batch.places, step.t, step.x_t)
        for batch in batches
        for step in model.chain(sampling, batch.indices, batch.start)
    )
    return screen.progress(steps, total, label, picture=_seen if preview else None)


def write_pictures(
    output: Path, pictures: Pictures, steps: Iterator[BatchStep], chain: list[int], screen: Screen, *, preview: bool
) -> Iterator[Path | bytes]:
    """Follow the steps to their ends, and write the images; yields each path written, or the bytes for stdout.

    Args:
        chain: the steps of the chain, ascending, of which an animation shows some.
    """
    if is_folder(output):
        yield from _write_files(output, pictures, steps)
        return
    suffix = ".png" if str(output) == "-" else output.suffix.lower()
    frames = _frames(steps, chain_frames([0, *chain[:-1]]) if suffix in ANIMATIONS else [0])
    if loses_alpha(frames[-1], suffix):
        screen.warn(GIF_ALPHA)
    if preview:
        screen.picture(_sheet(frames[-1][:PREVIEWED]))
    data = _encode(frames, pictures, suffix)
    if str(output) == "-":
        yield data
    else:
        write_file(output, data)
        yield output


def is_folder(output: Path) -> bool:
    """Whether a file is written for each image."""
    return str(output) != "-" and (output.is_dir() or not output.suffix)


def _write_files(output: Path, pictures: Pictures, steps: Iterator[BatchStep]) -> Iterator[Path]:
    with disk_errors(output):
        output.mkdir(exist_ok=True)
    for step in steps:
        if step.t == 0:
            for place, image in zip(step.places, pixels_of(step.x_t), strict=True):
                file = _file(output, pictures, place)
                write_file(file, encode_png(to_image(image), pictures.text(place)))
                yield file


def _frames(steps: Iterator[BatchStep], shown: list[int]) -> list[Pixels]:
    """The images (n, H, W, C) at each t of ``shown``, which descend to 0."""
    frames: dict[int, list[Pixels]] = {t: [] for t in shown}
    for step in steps:
        if step.t in frames:
            frames[step.t].append(pixels_of(step.x_t))
    return [np.concatenate(parts) for parts in frames.values()]


def _encode(frames: list[Pixels], pictures: Pictures, suffix: str) -> bytes:
    if suffix in (".npy", ".npz"):
        return encode_array(frames[-1], suffix)
    rows, columns = pictures.grid
    single = pictures.n == 1 and pictures.scale is None
    height, width = frames[0].shape[1:3]
    scale = pictures.scale or sheet_scale((height, width))
    sheets = [frame[0] if single else grid(frame, rows, columns, scale=scale) for frame in frames]
    text = pictures.text(None)
    return encode_animation(sheets, suffix, text) if suffix in ANIMATIONS else encode(sheets[0], suffix, text)


def encode_array(images: Pixels, suffix: str) -> bytes:
    """Images (n, H, W, C) as the bytes of a .npy, or of a .npz with the one array ``images``."""
    buffer = io.BytesIO()
    np.save(buffer, images) if suffix == ".npy" else np.savez_compressed(buffer, images=images)
    return buffer.getvalue()


def _seen(step: BatchStep) -> Pixels:
    return _sheet(pixels_of(step.x_t[:PREVIEWED]))


def _sheet(images: Pixels) -> Pixels:
    """Images side by side for the terminal, twice as wide as high, as its cells are twice as high as wide."""
    columns = min(len(images), 2 * int(np.ceil(np.sqrt(len(images) / 2))))
    return grid(images, -(-len(images) // columns), columns, gap=1)


def _files(output: Path, pictures: Pictures) -> Iterator[Path]:
    return (_file(output, pictures, place) for place in range(pictures.n))


def _file(output: Path, pictures: Pictures, place: int) -> Path:
    return output / f"{pictures.name(place)}.png"
