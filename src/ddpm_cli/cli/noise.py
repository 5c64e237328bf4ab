"""``ddpm noise``: the forward process on pictures. Does not import torch."""

from __future__ import annotations

from pathlib import Path

import click

from .options import Command, IntList, PathType, force_option, list_options, seed_option, verbosity_options

EPILOG = """\b
Examples:
  ddpm noise photo.png                       write photo-t500.png
  ddpm noise photo.png --t 0,250,500,1000    a strip of four
  ddpm noise photo.png --t 0,100,200,300,400,500 -o photo.gif
  ddpm noise ./photos --t 300 -o noisy/      each image of a folder
  cat photo.png | ddpm noise - --t 100 > noisy.png
  ddpm noise digit.png --t 400 -o - --format npy | ddpm denoise - --t 400 -o -
"""


@click.command("noise", cls=Command, epilog=EPILOG)
@click.argument("images", metavar="IMG...", type=PathType(dash=True), nargs=-1)
@click.option(
    "--t",
    "times",
    envvar="DDPM_NOISE_T",
    type=IntList(),
    help="Steps of the forward process, from 0 to T, such as 500 or 0,250,500.  [default: T/2]",
)
@click.option(
    "-o",
    "--output",
    type=PathType(dash=True),
    help="Output: a .png, .gif, .webp or .apng, a .npy for the exact x_t, or a folder.  "
    "[default: photo-t500.png for photo.png]",
)
@click.option(
    "--format",
    "kind",
    envvar="DDPM_NOISE_FORMAT",
    type=click.Choice(["png", "npy"]),
    help="Format of -o - and of the files in a folder.  [default: png]",
)
@click.option(
    "--schedule", type=click.Choice(["linear", "cosine"]), default="linear", show_default=True, help="Noise schedule."
)
@click.option(
    "--timesteps",
    type=click.IntRange(1, 10_000),
    default=1000,
    show_default=True,
    help="T, the number of diffusion steps.",
)
@click.option("--stepwise", is_flag=True, help="Take every step q(x_t|x_{t-1}) (Eq. 2) instead of one jump (Eq. 4).")
@list_options
@seed_option
@force_option
@verbosity_options
def command(
    images: tuple[Path, ...],
    times: tuple[int, ...] | None,
    output: Path | None,
    kind: str | None,
    schedule: str,
    timesteps: int,
    stepwise: bool,
    files_from: Path | None,
    null: bool,
    seed: int,
    force: bool,
    verbosity: int,
) -> None:
    """Show what the forward process makes of IMG at step t: x_t ~ q(x_t|x_0), Eq. 4.

    The result keeps the size and mode of IMG, 16 bits included; an alpha channel stays as it is. IMG may be - for
    stdin, and the result then goes to stdout. Several steps make a strip, or an animation if the output is a .gif,
    .webp or .apng; they share one noise, so it grows in place. Several images, or a folder, make a folder. In a
    picture, x_t is clipped to [-1, 1] and rounded to the picture's levels; a .npy holds it exactly.
    """
    from ..jobs.noise import Noise, noise
    from ..ui.console import open_screen

    options = Noise(times, schedule, timesteps, stepwise, seed, output, kind, force)
    noise(images, files_from, null, options, open_screen(verbosity))
