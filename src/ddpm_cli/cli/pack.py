"""``ddpm pack``: images packed into a folder of the user's. Does not import torch."""

from __future__ import annotations

from pathlib import Path

import click

from ..core.signals import Interrupted
from ..ui.results import put, put_text
from .options import Command, NameType, PathType, SizeType, force_option, verbosity_options

EPILOG = """\b
Examples:
  ddpm pack ./images -o packed                        at the size and in the channels that suit
  ddpm pack photos.zip -o /shared/photos-64 --size 64
  ddpm pack /shared/photos-64 -o /local/photos-64     a copy on a node's own disk
  ddpm train packed                                   opens it at once
  ddpm pack ./images -o packed --size 32 --force      another one in its place
To resume after an interrupt, run the same command again.
"""

_LIMIT = 64


@click.command("pack", cls=Command, epilog=EPILOG)
@click.argument("images", metavar="IMAGES", type=NameType())
@click.option("-o", "--output", type=PathType(), required=True, help="The folder of the pack, new or empty.")
@click.option("--size", type=SizeType(), help=f"Height x width.  [default: from the images, {_LIMIT} a side at most]")
@click.option("--channels", type=click.Choice(["1", "3", "4"]), help="Grey, RGB, RGBA.  [default: from the images]")
@click.option(
    "--json", "as_json", envvar="DDPM_PACK_JSON", is_flag=True, help="One JSON object on stdout, not the path."
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
    """Pack IMAGES into a folder, as uint8 of one size, to be opened at once wherever IMAGES are asked for.

    Other commands pack images too, into a cache of the user's. A pack of its own can be copied, or shared by the
    machines of a cluster, and does without the files it was made of.
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
