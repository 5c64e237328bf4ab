"""``ddpm interpolate``: between two images, Figures 8 and 9."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..ui.results import put_results
from .options import Command, IntList, PathType, chain_options, picture_options, resize_option, seed_option

EPILOG = """\b
Examples:
  ddpm interpolate a.png b.png                     nine images at t = T/2 (Figure 8)
  ddpm interpolate a.png b.png --t 0,125,250,500,750,1000 -o sheet.png    (Figure 9)
  ddpm interpolate a.png b.png --steps 30 -o morph.gif
"""


@click.command("interpolate", cls=Command, epilog=EPILOG)
@click.argument("a", metavar="A", type=PathType(dash=True))
@click.argument("b", metavar="B", type=PathType(dash=True))
@click.option(
    "--t",
    "times",
    envvar="DDPM_INTERPOLATE_T",
    type=IntList(),
    help="Step t, or several, to which both images are noised.  [default: T/2]",
)
@click.option(
    "--steps",
    "lambdas",
    envvar="DDPM_INTERPOLATE_STEPS",
    type=click.IntRange(2),
    default=9,
    show_default=True,
    help="Number of images, from lambda = 0 to lambda = 1.",
)
@resize_option
@chain_options
@seed_option
@picture_options(
    "interpolation.png", "Output: a sheet, an animation from A to B (.gif, .webp, .apng), .npy, a folder, or -."
)
def command(
    a: Path,
    b: Path,
    times: tuple[int, ...] | None,
    lambdas: int,
    resize: bool,
    **common: Any,
) -> None:
    """Interpolate between images A and B: noise both to step t, mix, and denoise (section 4.4).

    x_t = (1 - lambda) x_t(A) + lambda x_t(B), with the same noise for both and for every lambda. The larger t, the more
    is generated; t = 0 mixes the pixels. Several t make a sheet with one row each.
    """
    from ..jobs.interpolate import Interpolate, interpolate
    from ..jobs.making import Making

    options = Interpolate(times, lambdas, resize)
    put_results(interpolate(a, b, options, Making.of(common)))
