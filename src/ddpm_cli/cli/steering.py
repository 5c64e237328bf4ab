"""What ``denoise``, ``interpolate``, ``progressive`` and ``inpaint`` do once their options are known."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__, generate, steering
from ..data.fit import fit
from ..diffusion.samplers import Step, repaint_walk
from ..errors import ArgumentError, InputError
from ..generate import Start, pixels_of
from ..model import Model
from ..pixels import COLOURS, Pixels, Raster, grid_shape, to_channels, to_float
from ..sampling import Sampling
from ..ui.console import Screen
from .inputs import Input, read
from .models import open_model
from .output import (
    Batch,
    BatchStep,
    Destination,
    Table,
    chains,
    check_pictures,
    watched,
    write_pictures,
    write_table,
)

INPAINT_STEPS = 100  # each of which is gone many times


@dataclass(frozen=True)
class Machine:
    """Which model, where it runs, and how many images at a time."""

    model: str | None
    device: str
    precision: str
    batch_size: int

    def open(self, screen: Screen) -> Model:
        """The model, ready."""
        return open_model(self.model, screen, device=self.device, precision=self.precision)


@dataclass(frozen=True)
class Made:
    """Images that a command makes: the names of their files, their layout, and the settings that their PNGs carry."""

    command: str
    names: Sequence[str]
    grid: tuple[int, int]
    scale: int | None
    settings: dict[str, Any]

    @property
    def n(self) -> int:
        """How many."""
        return len(self.names)

    def name(self, place: int) -> str:
        """The file's name, without a suffix, of one of them."""
        return self.names[place]

    def text(self, place: int | None) -> dict[str, str]:
        """The text chunks of a PNG: the same for each of them."""
        return {f"ddpm {self.command}": json.dumps(self.settings), "Software": f"ddpm {__version__}"}


@dataclass(frozen=True)
class Denoise:
    """The options of ``ddpm denoise``: the images are x_t, or are noised first as far as ``strength`` of T."""

    t: int | None
    strength: float | None
    variations: int
    resize: bool
    scale: int | None

    def __post_init__(self) -> None:
        if (self.t is None) == (self.strength is None):
            raise ArgumentError("give either --t, if the image is an x_t, or --strength, if it is to be noised first")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise ArgumentError(f"--strength is {self.strength}; it must be above 0, up to 1")
        if self.t is not None and self.resize:
            raise ArgumentError("--resize is for clean images (--strength): scaling x_t would change its noise")

    def step(self, T: int) -> int:
        """Where the chain begins."""
        return self.t if self.t is not None else max(1, round((self.strength or 0) * T))


def denoise(
    paths: list[Path], options: Denoise, sampling: Sampling, machine: Machine, to: Destination, screen: Screen
) -> Iterator[Path | bytes]:
    """Run the reverse chain from each image, ``variations`` times; yields what is written."""
    model = machine.open(screen)
    t = options.step(model.diffusion.schedule.T)
    chain = generate.visited(sampling, model.diffusion, t)
    images = [image for path in paths for image in _latents(read(path), model, options, screen)]
    several = options.variations
    names = [f"{name}-{v}" if several > 1 else name for name, _ in images for v in range(several)]
    _check_names(names)
    shape = (len(images), several) if several > 1 else grid_shape(len(images))
    settings = {"model": model.source, "t": t, "strength": options.strength, **asdict(sampling)}
    made = Made("denoise", names, shape, options.scale, settings)
    check_pictures(to, made)

    def batches() -> Iterator[Batch]:
        for places in parts:
            variations = [place % several for place in places]
            rows = [images[place // several][1] for place in places]
            yield Batch(places, variations, Start(t, _started(model, rows, variations, t, sampling.seed, options)))

    parts = list(generate.batches(0, len(names), machine.batch_size))
    steps = chains(model, sampling, batches())
    steps = watched(steps, len(parts) * len(chain), "denoising", screen, preview=to.preview)
    yield from write_pictures(to, made, steps, chain, screen)


def _latents(image: Input, model: Model, options: Denoise, screen: Screen) -> Iterator[tuple[str, torch.Tensor]]:
    """Each image in a file, (C, H, W), by a name: x_t, or x_0 where it is to be noised."""
    if not image.is_array:
        if options.t is not None:
            screen.say(
                f"{image.name}: a picture holds x_t in 8 bits and clipped to [-1, 1], so it is not quite x_t; "
                "ddpm noise -o x.npy keeps it exactly"
            )
        yield image.stem, _tensor(_fitted(image, model, options.resize, screen))
        return
    if options.t is None:
        raise InputError(f"{image.name} is a .npy, which holds x_t; say with --t which, instead of --strength")
    latents = image.latents()
    C, H, W = model.shape
    if latents.shape[1:] != (H, W, C):
        raise InputError(
            f"{image.name} holds x_t of {_shown(latents.shape[1:])}; the model {model.source} takes {_shown((H, W, C))}"
        )
    for number, x_t in enumerate(latents):
        yield image.stem if len(latents) == 1 else f"{image.stem}-{number}", torch.from_numpy(x_t).permute(2, 0, 1)


def _started(
    model: Model, rows: list[torch.Tensor], variations: list[int], t: int, seed: int, options: Denoise
) -> torch.Tensor:
    """x_t of a batch: what is given, or what the forward process makes of it, each variation with its own noise."""
    if options.t is not None:
        return torch.stack(rows)
    noised = (steering.noised(model.diffusion, x[None], t, seed, v) for x, v in zip(rows, variations, strict=True))
    return torch.cat(list(noised))


@dataclass(frozen=True)
class Interpolate:
    """The options of ``ddpm interpolate``."""

    times: tuple[int, ...] | None
    lambdas: int
    resize: bool
    scale: int | None


def interpolate(
    a: Path, b: Path, options: Interpolate, sampling: Sampling, machine: Machine, to: Destination, screen: Screen
) -> Iterator[Path | bytes]:
    """Figures 8 and 9: what lies between two images at each t, a row each; t = 0 mixes their pixels."""
    model = machine.open(screen)
    T = model.diffusion.schedule.T
    times = options.times or (T // 2,)
    if bad := [t for t in times if not 0 <= t <= T]:
        raise ArgumentError(f"--t {bad[0]} is outside 0..{T}")
    ends = [_fitted(read(path), model, options.resize, screen) for path in (a, b)]
    x, y = (_tensor(end)[None].to(model.device) for end in ends)
    lambdas = np.linspace(0, 1, options.lambdas).tolist()
    names = [f"t{t:04d}-lambda{weight:.3f}" for t in times for weight in lambdas]
    settings = {"model": model.source, "t": list(times), "lambdas": lambdas, **asdict(sampling)}
    made = Made("interpolate", names, (len(times), len(lambdas)), options.scale, settings)
    check_pictures(to, made)
    # All rows of a chain have one noise, too: then only lambda makes the difference.
    starts = [steering.between(model.diffusion, x, y, t, lambdas, sampling.seed) for t in times if t]
    batches = [Batch(range(0), [0] * len(lambdas), start) for start in starts]
    total = sum(len(generate.visited(sampling, model.diffusion, start.t)) for start in starts)
    steps = watched(chains(model, sampling, batches), total, "interpolating", screen, preview=to.preview)
    done = [pixels_of(step.x_t) for step in steps if step.t == 0]
    mixed = pixels_of(torch.cat([(1 - weight) * x + weight * y for weight in lambdas]))
    cells = np.stack([done.pop(0) if t else mixed for t in times])
    labels = [f"{weight:.3g}" for weight in lambdas]
    if not to.is_folder and to.suffix == ".png":
        sources = (np.repeat(end[None, None], len(times), axis=0) for end in ends)
        first, last = sources
        cells, labels = np.concatenate([first, cells, last], axis=1), ["source", *labels, "source"]
    table = Table(cells, [f"t = {t}" for t in times], labels, "lambda")
    yield from write_table(to, made, table, screen)


@dataclass(frozen=True)
class Progressive:
    """The options of ``ddpm progressive``."""

    n: int
    times: tuple[int, ...] | None
    share_from: tuple[int, ...] | None
    scale: int | None

    def __post_init__(self) -> None:
        if self.times and self.share_from:
            raise ArgumentError("--t is of Figure 6, and --share-from of Figure 7; give one of them")


def progressive(
    options: Progressive, sampling: Sampling, machine: Machine, to: Destination, screen: Screen
) -> Iterator[Path | bytes]:
    """Figure 6: x_0_hat over the reverse process; or Figure 7: images that share one x_t."""
    model = machine.open(screen)
    if options.share_from:
        yield from _shared(model, options, options.share_from, sampling, machine, to, screen)
        return
    T = model.diffusion.schedule.T
    wanted = options.times or tuple(dict.fromkeys(round(t) for t in np.linspace(T, 0, 9)))
    if bad := [t for t in wanted if not 0 <= t <= T]:
        raise ArgumentError(f"--t {bad[0]} is outside 0..{T}")
    sampling = steering.through(sampling, model.diffusion, *(t for t in wanted if t))
    chain = generate.visited(sampling, model.diffusion)
    names = [f"{index:06d}-t{t:04d}" for index in range(options.n) for t in wanted]
    settings = {"model": model.source, "n": options.n, "t": list(wanted), **asdict(sampling)}
    made = Made("progressive", names, (options.n, len(wanted)), options.scale, settings)
    check_pictures(to, made)
    parts = list(generate.batches(0, options.n, machine.batch_size))
    seen: dict[int, list[Pixels]] = {t: [] for t in wanted}
    for indices in parts:
        steps = model.chain(sampling, indices)
        for at, step in zip([*chain[::-1], 0], _and_the_end(steps), strict=True):
            if at in seen:
                seen[at].append(pixels_of(step.x_0_hat if at else step.x_t))
    cells = np.stack([np.concatenate(seen[t]) for t in wanted], axis=1)
    table = Table(cells, [], [f"t = {t}" for t in wanted])
    yield from write_table(to, made, table, screen)


def _and_the_end(steps: Iterator[Step]) -> Iterator[Step]:
    """Each step, whose x_0_hat is of the t that it leaves, and the last one again, which has come to 0."""
    step = None
    for step in steps:
        yield step
    assert step is not None
    yield step


def _shared(
    model: Model,
    options: Progressive,
    times: tuple[int, ...],
    sampling: Sampling,
    machine: Machine,
    to: Destination,
    screen: Screen,
) -> Iterator[Path | bytes]:
    sampling = steering.through(sampling, model.diffusion, *times)
    n = options.n
    names = [f"t{t:04d}-{name}" for t in times for name in ("x_t", *(f"{i:06d}" for i in range(n)))]
    settings = {"model": model.source, "n": n, "share_from": list(times), **asdict(sampling)}
    made = Made("progressive", names, (len(times), 1 + n), options.scale, settings)
    check_pictures(to, made)
    T = model.diffusion.schedule.T
    shared = {step.t: step.x_t for step in model.chain(sampling, [0]) if step.t in times}
    shared[T] = generate.normal(model.shape, sampling.seed, "x_T", [(0,)], model.device)
    parts = list(generate.batches(0, n, machine.batch_size))
    batches = [Batch(ids, ids, Start(t, shared[t].expand(len(ids), -1, -1, -1))) for t in times for ids in parts]
    total = sum(len(parts) * len(generate.visited(sampling, model.diffusion, t)) for t in times)
    steps = watched(chains(model, sampling, batches), total, "sampling", screen, preview=to.preview)
    ends = (pixels_of(step.x_t) for step in steps if step.t == 0)
    rows = [np.concatenate([pixels_of(shared[t]), *islice(ends, len(parts))]) for t in times]
    table = Table(np.stack(rows), [f"t = {t}" for t in times], ["x_t", *map(str, range(n))], "image")
    yield from write_table(to, made, table, screen)


@dataclass(frozen=True)
class Inpaint:
    """The options of ``ddpm inpaint``."""

    n: int
    rounds: int
    resize: bool
    scale: int | None


def inpaint(
    image: Path, mask: Path, options: Inpaint, sampling: Sampling, machine: Machine, to: Destination, screen: Screen
) -> Iterator[Path | bytes]:
    """RePaint: make the pixels anew where the mask is white, ``n`` times."""
    model = machine.open(screen)
    pixels = _fitted(read(image), model, options.resize, screen)
    known = _known(read(mask), model, options.resize)
    settings = {"model": model.source, "n": options.n, "rounds": options.rounds, **asdict(sampling)}
    stem = "stdin" if str(image) == "-" else image.stem
    names = [f"{stem}-{i}" for i in range(options.n)]
    made = Made("inpaint", names, grid_shape(options.n), options.scale, settings)
    check_pictures(to, made)
    if sampling.steps is None and sampling.timesteps is None:
        sampling = replace(sampling, steps=min(INPAINT_STEPS, model.diffusion.schedule.T))
    chain = generate.visited(sampling, model.diffusion)
    walk = [len(chain), *repaint_walk(len(chain), options.rounds)]
    down = sum(after < before for before, after in pairwise(walk))
    x_0, mask_ = _tensor(pixels)[None].to(model.device), torch.from_numpy(known)[None, None].float().to(model.device)
    parts = list(generate.batches(0, options.n, machine.batch_size))
    steps: Iterator[BatchStep] = (
        BatchStep(indices, step.t, step.x_t)
        for indices in parts
        for step in steering.inpaint(model.denoiser, model.diffusion, sampling, x_0, mask_, indices, options.rounds)
    )
    steps = watched(steps, len(parts) * down, "inpainting", screen, preview=to.preview)
    yield from write_pictures(to, made, steps, chain, screen)


def _known(mask: Input, model: Model, resize: bool) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Where a mask is dark, (H, W).

    Raises:
        InputError: it is of another size than the model's images, or says that all or nothing is known.
    """
    _, H, W = model.shape
    raster = mask.raster()
    if raster.pixels.shape[:2] != (H, W) and not resize:
        raise InputError(
            f"{mask.name}: the mask is {_shown(raster.pixels.shape[:2])}, and the model's images {H}x{W}; --resize "
            "scales and crops it"
        )
    grey = fit(io.BytesIO(mask.data), (H, W), 1)[0] if resize else to_channels(raster, 1)
    known: np.ndarray[Any, np.dtype[np.bool_]] = grey[:, :, 0] < 128
    if known.all():
        raise InputError(f"{mask.name}: no pixel of the mask is white, so there is nothing to make anew")
    if not known.any():
        raise InputError(f"{mask.name}: all of the mask is white, so nothing is known; that is what ddpm sample is for")
    return known


def _fitted(image: Input, model: Model, resize: bool, screen: Screen) -> Pixels:
    """An image as the model's, uint8 (H, W, C).

    Raises:
        InputError: it is of another size or other channels, and shall not be changed.
    """
    C, H, W = model.shape
    raster = image.raster()
    if resize:
        pixels, notes = fit(io.BytesIO(image.data), (H, W), C)
        for note in notes:
            screen.say(f"{image.name}: {note}")
        return pixels
    size, channels = raster.pixels.shape[:2], _channels(raster)
    if (*size, channels) != (H, W, C):
        raise InputError(
            f"{image.name} is {_shown((*size, channels))}, and the model {model.source} makes {_shown((H, W, C))}; "
            "--resize scales, crops and converts a clean image"
        )
    return to_channels(raster, C)


def _channels(raster: Raster) -> int:
    return 4 if raster.has_alpha else 1 if raster.is_grey else 3


def _tensor(pixels: Pixels) -> torch.Tensor:
    """Pixels (H, W, C) as (C, H, W) in [-1, 1]."""
    return to_float(torch.from_numpy(np.array(pixels))).permute(2, 0, 1)  # Pillow's arrays are read-only


def _shown(shape: Sequence[int]) -> str:
    size = "x".join(map(str, shape[:2]))
    return f"{size}, {COLOURS.get(shape[2], f'{shape[2]} channels')}" if len(shape) > 2 else size


def _check_names(names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise ArgumentError(f"several images would become {double}.png; give them in several calls")
