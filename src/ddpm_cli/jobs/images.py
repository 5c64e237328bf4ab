"""Opening IMAGES on the screen: progress while they are looked at and packed, and an account of what was found."""

from __future__ import annotations

from pathlib import Path

from .. import data
from ..core.distributed import ALONE, TURNS, World
from ..core.files import printable
from ..core.pixels import COLOURS
from ..data import Images, Survey, auto_channels
from ..ui.console import Screen, plural, shown


def load_images(
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
    """The images of a source, as `data.open` has them; says what was found, skipped and changed.

    Args:
        world: processes that all open them: one packs, and the others of a machine find the pack.
    """
    for turn in range(TURNS if world.size > 1 else 1):
        with world.together():
            if turn == world.turn:
                opening = data.open(name, size, channels, limit=limit, must_fit=must_fit, wanted=wanted)
                images = _told(name, opening, screen)
    return images


def load_at_their_size(name: str, screen: Screen) -> Images:
    """The images of a source, packed as they are: at the one size that all of them have, in the channels that suit.

    Raises:
        InputError: they are of several sizes.
    """
    return _told(name, data.open(name, must_fit="what the others are compared at"), screen)


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
    """The images of a source, packed into a folder of the user's; arguments as for `data.open`."""
    return _told(name, data.open(name, size, channels, limit=limit, folder=folder, force=force), screen)


def _told(name: str, opening: data.Opening, screen: Screen) -> Images:
    """Do the work of opening on the screen, and say what is to be said of it."""
    while True:
        try:
            shown(next(opening), screen)
        except StopIteration as end:
            opened: data.Opened = end.value
            break
    then = plural(opened.former, "image")
    if opened.is_former:
        screen.warn(
            f"{printable(name)} has changed since the run began: it resumes with the {then} of then; "
            "a new run (-o) would take those of now"
        )
        return opened.images
    if opened.former:
        screen.warn(f"{printable(name)} has changed since it was packed ({then} then); it was packed again")
    screen.say(_account(name, opened.survey, len(opened.images)))
    for skip in opened.images.skipped:
        screen.warn(str(skip))
    for note, count in opened.images.notes:
        screen.say(f"{count:,} of the images: {note}")
    return opened.images


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
    return f"{name}: {plural(usable, 'image')} of {survey.sizes}{known}{others}"
