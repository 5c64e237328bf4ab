"""What ``ddpm denoise`` does once its options are known: run the reverse chain from an image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..core.pixels import grid_shape
from ..errors import ArgumentError, InputError
from ..models.model import Model
from ..sampling import generate
from ..sampling import start as starts
from ..sampling.generate import Start
from ..ui.console import Screen
from .inputs import Input, read, refuse_doubles
from .making import Making, fitted, shown, tensor
from .output import Batch, chains, watched, write_pictures


@dataclass(frozen=True)
class Denoise:
    """The options of ``ddpm denoise``: the images are x_t, or are noised first as far as ``strength`` of T."""

    t: int | None
    strength: float | None
    variations: int
    resize: bool

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


def denoise(paths: list[Path], options: Denoise, making: Making) -> Iterator[Path | bytes]:
    """Run the reverse chain from each image, ``variations`` times; yields what is written."""
    model, sampling = making.open(), making.sampling
    t = options.step(model.diffusion.schedule.T)
    chain = generate.visited(sampling, model.diffusion, t)
    images = [image for path in paths for image in _images(read(path), model, options, making.screen)]
    if options.t is not None and not all(image.is_latent for image in images):
        making.screen.say(
            "a picture holds x_t in 8 bits and clipped to [-1, 1], so it is not quite x_t; ddpm noise -o x.npy is exact"
        )
    several = options.variations
    if options.t is not None and several > 1:
        making.warn_of_copies()
    names = [f"{image.name}-{v}" if several > 1 else image.name for image in images for v in range(several)]
    refuse_doubles(f"{name}.png" for name in names)
    grid = (len(images), several) if several > 1 and len(images) > 1 else grid_shape(len(names))
    made = making.made(model, "denoise", names, grid, {"t": t, "strength": options.strength})
    making.check(made, model)

    def batch(places: range) -> Batch:
        """Image i of a call, and variation i of an image, has the noise of number i, as image i of a seed has."""
        starts = [_x_t(model, images[place // several], t, sampling.seed, place, options) for place in places]
        return Batch(places, places, Start(t, torch.cat(starts)))

    parts = list(generate.batches(0, len(names), making.batch_size))
    steps = chains(model, sampling, map(batch, parts))
    steps = watched(steps, len(parts) * len(chain), "denoising", making.screen, preview=making.to.preview)
    yield from write_pictures(making.to, made, steps, chain, making.screen)


@dataclass(frozen=True, eq=False)
class Image:
    """One image to begin from, by the name of its file: uint8 pixels, or x_t in float32, (H, W, C)."""

    name: str
    values: npt.NDArray[Any]

    @property
    def is_latent(self) -> bool:
        """Whether these are x_t itself."""
        return self.values.dtype == np.float32


def _images(file: Input, model: Model, options: Denoise, screen: Screen) -> Iterator[Image]:
    """What is in a file, as the model has its images."""
    if not file.is_array:
        if options.t is not None:
            _check_noise(file.settings("ddpm noise"), file.name, options.t, model, screen)
        yield Image(file.stem, fitted(file, model, options.resize, screen))
        return
    if options.t is None:
        raise InputError(f"{file.name} is a .npy, which holds x_t; say with --t which, instead of --strength")
    latents = file.latents()
    C, H, W = model.shape
    if latents.shape[1:] != (H, W, C):
        raise InputError(
            f"{file.name} holds x_t of {shown(latents.shape[1:])}; the model {model.source} takes {shown((H, W, C))}"
        )
    for number, x_t in enumerate(latents):
        yield Image(file.stem if len(latents) == 1 else f"{file.stem}-{number}", x_t)


def _check_noise(settings: dict[str, Any], name: str, t: int, model: Model, screen: Screen) -> None:
    """Warn of a picture that ``ddpm noise`` has made for another step, or with another chain."""
    c = model.diffusion_config
    for what, expected in (("t", [t]), ("schedule", c.schedule), ("timesteps", c.timesteps)):
        if settings.get(what, expected) != expected:
            screen.warn(f"{name} was noised with {what} = {settings[what]}, and is denoised with {what} = {expected}")


def _x_t(model: Model, image: Image, t: int, seed: int, number: int, options: Denoise) -> torch.Tensor:
    """Where a chain begins, (1, C, H, W): what is given, or what the forward process makes of it."""
    values = image.values
    x = tensor(values) if values.dtype == np.uint8 else torch.from_numpy(values).permute(2, 0, 1)
    return x[None] if options.t is not None else starts.noised(model.diffusion, x[None], t, seed, number)
