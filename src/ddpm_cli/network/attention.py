"""Self-attention of an image's pixels, in the way of diffusers' ``Attention``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import UNetConfig
from .group_norm import GroupNorm

FEW_PIXELS = 16 * 16  # that attend to each other by matrix products on a CPU


class Attention(nn.Module):
    """Self-attention over all pixels, plus the input.

    There are as many heads as ``attention_head_dim`` fits into the channels (one if it is null); if it does not
    divide them, the heads together are narrower than the channels.

    Args:
        groups: of the norm before; None for no norm.
        scale: divides the result.
    """

    def __init__(self, config: UNetConfig, channels: int, groups: int | None, *, scale: float = 1) -> None:
        super().__init__()
        self.scale = scale
        self.head_dim = config.attention_head_dim or channels
        inner = channels // self.head_dim * self.head_dim
        self.group_norm = GroupNorm(groups, channels, config.norm_eps) if groups is not None else None
        self.to_q = nn.Linear(channels, inner)
        self.to_k = nn.Linear(channels, inner)
        self.to_v = nn.Linear(channels, inner)
        self.to_out = nn.ModuleList([nn.Linear(inner, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        h = x if self.group_norm is None else self.group_norm(x)
        pixels = h.permute(0, 2, 3, 1).flatten(1, 2)  # (B, H * W, C): a view of channels_last memory
        q, k, v = (
            project(pixels).unflatten(2, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        out: Tensor = self.to_out[0](attend(q, k, v)).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
        out = out + x  # not in place: that is slow for the gradient of a view
        return out if self.scale == 1 else out / self.scale


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of each pixel to all: of (B, heads, H * W, head_dim) the heads side by side, (B, H * W, channels).

    In bfloat16 the CPU's kernel for it is two to three times slower than its matrix products, whose weights take memory
    that grows with the square of the pixels: with few pixels these are made.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] <= FEW_PIXELS:
        heads = zip(q.unbind(1), k.unbind(1), v.unbind(1), strict=True)
        return torch.cat([_attend_by_products(*head) for head in heads], dim=2)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _attend_by_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights: Tensor = (q * q.shape[2] ** -0.5 @ k.transpose(1, 2)).softmax(-1)
    return weights.to(v.dtype) @ v
