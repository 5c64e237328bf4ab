"""``ddpm sample``: the reverse process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..ui.results import put_results
from .options import Command, GridType, PathType, peer_option, picture_options, sampler_options

EPILOG = """\b
Examples:
  ddpm sample -n 64 -o grid.png                        one sheet
  ddpm sample -n 1000 -o samples/                      a file for each image
  ddpm sample --sampler dpm++ -o quick.png             50 times faster
  ddpm sample -n 16 -o chain.gif                       watch the reverse process
  ddpm sample -n 5000 -o samples.npz                   raw uint8 (N, H, W, C)
  ddpm sample --like grid.png -o again.png             the same images again
"""


@click.command("sample", cls=Command, epilog=EPILOG)
@click.option("-n", "n", type=click.IntRange(1, 10_000_000), help="Number of images.  [default: 16]")
@click.option("--seed", type=click.IntRange(0), help="Random seed: image i of a seed is always the same.  [default: 0]")
@sampler_options
@click.option(
    "--grid",
    "cells",
    envvar="DDPM_SAMPLE_GRID",
    type=GridType(),
    help="Rows x columns of the sheet.  [default: nearly square]",
)
@click.option("--like", type=PathType(), help="Take all settings that you do not give from this PNG.")
@picture_options(
    "grid.png",
    "Output: a .png (one sheet), a folder (one file per image), .npy or .npz (raw), .gif, .webp or .apng (the "
    "chain), or - (PNG on stdout).",
)
@peer_option
def command(
    output: Path,
    like: Path | None,
    cells: tuple[int, int] | None,
    batch_size: int,
    device: str,
    peer_timeout: float,
    precision: str,
    preview: bool,
    force: bool,
    verbosity: int,
    **options: Any,
) -> None:
    """Sample images from a model: Algorithm 2 over all T steps, or a faster sampler over fewer.

    Image i of a seed does not depend on how many images are made or, up to rounding in bf16, on the batch size. PNGs
    carry their settings; --like reads them to make the same images again.
    """
    from ..jobs.output import Destination
    from ..jobs.sample import sample
    from ..sampling.metadata import Recipe
    from ..ui.console import open_screen

    screen = open_screen(verbosity)
    options["rows"], options["columns"] = cells or (None, None)
    options["precision"] = None if precision == "auto" else precision
    if cells and options["n"] is None and like is None:
        options["n"] = cells[0] * cells[1]
    recipe = (Recipe.from_png(like) if like else Recipe()).overridden(options)
    to = Destination(output, force, preview)
    put_results(sample(recipe, to, screen, batch_size=batch_size, device=device, peer_timeout=peer_timeout))
