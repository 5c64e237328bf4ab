"""Small training runs in folders."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm_cli.checkpoint import StoredModel
from ddpm_cli.config import TrainConfig, UNetConfig
from ddpm_cli.data import Images
from ddpm_cli.training.record import Cadence, RunConfig
from ddpm_cli.training.run import Progress, run
from helpers.models import DIFFUSION, tiny

NETWORK = replace(tiny(), dropout=0.2)


TRAIN = TrainConfig(batch_size=4, lr=2e-3, warmup=4, ema=0.9, seed=3)


QUIET = Cadence(steps=12, log_every=1, save_every=0, sample_every=0)


def images(seed: int = 0, n: int = 13) -> Images:
    return Images.from_array(np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 1), dtype=np.uint8))


def config_of(data: Images, unet: UNetConfig = NETWORK, **changes: Any) -> RunConfig:
    return RunConfig(unet, DIFFUSION, replace(TRAIN, **changes), data.digest, data.shape)


def go(
    folder: Path,
    cadence: Cadence = QUIET,
    config: RunConfig | None = None,
    data: Images | None = None,
    start: StoredModel | None = None,
    stop_after: int | None = None,
) -> list[Progress]:
    """Run to the end, or until a step is done."""
    data, stop, seen = data or images(), threading.Event(), []
    for progress in run(folder, config or config_of(data), cadence, data, torch.device("cpu"), start, stop):
        seen.append(progress)
        if progress.advanced and progress.step == stop_after:
            stop.set()
    return seen


def final(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step-{step:08d}"
