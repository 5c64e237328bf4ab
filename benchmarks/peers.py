"""The training loops of other projects, as their own examples write them, on images that lie in memory."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_cli.config import UNetConfig
from ddpm_cli.network.unet import UNet

DIFFUSERS_WARMUP = 500  # steps, the example's --lr_warmup_steps
ALIGNMENT = 8  # of the width that is tried for lucidrains' network


class Floats(torch.utils.data.Dataset[Tensor]):
    """Images uint8 (N, H, W, C) one by one as float32 (C, H, W), scaled to [0, 1] or to [-1, 1]."""

    def __init__(self, pixels: npt.NDArray[np.uint8], *, signed: bool, flip: bool = False) -> None:
        self._pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        self._signed = signed
        self._flip = flip

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> Tensor:
        x = self._pixels[index].float() / 255
        if self._flip and torch.rand(()) < 0.5:
            x = x.flip(-1)
        return 2 * x - 1 if self._signed else x


def diffusers_unet(config: UNetConfig) -> Any:
    """The same network as a `UNet2DModel`, with random weights."""
    from diffusers import UNet2DModel

    settings = {name: value for name, value in config.to_json().items() if value is not None or "dim" in name}
    return UNet2DModel.from_config(settings)


def as_diffusers(ours: UNet) -> Any:
    """A network with its weights as a `UNet2DModel` for inference."""
    unet = diffusers_unet(ours.config)
    unet.load_state_dict(ours.state_dict())
    return unet.eval()


class DiffusersTraining:
    """The loop of diffusers' examples/unconditional_image_generation/train_unconditional.py, with its defaults.

    Left out is accelerate, which on one device in float32 only passes things on; the example's decoding, resizing and
    scaling of each picture in each epoch, since the images lie in memory; and its sampling of 16 images by 1,000 steps
    every 10 epochs.

    Args:
        steps: of the whole run, over which the learning rate falls.
        ema: as with the example's ``--use_ema``.
    """

    def __init__(
        self,
        config: UNetConfig,
        pixels: npt.NDArray[np.uint8],
        *,
        batch: int,
        steps: int,
        device: torch.device,
        ema: bool = False,
    ) -> None:
        from diffusers import DDPMScheduler
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        self.unet = diffusers_unet(config).to(device).train()
        self.device = device
        self.scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")
        self.ema = None
        if ema:
            self.ema = EMAModel(self.unet.parameters(), 0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
        self._optimizer = torch.optim.AdamW(
            self.unet.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
        )
        self._lr = get_scheduler("cosine", self._optimizer, num_warmup_steps=DIFFUSERS_WARMUP, num_training_steps=steps)
        self._batches = _for_ever(Floats(pixels, signed=True), batch)

    def step(self) -> float:
        """One optimizer step; returns the loss."""
        clean = next(self._batches).to(self.device)
        noise = torch.randn(clean.shape, device=self.device)
        t = torch.randint(0, self.scheduler.config.num_train_timesteps, (len(clean),), device=self.device).long()
        output = self.unet(self.scheduler.add_noise(clean, noise, t), t).sample
        loss = F.mse_loss(output.float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self._optimizer.step()
        self._lr.step()
        self._optimizer.zero_grad()
        if self.ema is not None:
            self.ema.step(self.unet.parameters())
        return loss.detach().item()

    def save(self, folder: Path) -> None:
        """The moving average as a pipeline, as the example saves it."""
        from diffusers import DDPMPipeline

        assert self.ema is not None
        self.ema.store(self.unet.parameters())
        self.ema.copy_to(self.unet.parameters())
        DDPMPipeline(self.unet, self.scheduler).save_pretrained(folder)
        self.ema.restore(self.unet.parameters())


def has_lucidrains() -> bool:
    """Whether denoising-diffusion-pytorch is there; `make bench` installs it."""
    return importlib.util.find_spec("denoising_diffusion_pytorch") is not None


class LucidrainsTraining:
    """The loop of denoising-diffusion-pytorch's ``Trainer``, with its defaults, for a network of about the same size.

    Its network has other blocks, so the width is chosen that gives about as many parameters. Left out is accelerate, as
    above, the loader's processes, which would compete for the cores without anything to decode, and the sampling of 25
    images, and of 50,000 for FID, every 1,000 steps.

    Args:
        parameters: how many the network should have, about.
        flip: whether images are mirrored at random, as its Trainer does unless told otherwise.
    """

    def __init__(
        self,
        config: UNetConfig,
        pixels: npt.NDArray[np.uint8],
        *,
        batch: int,
        parameters: int,
        device: torch.device,
        flip: bool = True,
    ) -> None:
        _stand_in()
        from ema_pytorch import EMA

        self.device = device
        self._model = _lucidrains_model(config, parameters).to(device)
        self._optimizer = torch.optim.Adam(self._model.parameters(), lr=1e-4, betas=(0.9, 0.99))
        self._ema = EMA(self._model, beta=0.995, update_every=10).to(device)
        self._batches = _for_ever(Floats(pixels, signed=False, flip=flip), batch)
        self._model.train()

    def step(self) -> float:
        """One optimizer step; returns the loss."""
        loss = self._model(next(self._batches).to(self.device))
        value: float = loss.item()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._ema.update()
        return value

    def save(self, folder: Path) -> None:
        """The moving average, for `lucidrains_samples`."""
        folder.mkdir(parents=True)
        torch.save(self._ema.ema_model.state_dict(), folder / "ema.pt")


def lucidrains_samples(
    folder: Path, config: UNetConfig, *, parameters: int, count: int, steps: int, device: torch.device
) -> npt.NDArray[np.uint8]:
    """Samples uint8 (count, H, W, C) of what `LucidrainsTraining` saved, by so many steps of its DDIM with eta 1."""
    _stand_in()
    torch.manual_seed(0)
    model = _lucidrains_model(config, parameters, sampling_timesteps=steps, ddim_sampling_eta=1.0)
    model.load_state_dict(torch.load(folder / "ema.pt", weights_only=True))
    x = model.to(device).eval().sample(batch_size=count).permute(0, 2, 3, 1)
    return (255 * x).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def lucidrains_parameters(config: UNetConfig, parameters: int) -> int:
    """How many parameters the network of `LucidrainsTraining` has."""
    _stand_in()
    return _count(config, _width(config, parameters))


def _lucidrains_model(config: UNetConfig, parameters: int, **settings: float) -> Any:
    from denoising_diffusion_pytorch import GaussianDiffusion

    unet = _lucidrains_unet(config, _width(config, parameters))
    return GaussianDiffusion(unet, image_size=config.size, **settings)


def _lucidrains_unet(config: UNetConfig, width: int) -> torch.nn.Module:
    from denoising_diffusion_pytorch import Unet

    mults = tuple(channels // config.block_out_channels[0] for channels in config.block_out_channels)
    unet: torch.nn.Module = Unet(width, dim_mults=mults, channels=config.in_channels)
    return unet


def _width(config: UNetConfig, parameters: int) -> int:
    """The channels of the first level with which its network comes nearest to so many parameters."""
    width = ALIGNMENT
    while _count(config, width + ALIGNMENT) < parameters:
        width += ALIGNMENT
    return min(width, width + ALIGNMENT, key=lambda width: abs(_count(config, width) - parameters))


def _count(config: UNetConfig, width: int) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in _lucidrains_unet(config, width).parameters())


def _stand_in() -> None:
    """Let denoising-diffusion-pytorch be imported without torchvision and accelerate.

    Its modules import both at their top, for reading files, saving pictures and spreading work over devices. Network,
    diffusion, loss and moving average, which are what is measured, use neither; and torchvision has no build for every
    build of PyTorch. An empty module stands in for what is not there: it has nothing that could be called.
    """
    for name, parts in (("torchvision", ("transforms", "utils")), ("accelerate", ("Accelerator",))):
        if name in sys.modules or importlib.util.find_spec(name) is not None:
            continue
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)  # others ask for it to see what is installed
        for part in parts:
            setattr(module, part, None)
        sys.modules[name] = module


def _for_ever(images: Floats, batch: int) -> Iterator[Tensor]:
    loader = torch.utils.data.DataLoader(images, batch, shuffle=True)
    while True:
        yield from loader
