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
from ddpm_cli.data import Images
from ddpm_cli.denoiser import choose_device, choose_precision
from ddpm_cli.memory import keep_freed_memory
from ddpm_cli.presets import PRESETS
from ddpm_cli.train import Training, train
from ddpm_cli.unet import build, init_weights

from .convolutions import convolutions, run_both_ways
from .measure import Table, Times, apart, one_by_one
from .peers import DiffusersTraining, LucidrainsTraining, has_lucidrains, lucidrains_parameters

IMAGES = 1024
FOR_EVER = 10**9  # steps
OURS, OURS_FP32 = "`ddpm train`", "`ddpm train --precision fp32`"
DIFFUSERS, LUCIDRAINS, LIMIT = "diffusers", "lucidrains", "the convolutions alone"


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
    large: bool = False

    def __str__(self) -> str:
        return f"`{self.preset}`, {self.side}x{self.side}, {self.batch}"

    def unet(self) -> UNetConfig:
        """The network."""
        return PRESETS[self.preset].unet((self.side, self.side), self.channels)

    def parameters(self) -> int:
        """How many the network has."""
        device = torch.device("meta")
        return sum(p.numel() for p in build(self.unet(), device).parameters())

    def pixels(self) -> npt.NDArray[np.uint8]:
        """The images."""
        generator = np.random.Generator(np.random.Philox(0))
        return generator.integers(0, 256, (IMAGES, self.side, self.side, self.channels), np.uint8)


CASES = (
    Case("tiny", 8, 1, 64, steps=25, runs=5),
    Case("tiny", 16, 3, 128, steps=5, runs=5),
    Case("small", 32, 3, 64, steps=2, runs=5),
    Case("cifar10", 32, 3, 16, steps=2, runs=5),
    Case("cifar10", 32, 3, 64, steps=1, runs=3),
    Case("cifar10", 32, 3, 128, steps=1, runs=2, large=True),
)


def tables() -> Iterator[Table]:
    """Images a second, and what they are compared with."""
    device = choose_device("auto")
    precision = choose_precision("auto", device)
    threads = torch.get_num_threads()
    yield Table(
        "Training",
        f"Whole optimizer steps on {device}, {threads} thread{'s' if threads > 1 else ''}, batches of random images, "
        "in turn, each side in a process of its own, after a first round; the rate of the median run (least to most). "
        f"`ddpm train` runs as the command does, by default in {precision}, with batches drawn ahead, moving average "
        "and clipping. diffusers is the loop of its unconditional example at its defaults (float32, AdamW, no moving "
        "average) on the same network; lucidrains is that of its Trainer at its defaults (float32, moving average) on "
        "its own network of about as many parameters. Both read images from memory. The convolutions alone are those "
        f"of the network forward and backward, in {precision} and channels last: a limit for these layers here.",
        ("network, size, batch", "", "images/s", "times diffusers", "of the convolutions' rate", "peak memory"),
        tuple(row for case in CASES for row in _rows(case, device)),
        "" if has_lucidrains() else "lucidrains' package was not installed, so it was left out.",
    )


def _rows(case: Case, device: torch.device) -> Iterator[tuple[str, ...]]:
    makers: dict[str, Callable[[], Callable[[], object]]] = {
        OURS: partial(_ours, case, "auto", device),
        DIFFUSERS: partial(_diffusers, case, device),
        LIMIT: partial(_convolutions, case, device),
    }
    if not case.large:
        makers[OURS_FP32] = partial(_ours, case, "fp32", device)
    names = {name: name for name in makers} | {OURS: f"{OURS}, {_millions(case.parameters())}"}
    if has_lucidrains():
        makers[LUCIDRAINS] = partial(_lucidrains, case, device)
        names[LUCIDRAINS] = f"{LUCIDRAINS}, {_millions(lucidrains_parameters(case.unet(), case.parameters()))}"
    times = (one_by_one if case.large else apart)(makers, case.runs)
    for name in (OURS, OURS_FP32, DIFFUSERS, LUCIDRAINS, LIMIT):
        if name in times:
            yield str(case), names[name], *_cells(case, name, times)


def _cells(case: Case, name: str, times: dict[str, Times]) -> tuple[str, ...]:
    own = times[name]
    # lucidrains' network has other convolutions
    share = "" if name == LUCIDRAINS else f"{times[LIMIT].median / own.median:.0%}"
    return own.rates(case.batch * case.steps), f"{times[DIFFUSERS].median / own.median:.2f}", share, own.peak_mib


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:.2f} M parameters"


def _ours(case: Case, precision: str, device: torch.device) -> Callable[[], object]:
    keep_freed_memory()  # as the command does
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
    return lambda: [training.step() for _ in range(case.steps)]


def _convolutions(case: Case, device: torch.device) -> Callable[[], object]:
    unet = build(replace(case.unet(), dropout=0.0), device)
    init_weights(unet, torch.Generator().manual_seed(0))
    layers = convolutions(unet, case.batch, choose_precision("auto", device), device)
    return lambda: run_both_ways(layers, case.steps)
