"""``ddpm eval-bpd`` beside a plain loop over diffusers' U-Net on the same weights, images and precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from ddpm_cli.config import BUILTIN_DIGITS, DiffusionConfig
from ddpm_cli.core.allocator import keep_freed_memory
from ddpm_cli.data import Images, open_images
from ddpm_cli.diffusion.process import Diffusion
from ddpm_cli.evaluation.bits_per_dim import PartialBound, Protocol, measure
from ddpm_cli.models.model import load
from ddpm_cli.network.denoiser import NetworkDenoiser, Precision, choose_device
from ddpm_cli.network.unet import UNet
from ddpm_cli.training.presets import PRESETS

from .convolutions import convolutions, random_unet, run_forward
from .measure import Table, apart, threads
from .peers import as_diffusers

BATCH = 128
SIDE = 32
FEW = 50  # terms of an image, a twentieth of all
SAMPLE = 200  # images of which standard errors are compared


@dataclass(frozen=True)
class Case:
    """A network and images for it; so many terms are timed."""

    name: str
    terms: int
    preset: str | None = None  # at 32x32; None is the bundled model

    def diffusion(self) -> Diffusion:
        """Of a linear schedule."""
        variance = "fixed-small" if self.preset is None else PRESETS[self.preset].variance
        return Diffusion.from_config(DiffusionConfig(variance=variance))

    def unet(self, device: torch.device) -> UNet:
        """The network, for inference."""
        if self.preset is None:
            return load(BUILTIN_DIGITS, device=str(device)).denoiser.unet
        return random_unet(PRESETS[self.preset].unet((SIDE, SIDE), 3), device)

    def images(self) -> Images:
        """At least a batch of them."""
        if self.preset is None:
            return open_images(BUILTIN_DIGITS)
        generator = np.random.Generator(np.random.Philox(0))
        return Images.from_array(generator.integers(0, 256, (BATCH, SIDE, SIDE, 3), np.uint8))


CASES = (
    Case("the bundled model, 8x8", 4096),
    Case("`tiny`, 32x32", 512, "tiny"),
    Case("`cifar10`, 32x32", 128, "cifar10"),
)


def tables() -> Iterator[Table]:
    """Terms and images a second, and what an estimate is worth."""
    device = choose_device("auto")
    rows = [row for precision in ("fp32", "bf16") for case in CASES for row in _rows(case, precision, device)]
    yield Table(
        "Measuring bits/dim",
        f"Batches of {BATCH} terms, {threads()}, in turn, each side in a process of its own; median of 5 runs (least "
        "to most). The loop draws x_t, asks the network (in bf16 under autocast), clips x_0_hat and adds up the KL "
        "terms of a batch of images, t by t. An image has 1,000 terms. The aim is twice the loop's rate.",
        ("network, size", "", "terms/s", "times the loop", "of the convolutions' rate"),
        tuple(rows),
        _worth(device),
    )


def _rows(case: Case, precision: Precision, device: torch.device) -> Iterator[tuple[str, ...]]:
    ours, peer, limit = (
        f"`eval-bpd`, {precision}",
        f"a loop over diffusers' U-Net, {precision}",
        "the convolutions alone",
    )
    makers: dict[str, Callable[[], Callable[[], object]]] = {
        ours: partial(_ours, case, precision, device),
        peer: partial(_peer, case, precision, device),
        limit: partial(_convolutions, case, precision, device),
    }
    times = apart(makers, 5)
    for name, t in times.items():
        shares = f"{times[peer].median / t.median:.2f}", f"{times[limit].median / t.median:.0%}"
        yield case.name, name, t.rates(case.terms), *shares


def _ours(case: Case, precision: Precision, device: torch.device) -> Callable[[], object]:
    keep_freed_memory()  # as the command does
    choose_device(str(device))
    denoiser, diffusion, images = NetworkDenoiser(case.unet(device), precision), case.diffusion(), case.images()

    def run() -> None:
        tally = PartialBound(Protocol(len(images), diffusion.schedule.T))
        done = 0
        for amount in measure(denoiser, diffusion, images, tally, batch_size=BATCH, device=device):
            done += amount
            if done >= case.terms:
                return

    return run


def _peer(case: Case, precision: Precision, device: torch.device) -> Callable[[], object]:
    """What somebody would write with diffusers: a scheduler, a U-Net, and the formulas."""
    from diffusers import DDPMScheduler

    unet = as_diffusers(case.unet(device)).to(device)
    scheduler = DDPMScheduler()
    ab = scheduler.alphas_cumprod.to(device)
    betas = scheduler.betas.to(device)
    x_0 = torch.from_numpy(case.images().take(np.arange(BATCH))).to(device).permute(0, 3, 1, 2).contiguous() / 127.5 - 1

    @torch.no_grad()
    def run() -> float:
        total = torch.zeros(BATCH, device=device)
        for i in range(1, 1 + case.terms // BATCH):
            t = torch.full((BATCH,), i, device=device)
            x_t = scheduler.add_noise(x_0, torch.randn_like(x_0), t)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                eps = unet(x_t, t).sample.float()
            x_0_hat = ((x_t - (1 - ab[i]).sqrt() * eps) / ab[i].sqrt()).clamp(-1, 1)
            c_0, c_t = ab[i - 1].sqrt() * betas[i] / (1 - ab[i]), (1 - betas[i]).sqrt() * (1 - ab[i - 1]) / (1 - ab[i])
            true_mean, mean = c_0 * x_0 + c_t * x_t, c_0 * x_0_hat + c_t * x_t
            variance = betas[i] * (1 - ab[i - 1]) / (1 - ab[i])
            kl = 0.5 * (torch.log(betas[i] / variance) - 1 + variance / betas[i] + (true_mean - mean) ** 2 / betas[i])
            total += kl.flatten(1).mean(1)
        return float(total.sum())

    return run


def _convolutions(case: Case, precision: Precision, device: torch.device) -> Callable[[], object]:
    layers = convolutions(case.unet(device), BATCH, precision, device)
    return lambda: run_forward(layers, case.terms // BATCH)


def _worth(device: torch.device) -> str:
    """The standard errors of all terms and of few, on the same images."""
    model = load(BUILTIN_DIGITS, device=str(device), precision="fp32")
    digits = open_images(BUILTIN_DIGITS).take(np.arange(SAMPLE))
    whole, few = (model.bits_per_dim(digits, terms=terms, batch_size=BATCH) for terms in (None, FEW))
    assert whole.stderr is not None
    assert few.stderr is not None
    return (
        f"On {SAMPLE} of the bundled digits all terms ({whole.evaluations:,} evaluations) give "
        f"{whole.bits_per_dim:.4f} ± {whole.stderr:.4f} bits/dim, and {FEW} of each image ({few.evaluations:,}) "
        f"{few.bits_per_dim:.4f} ± {few.stderr:.4f}: {whole.evaluations / few.evaluations:.0f} times fewer for "
        f"{few.stderr / whole.stderr:.3f} times the standard error."
    )
