"""How a picture was sampled: written into its PNG, read back from it to make the same again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
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
class Recipe:
    """The settings that decide a sheet of samples: those of the chain and more. None where the model decides.

    Args:
        sampling: of the chain.
        model: as the user named it.
        step: the optimizer steps that the model had seen, where known.
        first: index of the first image of the seed.
        n: how many images.
        rows, columns, scale: of the sheet.
        precision: of the network's arithmetic.
    """

    sampling: Sampling = field(default_factory=Sampling)
    model: str | None = None
    step: int | None = None
    first: int = 0
    n: int = 16
    rows: int | None = None
    columns: int | None = None
    scale: int | None = None
    precision: str = "auto"

    def __post_init__(self) -> None:
        limits = {"n": (1, MAX_IMAGES), "rows": (1, MAX_IMAGES), "columns": (1, MAX_IMAGES), "scale": (1, MAX_SCALE)}
        values = self.to_json()
        for name, (low, high) in {**limits, "first": (0, MAX_IMAGES), "seed": (0, 2**63 - 1)}.items():
            if name in values and not low <= values[name] <= high:
                raise ArgumentError(f"`{name}` is {values[name]}; it must be from {low} to {high}")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ArgumentError(f"`precision` is {self.precision!r}; it must be auto, fp32 or bf16")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """The recipe of settings by name, those of the chain among them.

        Raises:
            ArgumentError: one of them makes no sense.
        """
        sheet = {name: value for name, value in settings.items() if name in _OF_THE_SHEET}
        chain = {name: value for name, value in settings.items() if name not in _OF_THE_SHEET}
        return cls(Sampling(**chain), **sheet)

    def to_json(self) -> dict[str, Any]:
        """All settings by name that are not left to the model; `of` is the reverse."""
        sheet = {name: getattr(self, name) for name in _OF_THE_SHEET}
        return {name: value for name, value in sheet.items() if value is not None} | self.sampling.to_json()

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
        return {TEXT_KEY: json.dumps(recipe.to_json()), "Software": f"ddpm {__version__}"}

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
        if not isinstance(data, dict):
            raise InputError(f"{where}: its settings cannot be understood")
        settings = {name: value for name, value in data.items() if value is not None}
        for name, value in settings.items():
            if not _is_of_type(value, name):
                raise InputError(f"{where}: its setting {printable(name)[:40]} cannot be understood")
        if "timesteps" in settings:
            settings["timesteps"] = tuple(settings["timesteps"])
        try:
            return cls.of(settings)
        except ArgumentError as error:
            raise InputError(f"{where}: its settings make no sense: {printable(str(error))[:200]}") from error

    def overridden(self, options: Mapping[str, Any]) -> Self:
        """This recipe with every option that is not None instead.

        What belonged to another sampler, another number of images or another model goes with it.
        """
        now, given = self.to_json(), {name: value for name, value in options.items() if value is not None}
        of_chain = {*now, *given} - {*_OF_THE_SHEET, "sampler", "seed"}
        follows: dict[str, Iterable[str]] = {
            "sampler": of_chain,
            "steps": ("timesteps",),
            "spacing": ("timesteps",),
            "timesteps": ("steps", "spacing"),
            "n": ("rows", "columns"),
            "model": ("step",),
        }
        gone = {
            name
            for cause, names in follows.items()
            if given.get(cause, now.get(cause)) != now.get(cause)
            for name in names
        }
        return self.of({name: value for name, value in now.items() if name not in gone} | given)


_OF_THE_SHEET = [each.name for each in fields(Recipe) if each.name != "sampling"]
_STRINGS = "model", "sampler", "spacing", "precision"
_WHOLE = "steps", "seed", "step", "first", "n", "rows", "columns", "scale"


def _is_of_type(value: object, name: str) -> bool:
    """Whether a setting read from a file is of its type; a sampler's own are checked by `Sampling`."""
    if name == "timesteps":  # JSON has no tuples
        return isinstance(value, list) and all(type(t) is int for t in value)
    return type(value) is str if name in _STRINGS else type(value) is int if name in _WHOLE else True
