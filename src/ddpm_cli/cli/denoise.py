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
  ddpm denoise digit.png --strength 0.5              noise it halfway, and come back
  ddpm denoise digit.png --strength 0.3 --variations 16 -o similar.png
  ddpm denoise ./digits --strength 0.4 -o new/       each image of a folder
  ddpm noise digit.png --t 400 --format npy -o - | ddpm denoise - --t 400 -o -
"""


@click.command("denoise", cls=Command, epilog=EPILOG)
@click.argument("images", metavar="IMG...", type=PathType(dash=True), nargs=-1)
@click.option("--t", type=click.IntRange(1), help="The image is x_t of this step.")
@click.option("--strength", type=float, help="The image is clean: noise it first, up to this share of T.")
@click.option("--variations", type=click.IntRange(1), default=1, show_default=True, help="How many of each image.")
@resize_option
@sampler_options
@list_options
@seed_option
@picture_options("denoised.png", "As of ddpm sample.")
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
    """Run the reverse chain from IMG at step t down to an image: x_0 ~ p_theta(x_0|x_t).

    With --t the image is taken for x_t: a .npy of ddpm noise, which is exact, or a picture, which is not quite. With
    --strength it is clean, and noised first (Eq. 4). IMG may be a folder, a pattern, or - for stdin.
    """
    from ..jobs.denoise import Denoise, denoise
    from ..jobs.inputs import listed
    from ..jobs.making import Making

    options = Denoise(t, strength, variations, resize)
    paths = listed(images, files_from, null, arrays=True)
    put_results(denoise(paths, options, Making.of(common)))
