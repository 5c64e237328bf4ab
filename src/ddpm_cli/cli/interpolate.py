"""``ddpm interpolate``: between two images, Figures 8 and 9."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import (
    Command,
    IntList,
    PathType,
    batch_size_option,
    chain_options,
    force_option,
    given,
    machine_options,
    model_option,
    preview_option,
    put_results,
    resize_option,
    seed_option,
    sheet_scale_option,
    verbosity_options,
)

EPILOG = """\b
Examples:
  ddpm interpolate a.png b.png                     nine images at t = T/2 (Figure 8)
  ddpm interpolate a.png b.png --t 0,125,250,500,750,1000 -o sheet.png    (Figure 9)
  ddpm interpolate a.png b.png --steps 30 -o morph.gif
"""


@click.command("interpolate", cls=Command, epilog=EPILOG)
@model_option
@click.argument("a", metavar="A", type=PathType(dash=True))
@click.argument("b", metavar="B", type=PathType(dash=True))
@click.option("--t", "times", envvar="DDPM_INTERPOLATE_T", type=IntList(), help="Step(s) to noise to.  [default: T/2]")
@click.option(
    "--steps",
    "lambdas",
    envvar="DDPM_INTERPOLATE_STEPS",
    type=click.IntRange(2),
    default=9,
    show_default=True,
    help="Images from lambda = 0 to 1.",
)
@resize_option
@click.option(
    "-o",
    "--output",
    type=PathType(dash=True),
    default="interpolation.png",
    show_default=True,
    help="A sheet, an animation from A to B (.gif, .webp, .apng), .npy, a folder, or -.",
)
@sheet_scale_option
@batch_size_option
@chain_options
@seed_option
@machine_options
@preview_option
@force_option
@verbosity_options
def command(
    a: Path,
    b: Path,
    times: tuple[int, ...] | None,
    lambdas: int,
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
    """Interpolate the images A and B: noise both to step t, mix them, and run the reverse chain (section 4.4).

    x_t = (1 - lambda) x_t(A) + lambda x_t(B), with one noise for both and for all lambda. The larger t, the more is
    made anew; t = 0 mixes the pixels. Several t make a sheet with a row for each.
    """
    from ..sampling import Sampling
    from ..ui.console import Screen, log_to
    from .interpolating import Interpolate, interpolate
    from .making import Machine
    from .output import Destination

    sampling = Sampling(**given(settings))
    screen = Screen(verbosity)
    log_to(screen)
    options = Interpolate(times, lambdas, resize, scale)
    machine, to = Machine(model, device, precision, batch_size), Destination(output, force, preview)
    put_results(interpolate(a, b, options, sampling, machine, to, screen))
