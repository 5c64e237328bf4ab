"""The one description of a model: shown by info, by the page of a published model, and in one line by commands."""

from __future__ import annotations

from dataclasses import dataclass

from ..checkpoint import Provenance
from ..config import DiffusionConfig, UNetConfig
from ..core.pixels import COLOURS
from ..network.unet import parameter_count


@dataclass(frozen=True)
class Facts:
    """What a model is, for people; None stands for what is not known.

    Args:
        size: height x width x channels of its images.
        images: the same in words.
        parameters: how many its network has.
        network: channels and blocks of the U-Net; ``attention`` is where it has some.
        process: T, schedule, what is predicted, variance.
        trained, loss, start, origin: its past; see `Provenance`.
        weights: EMA or raw.
    """

    size: str
    images: str
    parameters: int
    network: str
    attention: str
    process: str
    trained: str | None
    loss: str | None
    start: str | None
    origin: str | None
    weights: str | None

    def rows(self) -> list[tuple[str, str | None]]:
        """Names and values."""
        return [
            ("images", self.images),
            ("parameters", f"{self.parameters:,}"),
            ("network", f"U-Net, {self.network}"),
            ("attention", self.attention),
            ("diffusion", self.process),
            ("trained for", self.trained),
            ("loss", self.loss),
            ("started from", self.start),
            ("origin", self.origin),
        ]

    def line(self) -> str:
        """The most important in one line."""
        trained = f", trained for {self.trained}" if self.trained else ""
        return f"{self.size}, {self.parameters / 1e6:.1f} M parameters{trained}; {self.process}"


def facts(unet: UNetConfig, diffusion: DiffusionConfig, past: Provenance) -> Facts:
    """The description of a model, from its configurations and what is known of its past."""
    height, width = unet.size
    blocks = f"{unet.layers_per_block} block{'s' if unet.layers_per_block > 1 else ''}"
    attention = [
        f"{height >> level}x{width >> level}" for level, block in enumerate(unet.down_block_types) if "Attn" in block
    ]
    betas = f" (beta {diffusion.beta_start:g} to {diffusion.beta_end:g})" if diffusion.schedule == "linear" else ""
    clipped = "" if diffusion.clip else ", x_0 not clipped"
    return Facts(
        size=f"{height}x{width}x{unet.in_channels}",
        images=f"{height}x{width}, {COLOURS[unet.in_channels]}",
        parameters=parameter_count(unet),
        network=f"channels {', '.join(map(str, unet.block_out_channels))}; {blocks} a level",
        attention=f"at {' and '.join([*attention, 'the bottom'])}",
        process=(
            f"T = {diffusion.timesteps}, {diffusion.schedule} schedule{betas}, predicts {diffusion.predict}, "
            f"{diffusion.variance} variance{clipped}"
        ),
        trained=None if past.step is None else f"{past.step:,} steps",
        loss=past.loss and f"L_{past.loss}",
        start=past.start,
        origin=past.origin,
        weights={True: "EMA", False: "raw", None: None}[past.average],
    )
