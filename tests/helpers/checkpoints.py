"""Checkpoints of random weights, and how two of them differ."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ddpm_cli.checkpoint import (
    MOMENTS,
    Snapshot,
)
from ddpm_cli.checkpoint.layout import WEIGHTS
from ddpm_cli.config import DiffusionConfig, UNetConfig
from ddpm_cli.network.unet import build

NETWORK = UNetConfig(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    block_out_channels=(8, 16),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    attention_head_dim=None,
    norm_num_groups=4,
)


# The smallest network, for the tests that write hundreds of checkpoints.
SMALLEST = replace(
    NETWORK,
    block_out_channels=(4,),
    down_block_types=("DownBlock2D",),
    up_block_types=("UpBlock2D",),
    mid_block_type=None,
    norm_num_groups=1,
)


DIFFUSION = DiffusionConfig(timesteps=20, beta_end=0.3)


FILES = (
    "MANIFEST.json",
    "ddpm.json",
    "model_index.json",
    "scheduler/scheduler_config.json",
    "train/model.safetensors",
    "train/optimizer.safetensors",
    "train/state.json",
    "unet/config.json",
    f"unet/{WEIGHTS}",
)


def random_snapshot(
    seed: int, step: int, unet: UNetConfig = SMALLEST, diffusion: DiffusionConfig = DIFFUSION
) -> Snapshot:
    """A snapshot of random bits, denormal numbers among them, all finite."""
    rng = np.random.default_rng(seed)
    shapes = {name: tensor.shape for name, tensor in build(unet, "meta").state_dict().items()}

    def bits(shape: torch.Size) -> torch.Tensor:
        drawn = rng.integers(-(2**31), 2**31, tuple(shape), dtype=np.int32)
        drawn[drawn & 0x7F800000 == 0x7F800000] ^= 0x40000000  # no NaN and no infinity
        tensor = torch.from_numpy(drawn).view(torch.float32)
        return tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor

    return Snapshot(
        step=step,
        unet=unet,
        diffusion=diffusion,
        ema={name: bits(shape) for name, shape in shapes.items()},
        weights={name: bits(shape) for name, shape in shapes.items()},
        optimizer={f"{name}.{moment}": bits(shape) for name, shape in shapes.items() for moment in MOMENTS},
        loss_sum=float(np.float32(rng.normal())),
        loss_count=int(rng.integers(100)),
    )


def differences(a: Snapshot, b: Snapshot) -> list[str]:
    """Where two snapshots differ, to the bit."""
    found = [
        name for name in ("step", "unet", "diffusion", "loss_sum", "loss_count") if getattr(a, name) != getattr(b, name)
    ]
    for part in ("ema", "weights", "optimizer"):
        ours, theirs = getattr(a, part), getattr(b, part)
        if ours.keys() != theirs.keys():
            found.append(f"the names of {part}")
            continue
        found += [
            f"{part} {name}"
            for name in ours
            if ours[name].dtype != theirs[name].dtype
            or ours[name].shape != theirs[name].shape
            or not torch.equal(ours[name].contiguous().view(torch.int32), theirs[name].contiguous().view(torch.int32))
        ]
    return found


HUB_SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "_diffusers_version": "0.1.1",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "variance_type": "fixed_large",
}


def old_name(name: str) -> str:
    if ".attentions." not in name:
        return name
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        name = name.replace(f".{new}.", f".{old}.")
    return name
