"""Dropout whose masks belong to the images: the same however a batch is divided among processes or micro-batches.

A mask is made of 16 random bits for each activation, named by the image. All masks of a forward pass are drawn before
it begins, and are among the network's inputs: it stays a pure function, and one graph for a compiler.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..core import rng

LEVELS = 2**16  # of the random numbers that are compared with the rate
_A_WORD = 4  # numbers of 16 bits in a random word
_AT_ONCE = 2**18  # words drawn at once


def kept(rate: float) -> float:
    """The share of activations that a mask keeps for a dropout of ``rate``: 1 - rate, to 16 bits."""
    return 1 - _dropped_levels(rate) / LEVELS


def draw_masks(
    shapes: Sequence[tuple[int, int, int]],
    rate: float,
    seed: int,
    images: Sequence[tuple[int, ...]],
    device: torch.device,
    dtype: torch.dtype,
) -> list[Tensor]:
    """What a forward pass keeps of its activations, 1, and drops, 0; a function of each image's name alone.

    On CUDA the bits come from that device's generator: to draw them on the host would take longer than the step.

    Args:
        shapes: (channels, height, width) of what each residual block drops from: `UNet.dropout_shapes`.
        rate: of dropout, 0 to below 1.
        seed: of the run.
        images: names of the images, such as (step, place in the batch), all of one length.
        dtype: that of the activations; multiplying by a mask of another takes four times as long on a CPU.

    Returns:
        A mask (B, channels, height, width) for each residual block, the last one's first; none if the rate is 0.
    """
    if rate == 0:
        return []
    ends = np.cumsum([np.prod(shape) for shape in shapes]).tolist()
    total = ends[-1]
    lowest_kept = _dropped_levels(rate) - LEVELS // 2
    on_cuda = device.type == "cuda"
    flat = torch.empty((len(images), total), dtype=dtype, device=device if on_cuda else "cpu")
    group = 1 if on_cuda else max(1, _AT_ONCE * _A_WORD // total)
    for start in range(0, len(images), group):
        rows = slice(start, start + group)
        bits = _bits_on_cuda(total, seed, images[start], device) if on_cuda else _bits(total, seed, images[rows])
        torch.ge(bits, lowest_kept, out=flat[rows])
    flat = flat.to(device)
    masks = []
    for (channels, height, width), start, end in zip(shapes, [0, *ends], ends, strict=False):
        masks.append(flat[:, start:end].view(-1, height, width, channels).permute(0, 3, 1, 2))
    return masks[::-1]


def _bits(count: int, seed: int, images: Sequence[tuple[int, ...]]) -> Tensor:
    """Random int16 (B, count) on the host."""
    drawn = rng.words_batch(-(-count // _A_WORD), seed, "dropout", images)
    return torch.from_numpy(drawn.view(np.int16))[:, :count]


def _bits_on_cuda(count: int, seed: int, image: tuple[int, ...], device: torch.device) -> Tensor:
    """Random int16 (1, count) from the device's own generator."""
    generator = torch.Generator(device).manual_seed(rng.torch_seed(seed, "dropout", *image))
    bits = torch.empty(-(-count // _A_WORD), dtype=torch.int64, device=device)
    return bits.random_(-(2**63), None, generator=generator).view(torch.int16)[None, :count]


def _dropped_levels(rate: float) -> int:
    return min(round(rate * LEVELS), LEVELS - 1)
