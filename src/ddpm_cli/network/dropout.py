"""Dropout whose masks belong to the images: the same however a batch is divided among processes or computed in parts.

A mask is made of 16 random bits for each activation, from a generator that is seeded anew for each image. All masks of
a forward pass are drawn before it begins, and are among the network's inputs: it stays a pure function, and one graph
for a compiler.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..config import UNetConfig

LEVELS = 2**16  # of the random numbers that are compared with the rate
_A_DRAW = 4  # numbers of 16 bits in one of 64


def sites(config: UNetConfig) -> list[tuple[int, int]]:
    """(channels, level) of the activations that each residual block drops some of, in the order of the forward pass."""
    widths, layers, lowest = config.block_out_channels, config.layers_per_block, config.levels - 1
    found = []
    for level, (width, block) in enumerate(zip(widths, config.down_block_types, strict=True)):
        found += [(width, level)] * layers
        if level < lowest and block == "AttnDownBlock2D" and config.downsample_type == "resnet":
            found.append((width, level + 1))
    if config.mid_block_type is not None:
        found += [(widths[-1], lowest)] * 2
    for level, block in zip(range(lowest, -1, -1), config.up_block_types, strict=True):
        found += [(widths[level], level)] * (layers + 1)
        if level > 0 and block == "AttnUpBlock2D" and config.upsample_type == "resnet":
            found.append((widths[level], level - 1))
    return found


def kept(rate: float) -> float:
    """The share of activations that a mask keeps for a dropout of ``rate``: 1 - rate, to 16 bits."""
    return 1 - _dropped_levels(rate) / LEVELS


def draw_masks(
    config: UNetConfig, size: tuple[int, int], seeds: npt.NDArray[np.int64], device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """What a forward pass keeps of its activations, 1, and drops, 0; of each image a function of its seed alone.

    Args:
        size: (height, width) of the images.
        seeds: (B,), from 0 on, one for each image.
        dtype: that of the activations; multiplying by a mask of another takes four times as long on a CPU.

    Returns:
        A mask (B, channels, height, width) for each residual block, the last one's first; none without dropout.
    """
    if config.dropout == 0:
        return []
    shapes = [(channels, size[0] >> level, size[1] >> level) for channels, level in sites(config)]
    ends = np.cumsum([np.prod(shape) for shape in shapes]).tolist()
    drawn_on = device if device.type == "cuda" else torch.device("cpu")
    generator = torch.Generator(drawn_on)
    bits = torch.empty(-(-ends[-1] // _A_DRAW), dtype=torch.int64, device=drawn_on)
    numbers = bits.view(torch.int16)[: ends[-1]]
    flat = torch.empty((len(seeds), ends[-1]), dtype=dtype, device=drawn_on)
    lowest_kept = _dropped_levels(config.dropout) - LEVELS // 2
    for row, seed in zip(flat, seeds.tolist(), strict=True):
        generator.manual_seed(seed)
        bits.random_(-(2**63), None, generator=generator)
        torch.ge(numbers, lowest_kept, out=row)
    flat = flat.to(device)
    masks = []
    for (channels, height, width), start, end in zip(shapes, [0, *ends], ends, strict=False):
        masks.append(flat[:, start:end].view(-1, height, width, channels).permute(0, 3, 1, 2))
    return masks[::-1]


def _dropped_levels(rate: float) -> int:
    return min(round(rate * LEVELS), LEVELS - 1)
