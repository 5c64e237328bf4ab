"""``ddpm convert``: checkpoints of other projects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..ui.results import put
from .options import Command, PathType, SizeType, verbosity_options

EPILOG = """\b
Examples:
  ddpm convert --allow-pickle model-790000.ckpt -o church    the paper's own weights, by pesser
  ddpm convert --allow-pickle ckpt.pt -o cifar10             w86763777/pytorch-ddpm
  ddpm convert --allow-pickle ema_0.9999_500000.pt -o mine --size 64 --heads 1
                                                             improved-diffusion, guided-diffusion
  ddpm convert --allow-pickle ./ddpm-ema-church-256 -o church
                                                             diffusers, a folder with a .bin
  ddpm convert weights.safetensors -o mine                   needs no --allow-pickle
  ddpm sample -m church -n 4                                 what it is good for
"""


@click.command("convert", cls=Command, epilog=EPILOG)
@click.argument("source", metavar="IN", type=PathType())
@click.option("-o", "--output", type=PathType(), required=True, help="A new folder, of diffusers' layout.")
@click.option("--allow-pickle", is_flag=True, help="Open IN although it is a pickle. No code in it is run.")
@click.option("--size", type=SizeType(), help="Of the images.  [default: as the file or its project has it]")
@click.option("--heads", type=click.IntRange(1), help="openai's num_heads.  [default: 4]")
@click.option("--head-channels", type=click.IntRange(1), help="openai's num_head_channels, instead of --heads.")
@click.option("--schedule", type=click.Choice(["linear", "cosine"]), help="openai's noise_schedule.  [default: linear]")
@click.option("--timesteps", type=click.IntRange(1, 10_000), help="openai's diffusion_steps.  [default: 1000]")
@click.option(
    "--rescale-timesteps/--no-rescale-timesteps",
    default=None,
    help="openai's rescale_timesteps; no matter if T is 1000.  [default: rescale]",
)
@verbosity_options
def command(source: Path, output: Path, allow_pickle: bool, verbosity: int, **options: Any) -> None:
    """Turn IN, a checkpoint of another project, into a model that ddpm and diffusers read.

    IN is a file of improved-diffusion, guided-diffusion, pesser/pytorch_diffusion or w86763777/pytorch-ddpm, or a
    folder of diffusers whose weights are a .bin. What kind it is shows in its content. The options that name openai
    are for its two projects, whose files do not say how they were trained.
    """
    from ..convert import Options
    from ..jobs.convert import convert_model
    from ..ui.console import open_screen

    convert_model(source, output, Options(**options), open_screen(verbosity), allow_pickle=allow_pickle)
    put(output)
