"""The embedding of t that every residual block gets (appendix B)."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import UNetConfig

LONGEST_PERIOD = 10_000  # of the sinusoids, in units of 2 pi steps


def sinusoids(t: Tensor, config: UNetConfig) -> Tensor:
    """The position embedding of Transformers (appendix B): sin and cos of t at geometrically spaced frequencies.

    Args:
        t: (B,), integers counted from 0.
        config: its first channel count is the width; an odd width ends in a zero.

    Returns:
        (B, width), float32 under autocast too: bfloat16 cannot tell neighbouring t apart.
    """
    width = config.block_out_channels[0]
    half = width // 2
    exponents = -math.log(LONGEST_PERIOD) * torch.arange(half, dtype=torch.float32, device=t.device)
    phases = t.float()[:, None] * torch.exp(exponents / (half - config.freq_shift))
    waves = (phases.cos(), phases.sin()) if config.flip_sin_to_cos else (phases.sin(), phases.cos())
    return F.pad(torch.cat(waves, dim=1), (0, width - 2 * half))


class TimeEmbedding(nn.Module):
    """Two linear layers with SiLU between (whatever ``act_fn`` is): (B, width) to (B, channels)."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, channels)
        self.linear_2 = nn.Linear(channels, channels)

    def forward(self, waves: Tensor) -> Tensor:
        return cast(Tensor, self.linear_2(F.silu(self.linear_1(waves))))
