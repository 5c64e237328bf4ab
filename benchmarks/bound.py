"""``ddpm eval-bpd`` beside a plain loop over diffusers' U-Net on the same weights, images and precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from ddpm_cli.config import BUILTIN_DIGITS, DiffusionConfig, UNetConfig
from ddpm_cli.data import Images, open_images
from ddpm_cli.denoiser import Denoiser, choose_device
from ddpm_cli.diffusion.process import Diffusion
from ddpm_cli.evaluate import Protocol, Tally, measure
from ddpm_cli.model import load
from ddpm_cli.presets import PRESETS
from ddpm_cli.unet import UNet, build, init_weights

from .measure import Table, in_turn

BATCH = 128
FEW = 50  # terms of an image, a twentieth of all
SAMPLE = 200  # images of which standard errors are compared


@dataclass(frozen=True)
class Case:
    """A network, the diffusion it is for, and images; so many terms are timed."""

    name: str
    unet: UNet
    diffusion: Diffusion
    images: Images
    terms: int


def tables() -> Iterator[Table]:
    """Terms and images a second, and what an estimate is worth."""
    device = choose_device("auto")
    rows = []
    for case in _cases(device):
        ours = _ours(case, device)
        theirs = _plain_loop(case, device)
        times = in_turn({"ours": ours, "theirs": theirs}, 5)
        speed = {name: case.terms / t.median for name, t in times.items()}
        T = case.diffusion.schedule.T
        peer = speed["theirs"]
        ours_per_image = ((f"{case.name}, `eval-bpd`", T), (f"{case.name}, `eval-bpd --terms {FEW}`", FEW))
        rows.append((f"{case.name}, a loop over diffusers' U-Net", f"{peer:.0f}", f"{peer / T:.2f}", "1.00"))
        for name, terms in ours_per_image:
            images = speed["ours"] / terms
            rows.append((name, f"{speed['ours']:.0f}", f"{images:.2f}", f"{images * T / peer:.2f}"))
    yield Table(
        "Measuring bits/dim",
        f"float32, batches of {BATCH} terms, medians of 5 runs in turn, {torch.get_num_threads()} threads. The loop "
        "draws x_t, asks the network, clips x_0_hat and adds up the KL terms of a batch of images, t by t.",
        ("", "terms/s", "images/s", "images/s over the loop's"),
        tuple(rows),
        _worth(device),
    )


def _cases(device: torch.device) -> Iterator[Case]:
    bundled = load(BUILTIN_DIGITS, device=str(device), precision="fp32")
    yield Case("the bundled model, 8x8", bundled.denoiser.unet, bundled.diffusion, open_images(BUILTIN_DIGITS), 4096)
    for name, side, terms in (("tiny", 32, 512), ("cifar10", 32, 128)):
        preset = PRESETS[name]
        config = replace(preset.unet((side, side), 3), dropout=0.0)
        unet = build(config, device).eval().requires_grad_(False)
        init_weights(unet, torch.Generator().manual_seed(0))
        pixels = np.random.Generator(np.random.Philox(0)).integers(0, 256, (BATCH, side, side, 3), np.uint8)
        diffusion = Diffusion.from_config(DiffusionConfig(variance=preset.variance))
        yield Case(f"`{name}`, {side}x{side}", unet, diffusion, Images.from_array(pixels), terms)


def _ours(case: Case, device: torch.device) -> Callable[[], object]:
    def run() -> None:
        tally = Tally(Protocol(len(case.images), case.diffusion.schedule.T))
        done = 0
        for amount in measure(
            Denoiser(case.unet, "fp32"), case.diffusion, case.images, tally, batch_size=BATCH, device=device
        ):
            done += amount
            if done >= case.terms:
                return

    return run


def _plain_loop(case: Case, device: torch.device) -> Callable[[], object]:
    """What somebody would write with diffusers: a scheduler, a U-Net, and the formulas."""
    from diffusers import DDPMScheduler, UNet2DModel

    config = _settings(case.unet.config)
    unet = UNet2DModel.from_config(config)
    unet.load_state_dict(case.unet.state_dict())
    unet.to(device).eval()
    scheduler = DDPMScheduler()
    ab = scheduler.alphas_cumprod.to(device)
    betas = scheduler.betas.to(device)
    n = min(BATCH, len(case.images))
    x_0 = torch.from_numpy(case.images.take(np.arange(n))).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1

    @torch.no_grad()
    def run() -> float:
        total = torch.zeros(n, device=device)
        for step in range(-(-case.terms // n)):
            t = torch.full((n,), 1 + step, device=device)
            noise = torch.randn_like(x_0)
            x_t = scheduler.add_noise(x_0, noise, t)
            eps = unet(x_t, t).sample
            i = 1 + step
            x_0_hat = ((x_t - (1 - ab[i]).sqrt() * eps) / ab[i].sqrt()).clamp(-1, 1)
            c_0, c_t = ab[i - 1].sqrt() * betas[i] / (1 - ab[i]), (1 - betas[i]).sqrt() * (1 - ab[i - 1]) / (1 - ab[i])
            true_mean, mean = c_0 * x_0 + c_t * x_t, c_0 * x_0_hat + c_t * x_t
            variance = betas[i] * (1 - ab[i - 1]) / (1 - ab[i])
            kl = 0.5 * (torch.log(betas[i] / variance) - 1 + variance / betas[i] + (true_mean - mean) ** 2 / betas[i])
            total += kl.flatten(1).mean(1)
        return float(total.sum())

    return run


def _settings(config: UNetConfig) -> dict[str, object]:
    return {name: value for name, value in config.to_json().items() if value is not None or "dim" in name}


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
