"""Training images/s beside the loops of diffusers and of lucidrains, and beside the network's convolutions alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from ddpm_cli.config import UNetConfig
from ddpm_cli.core.allocator import keep_freed_memory
from ddpm_cli.data import Images
from ddpm_cli.network.denoiser import choose_device, choose_precision
from ddpm_cli.network.unet import parameter_count
from ddpm_cli.training.loop import Training, train
from ddpm_cli.training.presets import PRESETS

from .convolutions import convolutions, random_unet, run_both_ways
from .measure import Table, Times, apart, one_by_one, threads, wait_for
from .peers import DiffusersTraining, LucidrainsTraining, has_lucidrains, lucidrains_parameters

IMAGES = 1024
FOR_EVER = 10**9  # steps
OURS, OURS_FP32 = "`ddpm train`", "`ddpm train --precision fp32`"
DIFFUSERS, LUCIDRAINS, LIMIT = "diffusers", "lucidrains", "the convolutions alone"


@dataclass(frozen=True)
class Aims:
    """Times diffusers' images/s, and shares of the convolutions' rate and of diffusers' memory."""

    speed: float
    convolutions: float | None = None
    memory: float | None = None


@dataclass(frozen=True)
class Case:
    """A preset, on random images of a shape; so many steps are timed at once, so many times.

    Args:
        large: whether the sides together may need more memory than there is.
    """

    preset: str
    side: int
    channels: int
    batch: int
    steps: int
    runs: int
    aims: Aims | None = None
    large: bool = False

    def __str__(self) -> str:
        return f"`{self.preset}`, {self.side}x{self.side}, {self.batch}"

    def unet(self) -> UNetConfig:
        """The network."""
        return PRESETS[self.preset].unet((self.side, self.side), self.channels)

    def parameters(self) -> int:
        """How many the network has."""
        return parameter_count(self.unet())

    def pixels(self) -> npt.NDArray[np.uint8]:
        """The images."""
        generator = np.random.Generator(np.random.Philox(0))
        return generator.integers(0, 256, (IMAGES, self.side, self.side, self.channels), np.uint8)


CASES = (
    Case("tiny", 8, 1, 64, steps=25, runs=5, aims=Aims(speed=10)),
    Case("tiny", 16, 3, 128, steps=5, runs=5),
    Case("small", 32, 3, 64, steps=2, runs=5),
    Case("cifar10", 32, 3, 16, steps=2, runs=7, aims=Aims(speed=2.2, convolutions=0.7, memory=0.8)),
    Case("cifar10", 32, 3, 64, steps=1, runs=3, aims=Aims(speed=2.2, convolutions=0.7), large=True),
    Case("cifar10", 32, 3, 128, steps=1, runs=3, aims=Aims(speed=2.2, convolutions=0.7), large=True),
)


@dataclass(frozen=True)
class Outcome:
    """What the sides took, and what they are called."""

    case: Case
    times: dict[str, Times]
    names: dict[str, str]

    def speed(self, side: str) -> float:
        """Times diffusers' images/s."""
        return self.times[DIFFUSERS].median / self.times[side].median

    def of_convolutions(self, side: str) -> float:
        """Share of their rate."""
        return self.times[LIMIT].median / self.times[side].median

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Of the table."""
        for side in (OURS, OURS_FP32, DIFFUSERS, LUCIDRAINS, LIMIT):
            if side not in self.times:
                continue
            own = self.times[side]
            # lucidrains' network has other convolutions, and what they alone need in memory says nothing.
            share = "" if side == LUCIDRAINS else f"{self.of_convolutions(side):.0%}"
            peak = "" if side == LIMIT else own.peak_mib
            rate = own.rates(self.case.batch * self.case.steps)
            yield str(self.case), self.names[side], rate, f"{self.speed(side):.2f}", share, peak

    def verdict(self, aims: Aims) -> str:
        """The aims, and what came of them."""
        parts = [f"{aims.speed:g} times diffusers ({self.speed(OURS):.2f})"]
        if aims.convolutions:
            parts.append(f"{aims.convolutions:.0%} of the convolutions' rate ({self.of_convolutions(OURS):.1%})")
        ours, peer = self.times[OURS].peak, self.times[DIFFUSERS].peak
        if aims.memory and ours and peer:
            parts.append(f"less than {aims.memory:.0%} of diffusers' memory ({ours / peer:.1%})")
        return f"{self.case}: {', '.join(parts)}"


def tables() -> Iterator[Table]:
    """Images a second, and what they are compared with."""
    device = choose_device("auto")
    precision = choose_precision("auto", device)
    outcomes = [_outcome(case, device) for case in CASES]
    verdicts = "; ".join(outcome.verdict(outcome.case.aims) for outcome in outcomes if outcome.case.aims)
    yield Table(
        "Training",
        f"Whole optimizer steps on {device}, {threads()}, batches of random images, in turn, each side in a process of "
        "its own, after a first round (with batches of 64 and 128 of `cifar10` a new process for each run, since all "
        "together need much memory); the rate of the median run (least to most). `ddpm train` runs as the command "
        f"does, by default in {precision}, with batches drawn ahead, flips, moving average, clipping, and memory kept "
        "when it is freed. diffusers is the loop of its unconditional example at its defaults (float32, AdamW, no "
        "moving average) on the same network; lucidrains is that of its Trainer at its defaults (float32, moving "
        "average) on its own network of about as many parameters. Both read images from memory. The convolutions alone "
        f"are those of the network forward and backward, in {precision} and channels last: a limit for these layers "
        "here. Memory is the peak of the process, PyTorch itself included.",
        ("network, size, batch", "", "images/s", "times diffusers", "of the convolutions' rate", "peak memory"),
        tuple(row for outcome in outcomes for row in outcome.rows()),
        f"Aims, and what was measured: {verdicts}."
        + ("" if has_lucidrains() else " lucidrains' package was not installed, so it was left out."),
    )


def _outcome(case: Case, device: torch.device) -> Outcome:
    makers: dict[str, Callable[[], Callable[[], object]]] = {
        OURS: partial(_ours, case, "auto", device),
        DIFFUSERS: partial(_diffusers, case, device),
        LIMIT: partial(_convolutions, case, device),
    }
    if case.batch < 128:  # twice the time for what says nothing new
        makers[OURS_FP32] = partial(_ours, case, "fp32", device)
    names = {name: name for name in makers} | {OURS: f"{OURS}, {_millions(case.parameters())}"}
    if has_lucidrains():
        makers[LUCIDRAINS] = partial(_lucidrains, case, device)
        names[LUCIDRAINS] = f"{LUCIDRAINS}, {_millions(lucidrains_parameters(case.unet(), case.parameters()))}"
    return Outcome(case, (one_by_one if case.large else apart)(makers, case.runs), names)


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:.2f} M parameters"


def _ours(case: Case, precision: str, device: torch.device) -> Callable[[], object]:
    keep_freed_memory()  # as the command does
    choose_device(str(device))
    preset = PRESETS[case.preset]
    config = replace(preset.train, batch_size=case.batch, precision=choose_precision(precision, device))
    training = Training(case.unet(), preset.diffusion(), config, device)
    images = Images.from_array(case.pixels())
    steps = train(training, images, steps=FOR_EVER, log_every=case.steps)

    def run() -> None:
        assert list(itertools.islice(steps, case.steps))[-1] is not None  # a report, for which it waits for the device

    return run


def _diffusers(case: Case, device: torch.device) -> Callable[[], object]:
    training = DiffusersTraining(case.unet(), case.pixels(), batch=case.batch, steps=FOR_EVER, device=device)
    return lambda: [training.step() for _ in range(case.steps)]


def _lucidrains(case: Case, device: torch.device) -> Callable[[], object]:
    training = LucidrainsTraining(
        case.unet(), case.pixels(), batch=case.batch, parameters=case.parameters(), device=device
    )

    def run() -> None:
        for _ in range(case.steps):
            training.step()
        wait_for(device)

    return run


def _convolutions(case: Case, device: torch.device) -> Callable[[], object]:
    layers = convolutions(random_unet(case.unet(), device), case.batch, choose_precision("auto", device), device)
    return lambda: run_both_ways(layers, case.steps)
