"""Opening IMAGES on the screen: progress while they are looked at and packed, and an account of what was found."""

from __future__ import annotations

from ..data import Images, Survey, auto_channels, auto_size, find_source, pack, scan
from ..errors import InputError
from ..files import printable
from ..pixels import COLOURS
from ..ui.console import Screen, plural, shown


def open_images(
    name: str,
    screen: Screen,
    *,
    size: tuple[int, int] | None,
    channels: int | None,
    limit: int,
    must_fit: bool = False,
) -> Images:
    """The images of a source, packed; says what was found, skipped and changed.

    Args:
        size: (height, width); None chooses, at most ``limit`` a side.
        channels: 1, 3 or 4; None chooses.
        must_fit: refuse images of another size or number of channels than is given, instead of changing them.
    """
    source = find_source(name)
    survey = shown(scan(source), screen)
    if must_fit and size and channels:
        _check_fit(name, survey, size, channels)
    images = shown(pack(source, survey, size or auto_size(survey, limit), channels or auto_channels(survey)), screen)
    screen.say(_account(name, survey, len(images)))
    for skip in images.skipped:
        screen.warn(str(skip))
    for note, count in images.notes:
        screen.say(f"{count:,} of the images: {note}")
    return images


def _check_fit(name: str, survey: Survey, size: tuple[int, int], channels: int) -> None:
    has_size = survey.same_size and (survey.height.low, survey.width.low) == size
    if has_size and auto_channels(survey) == channels:
        return
    raise InputError(
        f"{printable(name)}: the images are {_sizes(survey)}, {COLOURS[auto_channels(survey)]}, and the model's "
        f"{size[0]}x{size[1]}, {COLOURS[channels]}; --resize scales, crops and converts them, which changes the result"
    )


def _sizes(survey: Survey) -> str:
    height, width = survey.height, survey.width
    smallest = f"{height.low}x{width.low}"
    return smallest if survey.same_size else f"{smallest} to {height.high}x{width.high}"


def _account(name: str, survey: Survey, usable: int) -> str:
    kinds = [f"{survey.grey:,} grey" if survey.grey else "", f"{survey.colour:,} colour" if survey.colour else ""]
    if survey.transparent:
        kinds.append(f"{survey.transparent:,} transparent")
    ignored = sum(count for _, count in survey.ignored)
    others = f"; {plural(ignored, 'other file')} ignored" if ignored else ""
    # A look at the headers does not show damaged pixels; packing does, and then nobody knows which they were.
    known = f" ({', '.join(filter(None, kinds))})" if usable == survey.images else ""
    return f"{name}: {plural(usable, 'image')} of {_sizes(survey)}{known}{others}"
