"""How a run is made to fit into the memory of this machine: whole batches, or parts of them, or activations twice.

Arithmetic says what surely fits. What may not is measured with a few images, and parts are made as large as fit.
"""

from __future__ import annotations

import contextlib
import re
import resource
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from ..checkpoint import STAGED_BYTES
from ..config import UNetConfig
from ..core.distributed import World, processes_here
from ..errors import ArgumentError, InputError
from ..network.unet import build, parameter_count
from .batch import HostBatch
from .loop import Execution, Training
from .plan import Plan
from .record import Computed, RunConfig

BYTES_A_PARAMETER = 20  # weight, gradient, two moments and the average, all float32
BYTES_SHARED = 4  # a parameter, in the buckets that DistributedDataParallel adds up gradients in
SURELY = 0.5  # of the free memory: so much by arithmetic needs no measurement
USED = 0.9  # of the free memory that micro-batches may fill: other programs need some
FEW, MORE = 1, 3  # images that are tried
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Trial:
    """An optimizer step that was tried: its seconds, the faster of two after a first, and its peak of memory, bytes."""

    seconds: float
    peak: int


def fit(plan: Plan, device: torch.device, world: World) -> Execution:
    """How to compute a run here: as it was computed before, else in as few micro-batches as fit.

    Activations are kept if a micro-batch fits with them, else recomputed (activation checkpointing).

    Raises:
        ArgumentError: there are more processes than images in a batch.
        InputError: not even one image at a time fits, or not the micro-batches that the user has asked for.
    """
    config, batch_size = plan.config, plan.config.train.batch_size
    if world.size > batch_size:
        raise ArgumentError(
            f"{world.size} processes cannot share batches of {batch_size}; use `batch_size={world.size}` or more, or "
            "fewer processes"
        )
    batch = -(-batch_size // world.size)
    before = plan.before if plan.before and plan.before.processes == world.size else Computed()
    asked = Execution(world, min(plan.accumulate or 1, batch), compile=plan.compile)
    whole = replace(asked, accumulate=min(plan.accumulate or before.accumulate, batch), recompute=before.recompute)
    part = -(-batch // whole.accumulate)
    free = available_memory(device)
    if device.type == "cpu":
        free -= batch * prepared_bytes(config.unet) + STAGED_BYTES * parameter_count(config.unet)
    if world.size > 1:
        free -= BYTES_SHARED * parameter_count(config.unet)
    need = arithmetic(config, part, recompute=whole.recompute)
    if need <= SURELY * free or (plan.accumulate is not None and need <= free):
        return whole
    if plan.accumulate is None:
        for recompute in (False, True):
            images = _fitting(config, device, free, batch, recompute=recompute)
            if images:
                return replace(asked, accumulate=-(-batch // images), recompute=recompute)
        need = arithmetic(config, 1, recompute=True)
    parts = "" if plan.accumulate is None else ", or a larger `accumulate`: more micro-batches to a batch"
    raise InputError(
        f"this network needs about {need / 2**30:.1f} GiB of memory, of {max(free, 0) / 2**30:.1f} GiB that are "
        f"free beside the batches; use a smaller `preset`, `size` or `batch_size`{parts}"
    )


def prepared_bytes(unet: UNetConfig) -> int:
    """Bytes of an image and its noise in the batch under way, and in the one that is prepared meanwhile."""
    height, width = unet.size
    values = height * width * unet.in_channels
    return 2 * values * (1 + 4)  # uint8 and float32


def arithmetic(config: RunConfig, images: int, *, recompute: bool = False) -> int:
    """Bytes of memory that a step with so many images at a time needs, about: what autograd keeps, and the weights."""
    kept = activation_bytes(config.unet, config.train.precision, recompute=recompute)
    return BYTES_A_PARAMETER * parameter_count(config.unet) + images * kept


def memory_now(device: torch.device) -> int:
    """Bytes that this process has; 0 where that is not known."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _status("VmRSS")


def trial(config: RunConfig, device: torch.device, n: int, *, recompute: bool = False) -> Trial:
    """Try an optimizer step with n images; the peak is of the whole process.

    Raises:
        torch.OutOfMemoryError: they do not fit on the GPU.
    """
    height, width = config.unet.size
    # Weights that hardly move: a trial must not be what a high learning rate breaks.
    train = replace(config.train, batch_size=n, lr=1e-12)
    _forget_peak(device)
    training = Training(config.unet, config.diffusion, train, device, Execution(recompute=recompute))
    batch = HostBatch(
        first=0,
        images=torch.zeros(n, height, width, config.unet.in_channels, dtype=torch.uint8),
        t=np.full(n, config.diffusion.timesteps),
        eps=torch.zeros(n, config.unet.in_channels, height, width),
        weights=torch.ones(n),
    )
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        training.advance(batch)
        training.check()  # waits for the device
        seconds.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")
    return Trial(min(seconds[1:]), peak)


def _fitting(config: RunConfig, device: torch.device, free: int, batch: int, *, recompute: bool) -> int:
    """How many images of a batch fit at a time into free bytes, from the peaks of few and of more; 0 is none."""
    by_arithmetic = activation_bytes(config.unet, config.train.precision, recompute=recompute)
    allowed = (free - arithmetic(config, 0)) // by_arithmetic
    more = min(MORE, batch, allowed)
    if more < FEW:
        return 0
    before = memory_now(device)  # of both: what the first trial gives back, the second may use again
    try:
        few = trial(config, device, FEW, recompute=recompute).peak - before
    except torch.OutOfMemoryError:
        return 0
    if more == FEW:
        return FEW
    try:
        measured = (trial(config, device, more, recompute=recompute).peak - before - few) / (more - FEW)
    except torch.OutOfMemoryError:
        return FEW
    # A small network's images vanish in what else the peak is made of, so arithmetic has a say.
    images = FEW + int((USED * free - few) / max(measured, by_arithmetic))
    return min(max(images, FEW), batch)


@lru_cache(maxsize=4)  # a pass through the network, asked for by the fit and by the estimate
def activation_bytes(unet: UNetConfig, precision: str, *, recompute: bool = False) -> int:
    """Bytes that autograd keeps of one image's forward pass until its backward pass, about."""
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            saved[id(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
            held.append(tensor)
        return tensor

    held: list[torch.Tensor] = []
    network = build(replace(unet, dropout=0.0), "meta").train()
    if recompute:
        network.recompute_activations()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        x = torch.empty(1, unet.in_channels, *unet.size, device="meta")
        network(x, torch.zeros(1, dtype=torch.int64, device="meta"))
    return sum(saved.values()) // (2 if precision == "bf16" else 1)


def available_memory(device: torch.device) -> int:
    """Bytes that are free for this process: of a GPU's memory, or its share of the machine's or container's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    bounds = [2**62]  # not known everywhere
    with contextlib.suppress(OSError, KeyError, ValueError):
        bounds.append(_kilobytes(Path("/proc/meminfo"), "MemAvailable") * 1024)
    with contextlib.suppress(OSError, ValueError):
        limit, used = (int((_CGROUP / name).read_text("ascii")) for name in ("memory.max", "memory.current"))
        # Files that were read count as used, and are given up when memory is asked for.
        cached = re.search(r"^inactive_file (\d+)$", (_CGROUP / "memory.stat").read_text("ascii"), re.MULTILINE)
        bounds.append(max(limit - used + int(cached[1] if cached else 0), 0))
    own = 2**62  # what this process may have by itself: `ulimit -v`, which some schedulers set
    if (limit := resource.getrlimit(resource.RLIMIT_AS)[0]) != resource.RLIM_INFINITY:
        own = max(limit - _status("VmSize"), 0)
    return min(min(bounds) // processes_here(), own)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):  # not Linux, or not allowed: then the peak is that of the process so far
        Path("/proc/self/clear_refs").write_text("5", "ascii")


def _status(field: str) -> int:
    """Bytes of this process, now (VmRSS) or at its peak (VmHWM); 0 where that is not known."""
    with contextlib.suppress(OSError, ValueError):
        return _kilobytes(Path("/proc/self/status"), field) * 1024
    return 0


def _kilobytes(file: Path, field: str) -> int:
    found = re.search(rf"^{field}:\s*(\d+) kB$", file.read_text("ascii"), re.MULTILINE)
    if found is None:
        raise ValueError(f"no {field} in {file}")
    return int(found[1])
