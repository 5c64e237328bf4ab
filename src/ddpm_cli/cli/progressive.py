"""``ddpm progressive``: progressive generation, Figures 6 and 7."""

from __future__ import annotations

from typing import Any

import click

from ..ui.results import put_results
from .options import Command, IntList, picture_options, sampler_options, seed_option

EPILOG = """\b
Examples:
  ddpm progressive -n 8                          x_0_hat over the reverse process (Figure 6)
  ddpm progressive -n 8 --t 1000,500,100,50,0
  ddpm progressive -n 6 --share-from 250,500,750    images that share one x_t (Figure 7)
"""


@click.command("progressive", cls=Command, epilog=EPILOG)
@click.option("-n", "n", type=click.IntRange(1, 10_000), default=8, show_default=True, help="Number of images.")
@click.option(
    "--t", "times", envvar="DDPM_PROGRESSIVE_T", type=IntList(), help="Steps t to show.  [default: 9 steps from T to 0]"
)
@click.option(
    "--share-from", type=IntList(), help="Instead, show images that share x_t at each of these steps (Figure 7)."
)
@sampler_options
@seed_option
@picture_options("progressive.png", "Output: a sheet, an animation (.gif, .webp, .apng), .npy, a folder, or -.")
def command(
    n: int,
    times: tuple[int, ...] | None,
    share_from: tuple[int, ...] | None,
    **common: Any,
) -> None:
    """Show progressive generation: the network's estimate of each image during the reverse process (Figure 6).

    Each row is an image, each column its x_0_hat at a step t (Eq. 15); t = 0 is the sample itself. Large features
    appear first. With --share-from, each row is a step t, and its images share the x_t shown first: the smaller t,
    the more they have in common (Figure 7).
    """
    from ..jobs.making import Making
    from ..jobs.progressive import Progressive, progressive

    options = Progressive(n, times, share_from)
    put_results(progressive(options, Making.of(common)))
