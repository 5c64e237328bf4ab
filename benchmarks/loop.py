"""What the training loop costs around forward and backward: data, noise, EMA, clipping, logging."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ddpm_cli.core.allocator import keep_freed_memory
from ddpm_cli.data import Images
from ddpm_cli.network.denoiser import choose_device, choose_precision
from ddpm_cli.training.batch import batch_at
from ddpm_cli.training.loop import Training
from ddpm_cli.training.presets import PRESETS, Preset
from ddpm_cli.training.record import Cadence, RunConfig
from ddpm_cli.training.run import run

from .measure import Table, elsewhere

STEPS = {"cifar10": 12, "tiny": 100}
SIZES = {"cifar10": (32, 32, 3), "tiny": (8, 8, 1)}
BATCHES = {"cifar10": 32, "tiny": 128}


def tables() -> Iterator[Table]:
    """The share of a step of ``ddpm train`` that is not forward, backward and Adam."""
    device = choose_device("auto")
    rows = tuple(elsewhere(_row, name, PRESETS[name], device) for name in STEPS)
    yield Table(
        "The loop around forward and backward",
        "A run as `ddpm train` makes it, every step logged, without checkpoints and previews, beside the same steps "
        "as bare x_t, dropout masks, forward, backward and fused Adam on a batch that lies ready; the two in turn, "
        "step by step, in a process for each preset. The share is the median of the differences, step by step, with "
        "its quartiles: data, noise, clipping, the moving average and logging. The aim is under 5 %.",
        ("preset", "batch", "bare step", "step of a run", "the loop's share"),
        rows,
    )


def _row(name: str, preset: Preset, device: torch.device) -> tuple[str, ...]:
    keep_freed_memory()  # as the command does
    height, width, channels = SIZES[name]
    batch = BATCHES[name]
    pixels = np.random.Generator(np.random.Philox(0)).integers(0, 256, (512, height, width, channels), np.uint8)
    images = Images.from_array(pixels)
    train = replace(preset.train, batch_size=batch, precision=choose_precision("auto", device))
    config = RunConfig(preset.unet((height, width), channels), preset.diffusion(), train, images.digest, images.shape)
    bare = Training(config.unet, config.diffusion, config.train, device)
    ready = batch_at(images, train, bare.diffusion.schedule, 1)
    bare_seconds, run_seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        cadence = Cadence(steps=STEPS[name] + 2, log_every=1, save_every=0, sample_every=0)
        steps = run(Path(folder) / "run", config, cadence, images, device, None, threading.Event())
        next(steps)
        for _ in range(STEPS[name] + 2):
            began = time.perf_counter()
            next(steps)
            between = time.perf_counter()
            bare._backward(ready, 1)
            bare.optimizer.step()
            bare.optimizer.zero_grad(set_to_none=True)
            bare.check()
            run_seconds.append(between - began)
            bare_seconds.append(time.perf_counter() - between)
        steps.close()
    whole, part = np.array(run_seconds[2:]), np.array(bare_seconds[2:])
    low, share, high = np.quantile((whole - part) / whole, (0.25, 0.5, 0.75))
    cells = f"{1000 * np.median(part):.0f} ms", f"{1000 * np.median(whole):.0f} ms"
    return name, str(batch), *cells, f"{share:.1%} ({low:.1%} to {high:.1%})"
