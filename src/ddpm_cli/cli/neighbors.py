"""``ddpm neighbors``: the training images nearest to samples. Does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..ui.results import put, put_text
from .options import Command, NameType, PathType, force_option, seed_option, verbosity_options

EPILOG = """\b
Examples:
  ddpm neighbors samples.npz ./images                        neighbors.png, and a test for memorisation
  ddpm neighbors samples/ ./images --held-out ./held-out     test against held-out images
  ddpm neighbors samples/ ./images -n 8 -k 6 -o sheet.png    8 samples, 6 neighbours of each
  ddpm neighbors samples.npz ./images --csv neighbors.csv    the neighbours of all samples
"""


@click.command("neighbors", cls=Command, epilog=EPILOG)
@click.argument("samples", metavar="SAMPLES", type=NameType())
@click.argument("images", metavar="IMAGES", type=NameType())
@click.option(
    "--held-out",
    type=NameType(),
    metavar="IMAGES2",
    help="Held-out images: similar to IMAGES, but not used for training.",
)
@click.option("-n", "n", type=click.IntRange(1), default=16, show_default=True, help="Samples to show on the sheet.")
@click.option(
    "-k", "k", type=click.IntRange(1), default=4, show_default=True, help="Neighbours to show for each sample."
)
@click.option(
    "-o", "--output", type=PathType(), default="neighbors.png", show_default=True, help="Output: the sheet, a .png."
)
@click.option(
    "--scale",
    type=click.IntRange(1, 64),
    help="Enlarge each pixel of the sheet by this factor.  [default: tiles of at least 64 pixels]",
)
@click.option(
    "--csv", type=PathType(), metavar="FILE.csv", help="Write the neighbours of all samples with their distances."
)
@click.option("--resize", is_flag=True, help="Scale, crop and convert images to the size of SAMPLES, as train does.")
@click.option(
    "--json",
    "as_json",
    envvar="DDPM_NEIGHBORS_JSON",
    is_flag=True,
    help="Print one JSON object on stdout instead of the path.",
)
@seed_option
@force_option
@verbosity_options
def command(samples: str, images: str, output: Path, as_json: bool, verbosity: int, **options: Any) -> None:
    """Show SAMPLES beside their nearest training images, IMAGES, and test for memorisation.

    The distance is the RMSE of pixels on the scale 0..255. The first -n samples are shown; all of them are compared.
    The samples of a model that has memorised are nearer to IMAGES than --held-out images are, or, without those,
    than IMAGES are to each other.
    """
    from ..jobs.neighbors import NeighborOptions, find_neighbors
    from ..ui.console import open_screen

    screen = open_screen(verbosity)
    report = find_neighbors(samples, images, NeighborOptions(output=output, **options), screen)
    put_text(report.to_json()) if as_json else put(output)
