"""``ddpm denoise``: the reverse chain from an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .inputs import list_options, listed
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
    sampler_options,
    seed_option,
    sheet_scale_option,
    verbosity_options,
)

EPILOG = """\b
Examples:
  ddpm denoise x.npy --t 400 -o clean.png            run the chain from x_400
  ddpm denoise digit.png --strength 0.5              noise it halfway, and come back
  ddpm denoise digit.png --strength 0.3 --variations 16 -o similar.png
  ddpm denoise ./digits --strength 0.4 -o new/       each image of a folder
  ddpm noise digit.png --t 400 --format npy -o - | ddpm denoise - --t 400 -o -
"""


@click.command("denoise", cls=Command, epilog=EPILOG)
@model_option
@click.argument("images", metavar="IMG...", type=PathType(dash=True), nargs=-1)
@click.option("--t", type=click.IntRange(1), help="The image is x_t of this step.")
@click.option("--strength", type=float, help="The image is clean: noise it first, up to this share of T.")
@click.option("--variations", type=click.IntRange(1), default=1, show_default=True, help="How many of each image.")
@resize_option
@click.option(
    "-o",
    "--output",
    type=PathType(dash=True),
    default="denoised.png",
    show_default=True,
    help="As of ddpm sample.",
)
@sheet_scale_option
@batch_size_option
@sampler_options
@list_options
@seed_option
@machine_options
@preview_option
@force_option
@verbosity_options
def command(
    images: tuple[Path, ...],
    t: int | None,
    strength: float | None,
    variations: int,
    resize: bool,
    scale: int | None,
    files_from: Path | None,
    null: bool,
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
    """Run the reverse chain from IMG at step t down to an image: x_0 ~ p_theta(x_0|x_t).

    With --t the image is taken for x_t: a .npy of ddpm noise, which is exact, or a picture, which is not quite. With
    --strength it is clean, and noised first (Eq. 4). IMG may be a folder, a pattern, or - for stdin.
    """
    from ..sampling import Sampling
    from ..ui.console import Screen, log_to
    from .denoising import Denoise, denoise
    from .making import Machine
    from .output import Destination

    sampling = Sampling(**given(settings))
    screen = Screen(verbosity)
    log_to(screen)
    options = Denoise(t, strength, variations, resize, scale)
    paths = listed(images, files_from, null, arrays=True)
    machine, to = Machine(model, device, precision, batch_size), Destination(output, force, preview)
    put_results(denoise(paths, options, sampling, machine, to, screen))
