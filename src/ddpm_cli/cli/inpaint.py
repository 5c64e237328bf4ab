"""``ddpm inpaint``: make a part of an image anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import (
    Command,
    PathType,
    batch_size_option,
    force_option,
    given,
    machine_options,
    model_option,
    preview_option,
    put_results,
    resize_option,
    seed_option,
    sheet_scale_option,
    spacing_options,
    verbosity_options,
)

EPILOG = """\b
Examples:
  ddpm inpaint digit.png mask.png                  white pixels of the mask are made anew
  ddpm inpaint digit.png mask.png -n 16 -o sheet.png
  ddpm inpaint photo.jpg mask.png --resize -o chain.gif
"""


@click.command("inpaint", cls=Command, epilog=EPILOG)
@model_option
@click.argument("image", metavar="IMG", type=PathType(dash=True))
@click.argument("mask", metavar="MASK", type=PathType(dash=True))
@click.option("-n", "n", type=click.IntRange(1, 10_000), default=1, show_default=True, help="How many results.")
@click.option("--rounds", type=click.IntRange(1, 100), default=10, show_default=True, help="Of resampling.")
@resize_option
@click.option(
    "-o",
    "--output",
    type=PathType(dash=True),
    default="inpainted.png",
    show_default=True,
    help="As of ddpm sample.",
)
@sheet_scale_option
@batch_size_option
@click.option("--steps", type=click.IntRange(1), help="Of the reverse chain.  [default: 100]")
@spacing_options
@seed_option
@machine_options
@preview_option
@force_option
@verbosity_options
def command(
    image: Path,
    mask: Path,
    n: int,
    rounds: int,
    resize: bool,
    scale: int | None,
    output: Path,
    batch_size: int,
    preview: bool,
    force: bool,
    verbosity: int,
    model: str | None,
    device: str,
    precision: str,
    **settings: Any,
) -> None:
    """Make the pixels of IMG anew where MASK is white; the others come back as they are.

    RePaint (Lugmayr et al. 2022) with a model that was not trained for it: at each step the known pixels are noised
    from the image, and each stretch of the chain is gone down --rounds times, until both parts agree.
    """
    from ..sampling import Sampling
    from ..ui.console import Screen, log_to
    from .inpainting import Inpaint, inpaint
    from .making import Machine
    from .output import Destination

    sampling = Sampling(**given(settings))
    screen = Screen(verbosity)
    log_to(screen)
    options = Inpaint(n, rounds, resize, scale)
    machine, to = Machine(model, device, precision, batch_size), Destination(output, force, preview)
    put_results(inpaint(image, mask, options, sampling, machine, to, screen))
