"""What ``ddpm denoise`` does once its options are known: run the reverse chain from an image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from .. import generate, steering
from ..errors import ArgumentError, InputError
from ..generate import Start
from ..model import Model
from ..pixels import grid_shape
from ..ui.console import Screen
from .inputs import Input, read
from .making import Made, Making, fitted, shown, tensor
from .output import (
    Batch,
    chains,
    check_pictures,
    watched,
    write_pictures,
)


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
    images = [image for path in paths for image in _latents(read(path), model, options, making.screen)]
    several = options.variations
    names = [f"{name}-{v}" if several > 1 else name for name, _ in images for v in range(several)]
    _check_names(names)
    shape = (len(images), several) if several > 1 else grid_shape(len(images))
    settings = {"model": model.source, "t": t, "strength": options.strength, **asdict(sampling)}
    made = Made("denoise", names, shape, making.scale, settings)
    check_pictures(making.to, made)

    def batches() -> Iterator[Batch]:
        for places in parts:
            variations = [place % several for place in places]
            rows = [images[place // several][1] for place in places]
            yield Batch(places, variations, Start(t, _started(model, rows, variations, t, sampling.seed, options)))

    parts = list(generate.batches(0, len(names), making.batch_size))
    steps = chains(model, sampling, batches())
    steps = watched(steps, len(parts) * len(chain), "denoising", making.screen, preview=making.to.preview)
    yield from write_pictures(making.to, made, steps, chain, making.screen)


def _latents(image: Input, model: Model, options: Denoise, screen: Screen) -> Iterator[tuple[str, torch.Tensor]]:
    """Each image in a file, (C, H, W), by a name: x_t, or x_0 where it is to be noised."""
    if not image.is_array:
        if options.t is not None:
            screen.say(
                f"{image.name}: a picture holds x_t in 8 bits and clipped to [-1, 1], so it is not quite x_t; "
                "ddpm noise -o x.npy keeps it exactly"
            )
        yield image.stem, tensor(fitted(image, model, options.resize, screen))
        return
    if options.t is None:
        raise InputError(f"{image.name} is a .npy, which holds x_t; say with --t which, instead of --strength")
    latents = image.latents()
    C, H, W = model.shape
    if latents.shape[1:] != (H, W, C):
        raise InputError(
            f"{image.name} holds x_t of {shown(latents.shape[1:])}; the model {model.source} takes {shown((H, W, C))}"
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


def _check_names(names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise ArgumentError(f"several images would become {double}.png; give them in several calls")
