"""What the commands that make images of images have in common."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .. import __version__
from ..core.pixels import COLOURS, Pixels, Raster, to_channels, to_float
from ..data.fit import REDUCED, fit
from ..errors import InputError
from ..models.model import Model
from ..sampling.settings import Sampling
from ..ui.console import Screen, open_screen
from .inputs import Input
from .models import open_model
from .output import SEEN, Destination, check_destination, check_files, check_sheet


@dataclass(frozen=True, eq=False)
class Making:
    """With what images are made, and where they go: the options that these commands share.

    Args:
        scale: how many times they are enlarged on a sheet; None chooses.
        batch_size: images at a time.
    """

    sampling: Sampling
    screen: Screen
    to: Destination
    model: str | None
    device: str
    precision: str
    batch_size: int
    scale: int | None

    @classmethod
    def of(cls, options: dict[str, Any]) -> Making:
        """From the values of `options.picture_options`, and those of the sampler's options.

        Raises:
            ArgumentError: settings of the sampler that do not go together, or an output that cannot be written.
        """
        screen = open_screen(options.pop("verbosity"))
        to = Destination(options.pop("output"), options.pop("force"), options.pop("preview"))
        own = {name: options.pop(name) for name in ("model", "device", "precision", "batch_size", "scale")}
        sampling = Sampling(**{name: value for name, value in options.items() if value is not None})
        check_destination(to)
        return cls(sampling, screen, to, **own)

    def open(self) -> Model:
        """The model, ready."""
        return open_model(self.model, self.screen, device=self.device, precision=self.precision)

    def made(
        self, model: Model, command: str, names: Sequence[str], grid: tuple[int, int], settings: dict[str, Any]
    ) -> Made:
        """The images that a command is about to make, with what decides them beside its own ``settings``."""
        used = {
            "model": model.source,
            "step": model.provenance.step,
            "precision": model.denoiser.precision,
            **self.sampling.to_json(),
            **settings,
        }
        return Made(
            command, names, grid, self.scale, {name: value for name, value in used.items() if value is not None}
        )

    def warn_of_copies(self) -> None:
        """Say that chains from one x_t will all end at one image, if they will."""
        if not self.sampling.is_random:
            self.screen.warn(
                f"--sampler {self.sampling.sampler} adds no noise, so images from one x_t are all the same; use "
                "ddpm, or ddim with --eta"
            )

    def check(self, made: Made, model: Model, at_least: int = SEEN) -> None:
        """Refuse, before the work, what cannot be written.

        Args:
            at_least: pixels that an image has on a sheet.
        """
        check_files(self.to, made)
        check_sheet(self.to, made, model.shape, at_least)


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
        """The text chunks of one's PNG, or of the sheet's."""
        which = {} if place is None else {"image": self.names[place]}
        return {f"ddpm {self.command}": json.dumps(self.settings | which), "Software": f"ddpm {__version__}"}


def fitted(image: Input, model: Model, resize: bool, screen: Screen) -> Pixels:
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
    size, channels = raster.pixels.shape[:2], _channels(raster, C)
    if (*size, channels) != (H, W, C):
        raise InputError(
            f"{image.name} is {shown((*size, channels))}, and the model {model.source} makes {shown((H, W, C))}; "
            "--resize scales, crops and converts a clean image"
        )
    if raster.note:
        screen.warn(f"{image.name}: {raster.note}")
    if raster.pixels.dtype != np.uint8:
        screen.say(f"{image.name}: {REDUCED}")
    return to_channels(raster, C)


def _channels(raster: Raster, expected: int) -> int:
    """Of an image; an alpha channel counts if it says something, or if it is expected."""
    if raster.has_alpha or raster.pixels.shape[2] == expected == 4:
        return 4
    return 1 if raster.is_grey else 3


def tensor(pixels: Pixels) -> torch.Tensor:
    """Pixels (H, W, C) as (C, H, W) in [-1, 1]."""
    return to_float(torch.from_numpy(np.array(pixels))).permute(2, 0, 1)  # Pillow's arrays are read-only


def shown(shape: Sequence[int]) -> str:
    size = "x".join(map(str, shape[:2]))
    return f"{size}, {COLOURS.get(shape[2], f'{shape[2]} channels')}" if len(shape) > 2 else size
