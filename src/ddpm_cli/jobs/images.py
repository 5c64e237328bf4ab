"""Opening IMAGES on the screen: progress while they are looked at and packed, and an account of what was found."""

from __future__ import annotations

from pathlib import Path

from ..core.distributed import ALONE, TURNS, World
from ..core.files import printable
from ..core.pixels import COLOURS
from ..data import Images, Source, Survey, auto_channels, auto_size, discard_pack, find_source, former_pack, pack, scan
from ..data.packs.manifest import JOURNAL, MANIFEST
from ..errors import ArgumentError, InputError
from ..ui.console import Screen, plural, shown


def open_images(
    name: str,
    screen: Screen,
    *,
    size: tuple[int, int] | None,
    channels: int | None,
    limit: int,
    must_fit: str = "",
    wanted: str = "",
    world: World = ALONE,
) -> Images:
    """The images of a source, packed; says what was found, skipped and changed.

    Args:
        size: (height, width); None chooses, at most ``limit`` a side.
        channels: 1, 3 or 4; None chooses.
        must_fit: whose size and channels these are, "the model's": then images of others are refused, not changed.
        wanted: the digest of the images that a run began with: if the source has changed since, and they are still
            packed, it gets those.
        world: processes that all open them: one packs, and the others of a machine find the pack.
    """
    for turn in range(TURNS if world.size > 1 else 1):
        with world.together():
            if turn == world.turn:
                images = _opened(name, screen, size, channels, limit, must_fit, wanted)
    return images


def _opened(
    name: str,
    screen: Screen,
    size: tuple[int, int] | None,
    channels: int | None,
    limit: int,
    must_fit: str,
    wanted: str,
) -> Images:
    source = find_source(name)
    survey = shown(scan(source), screen)
    if must_fit and size and channels:
        _check_fit(name, survey, size, channels, must_fit)
    size, channels = size or auto_size(survey, limit), channels or auto_channels(survey)
    if wanted and (former := former_pack(source, size, channels, wanted)) is not None:
        screen.warn(
            f"{printable(name)} has changed since the run began: it goes on with the {plural(len(former), 'image')} of "
            "then; a new run (-o) would take those of now"
        )
        return former
    return _packed(name, source, survey, size, channels, screen)


def open_at_their_size(name: str, screen: Screen) -> Images:
    """The images of a source, packed as they are: at the one size that all of them have, in the channels that suit.

    Raises:
        InputError: they are of several sizes.
    """
    source = find_source(name)
    survey = shown(scan(source), screen)
    if not survey.same_size:
        raise InputError(
            f"{printable(name)}: the images are {_sizes(survey)}; they decide what the others are compared at, so they "
            "must be of one size"
        )
    return _packed(name, source, survey, (survey.height.low, survey.width.low), auto_channels(survey), screen)


def pack_into(
    folder: Path,
    name: str,
    screen: Screen,
    *,
    size: tuple[int, int] | None,
    channels: int | None,
    limit: int,
    force: bool,
) -> Images:
    """The images of a source, packed into a folder of the user's; other arguments as for `open_images`.

    Args:
        force: overwrite the pack that is there, but go on with a begun one of the same.
    """
    # With its journal, it is one that was finished a moment before a kill.
    if (folder / MANIFEST).exists() and not (folder / JOURNAL).exists() and not force:
        raise ArgumentError(f"{printable(folder)} exists already; name another folder, or --force to overwrite it")
    source = find_source(name)
    if source.path == folder.resolve():
        raise ArgumentError(f"{printable(folder)} is the folder of the images; name another for the pack")
    survey = shown(scan(source), screen)
    size, channels = size or auto_size(survey, limit), channels or auto_channels(survey)
    if force:
        discard_pack(folder, source, size, channels)
    images = shown(pack(source, survey, size, channels, folder=folder), screen)
    _tell(name, survey, images, screen)
    return images


def _packed(name: str, source: Source, survey: Survey, size: tuple[int, int], channels: int, screen: Screen) -> Images:
    if (former := former_pack(source, size, channels)) is not None:
        # How many of those of now can be read, packing will tell.
        then = plural(len(former), "image")
        screen.warn(f"{printable(name)} has changed since it was packed ({then} then); it is packed again")
    images = shown(pack(source, survey, size, channels), screen)
    _tell(name, survey, images, screen)
    return images


def _tell(name: str, survey: Survey, images: Images, screen: Screen) -> None:
    screen.say(_account(name, survey, len(images)))
    for skip in images.skipped:
        screen.warn(str(skip))
    for note, count in images.notes:
        screen.say(f"{count:,} of the images: {note}")


def _check_fit(name: str, survey: Survey, size: tuple[int, int], channels: int, whose: str) -> None:
    has_size = survey.same_size and (survey.height.low, survey.width.low) == size
    if has_size and auto_channels(survey) == channels:
        return
    raise InputError(
        f"{printable(name)}: the images are {_sizes(survey)}, {COLOURS[auto_channels(survey)]}, and {whose} "
        f"{size[0]}x{size[1]}, {COLOURS[channels]}; --resize scales, crops and converts them, which changes the result"
    )


def _sizes(survey: Survey) -> str:
    height, width = survey.height, survey.width
    smallest = f"{height.low}x{width.low}"
    return smallest if survey.same_size else f"{smallest} to {height.high}x{width.high}"


def _account(name: str, survey: Survey, usable: int) -> str:
    kinds = [f"{survey.grey:,} grey" if survey.grey else "", f"{survey.colour:,} colour" if survey.colour else ""]
    if survey.packed:
        kinds = [f"{COLOURS[auto_channels(survey)]}, packed"]
    elif survey.transparent:
        kinds.append(f"{survey.transparent:,} transparent")
    ignored = sum(count for _, count in survey.ignored)
    others = f"; {plural(ignored, 'other file')} ignored" if ignored else ""
    # A look at the headers does not show damaged pixels; packing does, and then nobody knows which they were.
    known = f" ({', '.join(filter(None, kinds))})" if usable == survey.images else ""
    return f"{name}: {plural(usable, 'image')} of {_sizes(survey)}{known}{others}"
