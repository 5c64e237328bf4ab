"""What ``ddpm convert`` does once its options are known: read another project's checkpoint, and save it as a model."""

from __future__ import annotations

from pathlib import Path

from .. import convert
from ..checkpoint import StoredModel, check_new, save_model
from ..network.unet import parameter_count
from ..ui.console import Screen, plural


def convert_model(source: Path, output: Path, options: convert.Options, screen: Screen, *, allow_pickle: bool) -> None:
    """Convert a checkpoint into a new folder of diffusers' layout."""
    check_new(output)
    model = convert.convert(source, options, allow_pickle=allow_pickle)
    save_model(output, model)
    screen.say(_describe(model))


def _describe(model: StoredModel) -> str:
    """What it was and what it is, for people."""
    unet, diffusion, past = model.unet, model.diffusion, model.provenance
    height, width = unet.size
    attention = [
        f"{height >> level}x{width >> level}"
        for level, block in enumerate(unet.down_block_types)
        if block == "AttnDownBlock2D"
    ]
    average = {True: ", EMA weights", False: ", raw weights", None: ""}[past.average]
    return (
        f"{past.origin}{'' if past.step is None else f', step {past.step}'}{average}\n"
        f"{height}x{width}x{unet.in_channels}, {parameter_count(unet) / 1e6:.1f} M parameters: "
        f"{', '.join(map(str, unet.block_out_channels))} channels, {plural(unet.layers_per_block, 'block')} a level, "
        f"attention at {' and '.join(attention) or 'the bottom only'}; "
        f"T = {diffusion.timesteps} {diffusion.schedule}, {diffusion.predict}, {diffusion.variance}"
    )
