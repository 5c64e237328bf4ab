"""What a training run will cost on this machine: memory by arithmetic, time by trial."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..network.unet import flops, parameter_count
from .loop import Execution
from .memory import arithmetic, trial
from .plan import Plan
from .record import RunConfig

TRIAL_FLOPS = 10e9  # of one trial step: a moment on a CPU, and enough to be representative
BACKWARD = 3  # a step computes about three times as much as a forward pass


@dataclass(frozen=True)
class Cost:
    """What a run takes.

    Args:
        memory: bytes of a process, about: weights, gradients, moments, average, and the activations of one micro-batch.
        step_seconds: of one optimizer step, by trial on this machine.
        total_seconds: of all steps.
    """

    parameters: int
    memory: int
    step_seconds: float
    total_seconds: float


def estimate(plan: Plan, device: torch.device, execution: Execution) -> Cost:
    """Try a step on this machine, and reckon from it what a process will take.

    Args:
        execution: from `memory.fit`.
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
    )


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
