"""``ddpm progressive``: what appears when, Figures 6 and 7."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import (
    Command,
    IntList,
    PathType,
    batch_size_option,
    force_option,
    given,
    machine_options,
    model_option,
    preview_option,
    put_results,
    sampler_options,
    seed_option,
    sheet_scale_option,
    verbosity_options,
)

EPILOG = """\b
Examples:
  ddpm progressive -n 8                          x_0_hat over the reverse process (Figure 6)
  ddpm progressive -n 8 --t 1000,500,100,50,0
  ddpm progressive -n 6 --share-from 250,500,750    images that share one x_t (Figure 7)
"""


@click.command("progressive", cls=Command, epilog=EPILOG)
@model_option
@click.option("-n", "n", type=click.IntRange(1, 10_000), default=8, show_default=True, help="How many images.")
@click.option(
    "--t", "times", envvar="DDPM_PROGRESSIVE_T", type=IntList(), help="Step(s) to show.  [default: 9 from T to 0]"
)
@click.option("--share-from", type=IntList(), help="Show images that share the x_t of these steps.")
@click.option(
    "-o",
    "--output",
    type=PathType(dash=True),
    default="progressive.png",
    show_default=True,
    help="A sheet, an animation (.gif, .webp, .apng), .npy, a folder, or -.",
)
@sheet_scale_option
@batch_size_option
@sampler_options
@seed_option
@machine_options
@preview_option
@force_option
@verbosity_options
def command(
    n: int,
    times: tuple[int, ...] | None,
    share_from: tuple[int, ...] | None,
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
    """Show what the network takes the images to be while the reverse process makes them (Figure 6).

    A row is an image, a column x_0_hat at a step t, Eq. 15; t = 0 is the sample itself. Large features appear first.
    With --share-from, a row is a step t, and its images have x_t in common, which comes first: the smaller t, the more
    they share (Figure 7).
    """
    from ..sampling import Sampling
    from ..ui.console import Screen, log_to
    from .making import Machine
    from .output import Destination
    from .progressing import Progressive, progressive

    sampling = Sampling(**given(settings))
    screen = Screen(verbosity)
    log_to(screen)
    options = Progressive(n, times, share_from, scale)
    machine, to = Machine(model, device, precision, batch_size), Destination(output, force, preview)
    put_results(progressive(options, sampling, machine, to, screen))
