"""What a training run will be, worked out from the images, the options and the machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import StoredModel
from ..config import BUILTIN_DIGITS, DiffusionConfig, TrainConfig, UNetConfig
from ..errors import ArgumentError, InputError
from ..network.denoiser import choose_precision
from .presets import PRESETS, Preset, choose_preset
from .record import Cadence, Computed, Origin, RunConfig, RunRecord, in_words, refuse

NOWHERE = Origin()
FINE_TUNING_LR = 2e-4  # the paper's; higher ones are for small networks that know nothing yet


@dataclass(frozen=True)
class TrainOptions:
    """The options of ``ddpm train`` that decide what is trained and for how long; None, or ``auto``, is not given.

    What is not given comes from the run in the folder, else from the preset, else from the machine.
    """

    preset: str = "auto"
    steps: int | None = None
    batch_size: int | None = None
    accumulate: int | None = None
    lr: float | None = None
    warmup: int | None = None
    ema: float | None = None
    dropout: float | None = None
    flip: bool | None = None
    t_sampling: str | None = None
    predict: str | None = None
    loss: str | None = None
    variance: str | None = None
    schedule: str | None = None
    timesteps: int | None = None
    precision: str = "auto"
    seed: int | None = None
    save_every: int | None = None
    sample_every: int | None = None
    log_every: int | None = None
    keep: int | None = None
    max_time: float | None = None
    compile: bool | None = None


@dataclass(frozen=True)
class Plan:
    """A run to be: all its settings, and how often it writes.

    Args:
        accumulate: micro-batches that each process is to compute its images of a batch in; None for as few as fit.
        before: how the run was computed before, to be kept where it fits; None for a new one.
        compile: whether to compile the network if that makes it faster.
    """

    config: RunConfig
    cadence: Cadence
    accumulate: int | None = None
    compile: bool = False
    before: Computed | None = None

    @property
    def preset(self) -> str | None:
        """The name of the preset that the network and the defaults are from, if it is known."""
        return self.config.origin.preset


def plan(
    options: TrainOptions,
    shape: tuple[int, int, int, int],
    digest: str,
    start: StoredModel | None,
    device: torch.device,
    origin: Origin = NOWHERE,
) -> Plan:
    """The new run that the options describe for images of ``shape`` (N, H, W, C).

    Args:
        digest: of the packed pixels.
        origin: where the images are: the bundled digits are not mirrored by default.
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
        unet, base = _fine_tuned(start, size, channels), start.diffusion
    unet = _changed(unet, dropout=options.dropout)
    unet.check_size(size)
    diffusion = _changed(
        base,
        predict=options.predict,
        variance=options.variance,
        schedule=options.schedule,
        timesteps=options.timesteps,
    )
    loss = _loss(options.loss, diffusion)
    if start is None and diffusion.learns_variance:
        unet = replace(unet, out_channels=2 * unet.in_channels)
    elif start is not None and diffusion.learns_variance != start.diffusion.learns_variance:
        raise ArgumentError(
            f"`variance` is {diffusion.variance}; the network of {start.source} was made for "
            f"{start.diffusion.variance}, and has {unet.out_channels} outputs for {unet.in_channels} channels; leave "
            "out `variance`, or `start`"
        )
    known = unet.num_train_timesteps if unet.time_embedding_type == "learned" else None
    if known is not None and known < diffusion.timesteps:
        raise ArgumentError(f"`timesteps` is {diffusion.timesteps}; this model has learned only {known} of them")
    train = _changed(
        preset.train if start is None else replace(preset.train, lr=min(preset.train.lr, FINE_TUNING_LR)),
        batch_size=options.batch_size,
        lr=options.lr,
        warmup=options.warmup,
        ema=options.ema,
        flip=False if options.flip is None and origin.images == BUILTIN_DIGITS else options.flip,
        seed=options.seed,
        loss=loss,
        t_sampling=_t_sampling(options.t_sampling, preset, diffusion, loss),
        precision=choose_precision(options.precision, device, diffusion.predict),
    )
    origin = replace(origin, preset=None if start else name)
    config = RunConfig(unet, diffusion, train, digest, shape, start.source if start else None, origin)
    return Plan(config, _cadence(options, preset), _parts(options.accumulate, train), bool(options.compile))


def resumed(
    options: TrainOptions,
    record: RunRecord,
    folder: Path,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    start: str | None = None,
) -> Plan:
    """The run in a folder, as it began: only options that were given can disagree with it.

    Neither this machine nor the presets of this release have a say in its settings.

    Args:
        size, channels, start: as the user gave them; None where not.

    Raises:
        ArgumentError: names each option that disagrees, both values, and the command that began the run.
    """
    config, train, d = record.config, record.config.train, record.config.diffusion
    given: dict[str, tuple[object, object]] = {
        "preset": (None if options.preset == "auto" else options.preset, config.origin.preset or options.preset),
        "size": (size, config.shape[1:3]),
        "channels": (channels, config.shape[3]),
        "start": (start, config.start),
        "dropout": (options.dropout, config.unet.dropout),
        "precision": (None if options.precision == "auto" else options.precision, train.precision),
    }
    for name in ("predict", "variance", "schedule", "timesteps"):
        given[name] = getattr(options, name), getattr(d, name)
    for name in ("batch_size", "lr", "warmup", "ema", "flip", "seed", "loss", "t_sampling"):
        given[name] = getattr(options, name), getattr(train, name)
    differing = [
        (name, _shown(was), _shown(now)) for name, (now, was) in given.items() if now is not None and now != was
    ]
    if differing:
        refuse(folder, record, in_words(differing, "`{name}` was {a} and is now {b}"))
    preset = PRESETS.get(config.origin.preset or options.preset, PRESETS["tiny"])
    cadence = _cadence(options, preset, record.cadence)
    compiled = record.computed.compile if options.compile is None else options.compile
    return Plan(config, cadence, _parts(options.accumulate, train), compiled, record.computed)


def _shown(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def check(options: TrainOptions, start: StoredModel | None) -> None:
    """Refuse options that make no sense whatever the images are, before anybody waits for those.

    Raises:
        ArgumentError: an option has an impossible value, or excludes another.
    """
    if start is not None and options.preset != "auto":
        raise ArgumentError("`preset` and `start` exclude each other: the model decides the network")
    _changed(UNetConfig(), dropout=options.dropout)
    _changed(
        DiffusionConfig(),
        predict=options.predict,
        variance=options.variance,
        schedule=options.schedule,
        timesteps=options.timesteps,
    )
    _changed(
        TrainConfig(),
        batch_size=options.batch_size,
        lr=options.lr,
        warmup=options.warmup,
        ema=options.ema,
    )


def _parts(accumulate: int | None, train: TrainConfig) -> int | None:
    if accumulate is not None and accumulate > train.batch_size:
        raise ArgumentError(
            f"`accumulate` is {accumulate}; a batch of {train.batch_size} images has no more micro-batches"
        )
    return accumulate


def _loss(asked: str | None, diffusion: DiffusionConfig) -> str:
    """What to minimise: by default L_simple, which leaves a variance alone, or L_hybrid where that is learned.

    Raises:
        ArgumentError: it would train nothing for the variance, or nothing but the mean where only that is left.
    """
    loss = asked or ("hybrid" if diffusion.learns_variance else "simple")
    if loss == "simple" and diffusion.learns_variance:
        raise ArgumentError(
            f"`loss=simple` does not depend on the variance, so `variance={diffusion.variance}` would not be learned; "
            "use `loss=hybrid` or `loss=vlb`"
        )
    if loss == "hybrid" and not diffusion.learns_variance:
        raise ArgumentError(
            "`loss=hybrid` adds to `loss=simple` what trains a learned variance, and `variance` is "
            f"{diffusion.variance}; use `loss=simple`, or `variance=learned-range`"
        )
    return loss


def _t_sampling(asked: str | None, preset: Preset, diffusion: DiffusionConfig, loss: str) -> str:
    """How t is drawn: as the preset says where that is for what is trained, else uniformly.

    Raises:
        ArgumentError: importance where something else than the error of eps is minimised.
    """
    fits = diffusion.predict == "eps" and loss == "simple"
    if asked == "importance" and not fits:
        raise ArgumentError(
            "`t_sampling=importance` is made for the error of eps alone: `predict=eps` and `loss=simple`. This network "
            f"predicts {diffusion.predict} and the loss is {loss}; leave it out"
        )
    return asked or (preset.train.t_sampling if fits else "uniform")


def _fine_tuned(start: StoredModel, size: tuple[int, int], channels: int) -> UNetConfig:
    if start.unet.in_channels != channels:
        raise InputError(
            f"the images have {channels} channel(s), the model {start.source} {start.unet.in_channels}; "
            f"use `channels={start.unet.in_channels}`"
        )
    height, width = size
    return replace(start.unet, sample_size=height if height == width else size)


def _cadence(options: TrainOptions, preset: Preset, before: Cadence | None = None) -> Cadence:
    """How long and how often: as given, else as before, else by the preset. ``max_time`` is of one command alone."""
    steps = options.steps or (before.steps if before else preset.steps)
    seldom = max(100, min(steps // 10, 5000))
    usual = before or Cadence(steps, 10 if steps <= 10_000 else 100, seldom, seldom)
    names = ("log_every", "save_every", "sample_every", "keep")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    return replace(usual, steps=steps, max_time=options.max_time, **given)


def _changed(config: Any, **values: Any) -> Any:
    """The configuration with every value that is not None instead. They are options: a bad one is an ArgumentError."""
    try:
        return replace(config, **{name: value for name, value in values.items() if value is not None})
    except InputError as error:
        raise ArgumentError(str(error)) from error
