"""The models that the paper's authors published, as google/ddpm-* on the Hub: what is known of them from outside.

Their first outputs are those that diffusers' own test of the conversion compares with (scripts/generate_logits.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..network.unet import UNet

TIMESTEP = 10  # counted from 0
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Published:
    """One of them.

    Args:
        average: whether its weights are the EMA.
        outputs: its first outputs in the first row of the first channel, for x ~ N(0, I) of torch's seed 0 and t = 10.
        remark: what a user should know; empty if nothing.
    """

    average: bool
    outputs: tuple[float, ...]
    remark: str = ""


_RAW_CIFAR10 = (
    "these seem to be the raw weights and not their EMA: with them the reproduced FID on CIFAR-10 is about "
    "12, with the EMA 3.2"
)
# fmt: off
PUBLISHED = {
    "google/ddpm-cifar10-32": Published(False, (
        -0.7515, -1.6883, 0.2420, 0.0300, 0.6347, 1.3433, -1.1743, -3.7467, 1.2342, -2.2485,
        0.4636, 0.8076, -0.7991, 0.3969, 0.8498, 0.9189, -1.8887, -3.3522, 0.7639, 0.2040,
        0.6271, -2.7148, -1.6316, 3.0839, 0.3186, 0.2721, -0.9759, -1.2461, 2.6257, 1.3557,
    ), _RAW_CIFAR10),
    "google/ddpm-celebahq-256": Published(
        False, (-1.3690, -1.9720, -0.4090, -0.6966, 1.4660, 0.9938, -0.1385, -2.7324)),
    "google/ddpm-ema-celebahq-256": Published(
        True, (-1.3525, -1.9628, -0.3956, -0.6860, 1.4664, 1.0014, -0.1259, -2.7212)),
    "google/ddpm-church-256": Published(
        False, (-2.0585, -2.7897, -0.2850, -0.8940, 1.9052, 0.5702, 0.6345, -3.8959)),
    "google/ddpm-ema-church-256": Published(
        True, (-2.0628, -2.7667, -0.2089, -0.8263, 2.0539, 0.5992, 0.6495, -3.8336)),
    "google/ddpm-bedroom-256": Published(
        False, (-2.3139, -2.5594, -0.0197, -0.6785, 1.7001, 1.1606, 0.3075, -2.1740)),
    "google/ddpm-ema-bedroom-256": Published(
        True, (-2.3639, -2.5344, 0.0054, -0.6674, 1.5990, 1.0158, 0.3124, -2.1436)),
    "google/ddpm-cat-256": Published(
        False, (-1.4572, -2.0481, -0.0414, -0.6005, 1.4136, 0.5848, 0.4028, -2.7330)),
    "google/ddpm-ema-cat-256": Published(
        True, (-1.4574, -2.0569, -0.0473, -0.6117, 1.4018, 0.5769, 0.4129, -2.7344)),
}
# fmt: on


def difference(published: Published, unet: UNet) -> float:
    """The largest difference of a network's first outputs from the published ones; at most `TOLERANCE` for the same.

    Args:
        unet: on the CPU, in evaluation mode.
    """
    outputs = torch.tensor(published.outputs)
    ours = first_outputs(unet, len(outputs))
    return float((ours - outputs).abs().max()) if ours.shape == outputs.shape else math.inf


@torch.inference_mode()
def first_outputs(unet: UNet, count: int) -> torch.Tensor:
    """The first so many outputs of a network in the first row of the first channel, float32 on the CPU."""
    config = unet.config
    x = torch.randn(1, config.in_channels, *config.size, generator=torch.Generator().manual_seed(0))  # noqa: TID251
    output: torch.Tensor = unet(x, torch.tensor([TIMESTEP]))
    return output[0, 0, 0, :count].contiguous()
