"""``ddpm convert``: checkpoints of other projects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..ui.results import put
from .options import Command, PathType, SizeType, verbosity_options

EPILOG = """\b
Examples:
  ddpm convert --allow-pickle model-790000.ckpt -o church    pesser: the paper's own weights
  ddpm convert --allow-pickle ckpt.pt -o cifar10             w86763777/pytorch-ddpm
  ddpm convert --allow-pickle ema_0.9999_500000.pt -o mine --size 64 --heads 1
                                                             improved-diffusion, guided-diffusion
  ddpm convert --allow-pickle ./ddpm-ema-church-256 -o church
                                                             diffusers: a folder with a .bin
  ddpm convert weights.safetensors -o mine                   needs no --allow-pickle
  ddpm sample -m church -n 4                                 use the result
"""


@click.command("convert", cls=Command, epilog=EPILOG)
@click.argument("source", metavar="IN", type=PathType())
@click.option("-o", "--output", type=PathType(), required=True, help="New folder for the model, in diffusers' layout.")
@click.option("--allow-pickle", is_flag=True, help="Open IN even if it is a pickle; no code in it is run.")
@click.option("--size", type=SizeType(), help="Size of the images.  [default: from the file or its project]")
@click.option("--heads", type=click.IntRange(1), help="Attention heads: openai's num_heads.  [default: 4]")
@click.option(
    "--head-channels", type=click.IntRange(1), help="Channels per head, instead of --heads: openai's num_head_channels."
)
@click.option(
    "--schedule",
    type=click.Choice(["linear", "cosine"]),
    help="Noise schedule: openai's noise_schedule.  [default: linear]",
)
@click.option("--timesteps", type=click.IntRange(1, 10_000), help="T: openai's diffusion_steps.  [default: 1000]")
@click.option(
    "--rescale-timesteps/--no-rescale-timesteps",
    default=None,
    help="Scale t to 0..1000 for the network: openai's rescale_timesteps. No effect if T is 1000.  [default: rescale]",
)
@verbosity_options
def command(source: Path, output: Path, allow_pickle: bool, verbosity: int, **options: Any) -> None:
    """Convert IN, another project's checkpoint, into a model that ddpm and diffusers read.

    IN is a file of improved-diffusion, guided-diffusion, pesser/pytorch_diffusion or w86763777/pytorch-ddpm, or a
    diffusers folder whose weights are a .bin; its content shows which. The options that name openai are for its two
    projects, whose files do not record how they were trained.
    """
    from ..convert import Options
    from ..jobs.convert import convert_model
    from ..ui.console import open_screen

    convert_model(source, output, Options(**options), open_screen(verbosity), allow_pickle=allow_pickle)
    put(output)
