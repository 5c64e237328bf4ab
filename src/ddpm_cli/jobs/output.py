"""Where the images go that a command makes: a sheet, a file for each, raw arrays, an animation, or stdout."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from ..core.files import check_output, disk_errors, printable, write_file
from ..core.pixels import Pixels, encode_npy, encode_png, grid, sheet_scale, to_image
from ..errors import ArgumentError
from ..models.model import Model
from ..sampling.generate import Start, pixels_of
from ..sampling.settings import Sampling
from ..ui.console import Screen
from ..ui.pictures import ANIMATIONS, GIF_ALPHA, chain_frames, encode, encode_animation, loses_alpha
from ..ui.results import STDIO, refuse_terminal
from ..ui.sheet import Layout, check_size, draw

PREVIEWED = 64  # images at most
# Pixels that the shorter side of an image has at least: on a sheet, below a label, in an animation of its own.
SEEN, LABELLED, WATCHED = 32, 48, 128


@dataclass(frozen=True)
class Destination:
    """Where images go, and whether they are shown on the way.

    Args:
        path: a file whose suffix says what it becomes, a folder, or - for stdout.
    """

    path: Path
    force: bool = False
    preview: bool = False

    @property
    def is_stdout(self) -> bool:
        """Whether it is stdout."""
        return self.path == STDIO

    @property
    def is_folder(self) -> bool:
        """Whether a file is written for each image."""
        return not self.is_stdout and (self.path.is_dir() or not self.path.suffix)

    @property
    def suffix(self) -> str:
        """Of the file; stdout gets PNG."""
        return ".png" if self.is_stdout else self.path.suffix.lower()


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
    """A step of the chains of the images at ``places``: they are now at t; x_t is (B, C, H, W).

    x_0_hat is too; None for what another process has made.
    """

    places: range
    t: int
    x_t: torch.Tensor
    x_0_hat: torch.Tensor | None


def check_destination(to: Destination) -> None:
    """Refuse, before anything is done, a file that cannot be written.

    Raises:
        ArgumentError: it exists already, or has a suffix that means nothing.
        DiskError: the disk refuses.
    """
    output = to.path
    if to.is_stdout:
        refuse_terminal()
    elif not output.suffix and output.is_file():
        raise ArgumentError(f"{printable(output)} is a file without a suffix; name a .png, or a folder")
    elif to.is_folder:
        check_output(output / ".ddpm" if output.exists() else output, force=True)
    elif to.suffix not in (".png", ".npy", ".npz", *ANIMATIONS):
        names = ", ".join([".png", ".npy", ".npz", *ANIMATIONS])
        raise ArgumentError(f"-o {printable(output)}: use {names}, a folder, or - for stdout")
    else:
        check_output(output, force=to.force)


def check_files(to: Destination, pictures: Pictures) -> None:
    """Refuse, before the work, to overwrite files of a folder, unless that is wanted.

    Raises:
        ArgumentError: there is such a file.
    """
    if not to.is_folder or to.force or not to.path.exists():
        return
    for place in range(pictures.n):
        if (file := _file(to.path, pictures, place)).exists():
            raise ArgumentError(f"{printable(file)} exists already; name another folder, or use --force")


def check_sheet(to: Destination, pictures: Pictures, shape: tuple[int, int, int], at_least: int = SEEN) -> None:
    """Refuse, before the work, a sheet of images (C, H, W) that is larger than programs show, this one included.

    Raises:
        ArgumentError: it would be.
    """
    if to.is_folder or to.suffix in (".npy", ".npz"):
        return
    _, H, W = shape
    scale = pictures.scale or sheet_scale((H, W), at_least)
    height, width = (count * (side * scale + 2) for count, side in zip(pictures.grid, (H, W), strict=True))
    check_size(height, width, "make fewer images, use a smaller `scale`, or name a folder or a .npy")


def chains(model: Model, sampling: Sampling, batches: Iterable[Batch]) -> Iterator[BatchStep]:
    """All chains, one batch after the other."""
    for batch in batches:
        for step in model.chain(sampling, batch.indices, batch.start):
            yield BatchStep(batch.places, step.t, step.x_t, step.x_0_hat)


def watched(
    steps: Iterator[BatchStep], total: int, label: str, screen: Screen, *, preview: bool
) -> Iterator[BatchStep]:
    """Pass steps on under a progress bar, and their images above it if they are to be seen."""
    return screen.progress(steps, total, label, picture=_seen if preview else None)


def shown_steps(to: Destination, chain: list[int]) -> list[int]:
    """The t, descending to 0, at which the images of chains are written: their ends, or many for an animation.

    Args:
        chain: the steps of the chain, ascending.
    """
    return chain_frames([0, *chain[:-1]]) if to.suffix in ANIMATIONS and not to.is_folder else [0]


def write_pictures(
    to: Destination, pictures: Pictures, steps: Iterator[BatchStep], chain: list[int], screen: Screen
) -> Iterator[Path | bytes]:
    """Follow the steps to their ends, and write the images; yields each path written, or the bytes for stdout.

    Args:
        chain: the steps of the chain, ascending, of which an animation shows some.
    """
    if to.is_folder:
        ends = (Cells(step.places, pixels_of(step.x_t)) for step in steps if step.t == 0)
        yield from _write_files(to, pictures, ends, screen)
        return
    frames = _frames(steps, shown_steps(to, chain), to, screen)
    if to.preview:
        screen.picture(_sheet(frames[-1][:PREVIEWED]))
    if to.suffix in (".npy", ".npz"):
        yield from _write(to, _encode_array(frames[-1], to.suffix))
        return
    rows, columns = pictures.grid
    single = pictures.n == 1 and pictures.scale is None and to.suffix == ".png"
    scale = pictures.scale or sheet_scale(frames[0].shape[1:3], SEEN if pictures.n > 1 else WATCHED)
    sheets = [frame[0] if single else grid(frame, rows, columns, scale=scale) for frame in frames]
    yield from _write_sheets(to, sheets, pictures, screen)


@dataclass(frozen=True, eq=False)
class Cells:
    """Finished images, (n, H, W, C) uint8, and their places among all."""

    places: Sequence[int]
    images: Pixels


@dataclass(frozen=True, eq=False)
class Table:
    """What the rows and columns of `Pictures.grid` mean.

    Args:
        rows, columns: their labels; none for no labels.
        corner: what the labels are of.
        before, after: images that stand beside each row of a sheet.
    """

    rows: Sequence[str]
    columns: Sequence[str]
    corner: str = ""
    before: Pixels | None = None
    after: Pixels | None = None


def write_table(
    to: Destination, pictures: Pictures, cells: Iterable[Cells], table: Table, screen: Screen
) -> Iterator[Path | bytes]:
    """Write images as a sheet with labels, or an animation from column to column, or as `write_pictures` would."""
    if to.is_folder:
        yield from _write_files(to, pictures, cells, screen)
        return
    by_place = {place: image for part in cells for place, image in zip(part.places, part.images, strict=True)}
    flat = np.stack([by_place[place] for place in range(pictures.n)])
    rows, columns = pictures.grid
    if to.preview:
        screen.picture(grid(flat[: PREVIEWED * columns], min(rows, PREVIEWED), columns, gap=1))
    if to.suffix in (".npy", ".npz"):
        yield from _write(to, _encode_array(flat, to.suffix))
        return
    scale = pictures.scale or sheet_scale(flat.shape[1:3], LABELLED)
    images = flat.reshape(rows, columns, *flat.shape[1:])
    if to.suffix in ANIMATIONS:
        first = 0 if table.before is None else 1
        names = table.columns[first : first + columns]
        sheets = [
            _labelled(images[:, [i]], scale, table, columns=[name], room_for=names) for i, name in enumerate(names)
        ]
    else:
        beside = [
            np.repeat(image[None, None], rows, axis=0) for image in (table.before, table.after) if image is not None
        ]
        images = np.concatenate([*beside[:1], images, *beside[1:]], axis=1)
        sheets = [_labelled(images, scale, table, columns=table.columns)]
    yield from _write_sheets(to, sheets, pictures, screen)


def _labelled(
    images: Pixels, scale: int, table: Table, *, columns: Sequence[str], room_for: Sequence[str] = ()
) -> Pixels:
    """Images (rows, columns, H, W, C) on a sheet with the labels of the table's rows, and those of some columns."""
    rows, n, H, W, C = images.shape
    layout = Layout((rows, n), (H, W, C), scale, table.rows, columns, corner=table.corner, room_for=room_for)
    return draw(layout, images)


def _write_files(to: Destination, pictures: Pictures, cells: Iterable[Cells], screen: Screen) -> Iterator[Path]:
    """A file for each image as soon as it is finished, so that those stay when the work is interrupted."""
    with disk_errors(to.path):
        to.path.mkdir(exist_ok=True)
    part = None
    for part in cells:
        for place, image in zip(part.places, part.images, strict=True):
            file = _file(to.path, pictures, place)
            write_file(file, encode_png(to_image(image), pictures.text(place)))
            yield file
    if to.preview and part is not None:
        screen.picture(_sheet(part.images[:PREVIEWED]))


def _frames(steps: Iterator[BatchStep], shown: list[int], to: Destination, screen: Screen) -> list[Pixels]:
    """The images (n, H, W, C) at each t of ``shown``, which descend to 0; where a chain is there twice, the last."""
    frames: dict[int, dict[int, Pixels]] = {t: {} for t in shown}
    try:
        for step in steps:
            if step.t in frames:
                frames[step.t][step.places.start] = pixels_of(step.x_t)
    except BaseException:
        _rescue(list(frames[0].values()), to, screen)
        raise
    return [np.concatenate([parts[place] for place in sorted(parts)]) for parts in frames.values()]


def _rescue(finished: list[Pixels], to: Destination, screen: Screen) -> None:
    """Write what was finished when the work was broken off beside the file that would have been."""
    if not finished or to.is_stdout:
        return
    images = np.concatenate(finished)
    path = to.path.with_name(f"{to.path.stem}-unfinished.npy")
    write_file(path, encode_npy(images))
    screen.say(f"the {len(images):,} images that were finished are in {printable(path)}")


def _write_sheets(to: Destination, sheets: list[Pixels], pictures: Pictures, screen: Screen) -> Iterator[Path | bytes]:
    text = pictures.text(None)
    if loses_alpha(sheets[-1], to.suffix):
        screen.warn(GIF_ALPHA)
    yield from _write(
        to, encode_animation(sheets, to.suffix, text) if len(sheets) > 1 else encode(sheets[0], to.suffix, text)
    )


def _write(to: Destination, data: bytes) -> Iterator[Path | bytes]:
    if to.is_stdout:
        yield data
    else:
        write_file(to.path, data)
        yield to.path


def _encode_array(images: Pixels, suffix: str) -> bytes:
    """Images (n, H, W, C) as the bytes of a .npy, or of a .npz with the one array ``images``."""
    if suffix == ".npy":
        return encode_npy(images)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images)
    return buffer.getvalue()


def _seen(step: BatchStep) -> Pixels:
    return _sheet(pixels_of(step.x_t[:PREVIEWED]))


def _sheet(images: Pixels) -> Pixels:
    """Images side by side for the terminal, about twice as wide as high."""
    columns = min(len(images), 2 * math.ceil(math.sqrt(len(images) / 2)))
    return grid(images, -(-len(images) // columns), columns, gap=1)


def _file(folder: Path, pictures: Pictures, place: int) -> Path:
    return folder / f"{pictures.name(place)}.png"
