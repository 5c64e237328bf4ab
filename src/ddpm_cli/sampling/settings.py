"""How images are made: which sampler, along which steps, with which seed. `generate` does it. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from ..diffusion.samplers import DEFAULT_SAMPLER, SAMPLERS, Sampler, own_settings
from ..diffusion.spacing import SPACINGS
from ..errors import ArgumentError


@dataclass(frozen=True, init=False)
class Sampling:
    """How images are made: the settings that, with a model, decide every pixel. None stands for the default.

    ``Sampling("ddim", steps=20, eta=0.5, seed=1)``: a sampler's own settings are given by name, like the others.

    Args:
        sampler: one of `SAMPLERS`.
        steps: how many of the T steps the chain visits.
        spacing: how these are spread over 1..T, one of `SPACINGS`.
        timesteps: the steps themselves, descending, instead of ``steps`` and ``spacing``.
        seed: names the noise.
        own: the sampler's own settings that were given: (name, value) in the order of its table.

    Raises:
        ArgumentError: a setting that makes no sense, or that belongs to another sampler.
    """

    sampler: str
    steps: int | None
    spacing: str | None
    timesteps: tuple[int, ...] | None
    seed: int
    own: tuple[tuple[str, float], ...]

    def __init__(
        self,
        sampler: str = DEFAULT_SAMPLER,
        steps: int | None = None,
        spacing: str | None = None,
        timesteps: tuple[int, ...] | None = None,
        seed: int = 0,
        own: Iterable[tuple[str, float]] = (),  # as `dataclasses.replace` passes them
        **settings: float | None,
    ) -> None:
        if sampler not in SAMPLERS:
            raise ArgumentError(f"`sampler` is {sampler!r}; it must be one of {', '.join(SAMPLERS)}")
        given = dict(own) | {name: value for name, value in settings.items() if value is not None}
        values = {
            "sampler": sampler,
            "steps": steps,
            "spacing": spacing,
            "timesteps": timesteps,
            "seed": seed,
            "own": tuple(
                (setting.name, given.pop(setting.name))
                for setting in SAMPLERS[sampler].settings
                if setting.name in given
            ),
        }
        for name in given:
            owners = " or ".join(f"`sampler={owner}`" for owner in own_settings().get(name, ()))
            where = f"belongs to {owners}" if owners else "is a setting of no sampler"
            raise ArgumentError(f"`{name}` {where}, and this is `sampler={sampler}`")
        for name, value in values.items():
            object.__setattr__(self, name, value)
        for setting in self.traits.settings:
            setting.check(self.settings[setting.name])
        if spacing is not None and spacing not in SPACINGS:
            raise ArgumentError(f"`spacing` is {spacing!r}; it must be one of {', '.join(SPACINGS)}")
        if timesteps is not None and (steps is not None or spacing is not None):
            raise ArgumentError("`timesteps` names the steps; leave out `steps` and `spacing`")

    @property
    def traits(self) -> Sampler:
        """Its sampler's row in the table."""
        return SAMPLERS[self.sampler]

    @property
    def settings(self) -> dict[str, float]:
        """The sampler's own settings by name, the default of those that were not given."""
        return {setting.name: setting.default for setting in self.traits.settings} | dict(self.own)

    @property
    def is_random(self) -> bool:
        """Whether two chains from one x_t may end at two images."""
        return self.traits.is_random(**self.settings)

    def to_json(self) -> dict[str, Any]:
        """What was given, by name: ``Sampling(**sampling.to_json())`` is the same."""
        given = {"sampler": self.sampler, "steps": self.steps, "spacing": self.spacing, "timesteps": self.timesteps}
        return (
            {name: value for name, value in given.items() if value is not None} | dict(self.own) | {"seed": self.seed}
        )

    def along(self, timesteps: tuple[int, ...]) -> Self:
        """The same sampling along the steps named."""
        kept = {name: value for name, value in self.to_json().items() if name not in ("steps", "spacing")}
        return type(self)(**kept | {"timesteps": timesteps})
