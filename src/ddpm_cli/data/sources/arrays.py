"""Images in one uint8 array of numpy's formats (.npy, .npz), read portion by portion. Nothing is ever unpickled."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ...core.files import printable
from ...core.pixels import MAX_SIDE, Pixels
from ...errors import InputError
from ..tally import Tally
from .archives import member_errors, open_zip
from .source import CHUNK_BYTES, CHUNK_IMAGES, Chunk, Format, Opener, Source, ends_with, naming, state_of_file

_NAMES = ("images", "arr_0")


@dataclass(frozen=True, eq=False)
class Array(Source):
    """An array of ``shape`` (N, H, W, C), as member number ``member`` of a .npz, or alone in a .npy (None)."""

    shape: tuple[int, int, int, int]
    member: int | None

    @property
    def kind(self) -> str:
        return "array"

    @property
    def uniform(self) -> tuple[int, int, int] | None:
        return None if self.shape[3] == 4 else self.shape[1:]

    def chunks(self, tally: Tally) -> Iterator[Chunk]:
        n, *row = self.shape
        step = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // math.prod(row)))
        stem = self.path.stem
        with naming(self.label), _opened(self.path, self.member) as file:
            _read_header(file)
            for first in range(0, n, step):
                last = min(first + step, n)
                blob = _read(file, (last - first) * math.prod(row))
                names = tuple(f"{stem}[{index}]" for index in range(first, last))
                yield Chunk(first, names, (row[0], row[1], row[2]), blob=blob, amount=last - first)


def find_array(path: Path, label: str) -> Array:
    """The images in a .npy, or in a .npz: the array ``images``, or ``arr_0``, or the only one that may be images.

    Raises:
        InputError: no such array, or not uint8 (N, H, W), (N, H, W, 1), (N, H, W, 3) or (N, H, W, 4).
    """
    _, fingerprint = state_of_file(path)  # first, so that a change meanwhile makes it another state
    member = _choose(path, label) if path.suffix.lower() == ".npz" else None
    with naming(label), _opened(path, member) as file:
        shape, fortran, dtype = _read_header(file)
        stored = _stored_bytes(path, member) - file.tell()
    _check(label, shape, dtype, fortran)
    n, height, width, channels = (*shape, 1)[:4]
    nbytes = n * height * width * channels
    if stored < nbytes:  # before anything makes room for them
        raise InputError(f"{label} was cut: its header promises {nbytes:,} bytes of images, and {stored:,} are there")
    return Array(path, label, n, nbytes, fingerprint, Tally(), (n, height, width, channels), member)


def open_row(chunk: Chunk, index: int) -> Pixels:
    """One of the images (H, W, C) that travel with the chunk."""
    size = math.prod(chunk.keys)
    return np.frombuffer(chunk.blob, np.uint8, size, index * size).reshape(chunk.keys)


@contextlib.contextmanager
def open_rows(path: str) -> Iterator[Opener]:
    """What opens the images of chunks that hold the pixels, and whose keys are the shape of each."""
    yield lambda chunk, index: contextlib.nullcontext(open_row(chunk, index))


def _choose(path: Path, label: str) -> int:
    arrays: dict[str, tuple[int, str]] = {}
    with naming(label), open_zip(path) as archive:
        for position, info in enumerate(archive.infolist()):
            name = info.filename.removesuffix(".npy")
            with member_errors(), archive.open(info) as file:
                shape, _, dtype = _read_header(file)
            if name in _NAMES or len(shape) >= 3:
                arrays[name] = position, f"{printable(name)} {dtype} {shape}"
    for name in _NAMES:
        if name in arrays:
            return arrays[name][0]
    if len(arrays) == 1:
        return next(iter(arrays.values()))[0]
    found = f"several: {', '.join(text for _, text in arrays.values())}" if arrays else "none of 3 or 4 dimensions"
    raise InputError(f"{label} must hold one array of images, and has {found}; save it again with images=...")


def _check(label: str, shape: tuple[int, ...], dtype: np.dtype[Any], fortran: bool) -> None:
    def refuse(advice: str) -> InputError:
        return InputError(f"{label} has an array {dtype} {shape}; images are uint8 (N, H, W, C). {advice}")

    if dtype.hasobject:
        raise refuse("Arrays of Python objects are not read; stack the images into one array and save that")
    if dtype.kind == "f":
        raise refuse("If they go from 0 to 1, save (images * 255).round().astype('uint8')")
    if dtype != np.uint8:
        raise refuse("Scale the values to 0..255 and save them as uint8")
    if len(shape) == 3 and shape[2] in (1, 3, 4):
        raise refuse("This is one image: save images[None] to have a data set of one")
    if len(shape) == 4 and shape[3] not in (1, 3, 4) and shape[1] in (1, 3, 4):
        raise refuse("The channels must come last: save images.transpose(0, 2, 3, 1).copy()")
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3, 4)):
        raise refuse("C is 1, 3 or 4, or left out")
    if fortran:
        raise refuse("It is stored column by column: save numpy.ascontiguousarray(images)")
    if min(shape) < 1 or max(shape[1:3]) > MAX_SIDE:
        raise refuse(f"There must be at least one, of 1 to {MAX_SIDE} pixels a side")


@contextlib.contextmanager
def _opened(path: Path, member: int | None) -> Iterator[IO[bytes]]:
    if member is not None:
        with open_zip(path) as archive, member_errors(), archive.open(archive.infolist()[member]) as file:
            yield file
        return
    try:
        plain = path.open("rb")
    except OSError as error:
        raise InputError(f"it cannot be opened: {error.strerror}") from error
    with plain:
        yield plain


def _stored_bytes(path: Path, member: int | None) -> int:
    if member is None:
        return path.stat().st_size
    with open_zip(path) as archive:
        return archive.infolist()[member].file_size


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """(shape, whether column by column, dtype) of an array, from its first bytes."""
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        return read(file)
    except KeyError as error:
        raise InputError("an array in a version of numpy's format that is not read; save it again") from error
    except ValueError as error:
        raise InputError(f"not an array in numpy's format, or a damaged one ({error})") from error


def _read(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise InputError("the array ends before its last image; the file was cut")
    return data


ARRAY = Format("array", ends_with(".npy", ".npz"), find_array, open_rows)
