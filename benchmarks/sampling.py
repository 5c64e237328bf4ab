"""``ddpm sample`` beside diffusers' own pipelines on the same weights, and beside the network's bare convolutions."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from ddpm_cli.config import BUILTIN_DIGITS
from ddpm_cli.core.allocator import keep_freed_memory
from ddpm_cli.data import Images, open_images
from ddpm_cli.diffusion.process import Diffusion
from ddpm_cli.evaluation import bits_per_dim
from ddpm_cli.models.model import Model, builtin_folder, load
from ddpm_cli.network.denoiser import NetworkDenoiser, Precision, choose_device, choose_precision
from ddpm_cli.network.unet import UNet
from ddpm_cli.sampling import generate
from ddpm_cli.sampling.settings import Sampling
from ddpm_cli.training.presets import PRESETS

from .convolutions import convolutions, random_unet, run_forward
from .measure import Table, Times, apart, threads
from .peers import as_diffusers

N = 64
SIDE = 32
DIGITS, TERMS = 100, 50  # of which bits/dim are compared between precisions
HEADER = "", "batch", "images/s of a step", "times diffusers", "of the convolutions' rate"
PIPELINES = {"ddpm": "DDPMPipeline", "ddim": "DDIMPipeline"}


@dataclass(frozen=True)
class Case:
    """A chain that is timed, of the bundled model or of the paper's network for CIFAR-10."""

    bundled: bool
    sampler: str
    batch: int
    steps: int

    def diffusion(self) -> Diffusion:
        """That of the network."""
        if self.bundled:
            return load(BUILTIN_DIGITS).diffusion
        return Diffusion.from_config(PRESETS["cifar10"].diffusion())

    def unet(self, device: torch.device) -> UNet:
        """The network, for inference."""
        if self.bundled:
            return load(BUILTIN_DIGITS, device=str(device)).denoiser.unet
        return random_unet(PRESETS["cifar10"].unet((SIDE, SIDE), 3), device)


def tables() -> Iterator[Table]:
    """The bundled model, and the paper's network."""
    device = choose_device("auto")
    auto = choose_precision("auto", device)
    yield _bundled(device, auto)
    yield _cifar10(device, auto)


def _bundled(device: torch.device, auto: Precision) -> Table:
    rows = []
    for sampler, pipeline in PIPELINES.items():
        case = Case(bundled=True, sampler=sampler, batch=N, steps=50)
        ours = {f"`--sampler {sampler}`, {p}": partial(_ours, case, p, device) for p in dict.fromkeys((auto, "fp32"))}
        peer = {f"diffusers' {pipeline} on the same folder, fp32": partial(_peer, case, device)}
        limit = {f"the convolutions alone, {auto}": partial(_convolutions, case, auto, device)}
        rows += _rates(case, apart({**ours, **peer, **limit}, 5), *peer, *limit)
    return Table(
        "Sampling from the bundled model",
        f"{N} images at a time, {threads()}; 50 steps of each in turn, each in a process of its own; median of 5 "
        f"(least to most). The whole command, `ddpm sample -n {N}` with all 1,000 steps, took {_command():.1f} s once; "
        "its aim is a minute.",
        HEADER,
        tuple(rows),
        _rounding(device, auto),
    )


def _cifar10(device: torch.device, auto: Precision) -> Table:
    rows = []
    for batch in (16, 64):
        for sampler, pipeline in PIPELINES.items():
            case = Case(bundled=False, sampler=sampler, batch=batch, steps=2)
            makers: Mapping[str, Callable[[], Callable[[], object]]] = {
                f"`ddpm sample --sampler {sampler}`, {auto}": partial(_ours, case, auto, device),
                f"diffusers' {pipeline}, fp32": partial(_peer, case, device),
                f"the convolutions alone, {auto}": partial(_convolutions, case, auto, device),
            }
            rows += _rates(case, apart(makers, 3), *list(makers)[1:])
    return Table(
        "Sampling with the paper's CIFAR-10 network",
        f"Random weights, {SIDE}x{SIDE}, {threads()}; 2 steps of each in turn, each in a process of its own; median of "
        "3 (least to most). Images/s are those of one step: a chain of 1,000 makes a thousandth of them. The "
        "convolutions alone are every convolution of the network once a step, on inputs of its shapes in the same "
        "precision and memory layout.",
        HEADER,
        tuple(rows),
    )


def _rates(case: Case, times: Mapping[str, Times], peer: str, limit: str) -> Iterator[tuple[str, ...]]:
    for name, t in times.items():
        shares = f"{times[peer].median / t.median:.2f}", f"{times[limit].median / t.median:.0%}"
        yield name, f"{case.batch}", t.rates(case.batch * case.steps), *shares


def _command() -> float:
    with tempfile.TemporaryDirectory() as name:
        began = time.perf_counter()
        program = [sys.executable, "-m", "ddpm_cli", "sample", "-m", BUILTIN_DIGITS]
        subprocess.run([*program, "-n", str(N), "-o", f"{name}/grid.png"], check=True, capture_output=True)
        return time.perf_counter() - began


def _ours(case: Case, precision: Precision, device: torch.device) -> Callable[[], object]:
    keep_freed_memory()  # as the command does
    choose_device(str(device))
    unet, diffusion = case.unet(device), case.diffusion()
    shape = unet.config.in_channels, *unet.config.size
    sampling = Sampling(case.sampler, steps=case.steps)

    def run() -> None:
        chain = generate.chain(NetworkDenoiser(unet, precision), diffusion, sampling, shape, range(case.batch), device)
        generate.pixels_of(generate.last(chain).x_t)

    return run


def _peer(case: Case, device: torch.device) -> Callable[[], object]:
    import diffusers

    kind = getattr(diffusers, PIPELINES[case.sampler])
    if case.bundled:
        pipeline = kind.from_pretrained(builtin_folder())
    else:
        pipeline = kind(as_diffusers(case.unet(device)), diffusers.DDPMScheduler())
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    return lambda: pipeline(batch_size=case.batch, num_inference_steps=case.steps)


def _convolutions(case: Case, precision: Precision, device: torch.device) -> Callable[[], object]:
    layers = convolutions(case.unet(device), case.batch, precision, device)
    return lambda: run_forward(layers, case.steps)


def _rounding(device: torch.device, auto: Precision) -> str:
    """What ``auto`` does to the samples and to bits/dim."""
    if auto == "fp32":
        return "Here `auto` is fp32."
    exact, rounded = (load(BUILTIN_DIGITS, device=str(device), precision=p) for p in ("fp32", auto))
    levels = np.abs(exact.sample(N).astype(int) - rounded.sample(N))
    digits = Images.from_array(open_images(BUILTIN_DIGITS).take(np.arange(DIGITS)))
    bits = {model.denoiser.precision: _bits_per_dim(model, digits) for model in (exact, rounded)}
    return (
        f"The same {N} images by all 1,000 steps in fp32 and in {auto} differ by {levels.mean():.2f} of 255 levels on "
        f"average, by at most one level in {100 * (levels <= 1).mean():.0f} % of the pixels, and by {levels.max()} at "
        f"most. By {TERMS} terms of each, {DIGITS} digits have "
        f"{' and '.join(f'{value:.4f} bits/dim in {name}' for name, value in bits.items())}."
    )


def _bits_per_dim(model: Model, images: Images) -> float:
    """In the model's own precision."""
    tally = bits_per_dim.PartialBound(bits_per_dim.Protocol(len(images), model.diffusion.schedule.T, TERMS))
    for _ in model.measure(images, tally, batch_size=N):
        pass
    return tally.bound(bits_per_dim.prior(model.diffusion, images, len(images))).bits_per_dim
