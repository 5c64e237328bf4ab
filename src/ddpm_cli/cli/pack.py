"""``ddpm pack``: pack images into a folder. Does not import torch."""

from __future__ import annotations

from pathlib import Path

import click

from ..core.signals import Interrupted
from ..ui.results import put, put_text
from .options import Command, NameType, PathType, SizeType, force_option, verbosity_options

EPILOG = """\b
Examples:
  ddpm pack ./images -o packed                        choose size and channels from the images
  ddpm pack photos.zip -o /shared/photos-64 --size 64
  ddpm pack /shared/photos-64 -o /local/photos-64     copy the pack to a node's own disk
  ddpm train packed                                   train on the pack
  ddpm pack ./images -o packed --size 32 --force      replace the pack
To resume after an interrupt, run the same command again.
"""

_LIMIT = 64


@click.command("pack", cls=Command, epilog=EPILOG)
@click.argument("images", metavar="IMAGES", type=NameType())
@click.option("-o", "--output", type=PathType(), required=True, help="Folder for the pack, new or empty.")
@click.option(
    "--size",
    type=SizeType(),
    help=f"Height x width of the images.  [default: from the images, {_LIMIT} a side at most]",
)
@click.option(
    "--channels",
    type=click.Choice(["1", "3", "4"]),
    help="Convert to grey (1), RGB (3) or RGBA (4).  [default: from the images]",
)
@click.option(
    "--json",
    "as_json",
    envvar="DDPM_PACK_JSON",
    is_flag=True,
    help="Print one JSON object on stdout instead of the path.",
)
@force_option
@verbosity_options
def command(
    images: str,
    output: Path,
    size: tuple[int, int] | None,
    channels: str | None,
    as_json: bool,
    force: bool,
    verbosity: int,
) -> None:
    """Pack IMAGES into a folder, as uint8 pixels of one size. Every command that takes IMAGES opens it at once.

    Other commands pack images, too, into your cache. A pack in a folder of its own can be copied, or shared by the
    machines of a cluster, and does not need the original files.
    """
    from ..jobs.images import pack_into
    from ..ui import console

    screen = console.open_screen(verbosity)
    fixed = int(channels) if channels else None
    try:
        packed = pack_into(output, images, screen, size=size, channels=fixed, limit=_LIMIT, force=force)
    except (Interrupted, KeyboardInterrupt):
        screen.say("run the same command again to resume")
        raise
    written = sum(file.stat().st_size for file in output.iterdir())
    about = {
        "path": str(output),
        "images": len(packed),
        "shape": packed.shape,
        "digest": packed.digest,
        "bytes": written,
    }
    put_text(console.as_json(about)) if as_json else put(output)
