"""Denoising Diffusion Probabilistic Models (Ho, Jain and Abbeel 2020) on your own images.

``import ddpm_cli as ddpm; model = ddpm.load("ddpm-out"); model.sample(64)``. The names below are resolved when they
are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .core import threads

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .config import DiffusionConfig, TrainConfig, UNetConfig
    from .data import Images, open_images
    from .diffusion.process import Diffusion
    from .diffusion.schedule import Schedule
    from .errors import DdpmError
    from .models.model import Model, load
    from .network.unet import UNet
    from .sampling.settings import Sampling

_HOMES = {
    "DdpmError": "errors",
    "Diffusion": "diffusion.process",
    "DiffusionConfig": "config",
    "Images": "data",
    "Model": "models.model",
    "Sampling": "sampling.settings",
    "Schedule": "diffusion.schedule",
    "TrainConfig": "config",
    "UNet": "network.unet",
    "UNetConfig": "config",
    "load": "models.model",
    "open_images": "data",
}

__all__ = [
    "DdpmError",
    "Diffusion",
    "DiffusionConfig",
    "Images",
    "Model",
    "Sampling",
    "Schedule",
    "TrainConfig",
    "UNet",
    "UNetConfig",
    "load",
    "open_images",
]

# PyTorch reads how its threads are to wait when it is loaded, whichever module of ours loads it.
threads.prepare()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
