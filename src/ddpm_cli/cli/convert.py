"""``ddpm convert``: checkpoints of other projects."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.files import printable
from ..errors import InputError
from ..ui.results import put
from .options import Command, PathType, SizeType, verbosity_options

if TYPE_CHECKING:
    from ..checkpoint import StoredModel

WORDS = "ddpm_cli.convert.words"

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


class Remembering(Command):
    """A command that keeps the words it was given, to repeat them in advice."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[WORDS] = list(args)
        return super().parse_args(ctx, args)


@click.command("convert", cls=Remembering, epilog=EPILOG)
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
    from ..checkpoint import check_new, save_model
    from ..convert import Options, convert, pickle_in
    from ..ui.console import open_screen

    screen = open_screen(verbosity)
    check_new(output)
    pickled = pickle_in(source)
    if pickled is not None and not allow_pickle:
        words = ["ddpm", "convert", "--allow-pickle", *click.get_current_context().meta[WORDS]]
        raise InputError(
            f"{printable(pickled)} is a pickle, which is never read unasked; allow it: {shlex.join(words)}"
        )
    model = convert(source, Options(**options), unpickle=allow_pickle)
    save_model(output, model)
    screen.say(_describe(model))
    put(output)


def _describe(model: StoredModel) -> str:
    """What it was and what it is, for people."""
    from ..network.unet import parameter_count
    from ..ui.console import plural

    unet, diffusion, past = model.unet, model.diffusion, model.provenance
    height, width = unet.size
    attention = [
        f"{height >> level}x{width >> level}"
        for level, block in enumerate(unet.down_block_types)
        if block == "AttnDownBlock2D"
    ]
    average = {True: ", moving average", False: ", weights in training", None: ""}[past.average]
    return (
        f"{past.origin}{'' if past.step is None else f', step {past.step}'}{average}\n"
        f"{height}x{width}x{unet.in_channels}, {parameter_count(unet) / 1e6:.1f} M parameters: "
        f"{', '.join(map(str, unet.block_out_channels))} channels, {plural(unet.layers_per_block, 'block')} a level, "
        f"attention at {' and '.join(attention) or 'the bottom only'}; "
        f"T = {diffusion.timesteps} {diffusion.schedule}, {diffusion.predict}, {diffusion.variance}"
    )
