"""What ``ddpm inpaint`` does once its options are known: RePaint."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ..core.pixels import grid_shape
from ..data.fit import fit
from ..diffusion.samplers import repaint_walk
from ..errors import InputError
from ..models.model import Model
from ..sampling import generate
from ..sampling import start as starts
from .inputs import Input, read
from .making import Making, fitted, shown, tensor
from .output import BatchStep, watched, write_pictures

WHITE = 128  # of 255
INPAINT_STEPS = 250  # as in the paper of RePaint; each of them is gone many times


@dataclass(frozen=True)
class Inpaint:
    """The options of ``ddpm inpaint``."""

    n: int
    rounds: int
    resize: bool


def inpaint(image: Path, mask: Path, options: Inpaint, making: Making) -> Iterator[Path | bytes]:
    """RePaint: make the pixels anew where the mask is white, ``n`` times."""
    model, sampling = making.open(), making.sampling
    picture, cover = read(image), read(mask)
    _check_sizes(picture, cover)
    pixels = fitted(picture, model, options.resize, making.screen)
    known = _known(cover, model)
    names = [f"{picture.stem}-{i}" for i in range(options.n)]
    if sampling.steps is None and sampling.timesteps is None:
        T = model.diffusion.schedule.T
        sampling = replace(sampling, steps=T if model.diffusion.variance == "learned" else min(INPAINT_STEPS, T))
    chain = generate.visited(sampling, model.diffusion)
    made = replace(making, sampling=sampling).made(
        model, "inpaint", names, grid_shape(options.n), {"n": options.n, "rounds": options.rounds}
    )
    making.check(made, model)
    walk = [len(chain), *repaint_walk(len(chain), options.rounds)]
    down = sum(after < before for before, after in pairwise(walk))
    x_0, mask_ = tensor(pixels)[None].to(model.device), torch.from_numpy(known)[None, None].float().to(model.device)
    parts = list(generate.batches(0, options.n, making.batch_size))
    steps: Iterator[BatchStep] = (
        BatchStep(indices, step.t, step.x_t, step.x_0_hat)
        for indices in parts
        for step in starts.inpaint(model.denoiser, model.diffusion, sampling, x_0, mask_, indices, options.rounds)
    )
    steps = watched(steps, len(parts) * down, "inpainting", making.screen, preview=making.to.preview)
    yield from write_pictures(making.to, made, steps, chain, making.screen)


def _check_sizes(image: Input, mask: Input) -> None:
    """Refuse a mask that is not of its image's size: no pixel of it would be known to belong to one of the image."""
    size, of_mask = (file.raster().pixels.shape[:2] for file in (image, mask))
    if size != of_mask:
        raise InputError(
            f"{mask.name}: the mask is {shown(of_mask)}, and {image.name} is {shown(size)}; they must be of one size"
        )


def _known(mask: Input, model: Model) -> npt.NDArray[np.bool_]:
    """Where a mask is dark, (H, W) of the model's images.

    Raises:
        InputError: it says that all or nothing is known.
    """
    _, H, W = model.shape
    grey = fit(io.BytesIO(mask.data), (H, W), 1)[0][:, :, 0]
    known: npt.NDArray[np.bool_] = grey < WHITE
    if known.all():
        raise InputError(
            f"{mask.name}: no pixel of the mask is white ({WHITE} or more; its brightest is {grey.max()}), so there is "
            "nothing to make anew"
        )
    if not known.any():
        raise InputError(f"{mask.name}: all of the mask is white, so nothing is known; that is what ddpm sample is for")
    return known
