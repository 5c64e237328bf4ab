"""``ddpm sample`` of the bundled model, all T = 1000 steps, beside diffusers' own pipeline on the same checkpoint."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import torch

from ddpm_cli.config import BUILTIN_DIGITS
from ddpm_cli.model import Model, builtin_folder, load
from ddpm_cli.sampling import Sampling

from .measure import Table, in_turn

N = 64
STEPS = 50


def tables() -> Iterator[Table]:
    """The whole command, and the chain alone beside the peer's."""
    with tempfile.TemporaryDirectory() as name:
        began = time.perf_counter()
        program = [sys.executable, "-m", "ddpm_cli", "sample", "-m", BUILTIN_DIGITS]
        subprocess.run([*program, "-n", str(N), "-o", f"{name}/grid.png"], check=True, capture_output=True)
        whole = time.perf_counter() - began
    models = {precision: load(BUILTIN_DIGITS, precision=precision) for precision in ("fp32", "auto")}
    chains = {f"the chain in {m.denoiser.precision}": _chain(m) for m in models.values()}
    peer = "diffusers' DDPMPipeline on the same folder, fp32"
    times = in_turn({**chains, peer: _peer()}, 5)
    rows = (
        (f"`ddpm sample -n {N}`, the whole command, 1000 steps", f"{whole:.1f} s", ""),
        *(
            (f"{name}, a step", f"{1000 * t.median / STEPS:.2f} ms", f"{times[peer].median / t.median:.2f}")
            for name, t in times.items()
        ),
    )
    yield Table(
        "Sampling from the bundled model",
        f"{N} images at a time, {torch.get_num_threads()} threads; {STEPS} steps of each in turn, medians of 5. The "
        "aim for the whole command is a minute.",
        ("", "time", "times faster"),
        rows,
    )


def _chain(model: Model) -> Callable[[], object]:
    def run() -> None:
        for _ in itertools.islice(model.chain(Sampling(), range(N)), STEPS):
            pass

    return run


def _peer() -> Callable[[], object]:
    from diffusers import DDPMPipeline

    pipeline = DDPMPipeline.from_pretrained(builtin_folder())
    pipeline.set_progress_bar_config(disable=True)
    return lambda: pipeline(batch_size=N, num_inference_steps=STEPS)
