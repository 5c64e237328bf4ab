"""``ddpm inpaint``: fill in part of an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..ui.results import put_results
from .options import Command, PathType, picture_options, resize_option, seed_option, spacing_options

EPILOG = """\b
Examples:
  ddpm inpaint digit.png mask.png                  fill in the white pixels of the mask
  ddpm inpaint digit.png mask.png -n 16 -o sheet.png
  ddpm inpaint photo.jpg mask.png --resize -o chain.gif
"""


@click.command("inpaint", cls=Command, epilog=EPILOG)
@click.argument("image", metavar="IMG", type=PathType(dash=True))
@click.argument("mask", metavar="MASK", type=PathType(dash=True))
@click.option("-n", "n", type=click.IntRange(1, 10_000), default=1, show_default=True, help="Number of results.")
@click.option(
    "--rounds",
    type=click.IntRange(1, 100),
    default=10,
    show_default=True,
    help="RePaint's resampling rounds; more take longer and fit the new part better to the old.",
)
@resize_option
@click.option("--steps", type=click.IntRange(1), help="Steps of the reverse chain.  [default: 250]")
@spacing_options
@seed_option
@picture_options("inpainted.png", "Output: a sheet, a folder, an animation or an array, as for ddpm sample.")
def command(
    image: Path,
    mask: Path,
    n: int,
    rounds: int,
    resize: bool,
    **common: Any,
) -> None:
    """Fill in the pixels of IMG where MASK is white; the others stay as they are.

    This is RePaint (Lugmayr et al. 2022), which needs no special model: at each step the known pixels are taken from
    the noised image, and each section of the chain is repeated --rounds times, so that both parts fit together.
    """
    from ..jobs.inpaint import Inpaint, inpaint
    from ..jobs.making import Making

    options = Inpaint(n, rounds, resize)
    put_results(inpaint(image, mask, options, Making.of(common)))
