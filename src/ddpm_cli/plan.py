"""What a training run will be, worked out from the images, the options and the machine; and what it will cost."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from .checkpoint import StoredModel
from .config import BUILTIN_DIGITS, UNetConfig
from .denoiser import choose_precision
from .errors import ArgumentError, InputError
from .presets import PRESETS, Preset, choose_preset, paper_preset
from .run import Cadence, RunConfig
from .train import HostBatch, Training
from .unet import build, flops, parameter_count

TRIAL_FLOPS = 60e9  # of one trial step: a moment on a CPU, and enough to be representative
FINE_TUNING_LR = 2e-4  # the paper's; higher ones are for small networks that know nothing yet
BACKWARD = 3  # a step computes about three times as much as a forward pass


@dataclass(frozen=True)
class TrainOptions:
    """The options of ``ddpm train`` that decide what is trained and for how long; None stands for the default."""

    preset: str = "auto"
    steps: int | None = None
    batch_size: int | None = None
    accumulate: int | None = None
    lr: float | None = None
    warmup: int | None = None
    ema: float | None = None
    dropout: float | None = None
    flip: bool | None = None
    predict: str | None = None
    variance: str | None = None
    schedule: str | None = None
    timesteps: int | None = None
    precision: str = "auto"
    seed: int = 0
    save_every: int | None = None
    sample_every: int | None = None
    log_every: int | None = None
    keep: int = 3
    max_time: float | None = None


@dataclass(frozen=True)
class Plan:
    """A run to be: the name of the preset that its defaults are from, all its settings, and how often it writes."""

    preset: str
    config: RunConfig
    cadence: Cadence


@dataclass(frozen=True)
class Cost:
    """What a run takes.

    Args:
        memory: bytes, about: weights, gradients, moments, average, and the activations of one part of a batch.
        step_seconds: of one optimizer step, by trial on this machine.
        total_seconds: of all steps.
        paper_seconds: about what the paper's own network and schedule would take here, by its arithmetic.
    """

    parameters: int
    memory: int
    step_seconds: float
    total_seconds: float
    paper_preset: str
    paper_seconds: float


def plan(
    options: TrainOptions,
    source: str,
    shape: tuple[int, int, int, int],
    digest: str,
    start: StoredModel | None,
    device: torch.device,
) -> Plan:
    """The run that the options describe for images of ``shape`` (N, H, W, C).

    Args:
        source: the images, as the user named them: the bundled digits are not mirrored by default.
        digest: of the packed pixels.
        start: the model to fine-tune, which then decides the network and the diffusion.

    Raises:
        ArgumentError: an option has an impossible value.
        InputError: the images do not go with the network or the model.
    """
    size, channels = shape[1:3], shape[3]
    name = choose_preset(options.preset, size, accelerated=device.type != "cpu")
    preset = PRESETS[name]
    if start is None:
        unet, base = preset.unet(size, channels), preset.diffusion()
    else:
        unet, base = _fine_tuned(start, size, channels, options), start.diffusion
    unet = _changed(unet, dropout=options.dropout)
    unet.check_size(size)
    diffusion = _changed(
        base,
        predict=options.predict,
        variance=options.variance,
        schedule=options.schedule,
        timesteps=options.timesteps,
    )
    known = unet.num_train_timesteps if unet.time_embedding_type == "learned" else None
    if known is not None and known < diffusion.timesteps:
        raise ArgumentError(f"--timesteps is {diffusion.timesteps}; this model has learned only {known} of them")
    train = _changed(
        preset.train if start is None else replace(preset.train, lr=min(preset.train.lr, FINE_TUNING_LR)),
        batch_size=options.batch_size,
        accumulate=options.accumulate,
        lr=options.lr,
        warmup=options.warmup,
        ema=options.ema,
        flip=False if options.flip is None and source == BUILTIN_DIGITS else options.flip,
        seed=options.seed,
        precision=choose_precision(options.precision, device),
    )
    config = RunConfig(unet, diffusion, train, digest, shape, start.source if start else None)
    return Plan(name, config, _cadence(options, preset))


def cost(plan: Plan, device: torch.device) -> Cost:
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
    step_seconds = _trial_seconds(config, device, trial) * batch / trial
    paper = PRESETS[paper_preset(unet.size)]
    paper_size = (256, 256) if paper_preset(unet.size) == "256" else (32, 32)
    paper_flops = flops(paper.unet(paper_size, unet.in_channels), paper_size) * paper.train.batch_size * paper.steps
    return Cost(
        parameters=parameters,
        memory=memory,
        step_seconds=step_seconds,
        total_seconds=step_seconds * plan.cadence.steps,
        paper_preset=paper_preset(unet.size),
        paper_seconds=step_seconds / (per_image * batch) * paper_flops,
    )


def _fine_tuned(start: StoredModel, size: tuple[int, int], channels: int, options: TrainOptions) -> UNetConfig:
    if options.preset != "auto":
        raise ArgumentError("--preset and --from exclude each other: the model decides the network")
    if start.unet.in_channels != channels:
        raise InputError(
            f"the images have {channels} channel(s), the model {start.source} {start.unet.in_channels}; "
            f"use --channels {start.unet.in_channels}"
        )
    height, width = size
    return replace(start.unet, sample_size=height if height == width else size)


def _cadence(options: TrainOptions, preset: Preset) -> Cadence:
    steps = options.steps or preset.steps

    def default(value: int | None, otherwise: int) -> int:
        return otherwise if value is None else value

    return Cadence(
        steps=steps,
        log_every=default(options.log_every, 10 if steps <= 10_000 else 100),
        save_every=default(options.save_every, max(100, min(steps // 10, 5000))),
        sample_every=default(options.sample_every, max(100, min(steps // 10, 5000))),
        keep=options.keep,
        max_time=options.max_time,
    )


def _changed(config: Any, **values: Any) -> Any:
    """The configuration with every value that is not None instead. They are options: a bad one is an ArgumentError."""
    try:
        return replace(config, **{name: value for name, value in values.items() if value is not None})
    except InputError as error:
        raise ArgumentError(str(error)) from error


def _trial_seconds(config: RunConfig, device: torch.device, n: int) -> float:
    """Seconds of one optimizer step with n images, the faster of two after a first."""
    height, width = config.unet.size
    # Weights that hardly move: a trial must not be what a high learning rate breaks.
    train = replace(config.train, batch_size=n, accumulate=1, lr=1e-12)
    training = Training(config.unet, config.diffusion, train, device)
    batch = HostBatch(
        images=torch.zeros(n, height, width, config.unet.in_channels, dtype=torch.uint8),
        t=np.ones(n, np.int64),
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
