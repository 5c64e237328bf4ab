"""What a training run will cost on this machine: memory by arithmetic, time by trial."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from ..network.unet import flops, parameter_count
from .loop import Execution
from .memory import arithmetic, trial
from .plan import Plan
from .presets import PRESETS, paper_preset
from .run import RunConfig

TRIAL_FLOPS = 10e9  # of one trial step: a moment on a CPU, and enough to be representative
BACKWARD = 3  # a step computes about three times as much as a forward pass
PAPER_SIZES = {"cifar10": (32, 32), "256": (256, 256)}


@dataclass(frozen=True)
class PaperRun:
    """About how many seconds the paper's own network and schedule, a preset, would take on this machine."""

    preset: str
    seconds: float


@dataclass(frozen=True)
class Cost:
    """What a run takes.

    Args:
        memory: bytes of a process, about: weights, gradients, moments, average, and the activations of one part.
        step_seconds: of one optimizer step, by trial on this machine.
        total_seconds: of all steps.
        paper: what the paper's own run would take, if that was asked for.
    """

    parameters: int
    memory: int
    step_seconds: float
    total_seconds: float
    paper: PaperRun | None


def estimate(plan: Plan, device: torch.device, execution: Execution, *, paper: bool = False) -> Cost:
    """Try a step on this machine, and reckon from it what a process will take.

    Args:
        execution: from `fitting.fit`.
        paper: whether to reckon the paper's own run as well, which takes another trial.
    """
    config, unet = plan.config, plan.config.unet
    batch = -(-config.train.batch_size // execution.world.size)
    part = -(-batch // execution.accumulate)
    few = int(np.clip(TRIAL_FLOPS / (BACKWARD * flops(unet, unet.size)), 1, part))
    step_seconds = _step_seconds(config, device, few, part, batch, recompute=execution.recompute)
    return Cost(
        parameters=parameter_count(unet),
        memory=arithmetic(config, part, recompute=execution.recompute),
        step_seconds=step_seconds,
        total_seconds=step_seconds * plan.cadence.steps,
        paper=_paper_run(config, device, execution) if paper else None,
    )


def _paper_run(config: RunConfig, device: torch.device, execution: Execution) -> PaperRun:
    """What the paper's own run for images of this size would take here.

    Its arithmetic, at the rate of a network of one level that is as wide as the paper's and works at its 16x16: a
    narrow network on small images reaches only a fraction of that, and the paper's own would take too long to try.
    """
    name = paper_preset(config.unet.size)
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
    seconds = _step_seconds(paper, device, images, batch, batch) / (flops(level, (16, 16)) * batch)
    return PaperRun(name, seconds * flops(whole, size) * batch * preset.steps / execution.world.size)


def _step_seconds(
    config: RunConfig, device: torch.device, few: int, part: int, batch: int, *, recompute: bool = False
) -> float:
    """Seconds of a step with ``batch`` images, from steps with few images and, if so many fit, twice as many.

    A step costs something whatever its images are: Adam, clipping, the average, and on a GPU the start of each kernel.
    """
    seconds = trial(config, device, few, recompute=recompute).seconds
    if few == batch:
        return seconds
    more = min(2 * few, part)
    if more == few:
        return seconds * batch / few
    longer = trial(config, device, more, recompute=recompute).seconds
    # A machine that was busy may be quick the second time.
    an_image = max((longer - seconds) / (more - few), longer / (4 * more))
    return longer + an_image * (batch - more)
