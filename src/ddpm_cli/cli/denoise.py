"""``ddpm denoise``: the reverse chain from an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..ui.results import put_results
from .options import Command, PathType, list_options, picture_options, resize_option, sampler_options, seed_option

EPILOG = """\b
Examples:
  ddpm denoise x.npy --t 400 -o clean.png            run the chain from x_400
  ddpm denoise digit.png --strength 0.5              SDEdit: noise it halfway, then denoise it
  ddpm denoise digit.png --strength 0.3 --variations 16 -o similar.png
  ddpm denoise ./digits --strength 0.4 -o new/       each image of a folder
  ddpm noise digit.png --t 400 --format npy -o - | ddpm denoise - --t 400 -o -
"""


@click.command("denoise", cls=Command, epilog=EPILOG)
@click.argument("images", metavar="IMG...", type=PathType(dash=True), nargs=-1)
@click.option(
    "--t", type=click.IntRange(1), help="Treat IMG as x_t at this step; no noise is added. Give this or --strength."
)
@click.option(
    "--strength",
    type=float,
    help="SDEdit: treat IMG as clean, and first noise it to this fraction of T, above 0 and up to 1.",
)
@click.option(
    "--variations",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Results per image, each with its own noise.",
)
@resize_option
@sampler_options
@list_options
@seed_option
@picture_options("denoised.png", "Output: a sheet, a folder, an animation or an array, as for ddpm sample.")
def command(
    images: tuple[Path, ...],
    t: int | None,
    strength: float | None,
    variations: int,
    resize: bool,
    files_from: Path | None,
    null: bool,
    **common: Any,
) -> None:
    """Denoise IMG: run the reverse process from step t down to an image, x_0 ~ p_theta(x_0|x_t).

    With --t, IMG is x_t: exact as a .npy of ddpm noise, rounded as a picture. With --strength, IMG is clean and is
    noised first (Eq. 4), which makes variations of it (SDEdit). IMG may be a folder, a pattern, or - for stdin.
    """
    from ..jobs.denoise import Denoise, denoise
    from ..jobs.inputs import listed
    from ..jobs.making import Making

    options = Denoise(t, strength, variations, resize)
    paths = listed(images, files_from, null, arrays=True)
    put_results(denoise(paths, options, Making.of(common)))
