"""Opening IMAGES on the screen: progress while they are looked at and packed, and an account of what was found."""

from __future__ import annotations

from ..data import Images, Survey, auto_channels, auto_size, find_source, pack, scan
from ..ui.console import Screen, plural, shown


def open_images(name: str, screen: Screen, *, size: tuple[int, int] | None, channels: int | None, limit: int) -> Images:
    """The images of a source, packed; says what was found, skipped and changed.

    Args:
        size: (height, width); None chooses, at most ``limit`` a side.
        channels: 1, 3 or 4; None chooses.
    """
    source = find_source(name)
    survey = shown(scan(source), screen)
    images = shown(pack(source, survey, size or auto_size(survey, limit), channels or auto_channels(survey)), screen)
    screen.say(_account(name, survey, len(images)))
    for skip in images.skipped:
        screen.warn(str(skip))
    for note, count in images.notes:
        screen.say(f"{count:,} of the images: {note}")
    return images


def _account(name: str, survey: Survey, usable: int) -> str:
    height, width = survey.height, survey.width
    sizes = (
        f"{height.low}x{width.low}" if survey.same_size else f"{height.low}x{width.low} to {height.high}x{width.high}"
    )
    kinds = [f"{survey.grey:,} grey" if survey.grey else "", f"{survey.colour:,} colour" if survey.colour else ""]
    if survey.transparent:
        kinds.append(f"{survey.transparent:,} transparent")
    ignored = sum(count for _, count in survey.ignored)
    others = f"; {plural(ignored, 'other file')} ignored" if ignored else ""
    # A look at the headers does not show damaged pixels; packing does, and then nobody knows which they were.
    known = f" ({', '.join(filter(None, kinds))})" if usable == survey.images else ""
    return f"{name}: {plural(usable, 'image')} of {sizes}{known}{others}"
