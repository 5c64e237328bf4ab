"""What every format has in common: how it is found and opened, what counts as an image, and portions of work."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from ...config import BUILTIN_DIGITS
from ...core.pixels import Pixels
from ...errors import InputError
from ..tally import Tally

if TYPE_CHECKING:
    from ..packs.reader import Images

EXTENSIONS = frozenset(
    (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff")
)
ACCEPTED = (
    "a folder, .zip or .tar (.gz, .bz2, .xz) of PNG, JPEG, WebP, GIF, BMP or TIFF images, a folder of ddpm pack, "
    f"a .npy or .npz of uint8 images (N, H, W) or (N, H, W, 1|3|4), or {BUILTIN_DIGITS}"
)

CHUNK_IMAGES = 64
CHUNK_BYTES = 2**20

# An image that is still encoded, or its pixels (H, W, C).
Item = IO[bytes] | Pixels


class UnreachableError(InputError):
    """An image could not be read for a reason that has nothing to do with it: it must not be left out for that."""


@dataclass(frozen=True)
class Chunk:
    """Some neighbouring images of a source, the unit of work that a process gets.

    Args:
        first: position of the first among all images of the source.
        names: one for each image.
        keys: whole numbers by which the format's reader finds the images; what they mean is the format's affair.
        blob: the content of the images, one after the other, where the reader cannot fetch it itself.
        amount: how much of `Source.extent` this is.
    """

    first: int
    names: tuple[str, ...]
    keys: tuple[int, ...] = ()
    blob: bytes = b""
    amount: int = 0


@dataclass(frozen=True, eq=False)
class Source(ABC):
    """A place that images come from, listed but not read.

    Args:
        path: where it is, absolute.
        label: its name as the user gave it, printable.
        count: how many images it may hold; None where only reading it tells.
        nbytes: their size in the files.
        fingerprint: a hash of what can be seen without reading: names, sizes and times of change.
        tally: the files that give no image, as far as the listing tells.
    """

    path: Path
    label: str
    count: int | None
    nbytes: int
    fingerprint: str
    tally: Tally

    @property
    @abstractmethod
    def kind(self) -> str:
        """The name of its `Format`."""

    @property
    def pack(self) -> Images | None:
        """The images, if they are packed already."""
        return None

    @property
    def uniform(self) -> tuple[int, int, int] | None:
        """(height, width, channels) if all images have these and are opaque; None if only a look at each tells."""
        return None

    @abstractmethod
    def chunks(self, tally: Tally) -> Iterator[Chunk]:
        """All images in order, portion by portion; what gives no image is counted in ``tally``."""

    @property
    def extent(self) -> int:
        """What the amounts of all chunks add up to: images, or bytes where the number of images is not known."""
        return self.nbytes if self.count is None else self.count


Opener = Callable[[Chunk, int], AbstractContextManager[Item]]


@dataclass(frozen=True)
class Format:
    """A way in which sets of images are stored.

    Args:
        name: as `Source.kind` has it.
        matches: whether a file or folder that exists is of this format; the first of FORMATS that says so reads it.
        find: lists the images of a path whose label, for messages, is the second argument; reads no pixels.
        open: what opens the images of a source's chunks, in whichever process: ``opener(chunk, index)``.
    """

    name: str
    matches: Callable[[Path], bool]
    find: Callable[[Path, str], Source]
    open: Callable[[str], AbstractContextManager[Opener]]


def ends_with(*endings: str) -> Callable[[Path], bool]:
    """A `Format.matches` by the end of a file's name, in capitals or not."""
    return lambda path: path.name.lower().endswith(endings)


def state_of_file(path: Path) -> tuple[int, str]:
    """The size of a file, and a fingerprint of its present state."""
    info = path.stat()
    return info.st_size, f"{info.st_size}-{info.st_mtime_ns}"


def is_image_name(name: str) -> bool:
    """Whether a file claims to be an image. What macOS adds to archives (``._x.png``, ``__MACOSX/``) does not count."""
    path = PurePosixPath(name)
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith("._") and "__MACOSX" not in path.parts


@contextlib.contextmanager
def naming(label: str) -> Iterator[None]:
    """Put the name of the source in front of what is wrong with it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{label}: {error}") from error


def no_images(label: str, tally: Tally) -> InputError:
    """The error for a source without a single usable image: what was found in it, and what is accepted."""
    skipped = tally.skipped()
    files = tally.ignored.total()
    if not skipped and not files:
        found = "it is empty"
    elif not skipped:
        kinds = ", ".join(f"{extension} {count}" for extension, count in tally.ignored.most_common(8))
        found = f"{files} file{'s' * (files > 1)}, none an image ({kinds})"
    else:
        found = "; ".join(map(str, skipped))
    return InputError(f"no images in {label}: {found}. Accepted: {ACCEPTED}")
