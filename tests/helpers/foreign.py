"""The networks of other projects, written anew from what is published of them: same names of tensors, same numbers.

They say for each project what `ddpm_cli.convert` must get right, in plain eager PyTorch and without any of our code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def group_norm(channels: int, eps: float = 1e-5) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps)


def conv(
    channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1, padding: int | None = None
) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2 if padding is None else padding)


def double(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(..., channels, pixels) each."""
    weights = torch.softmax(q.transpose(-1, -2) @ k / math.sqrt(q.shape[-2]), dim=-1)
    return v @ weights.transpose(-1, -2)


# openai: improved-diffusion and guided-diffusion.


class OpenaiResidual(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, embedding: int, scale_shift: bool) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.in_layers = nn.Sequential(group_norm(channels_in), nn.SiLU(), conv(channels_in, channels_out))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, channels_out * (2 if scale_shift else 1)))
        self.out_layers = nn.Sequential(
            group_norm(channels_out), nn.SiLU(), nn.Dropout(0.3), conv(channels_out, channels_out)
        )
        self.skip_connection = conv(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h, e = self.in_layers(x), self.emb_layers(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + e)
        return self.skip_connection(x) + h


class OpenaiAttention(nn.Module):
    """The rows of qkv are q, k and v of the first head, then of the second, and so on."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        pixels = x.flatten(2)
        heads = self.qkv(self.norm(pixels)).chunk(self.heads, dim=1)
        h = torch.cat([attend(*head.chunk(3, dim=1)) for head in heads], dim=1)
        return (pixels + self.proj_out(h)).view_as(x)


class OpenaiDown(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = conv(channels, channels, stride=2)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.op(x)


class OpenaiUp(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv(channels, channels)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(double(x))


class OpenaiFirst(nn.Conv2d):
    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return super().forward(x)


class Openai(nn.Module):
    """UNetModel.

    Args:
        attention: levels that have it.
        heads: of each attention; ``head_channels`` instead of it for heads of one width.
        learn_sigma: twice the outputs, the second half for the variance.
        t_scale: what t is multiplied by (rescale_timesteps: 1000 / T).
    """

    def __init__(
        self,
        width: int = 32,
        mult: Sequence[int] = (1, 2),
        layers: int = 1,
        attention: Sequence[int] = (1,),
        *,
        channels: int = 3,
        heads: int = 1,
        head_channels: int | None = None,
        scale_shift: bool = False,
        learn_sigma: bool = False,
        t_scale: float = 1,
        classes: int = 0,
    ) -> None:
        super().__init__()
        self.width, self.t_scale = width, t_scale
        hidden = 4 * width
        self.time_embed = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        if classes:
            self.label_emb = nn.Embedding(classes, hidden)

        def residual(channels_in: int, channels_out: int) -> OpenaiResidual:
            return OpenaiResidual(channels_in, channels_out, hidden, scale_shift)

        def attending(level: int, now: int) -> list[nn.Module]:
            return (
                [OpenaiAttention(now, now // head_channels if head_channels else heads)] if level in attention else []
            )

        blocks: list[list[nn.Module]] = [[OpenaiFirst(channels, width, 3, padding=1)]]
        skips, now = [width], width
        for level, factor in enumerate(mult):
            for _ in range(layers):
                blocks.append([residual(now, width * factor), *attending(level, width * factor)])
                now = width * factor
                skips.append(now)
            if level < len(mult) - 1:
                blocks.append([OpenaiDown(now)])
                skips.append(now)
        self.input_blocks = nn.ModuleList(nn.ModuleList(block) for block in blocks)
        middle = OpenaiAttention(now, now // head_channels if head_channels else heads)
        self.middle_block = nn.ModuleList([residual(now, now), middle, residual(now, now)])
        blocks = []
        for level, factor in reversed(list(enumerate(mult))):
            for layer in range(layers + 1):
                block = [residual(now + skips.pop(), width * factor), *attending(level, width * factor)]
                now = width * factor
                blocks.append([*block, *([OpenaiUp(now)] if level and layer == layers else [])])
        self.output_blocks = nn.ModuleList(nn.ModuleList(block) for block in blocks)
        self.out = nn.Sequential(group_norm(now), nn.SiLU(), conv(now, channels * (2 if learn_sigma else 1)))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """t from 0."""
        frequencies = torch.exp(-math.log(10_000) * torch.arange(self.width // 2).float() / (self.width // 2))
        phases = (t.float() * self.t_scale)[:, None] * frequencies
        emb = self.time_embed(torch.cat([phases.cos(), phases.sin()], dim=1))
        skips = []
        for block in self.input_blocks:
            for layer in block:
                x = layer(x, emb)
            skips.append(x)
        for layer in self.middle_block:
            x = layer(x, emb)
        for block in self.output_blocks:
            x = torch.cat([x, skips.pop()], dim=1)
            for layer in block:
                x = layer(x, emb)
        return self.out(x)


# pesser/pytorch_diffusion.


class PesserResidual(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, embedding: int) -> None:
        super().__init__()
        self.norm1 = group_norm(channels_in, 1e-6)
        self.conv1 = conv(channels_in, channels_out)
        self.temb_proj = nn.Linear(embedding, channels_out)
        self.norm2 = group_norm(channels_out, 1e-6)
        self.conv2 = conv(channels_out, channels_out)
        if channels_in != channels_out:
            self.nin_shortcut = conv(channels_in, channels_out, 1)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.temb_proj(F.silu(temb))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class PesserAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, 1e-6)
        self.q, self.k, self.v, self.proj_out = (conv(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        h = attend(*(project(h).flatten(2) for project in (self.q, self.k, self.v)))
        return x + self.proj_out(h.view_as(x))


class Resampling(nn.Module):
    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = conv(channels, channels, stride=stride, padding=0 if stride == 2 else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.conv.stride == (2, 2) else double(x))


class Pesser(nn.Module):
    """The paper's network. ``attention``: levels that have it."""

    def __init__(
        self, width: int = 32, mult: Sequence[int] = (1, 2), layers: int = 1, attention: Sequence[int] = (1,)
    ) -> None:
        super().__init__()
        self.width = width
        hidden = 4 * width
        self.temb = nn.Module()
        self.temb.dense = nn.ModuleList([nn.Linear(width, hidden), nn.Linear(hidden, hidden)])
        self.conv_in = conv(3, width)
        widths = [width * factor for factor in mult]

        def level_of(channels: Sequence[int], level: int) -> nn.Module:
            module = nn.Module()
            module.block = nn.ModuleList(PesserResidual(c, widths[level], hidden) for c in channels)
            count = len(channels) if level in attention else 0
            module.attn = nn.ModuleList(PesserAttention(widths[level]) for _ in range(count))
            return module

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, now in enumerate(widths):
            before = widths[max(level - 1, 0)] if level else width
            down = level_of([before] + [now] * (layers - 1), level)
            below = widths[min(level + 1, len(widths) - 1)]
            up = level_of([below + now] + [2 * now] * (layers - 1) + [now + before], level)
            if level < len(widths) - 1:
                down.downsample = Resampling(now, 2)
            if level:
                up.upsample = Resampling(now, 1)
            self.down.append(down)
            self.up.append(up)
        self.mid = nn.Module()
        self.mid.block_1, self.mid.block_2 = (PesserResidual(widths[-1], widths[-1], hidden) for _ in range(2))
        self.mid.attn_1 = PesserAttention(widths[-1])
        self.norm_out = group_norm(widths[0], 1e-6)
        self.conv_out = conv(widths[0], 3)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        half = self.width // 2
        phases = t.float()[:, None] * torch.exp(torch.arange(half).float() * -(math.log(10_000) / (half - 1)))
        temb = self.temb.dense[1](F.silu(self.temb.dense[0](torch.cat([phases.sin(), phases.cos()], dim=1))))
        skips = [self.conv_in(x)]
        for level in self.down:
            for i, block in enumerate(level.block):
                h = block(skips[-1], temb)
                skips.append(level.attn[i](h) if len(level.attn) else h)
            if hasattr(level, "downsample"):
                skips.append(level.downsample(skips[-1]))
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(skips[-1], temb)), temb)
        for level in reversed(self.up):
            for i, block in enumerate(level.block):
                h = block(torch.cat([h, skips.pop()], dim=1), temb)
                h = level.attn[i](h) if len(level.attn) else h
            if hasattr(level, "upsample"):
                h = level.upsample(h)
        return self.conv_out(F.silu(self.norm_out(h)))


# w86763777/pytorch-ddpm.


class W86Attention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.group_norm = group_norm(channels)
        self.proj_q, self.proj_k, self.proj_v, self.proj = (conv(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.group_norm(x)
        h = attend(*(project(h).flatten(2) for project in (self.proj_q, self.proj_k, self.proj_v)))
        return x + self.proj(h.view_as(x))


class W86Residual(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, embedding: int, attention: bool) -> None:
        super().__init__()
        self.block1 = nn.Sequential(group_norm(channels_in), nn.SiLU(), conv(channels_in, channels_out))
        self.temb_proj = nn.Sequential(nn.SiLU(), nn.Linear(embedding, channels_out))
        self.block2 = nn.Sequential(
            group_norm(channels_out), nn.SiLU(), nn.Dropout(0.1), conv(channels_out, channels_out)
        )
        self.shortcut = conv(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()
        self.attn = W86Attention(channels_out) if attention else nn.Identity()

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.block2(self.block1(x) + self.temb_proj(temb)[:, :, None, None])
        return self.attn(h + self.shortcut(x))


class W86Resampling(nn.Module):
    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.main = conv(channels, channels, stride=stride)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        return self.main(x if self.main.stride == (2, 2) else double(x))


class W86(nn.Module):
    """UNet of T steps. ``attention``: levels that have it."""

    def __init__(
        self,
        width: int = 32,
        mult: Sequence[int] = (1, 2),
        layers: int = 1,
        attention: Sequence[int] = (1,),
        T: int = 1000,
    ) -> None:
        super().__init__()
        hidden = 4 * width
        phases = torch.arange(T).float()[:, None] * torch.exp(-torch.arange(0, width, 2) / width * math.log(10_000))
        table = torch.stack([phases.sin(), phases.cos()], dim=2).flatten(1)  # sin, cos, sin, cos, ...
        layers_of_time = nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden)
        self.time_embedding = nn.Module()
        self.time_embedding.timembedding = nn.Sequential(nn.Embedding.from_pretrained(table), *layers_of_time)
        self.head = conv(3, width)
        self.downblocks, self.upblocks = nn.ModuleList(), nn.ModuleList()
        skips, now = [width], width
        for level, factor in enumerate(mult):
            for _ in range(layers):
                self.downblocks.append(W86Residual(now, width * factor, hidden, level in attention))
                now = width * factor
                skips.append(now)
            if level < len(mult) - 1:
                self.downblocks.append(W86Resampling(now, 2))
                skips.append(now)
        self.middleblocks = nn.ModuleList(W86Residual(now, now, hidden, attention) for attention in (True, False))
        for level, factor in reversed(list(enumerate(mult))):
            for _ in range(layers + 1):
                self.upblocks.append(W86Residual(now + skips.pop(), width * factor, hidden, level in attention))
                now = width * factor
            if level:
                self.upblocks.append(W86Resampling(now, 1))
        self.tail = nn.Sequential(group_norm(now), nn.SiLU(), conv(now, 3))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        temb = self.time_embedding.timembedding(t)
        skips = [self.head(x)]
        for block in self.downblocks:
            skips.append(block(skips[-1], temb))
        h = skips[-1]
        for block in self.middleblocks:
            h = block(h, temb)
        for block in self.upblocks:
            h = block(torch.cat([h, skips.pop()], dim=1) if isinstance(block, W86Residual) else h, temb)
        return self.tail(h)


@torch.no_grad()
def randomise(network: nn.Module, seed: int) -> nn.Module:
    """Weights with which every layer does something: matrices that keep the size of numbers, biases of some size."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        if parameter.requires_grad:  # not a table of sin and cos
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
            else:
                parameter += torch.empty_like(parameter).normal_(std=0.1, generator=generator)
    return network.eval().requires_grad_(False)
