"""Residual blocks, and what halves and doubles images between the levels of the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from ..config import UNetConfig
from .dropout import kept
from .group_norm import GroupNorm

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "mish": F.mish,
    "gelu": F.gelu,
    "relu": F.relu,
}


def embedding_width(config: UNetConfig) -> int:
    """Channels of the time embedding that each residual block gets."""
    return config.time_embedding_dim or 4 * config.block_out_channels[0]


class ResBlock(nn.Module):
    """norm, activation, convolution, + time; norm, activation, dropout, convolution, + shortcut.

    Args:
        scale: divides the result.
        resample: resizes both branches before the first convolution.
    """

    def __init__(
        self,
        config: UNetConfig,
        in_channels: int,
        out_channels: int,
        *,
        scale: float = 1,
        resample: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.scale_shift = config.resnet_time_scale_shift == "scale_shift"
        self.scale = scale
        self.kept = kept(config.dropout)
        self.resample = resample
        self.descends = int(resample is halve) - int(resample is double)  # levels, for `UNet.dropout_shapes`
        self.activation = ACTIVATIONS[config.act_fn]
        self.norm1 = GroupNorm(config.norm_num_groups, in_channels, config.norm_eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(embedding_width(config), out_channels * (2 if self.scale_shift else 1))
        self.norm2 = GroupNorm(config.norm_num_groups, out_channels, config.norm_eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, emb: Tensor, mask: Tensor | None) -> Tensor:
        """(B, in_channels, H, W) and the activated embedding to (B, out_channels, H, W), resized by ``resample``.

        What ``mask`` has a 0 for is dropped.
        """
        h = self.activation(self.norm1(x))
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h = self.conv1(h)
        time = self.time_emb_proj(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h += time
            h = self.norm2(h)
        h = self.activation(h)
        if mask is not None:
            h = (h * mask).div_(self.kept)
        h = self.conv2(h)
        h += x if self.conv_shortcut is None else self.conv_shortcut(x)
        return cast(Tensor, h if self.scale == 1 else h / self.scale)


def halve(x: Tensor) -> Tensor:
    """The mean of each 2x2 pixels."""
    return F.avg_pool2d(x, 2)


def double(x: Tensor) -> Tensor:
    """Each pixel as 2x2 pixels."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Downsample(nn.Module):
    """A convolution of stride 2. With padding 0 a row of zeros stands below and right only, as in the paper's code."""

    descends = 1  # levels, for `UNet.dropout_shapes`

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.pad = padding == 0
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor, _emb: Tensor, _mask: Tensor | None) -> Tensor:
        return cast(Tensor, self.conv(F.pad(x, (0, 1, 0, 1)) if self.pad else x))


class Upsample(nn.Module):
    """Doubling, then a convolution."""

    descends = -1

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, _emb: Tensor, _mask: Tensor | None) -> Tensor:
        return cast(Tensor, self.conv(double(x)))
