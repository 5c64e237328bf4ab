"""``ddpm inpaint``: make a part of an image anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..ui.results import put_results
from .options import Command, PathType, picture_options, resize_option, seed_option, spacing_options

EPILOG = """\b
Examples:
  ddpm inpaint digit.png mask.png                  white pixels of the mask are made anew
  ddpm inpaint digit.png mask.png -n 16 -o sheet.png
  ddpm inpaint photo.jpg mask.png --resize -o chain.gif
"""


@click.command("inpaint", cls=Command, epilog=EPILOG)
@click.argument("image", metavar="IMG", type=PathType(dash=True))
@click.argument("mask", metavar="MASK", type=PathType(dash=True))
@click.option("-n", "n", type=click.IntRange(1, 10_000), default=1, show_default=True, help="How many results.")
@click.option("--rounds", type=click.IntRange(1, 100), default=10, show_default=True, help="Of resampling.")
@resize_option
@click.option("--steps", type=click.IntRange(1), help="Of the reverse chain.  [default: 250]")
@spacing_options
@seed_option
@picture_options("inpainted.png", "As of ddpm sample.")
def command(
    image: Path,
    mask: Path,
    n: int,
    rounds: int,
    resize: bool,
    **common: Any,
) -> None:
    """Make the pixels of IMG anew where MASK is white; the others come back as they are.

    RePaint (Lugmayr et al. 2022) with a model that was not trained for it: at each step the known pixels are noised
    from the image, and each stretch of the chain is gone down --rounds times, until both parts agree.
    """
    from ..jobs.inpaint import Inpaint, inpaint
    from ..jobs.making import Making

    options = Inpaint(n, rounds, resize)
    put_results(inpaint(image, mask, options, Making.of(common)))
