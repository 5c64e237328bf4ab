"""What a training run will cost on this machine: memory by arithmetic, time by trial."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from .config import UNetConfig
from .errors import InputError
from .plan import Plan
from .presets import PRESETS, paper_preset
from .run import RunConfig
from .train import HostBatch, Training
from .unet import build, flops, parameter_count

TRIAL_FLOPS = 60e9  # of one trial step: a moment on a CPU, and enough to be representative
BACKWARD = 3  # a step computes about three times as much as a forward pass
PAPER_SIZES = {"cifar10": (32, 32), "256": (256, 256)}


@dataclass(frozen=True)
class Cost:
    """What a run takes.

    Args:
        memory: bytes, about: weights, gradients, moments, average, and the activations of one part of a batch.
        step_seconds: of one optimizer step, by trial on this machine.
        total_seconds: of all steps.
        paper_seconds: about what the paper's own network and schedule would take here.
    """

    parameters: int
    memory: int
    step_seconds: float
    total_seconds: float
    paper_preset: str
    paper_seconds: float


def estimate(plan: Plan, device: torch.device) -> Cost:
    """Try a step on this machine, and reckon from it.

    Raises:
        InputError: the network does not fit into the machine's memory.
    """
    config = plan.config
    unet, batch = config.unet, config.train.batch_size
    parameters = parameter_count(unet)
    per_image = flops(unet, unet.size)
    part = -(-batch // config.train.accumulate)
    # weights, gradients, two moments and the average, all float32
    memory = 20 * parameters + part * _activation_bytes(unet, config.train.precision)
    available = _available_memory(device)
    if memory > available:
        raise InputError(
            f"this network needs about {memory / 2**30:.1f} GiB of memory, of {available / 2**30:.1f} GiB that are "
            "free; use a smaller --preset, --size or --batch-size, or --accumulate to compute a batch in parts"
        )
    trial = int(np.clip(TRIAL_FLOPS / (BACKWARD * per_image), 1, part))
    step_seconds = _step_seconds(config, device, trial, batch)
    paper = paper_preset(unet.size)
    return Cost(
        parameters=parameters,
        memory=memory,
        step_seconds=step_seconds,
        total_seconds=step_seconds * plan.cadence.steps,
        paper_preset=paper,
        paper_seconds=_paper_seconds(paper, config, device),
    )


def _paper_seconds(name: str, config: RunConfig, device: torch.device) -> float:
    """Seconds that a run of the paper's would take here.

    Its arithmetic, at the rate of a network of one level that is as wide as the paper's and works at its 16x16: a
    narrow network on small images reaches only a fraction of that, and the paper's own would take too long to try.
    """
    preset, size = PRESETS[name], PAPER_SIZES[name]
    whole = preset.unet(size, 3)
    level = replace(
        whole,
        sample_size=16,
        block_out_channels=(256,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
    )
    images = 2 if device.type == "cpu" else 32
    batch = preset.train.batch_size
    paper = replace(config, unet=level, diffusion=preset.diffusion(), train=replace(config.train, loss="simple"))
    seconds = _step_seconds(paper, device, images, batch) / (flops(level, (16, 16)) * batch)
    return seconds * flops(whole, size) * batch * preset.steps


def _step_seconds(config: RunConfig, device: torch.device, trial: int, batch: int) -> float:
    """Seconds of a step with ``batch`` images, from steps with ``trial`` images and twice as many.

    A step costs something whatever its images are: Adam, clipping, the average, and on a GPU the start of each kernel.
    """
    few = _trial_seconds(config, device, trial)
    if trial >= batch:
        return few
    more = _trial_seconds(config, device, 2 * trial)
    an_image = max((more - few) / trial, more / (8 * trial))  # a busy machine may be quick the second time
    return more + an_image * max(batch - 2 * trial, 0)


def _trial_seconds(config: RunConfig, device: torch.device, n: int) -> float:
    """Seconds of one optimizer step with n images, the faster of two after a first."""
    height, width = config.unet.size
    # Weights that hardly move: a trial must not be what a high learning rate breaks.
    train = replace(config.train, batch_size=n, accumulate=1, lr=1e-12)
    training = Training(config.unet, config.diffusion, train, device)
    batch = HostBatch(
        images=torch.zeros(n, height, width, config.unet.in_channels, dtype=torch.uint8),
        t=np.full(n, config.diffusion.timesteps),
        eps=torch.zeros(n, config.unet.in_channels, height, width),
    )
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        training.advance(batch)
        training.check()  # waits for the device
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def _activation_bytes(unet: UNetConfig, precision: str) -> int:
    """Bytes that autograd keeps of one image's forward pass until its backward pass, about."""
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            saved[id(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
            held.append(tensor)
        return tensor

    held: list[torch.Tensor] = []
    network = build(replace(unet, dropout=0.0), "meta").train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        x = torch.empty(1, unet.in_channels, *unet.size, device="meta")
        network(x, torch.zeros(1, dtype=torch.int64, device="meta"))
    return sum(saved.values()) // (2 if precision == "bf16" else 1)


def _available_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123
            fields = dict(line.split(":") for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 2**62  # not known here, so not refused
