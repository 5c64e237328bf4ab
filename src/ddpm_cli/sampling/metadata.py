"""How a picture was sampled: written into its PNG, read back from it to make the same again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from .. import __version__
from ..core.files import printable
from ..core.pixels import decode_text, grid_shape
from ..errors import ArgumentError, InputError
from .settings import Sampling

TEXT_KEY = "ddpm sample"
MAX_IMAGES = 10_000_000
MAX_SCALE = 64


@dataclass(frozen=True)
class Recipe(Sampling):
    """The settings that decide a sheet of samples, those of a chain and more; None where the model decides the default.

    Args:
        model: as the user named it; ``step``: the optimizer steps it had seen, where known.
        first: index of the first image of the seed; ``n``: how many images.
        rows, columns, scale: of the sheet.
        precision: of the network's arithmetic.
    """

    model: str | None = None
    step: int | None = None
    first: int = 0
    n: int = 16
    rows: int | None = None
    columns: int | None = None
    scale: int | None = None
    precision: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        limits = {"n": (1, MAX_IMAGES), "rows": (1, MAX_IMAGES), "columns": (1, MAX_IMAGES), "scale": (1, MAX_SCALE)}
        for name, (low, high) in {**limits, "first": (0, MAX_IMAGES), "seed": (0, 2**63 - 1)}.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ArgumentError(f"{name} is {value}; it must be from {low} to {high}")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ArgumentError(f"precision is {self.precision!r}; it must be auto, fp32 or bf16")

    @property
    def sampling(self) -> Sampling:
        """The settings of the chain alone."""
        return Sampling(**{field.name: getattr(self, field.name) for field in fields(Sampling)})

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the sheet.

        Raises:
            ArgumentError: the images do not fit on it.
        """
        if self.rows is None or self.columns is None:
            return grid_shape(self.n)
        if self.rows * self.columns < self.n:
            raise ArgumentError(f"`grid` is {self.rows}x{self.columns}, which has no room for {self.n} images (`n`)")
        return self.rows, self.columns

    def alone(self, index: int) -> Recipe:
        """The recipe of one image of these."""
        return replace(self, first=index, n=1, rows=None, columns=None, scale=None)

    def name(self, place: int) -> str:
        """The file's name, without a suffix, of one image of these."""
        return f"{self.first + place:06d}"

    def text(self, place: int | None) -> dict[str, str]:
        """The text chunks of one image's PNG, or of the sheet's."""
        recipe = self if place is None else self.alone(self.first + place)
        return {TEXT_KEY: json.dumps(asdict(recipe)), "Software": f"ddpm {__version__}"}

    @classmethod
    def from_png(cls, path: Path) -> Self:
        """Read the recipe in a PNG that ``ddpm sample`` wrote.

        Raises:
            InputError: there is none in it, or one that this version does not understand.
        """
        where = printable(path)
        text = decode_text(path).get(TEXT_KEY)
        if text is None:
            raise InputError(f"{where} carries no settings of ddpm sample; give a PNG that it wrote, unedited")
        try:
            data = json.loads(text)
        except ValueError as error:
            raise InputError(f"{where}: its settings are damaged") from error
        known = {field.name for field in fields(cls)}
        for name, value in data.items() if isinstance(data, dict) else [("settings", data)]:
            if name not in known or not (value is None or _is_of_type(value, name)):
                raise InputError(f"{where}: its setting {printable(str(name))[:40]} cannot be understood")
        settings: dict[str, Any] = {name: value for name, value in data.items() if value is not None}
        if "timesteps" in settings:
            settings["timesteps"] = tuple(settings["timesteps"])
        try:
            return cls(**settings)
        except ArgumentError as error:
            raise InputError(f"{where}: its settings make no sense: {error}") from error

    def overridden(self, options: Mapping[str, Any]) -> Self:
        """This recipe with every option that is not None instead.

        What belonged to another sampler, another number of images or another model goes with it.
        """
        given = {name: value for name, value in options.items() if value is not None}
        of_chain = {field.name for field in fields(Sampling)} - {"sampler", "seed"}
        follows: dict[str, Iterable[str]] = {
            "sampler": of_chain,
            "steps": ("timesteps",),
            "spacing": ("timesteps",),
            "timesteps": ("steps", "spacing"),
            "n": ("rows", "columns"),
            "model": ("step",),
        }
        gone = {
            name: None
            for cause, names in follows.items()
            for name in names
            if given.get(cause, getattr(self, cause)) != getattr(self, cause)
        }
        return replace(self, **{**gone, **given})


def _is_of_type(value: object, name: str) -> bool:
    """Whether a setting read from a file is of its field's type. JSON has no tuples."""
    if name == "timesteps":
        return isinstance(value, list) and all(type(t) is int for t in value)
    strings, floats = ("model", "sampler", "spacing", "precision"), ("eta", "snr")
    return type(value) is str if name in strings else type(value) is float if name in floats else type(value) is int
