"""The network (appendix B): a U-Net whose configuration and state-dict keys are those of diffusers' ``UNet2DModel``.

It knows no schedule and no loss. Parameters are float32; activations are in channels_last memory from the first
convolution to the last, in whatever precision autocast chooses, except for the norms, which compute in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import UNetConfig
from ..core import rng
from .attention import Attention
from .embedding import TimeEmbedding, sinusoids
from .group_norm import GroupNorm
from .resblock import ACTIVATIONS, Downsample, ResBlock, Upsample, double, embedding_width, halve

NEARLY_ZERO = 1e-10  # the scale of the paper's code for layers whose output starts at 0


class UNet(nn.Module):
    """eps_theta's body: images and timesteps to images of the same size.

    `build` makes one without initialising it; its weights then come from `init_weights` or from a file.

    Args:
        config: which network.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.block_out_channels[0]
        self.conv_in = nn.Conv2d(config.in_channels, width, 3, padding=1)
        if config.time_embedding_type == "learned":
            assert config.num_train_timesteps is not None, "UNetConfig requires it for a learned embedding"
            self.time_proj = nn.Embedding(config.num_train_timesteps, width)
        self.time_embedding = TimeEmbedding(width, embedding_width(config))
        self.down_blocks = nn.ModuleList(DownBlock(config, level) for level in range(config.levels))
        self.mid_block = MidBlock(config) if config.mid_block_type is not None else None
        self.up_blocks = nn.ModuleList(UpBlock(config, index) for index in range(config.levels))
        self.conv_norm_out = GroupNorm(config.norm_num_groups, width, config.norm_eps)
        self.conv_out = nn.Conv2d(width, config.out_channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, masks: Sequence[Tensor] = ()) -> Tensor:
        """The network's prediction.

        Args:
            x: (B, in_channels, H, W), float32; H and W divisible by 2 ** (levels - 1).
            t: (B,), int64, the timestep counted from 0 as diffusers does: the paper's t - 1.
            masks: for dropout, from `draw_masks`; without them nothing is dropped.

        Returns:
            (B, out_channels, H, W), in channels_last memory.

        Raises:
            InputError: the network cannot halve this size often enough.
        """
        self.config.check_size((x.shape[2], x.shape[3]))
        left = list(masks)
        x = x.to(memory_format=torch.channels_last)
        if self.config.center_input_sample:
            x = 2 * x - 1
        waves = self.time_proj(t) if self.config.time_embedding_type == "learned" else sinusoids(t, self.config)
        # Every residual block starts with the activation of the embedding, so it is taken once.
        emb = ACTIVATIONS[self.config.act_fn](self.time_embedding(waves))
        skips = [self.conv_in(x)]
        for down in self.down_blocks:
            skips += down(skips[-1], emb, left)
        h = skips[-1]
        if self.mid_block is not None:
            h = self.mid_block(h, emb, left)
        for up in self.up_blocks:
            h = up(h, skips, emb, left)
        return cast(Tensor, self.conv_out(F.silu(self.conv_norm_out(h))))

    def dropout_shapes(self, size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """(channels, height, width) of what each residual block drops from, in the order of the forward pass.

        Args:
            size: (height, width) of the images.
        """
        level, shapes = 0, []
        for module in self.modules():  # which are registered in the order of the forward pass
            if isinstance(module, ResBlock | Downsample | Upsample):
                level += module.descends
            if isinstance(module, ResBlock):
                shapes.append((module.conv2.in_channels, size[0] >> level, size[1] >> level))
        return shapes

    def recompute_activations(self) -> None:
        """Activation checkpointing from now on: keep only what enters each layer, and compute the rest again."""
        for module in self.modules():
            if isinstance(module, Block):
                module.recompute = True


class Block(nn.Module):
    """Residual blocks, each followed by self-attention where there is one for it."""

    def __init__(self, resnets: Iterable[ResBlock], attentions: Iterable[Attention]) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        self.recompute = False

    def layer(self, i: int, x: Tensor, emb: Tensor, masks: list[Tensor]) -> Tensor:
        """Residual block i and its attention."""
        mask = take(masks, self.resnets[i])
        if self.recompute:
            y: Tensor = checkpoint(self._layer, i, x, emb, mask, use_reentrant=False, preserve_rng_state=False)
            return y
        return self._layer(i, x, emb, mask)

    def _layer(self, i: int, x: Tensor, emb: Tensor, mask: Tensor | None) -> Tensor:
        x = self.resnets[i](x, emb, mask)
        return self.attentions[i](x) if i < len(self.attentions) else x


def take(masks: list[Tensor], module: nn.Module) -> Tensor | None:
    """A module's dropout mask off the end of those that are left; only residual blocks have one."""
    return masks.pop() if masks and isinstance(module, ResBlock) else None


class DownBlock(Block):
    """One level on the way down; all but the last end in a halving."""

    def __init__(self, config: UNetConfig, level: int) -> None:
        widths, layers = config.block_out_channels, config.layers_per_block
        channels = widths[level]
        attends = config.down_block_types[level] == "AttnDownBlock2D"
        super().__init__(
            (ResBlock(config, widths[max(level - 1, 0)] if i == 0 else channels, channels) for i in range(layers)),
            (Attention(config, channels, config.norm_num_groups) for _ in range(layers if attends else 0)),
        )
        self.downsamplers = nn.ModuleList()
        if level < config.levels - 1:
            if attends and config.downsample_type == "resnet":  # other levels ignore the field
                self.downsamplers.append(ResBlock(config, channels, channels, resample=halve))
            else:
                self.downsamplers.append(Downsample(channels, config.downsample_padding))

    def forward(self, x: Tensor, emb: Tensor, masks: list[Tensor]) -> list[Tensor]:
        """All results in order; each is a skip connection, and the last goes on down."""
        results = []
        for i in range(len(self.resnets)):
            x = self.layer(i, x, emb, masks)
            results.append(x)
        results += [downsample(x, emb, take(masks, downsample)) for downsample in self.downsamplers]
        return results


class MidBlock(Block):
    """Two residual blocks at the coarsest level, with attention between them."""

    def __init__(self, config: UNetConfig) -> None:
        channels, scale = config.block_out_channels[-1], config.mid_block_scale_factor
        groups = config.attn_norm_num_groups
        if groups is None and config.resnet_time_scale_shift == "default":
            groups = config.norm_num_groups
        super().__init__(
            (ResBlock(config, channels, channels, scale=scale) for _ in range(2)),
            (Attention(config, channels, groups, scale=scale) for _ in range(1 if config.add_attention else 0)),
        )

    def forward(self, x: Tensor, emb: Tensor, masks: list[Tensor]) -> Tensor:
        return self.layer(1, self.layer(0, x, emb, masks), emb, masks)


class UpBlock(Block):
    """One level on the way up, index 0 the coarsest: joins one skip per residual block; all but the last double."""

    def __init__(self, config: UNetConfig, index: int) -> None:
        widths, layers = config.block_out_channels[::-1], config.layers_per_block + 1
        channels = widths[index]
        below = [widths[max(index - 1, 0)], *[channels] * (layers - 1)]
        skips = [*[channels] * (layers - 1), widths[min(index + 1, config.levels - 1)]]
        attends = config.up_block_types[index] == "AttnUpBlock2D"
        super().__init__(
            (ResBlock(config, from_below + skip, channels) for from_below, skip in zip(below, skips, strict=True)),
            (Attention(config, channels, config.norm_num_groups) for _ in range(layers if attends else 0)),
        )
        self.upsamplers = nn.ModuleList()
        if index < config.levels - 1:
            if attends and config.upsample_type == "resnet":  # other levels ignore the field
                self.upsamplers.append(ResBlock(config, channels, channels, resample=double))
            else:
                self.upsamplers.append(Upsample(channels))

    def forward(self, x: Tensor, skips: list[Tensor], emb: Tensor, masks: list[Tensor]) -> Tensor:
        """Takes what it joins off the end of ``skips``."""
        for i in range(len(self.resnets)):
            x = self.layer(i, torch.cat((x, skips.pop()), dim=1), emb, masks)
        for upsample in self.upsamplers:
            x = upsample(x, emb, take(masks, upsample))
        return x


def build(config: UNetConfig, device: torch.device | str) -> UNet:
    """A network on a device, in channels_last memory and training mode, its weights not yet set to anything.

    On the device ``meta`` nothing is allocated.
    """
    with torch.device("meta"):
        unet = UNet(config)
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if torch.device(device).type == "meta":
        return unet
    # Not by `to_empty`: on tensors without content it takes half a second to import PyTorch's symbolic shapes.
    empty = {
        name: torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
        for name, tensor in unet.state_dict().items()
    }
    unet.load_state_dict(empty, assign=True)
    return unet


@torch.no_grad()
def init_weights(unet: UNet, seed: int) -> None:
    """Start weights as in the paper's code: variance scaling, fan_avg, uniform; the network's output starts near 0.

    Weights are uniform with variance 1 / fan_avg, those of the last layer of each residual or attention block and of
    the network 1e-10 / fan_avg; biases are 0, norms 1 and 0. A learned time embedding is standard normal. Each layer's
    numbers are named by the seed and the layer, so neither the device nor channels_last changes them.

    Args:
        unet: on any device; changed in place.
        seed: names the weights.
    """
    last: set[nn.Module] = {unet.conv_out}
    for module in unet.modules():
        if isinstance(module, ResBlock):
            last.add(module.conv2)
        elif isinstance(module, Attention):
            last.add(module.to_out[0])
    for name, module in unet.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.weight
            fan_avg = (weight.shape[0] + weight.shape[1]) / 2 * weight[0, 0].numel()
            bound = math.sqrt(3 * (NEARLY_ZERO if module in last else 1.0) / fan_avg)
            drawn = (2 * rng.uniform(weight.numel(), seed, f"init {name}") - 1) * bound
            weight.copy_(torch.from_numpy(drawn).view(weight.shape))
            cast(Tensor, module.bias).zero_()
        elif isinstance(module, nn.GroupNorm):
            module.weight.fill_(1)
            module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            module.weight.copy_(torch.from_numpy(rng.normal(tuple(module.weight.shape), seed, f"init {name}")))


def parameter_count(config: UNetConfig) -> int:
    """How many numbers are trained; nothing is allocated to find out."""
    return sum(parameter.numel() for parameter in build(config, "meta").parameters())


def flops(config: UNetConfig, size: tuple[int, int]) -> int:
    """Floating-point operations of one forward pass for one image (height, width): a multiply-add counts as 2.

    Convolutions, linear layers and attention are counted, as PyTorch counts them; a training step takes about 3 times
    as many. Nothing is allocated.
    """
    from torch.utils.flop_counter import FlopCounterMode

    unet = build(config, "meta").eval()
    x, t = torch.empty(1, config.in_channels, *size, device="meta"), torch.zeros(1, dtype=torch.int64, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(x, t)
    return int(counter.get_total_flops())
