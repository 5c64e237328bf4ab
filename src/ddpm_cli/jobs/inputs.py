"""The images that a command is given: files, folders, patterns, lists of names, stdin. No torch."""

from __future__ import annotations

import contextlib
import glob
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.files import printable
from ..core.pixels import Raster, decode, decode_text
from ..errors import ArgumentError, InputError
from ..ui.results import STDIO

NPY = b"\x93NUMPY"


@dataclass(frozen=True)
class Input:
    """A file that was read.

    Args:
        path: where from; - is stdin.
        data: its bytes, at least one.
    """

    path: Path
    data: bytes

    @property
    def name(self) -> str:
        """Its name, for people."""
        return "stdin" if self.path == STDIO else printable(self.path)

    @property
    def stem(self) -> str:
        """What names of results begin with."""
        return "stdin" if self.path == STDIO else self.path.stem

    @property
    def is_array(self) -> bool:
        """Whether it is a .npy."""
        return self.data.startswith(NPY)

    def raster(self) -> Raster:
        """The image in it.

        Raises:
            InputError: it is none that can be read.
        """
        try:
            return decode(io.BytesIO(self.data))
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from error

    def settings(self, key: str) -> dict[str, Any]:
        """The settings that a command of this program has left in the text chunk ``key``; none if there are none."""
        with contextlib.suppress(InputError, ValueError):
            settings = json.loads(decode_text(io.BytesIO(self.data)).get(key, "{}"))
            return settings if isinstance(settings, dict) else {}
        return {}

    def latents(self) -> npt.NDArray[np.float32]:
        """The x_t in a .npy, as ``ddpm noise`` writes it: float32 (N, H, W, C), each number finite.

        Raises:
            InputError: it holds something else.
        """
        try:
            array = np.load(io.BytesIO(self.data), allow_pickle=False)
        except (ValueError, EOFError, OSError, MemoryError) as error:
            raise InputError(f"{self.name} is a .npy that is damaged, or holds no plain numbers") from error
        if array.ndim == 2:
            array = array[:, :, None]
        if not (np.issubdtype(array.dtype, np.floating) and array.ndim in (3, 4) and array.size):
            raise InputError(
                f"{self.name} holds {array.dtype} {array.shape}; an x_t is of floating point, (H, W, C) or "
                "(N, H, W, C), as ddpm noise -o x.npy writes it"
            )
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise InputError(f"{self.name} holds numbers that are not finite")
        latents: npt.NDArray[np.float32] = array if array.ndim == 4 else array[None]
        return latents


def listed(given: Iterable[Path], files_from: Path | None, null: bool, *, arrays: bool = False) -> list[Path]:
    """The files that a user means: each that is named, the images in a folder, what matches a pattern, a list.

    Args:
        null: whether the names in the list end in NUL.
        arrays: whether the .npy files of a folder are meant too.

    Raises:
        ArgumentError: none is named, or stdin is named twice.
        InputError: there is no such file or folder, or no image in it.
    """
    names = list(given)
    if null and files_from is None:
        raise ArgumentError("-0 says how the names of --files-from end; give that too")
    if [*names, files_from].count(STDIO) > 1:
        raise ArgumentError("stdin (-) is named twice; it can be read once")
    if files_from is not None:
        text = sys.stdin.buffer.read() if files_from == STDIO else read(files_from).data
        parts = text.split(b"\0" if null else b"\n")
        lines = parts if null else [part.removesuffix(b"\r") for part in parts]
        names += [Path(os.fsdecode(line)) for line in lines if line]
    if not names:
        raise ArgumentError("no image is named; give some, a folder, or --files-from")
    return [path for name in names for path in _expanded(name, (".npy",) if arrays else ())]


def read(path: Path) -> Input:
    """A file, or stdin for -.

    Raises:
        InputError: it is not there, cannot be read, or is empty.
    """
    name = "stdin" if path == STDIO else printable(path)
    if path != STDIO and not path.is_file():
        if path.is_dir():
            raise InputError(f"{name} is a folder; give an image")
        if path.exists():
            raise InputError(f"{name} is neither a file nor a folder; give - to read stdin")
        raise InputError(f"there is no file {name}")
    data = sys.stdin.buffer.read() if path == STDIO else path.read_bytes()
    if not data:
        raise InputError(f"{name} is empty; give an image")
    return Input(path, data)


def _expanded(name: Path, besides: tuple[str, ...]) -> list[Path]:
    if name.is_dir():
        from ..data.sources.source import is_image_name

        files = sorted(path for path in name.rglob("*") if path.is_file())
        found = [path for path in files if is_image_name(str(path.relative_to(name))) or path.suffix in besides]
        if not found:
            raise InputError(f"there is no image in {printable(name)}")
        return found
    if not name.exists() and any(sign in str(name) for sign in "*?"):
        found = sorted(map(Path, glob.glob(str(name))))  # noqa: PTH207, a pattern may have a root
        if not found:
            raise InputError(f"nothing matches {printable(name)}")
        return found
    return [name]


def refuse_doubles(names: Iterable[str]) -> None:
    """Refuse names of files of which two are the same.

    Raises:
        ArgumentError: names the first.
    """
    if doubles := [name for name, count in Counter(names).items() if count > 1]:
        raise ArgumentError(f"several images would become {doubles[0]}; give them in several calls")
