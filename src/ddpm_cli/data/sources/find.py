"""From what the user names to a source of images, and from a source to what reads it."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO

from ...config import BUILTIN_DIGITS
from ...core.files import printable
from ...core.pixels import Pixels
from ...errors import InputError
from ..packs.manifest import is_pack
from .archives import Tar, find_zip, open_bytes, open_member, open_zip
from .arrays import find_array, open_row
from .folder import find_folder, open_file
from .packed import open_packed
from .source import ACCEPTED, Chunk, Source, Tally, is_image_name

# An image that is still encoded, or its pixels (H, W, C).
Item = IO[bytes] | Pixels
Opener = Callable[[Chunk, int], AbstractContextManager[Item]]

_TAR_NAMES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz")


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
        info = path.stat()
    except FileNotFoundError as error:
        raise InputError(f"there is no file or folder {label}. Accepted: {ACCEPTED}") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{label} cannot be opened: {error}") from error
    if stat.S_ISDIR(info.st_mode):
        return open_packed(path, label) if is_pack(path) else find_folder(path, label)
    if not stat.S_ISREG(info.st_mode):
        raise InputError(f"{label} is neither a file nor a folder. Accepted: {ACCEPTED}")
    fingerprint = f"{info.st_size}-{info.st_mtime_ns}"
    kind = path.name.lower()
    if kind.endswith(".zip"):
        return find_zip(path, label, info.st_size, fingerprint)
    if kind.endswith(_TAR_NAMES):
        return Tar(path, label, None, info.st_size, fingerprint, Tally())
    if kind.endswith((".npy", ".npz")):
        return find_array(path, label, fingerprint)
    if is_image_name(kind):
        raise InputError(f"{label} is one image; give the folder that it lies in, {printable(path.parent)}")
    raise InputError(f"{label} is a file of a kind that is not read. Accepted: {ACCEPTED}")


def builtin(name: str) -> Path:
    """The file of a data set that comes with the program."""
    if name != BUILTIN_DIGITS:
        raise InputError(f"there is no data set {printable(name)}; there is {BUILTIN_DIGITS}")
    return Path(__file__).parents[2] / "builtin" / "digits.npz"


@contextlib.contextmanager
def opener(kind: str, path: str) -> Iterator[Opener]:
    """What opens the images of a source's chunks, in whichever process: ``opener(chunk, index)``."""
    if kind == "folder":
        yield lambda chunk, index: open_file(path, chunk.names[index])
    elif kind == "zip":
        with open_zip(path) as archive:
            yield lambda chunk, index: open_member(archive, chunk.members[index])
    elif kind == "tar":
        yield lambda chunk, index: open_bytes(chunk, index)
    else:
        yield lambda chunk, index: nullcontext(open_row(chunk, index))
