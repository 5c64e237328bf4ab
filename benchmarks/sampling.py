"""``ddpm sample`` of the bundled model, all T = 1000 steps, beside diffusers' own pipeline on the same checkpoint."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import torch

from ddpm_cli.config import BUILTIN_DIGITS
from ddpm_cli.generate import Sampling
from ddpm_cli.model import builtin_folder, load

from .measure import Table

N = 64
PEER_STEPS = 50


def tables() -> Iterator[Table]:
    """The whole command, and the chain alone beside the peer's."""
    with tempfile.TemporaryDirectory() as name:
        began = time.perf_counter()
        program = [sys.executable, "-m", "ddpm_cli", "sample", "-m", BUILTIN_DIGITS]
        subprocess.run([*program, "-n", str(N), "-o", f"{name}/grid.png"], check=True, capture_output=True)
        whole = time.perf_counter() - began
    ours, theirs = _chain_seconds(), _peer_seconds()
    rows = (
        (f"`ddpm sample -n {N}`, the whole command, 1000 steps", f"{whole:.1f} s", ""),
        ("the chain, a step", f"{1000 * ours:.2f} ms", f"{theirs / ours:.1f}"),
        ("diffusers' DDPMPipeline on the same folder, a step", f"{1000 * theirs:.2f} ms", "1"),
    )
    yield Table(
        "Sampling from the bundled model",
        f"{N} images at a time, {torch.get_num_threads()} threads. The aim for the whole command is a minute.",
        ("", "time", "times faster"),
        rows,
    )


def _chain_seconds() -> float:
    model = load(BUILTIN_DIGITS)
    steps = iter(model.chain(Sampling(), range(N)))
    for _ in range(10):
        next(steps)
    began = time.perf_counter()
    for _ in range(PEER_STEPS):
        next(steps)
    return (time.perf_counter() - began) / PEER_STEPS


def _peer_seconds() -> float:
    from diffusers import DDPMPipeline

    pipeline = DDPMPipeline.from_pretrained(builtin_folder())
    pipeline.set_progress_bar_config(disable=True)
    pipeline(batch_size=N, num_inference_steps=5)
    began = time.perf_counter()
    pipeline(batch_size=N, num_inference_steps=PEER_STEPS)
    return (time.perf_counter() - began) / PEER_STEPS
