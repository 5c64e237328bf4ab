"""Where images come from: one file a format, each with its entry in FORMATS."""

from __future__ import annotations

import stat
from contextlib import AbstractContextManager
from pathlib import Path

from ...core.files import printable
from ...errors import InputError
from .archives import TAR, ZIP
from .arrays import ARRAY
from .builtin import builtin
from .folder import FOLDER
from .packed import PACKED
from .source import ACCEPTED, Format, Opener, Source, is_image_name

# The first that matches reads it: a folder with a pack in it before any other, and folders before files.
FORMATS: tuple[Format, ...] = (PACKED, FOLDER, ZIP, TAR, ARRAY)


def find_source(name: str | Path) -> Source:
    """Find a source of images and list what it holds, without reading any image.

    Args:
        name: a folder, of images or of a pack, a .zip, .tar, .npy or .npz file, or ``builtin:digits``.

    Raises:
        InputError: there is no such thing, or it is of another kind, or has no images.
    """
    label = printable(name)
    if not str(name):
        raise InputError(f"the name of the images is empty. Accepted: {ACCEPTED}")
    try:
        path = builtin(str(name)) if str(name).startswith("builtin:") else Path(name).resolve()
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise InputError(f"there is no file or folder {label}. Accepted: {ACCEPTED}") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{label} cannot be opened: {error}") from error
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise InputError(f"{label} is neither a file nor a folder. Accepted: {ACCEPTED}")
    for each in FORMATS:
        if each.matches(path):
            return each.find(path, label)
    if is_image_name(path.name):
        raise InputError(f"{label} is one image; give the folder that it lies in, {printable(path.parent)}")
    raise InputError(f"{label} is a file of a kind that is not read. Accepted: {ACCEPTED}")


def opener(kind: str, path: str) -> AbstractContextManager[Opener]:
    """What opens the images of the chunks of a source of the format called ``kind``."""
    return next(each for each in FORMATS if each.name == kind).open(path)
