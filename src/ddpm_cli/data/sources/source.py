"""What every source of images has in common: what counts as an image, portions of work, and an account of the rest."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from bisect import insort
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Self

from ...config import BUILTIN_DIGITS
from ...core.files import printable
from ...errors import InputError

EXTENSIONS = frozenset(
    (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff")
)
ACCEPTED = (
    "a folder, .zip or .tar (.gz, .bz2, .xz) of PNG, JPEG, WebP, GIF, BMP or TIFF images, a folder of ddpm pack, "
    f"a .npy or .npz of uint8 images (N, H, W) or (N, H, W, 1|3|4), or {BUILTIN_DIGITS}"
)

CHUNK_IMAGES = 64
CHUNK_BYTES = 2**20

_EXAMPLES = 3
_REASONS = 20


class UnreachableError(InputError):
    """An image could not be read for a reason that has nothing to do with it: it must not be left out for that."""


@dataclass(frozen=True)
class Skip:
    """Files that were left out for one reason: how many, and the first few with what is known of them."""

    reason: str
    count: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        others = self.count - len(self.examples)
        more = f" and {others:,} more" if others else ""
        return f"{self.count:,} skipped, {self.reason}: {', '.join(self.examples)}{more}"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `dataclasses.asdict` made."""
        return cls(str(data["reason"]), int(data["count"]), tuple(map(str, data["examples"])))


@dataclass
class Tally:
    """An account of the files that give no image; its size does not depend on how many there are."""

    ignored: Counter[str] = field(default_factory=Counter)
    _counts: Counter[str] = field(default_factory=Counter)
    _examples: dict[str, list[tuple[int, str]]] = field(default_factory=dict)

    def ignore(self, name: str) -> None:
        """Count a file that does not claim to be an image."""
        extension = PurePosixPath(name).suffix.lower()
        key = printable(extension)[:16] if len(self.ignored) < 100 or extension in self.ignored else "others"
        self.ignored[key or "no extension"] += 1

    def skip(self, name: str, problem: str, position: int = -1) -> None:
        """Count an image that cannot be used. Reasons are told apart by what ``problem`` says before its parenthesis.

        Args:
            position: where it stands among the images; the first ones are kept as examples.
        """
        reason, _, detail = problem.partition(" (")
        detail = detail.removesuffix(")")
        if reason not in self._counts and len(self._counts) >= _REASONS:
            reason, detail = "other reasons", problem
        self._counts[reason] += 1
        examples = self._examples.setdefault(reason, [])
        insort(examples, (position, printable(f"{name} ({detail})" if detail else name)))
        del examples[_EXAMPLES:]

    def skipped(self) -> tuple[Skip, ...]:
        """What was skipped, the most frequent reason first."""
        reasons = sorted(self._counts, key=lambda reason: (-self._counts[reason], reason))
        return tuple(Skip(r, self._counts[r], tuple(text for _, text in self._examples[r])) for r in reasons)

    def copy(self) -> Tally:
        """An account that goes on from here."""
        examples = {reason: list(kept) for reason, kept in self._examples.items()}
        return Tally(self.ignored.copy(), self._counts.copy(), examples)


@dataclass(frozen=True)
class Chunk:
    """Some neighbouring images of a source, the unit of work that a process gets.

    Args:
        first: position of the first among all images of the source.
        names: one for each image.
        members: positions of archive members, for an archive with random access.
        sizes: bytes of each image in ``blob``, for an archive without.
        shape: (H, W, C) of each image in ``blob``, for an array.
        blob: the content of the images, one after the other, where the reader cannot fetch it itself.
        amount: how much of `Source.extent` this is.
    """

    first: int
    names: tuple[str, ...]
    members: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    shape: tuple[int, int, int] | None = None
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
        """How a reader opens it: ``folder``, ``zip``, ``tar``, ``array`` or ``pack``."""

    @abstractmethod
    def chunks(self, tally: Tally) -> Iterator[Chunk]:
        """All images in order, portion by portion; what gives no image is counted in ``tally``."""

    @property
    def extent(self) -> int:
        """What the amounts of all chunks add up to: images, or bytes where the number of images is not known."""
        return self.nbytes if self.count is None else self.count


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
