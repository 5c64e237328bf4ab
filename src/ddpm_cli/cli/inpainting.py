"""What ``ddpm inpaint`` does once its options are known: RePaint."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import generate, steering
from ..data.fit import fit
from ..diffusion.samplers import repaint_walk
from ..errors import InputError
from ..model import Model
from ..pixels import grid_shape, to_channels
from .inputs import Input, read
from .making import Made, Making, fitted, shown, tensor
from .output import (
    BatchStep,
    check_pictures,
    watched,
    write_pictures,
)

INPAINT_STEPS = 100  # each of which is gone many times


@dataclass(frozen=True)
class Inpaint:
    """The options of ``ddpm inpaint``."""

    n: int
    rounds: int
    resize: bool


def inpaint(image: Path, mask: Path, options: Inpaint, making: Making) -> Iterator[Path | bytes]:
    """RePaint: make the pixels anew where the mask is white, ``n`` times."""
    model, sampling = making.open(), making.sampling
    pixels = fitted(read(image), model, options.resize, making.screen)
    known = _known(read(mask), model, options.resize)
    settings = {"model": model.source, "n": options.n, "rounds": options.rounds, **asdict(sampling)}
    stem = "stdin" if str(image) == "-" else image.stem
    names = [f"{stem}-{i}" for i in range(options.n)]
    made = Made("inpaint", names, grid_shape(options.n), making.scale, settings)
    check_pictures(making.to, made)
    if sampling.steps is None and sampling.timesteps is None:
        sampling = replace(sampling, steps=min(INPAINT_STEPS, model.diffusion.schedule.T))
    chain = generate.visited(sampling, model.diffusion)
    walk = [len(chain), *repaint_walk(len(chain), options.rounds)]
    down = sum(after < before for before, after in pairwise(walk))
    x_0, mask_ = tensor(pixels)[None].to(model.device), torch.from_numpy(known)[None, None].float().to(model.device)
    parts = list(generate.batches(0, options.n, making.batch_size))
    steps: Iterator[BatchStep] = (
        BatchStep(indices, step.t, step.x_t, step.x_0_hat)
        for indices in parts
        for step in steering.inpaint(model.denoiser, model.diffusion, sampling, x_0, mask_, indices, options.rounds)
    )
    steps = watched(steps, len(parts) * down, "inpainting", making.screen, preview=making.to.preview)
    yield from write_pictures(making.to, made, steps, chain, making.screen)


def _known(mask: Input, model: Model, resize: bool) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Where a mask is dark, (H, W).

    Raises:
        InputError: it is of another size than the model's images, or says that all or nothing is known.
    """
    _, H, W = model.shape
    raster = mask.raster()
    if raster.pixels.shape[:2] != (H, W) and not resize:
        raise InputError(
            f"{mask.name}: the mask is {shown(raster.pixels.shape[:2])}, and the model's images {H}x{W}; --resize "
            "scales and crops it"
        )
    grey = fit(io.BytesIO(mask.data), (H, W), 1)[0] if resize else to_channels(raster, 1)
    known: np.ndarray[Any, np.dtype[np.bool_]] = grey[:, :, 0] < 128
    if known.all():
        raise InputError(f"{mask.name}: no pixel of the mask is white, so there is nothing to make anew")
    if not known.any():
        raise InputError(f"{mask.name}: all of the mask is white, so nothing is known; that is what ddpm sample is for")
    return known
