"""How images are made: which sampler, along which steps, with which seed. `generate` does it."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ArgumentError


@dataclass(frozen=True)
class Sampler:
    """What a sampler is like.

    Args:
        about: what it is, in a few words.
        steps: how many it takes by default; None for all T.
        spacing: of its steps, by default.
        settings: its own, with their defaults.
        ancestral: whether it draws x_{t-1} with the variance of p_theta.
    """

    about: str
    steps: int | None
    spacing: str
    settings: dict[str, float]
    ancestral: bool = False


SPACINGS = ("uniform", "quad", "trailing", "logsnr")  # see `diffusion.spacing`

SAMPLERS = {
    "ddpm": Sampler("Algorithm 2", None, "uniform", {}, ancestral=True),
    "ddim": Sampler("DDIM", 50, "uniform", {"eta": 0.0}),
    "dpm++": Sampler("DPM-Solver++ 2M", 20, "logsnr", {}),
    "langevin": Sampler(
        "Algorithm 2 with Langevin steps between", 100, "uniform", {"corrector_steps": 1, "snr": 0.2}, ancestral=True
    ),
}


@dataclass(frozen=True)
class Sampling:
    """How images are made: the settings that, with a model, decide every pixel. None stands for the default.

    Args:
        sampler: one of `SAMPLERS`.
        steps: how many of the T steps are visited.
        spacing: how these are spread over 1..T, one of `SPACINGS`.
        timesteps: or which ones they are, descending.
        eta: noise of ``ddim``, 0 none, 1 as much as Algorithm 2.
        corrector_steps: of ``langevin`` at each t.
        snr: length of these (`diffusion.samplers.langevin_step`).
        seed: names the noise.
    """

    sampler: str = "ddpm"
    steps: int | None = None
    spacing: str | None = None
    timesteps: tuple[int, ...] | None = None
    eta: float | None = None
    corrector_steps: int | None = None
    snr: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ArgumentError(f"`sampler` is {self.sampler!r}; it must be one of {', '.join(SAMPLERS)}")
        for name in ("eta", "corrector_steps", "snr"):
            if getattr(self, name) is not None and name not in self.traits.settings:
                owner = next(other for other, sampler in SAMPLERS.items() if name in sampler.settings)
                raise ArgumentError(f"`{name}` belongs to `sampler={owner}`, and this is `sampler={self.sampler}`")
        if self.spacing is not None and self.spacing not in SPACINGS:
            raise ArgumentError(f"`spacing` is {self.spacing!r}; it must be one of {', '.join(SPACINGS)}")
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise ArgumentError(f"`eta` is {self.eta}; it must be from 0 to 1")
        if self.corrector_steps is not None and self.corrector_steps < 1:
            raise ArgumentError(f"`corrector_steps` is {self.corrector_steps}; it must be at least 1")
        if self.snr is not None and not 0 < self.snr <= 1:
            raise ArgumentError(f"`snr` is {self.snr}; it must be above 0, up to 1")
        if self.timesteps is not None and (self.steps is not None or self.spacing is not None):
            raise ArgumentError("`timesteps` names the steps; leave out `steps` and `spacing`")

    @property
    def traits(self) -> Sampler:
        """What its sampler is like."""
        return SAMPLERS[self.sampler]

    @property
    def draws_noise(self) -> bool:
        """Whether two chains from one x_t may end at two images."""
        return self.traits.ancestral or self.settings.get("eta", 0) > 0

    @property
    def settings(self) -> dict[str, float]:
        """The sampler's own settings by name."""
        own = {name: getattr(self, name) for name in self.traits.settings}
        return self.traits.settings | {name: value for name, value in own.items() if value is not None}
