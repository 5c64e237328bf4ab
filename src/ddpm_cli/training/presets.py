"""The named networks, with the settings that train them. ``cifar10`` and ``256`` are the paper's, value by value."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..config import DiffusionConfig, TrainConfig, UNetConfig
from ..errors import ArgumentError


@dataclass(frozen=True)
class Preset:
    """A family of networks of one width, and how it is trained.

    Args:
        channels: channels of each level, finest first. The paper's presets use them all; the small ones only as many
            levels as leave ``coarsest`` pixels a side.
        attention: blocks have self-attention at the first level of at most so many pixels a side (and the middle
            block always), which is the paper's 16x16 for its sizes.
        coarsest: smallest side of the last level, or None where the number of levels is fixed.
        groups: of the group norms. The small presets have fewer than the paper's 32, which at 32 channels would
            normalise each channel by itself: an image's brightness would be lost on the network, and time with it.
        steps: default number of optimizer steps.
    """

    channels: tuple[int, ...]
    attention: int
    coarsest: int | None
    groups: int
    dropout: float
    variance: str
    train: TrainConfig
    steps: int

    def unet(self, size: tuple[int, int], channels: int) -> UNetConfig:
        """The network for images (height, width) of so many channels, as the paper builds it (Appendix B)."""
        widths = self.channels[: self._levels(size)]
        sides = [min(size) >> level for level in range(len(widths))]
        attending = next((side for side in sides if side <= self.attention), None)
        attends = [side == attending for side in sides]
        return UNetConfig(
            sample_size=size[0] if size[0] == size[1] else size,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=widths,
            down_block_types=tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
            up_block_types=tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)),
            layers_per_block=2,
            dropout=self.dropout,
            norm_eps=1e-6,
            norm_num_groups=self.groups,
            attention_head_dim=None,
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
        )

    def diffusion(self) -> DiffusionConfig:
        """The diffusion that goes with the network: T = 1000, linear, eps."""
        return DiffusionConfig(variance=self.variance)

    def _levels(self, size: tuple[int, int]) -> int:
        if self.coarsest is None:
            return len(self.channels)
        levels = 1
        height, width = size
        while levels < len(self.channels) and height % 2 == width % 2 == 0 and min(height, width) // 2 >= self.coarsest:
            height, width, levels = height // 2, width // 2, levels + 1
        return levels


_PAPER = TrainConfig(batch_size=128, lr=2e-4, warmup=5000, ema=0.9999, ema_warmup=False, grad_clip=1.0, flip=True)
_SMALL = TrainConfig(batch_size=128, lr=2e-3, warmup=100, ema=0.999, grad_clip=1.0, flip=True, t_sampling="importance")

PRESETS = {
    "tiny": Preset(
        channels=(32, 64, 64, 64),
        attention=8,
        coarsest=4,
        groups=8,
        dropout=0.1,
        variance="fixed-large",
        train=_SMALL,
        steps=1000,
    ),
    "small": Preset(
        channels=(64, 128, 128, 256),
        attention=8,
        coarsest=4,
        groups=8,
        dropout=0.1,
        variance="fixed-large",
        train=replace(_SMALL, lr=5e-4, warmup=500),
        steps=20_000,
    ),
    "cifar10": Preset(
        channels=(128, 256, 256, 256),
        attention=16,
        coarsest=None,
        groups=32,
        dropout=0.1,
        variance="fixed-large",
        train=_PAPER,
        steps=800_000,
    ),
    "256": Preset(
        channels=(128, 128, 256, 256, 512, 512),
        attention=16,
        coarsest=None,
        groups=32,
        dropout=0.0,
        variance="fixed-small",
        train=replace(_PAPER, batch_size=64, lr=2e-5),
        steps=500_000,
    ),
}


def choose_preset(name: str, size: tuple[int, int], *, accelerated: bool) -> str:
    """The preset that ``auto`` stands for: one that suits the machine and the images; other names stand for themselves.

    Args:
        name: ``auto`` or a preset's name.
        size: (height, width) of the images.
        accelerated: whether there is a GPU. Without one only ``tiny`` shows something within minutes.
    """
    if name != "auto":
        if name not in PRESETS:
            raise ArgumentError(f"`preset` is {name!r}; it must be auto or one of {', '.join(PRESETS)}")
        return name
    if not accelerated:
        return "tiny"
    paper = paper_preset(size)
    halvings = len(PRESETS[paper].channels) - 1
    fits = min(size) > 16 and all(side % 2**halvings == 0 for side in size)
    return paper if fits else "small"


def paper_preset(size: tuple[int, int]) -> str:
    """The paper's own preset for images of about this size."""
    return "cifar10" if max(size) <= 64 else "256"
