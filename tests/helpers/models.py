"""Small networks of random weights, in memory and in folders of diffusers' layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ddpm_cli.checkpoint import weights
from ddpm_cli.checkpoint.layout import WEIGHTS, describe
from ddpm_cli.config import DiffusionConfig, UNetConfig
from ddpm_cli.core.files import at_once
from ddpm_cli.network.unet import UNet, build, init_weights

# google/ddpm-cifar10-32's and google/ddpm-cat-256's config.json.
GOOGLE_CIFAR10: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
GOOGLE_256 = GOOGLE_CIFAR10 | {
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "down_block_types": ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4,
    "sample_size": 256,
}

DIFFUSION = DiffusionConfig(timesteps=20, beta_end=0.3)


def tiny(channels: int = 1, size: tuple[int, int] = (8, 8)) -> UNetConfig:
    """A network of two levels, the lower one with attention."""
    return UNetConfig(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=None,
        norm_num_groups=4,
    )


@torch.no_grad()
def random_unet(config: UNetConfig, seed: int) -> UNet:
    """A network whose every layer does something: matrices that keep the size of numbers, not the start of training."""
    unet, generator = build(config, "cpu"), torch.Generator().manual_seed(seed)
    init_weights(unet, seed)
    for parameter in unet.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
    return unet.eval().requires_grad_(False)


def write_model(folder: Path, unet: UNet, diffusion: DiffusionConfig = DIFFUSION, *, flat: bool = False) -> Path:
    """A folder as diffusers writes it: ``unet/`` and ``scheduler/``, or all files in one place. No manifest."""
    for name, document in describe(unet.config, diffusion).items():
        path = folder / (Path(name).name if flat else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document))
    at_once(weights.write(folder / ("" if flat else "unet") / WEIGHTS, unet.state_dict()))
    return folder
