"""From what the user names to images of one size: found, looked at, packed and opened, in one place."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.files import at_once, printable
from ..core.pixels import COLOURS
from ..core.progress import Stage
from ..errors import ArgumentError, InputError
from .packs.manifest import JOURNAL, MANIFEST
from .packs.reader import Images
from .packs.writer import discard_pack, former_pack, pack
from .sources import find_source
from .survey import Survey, auto_channels, auto_size, scan


@dataclass(frozen=True)
class Opened:
    """Images that were opened, and what is to be said of them.

    Args:
        images: of one size; what was left out of them and done to them they say themselves.
        survey: what the source holds now.
        former: how many images an earlier state of the source had when it was packed; 0 if it has not changed.
        is_former: whether ``images`` are those of the earlier state.
    """

    images: Images
    survey: Survey
    former: int = 0
    is_former: bool = False


# What is being done, stage by stage, to be shown or passed over; the result does what is left of them.
Opening = Generator[Stage[Any], None, Opened]


def open(  # noqa: A001
    name: str | Path,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    *,
    limit: int = 64,
    must_fit: str = "",
    wanted: str = "",
    folder: Path | None = None,
    force: bool = False,
) -> Opening:
    """All images of a source, uint8 at one size; packed the first time, opened at once from then on.

    Args:
        name: a folder, of images or of a pack, a .zip, .tar, .npy or .npz file, or ``builtin:digits``.
        size: (height, width); None takes what `auto_size` proposes, at most ``limit`` a side.
        channels: 1 grey, 3 RGB or 4 RGBA; None takes what `auto_channels` proposes.
        must_fit: whose size and channels these are, "the model's": images of others are refused, not changed. Without
            ``size``, the images must be of one size, whichever it is, and are opened at that.
        wanted: the digest of the images that a run began with. If the source has changed since, and they are still
            packed, these are opened.
        folder: that the pack is made in; None is one of the cache.
        force: overwrite the pack that is in ``folder``, but resume a begun one of the same.

    Raises:
        ArgumentError: ``folder`` holds something else.
        InputError: there are no images that can be read, or they do not fit.
        DiskError: the pack cannot be written.
    """
    # A whole pack with its journal was finished a moment before a kill.
    if folder and (folder / MANIFEST).exists() and not (folder / JOURNAL).exists() and not force:
        raise ArgumentError(f"{printable(folder)} exists already; name another folder, or use `force` to overwrite it")
    source = find_source(name)
    if folder and source.path == folder.resolve():
        raise ArgumentError(f"{printable(folder)} is the folder of the images; name another for the pack")
    looking = scan(source)
    yield looking
    survey = looking.result()
    if must_fit:
        _check_fit(source.label, survey, size, channels, must_fit)
        size = size or (survey.height.low, survey.width.low)
    size, channels = size or auto_size(survey, limit), channels or auto_channels(survey)
    if wanted and (former := former_pack(source, size, channels, wanted)) is not None:
        return Opened(former, survey, len(former), is_former=True)
    before = None if folder else former_pack(source, size, channels)
    if folder and force:
        discard_pack(folder, source, size, channels)
    packing = pack(source, survey, size, channels, folder=folder)
    yield packing
    return Opened(packing.result(), survey, len(before) if before else 0)


def open_images(
    name: str | Path, size: tuple[int, int] | None = None, channels: int | None = None, *, limit: int = 64
) -> Images:
    """All images of a source, uint8 at one size: the result of `open`, without a look at its progress.

    Args:
        name: a folder, of images or of a pack, a .zip, .tar, .npy or .npz file, or ``builtin:digits``.
        size: (height, width); None takes what `auto_size` proposes, at most ``limit`` a side.
        channels: 1 grey, 3 RGB or 4 RGBA; None takes what `auto_channels` proposes.

    Raises:
        InputError: there are no images that can be read.
        DiskError: the pack cannot be written.
    """
    return at_once(open(name, size, channels, limit=limit)).images


def _check_fit(label: str, survey: Survey, size: tuple[int, int] | None, channels: int | None, whose: str) -> None:
    if size is None:
        if not survey.same_size:
            raise InputError(
                f"{label}: the images are {survey.sizes}; they decide {whose}, so they must be of one size"
            )
        return
    has = auto_channels(survey)
    fits = survey.same_size and (survey.height.low, survey.width.low) == size
    if not fits or channels not in (None, has):
        wanted = f"{size[0]}x{size[1]}" + (f", {COLOURS[channels]}" if channels else "")
        raise InputError(
            f"{label}: the images are {survey.sizes}, {COLOURS[has]}, and {whose} {wanted}; "
            "`resize` scales, crops and converts them, which changes the result"
        )
