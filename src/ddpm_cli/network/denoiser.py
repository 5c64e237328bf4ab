"""Where a network becomes the maths' one callable: device, precision, memory layout, and the step's numbering."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Literal

import torch

from ..errors import ArgumentError
from .unet import UNet

Precision = Literal["fp32", "bf16"]


class NetworkDenoiser:
    """``denoiser(x_t, t)``: the network's float32 output for the paper's t = 1..T, int64 (B,).

    The network counts its steps from 0, so it is asked at t - 1. Its weights stay float32; with ``bf16`` its
    convolutions and matrix products are computed in bfloat16 under autocast.

    The maths knows it as a `diffusion.process.Denoiser`. In training, ``functools.partial(denoiser, masks=masks)`` is
    the denoiser of a micro-batch.
    """

    def __init__(self, unet: UNet, precision: Precision) -> None:
        self.unet = unet
        self.precision = precision

    def __call__(self, x_t: torch.Tensor, t: torch.Tensor, masks: Sequence[torch.Tensor] = ()) -> torch.Tensor:
        """The network's output.

        Args:
            x_t: (B, C, H, W) float32.
            t: the paper's t, 1..T, int64 (B,).
            masks: for dropout of these images, from `draw_masks`.

        Returns:
            (B, C, H, W) float32, or (B, 2 C, H, W) if the variance is learned.
        """
        with self._autocast(x_t.device.type):
            output: torch.Tensor = self.unet(x_t, t - 1, masks)
        return output.float()

    def _autocast(self, device: str) -> contextlib.AbstractContextManager[object]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(device, dtype=torch.bfloat16)


def choose_device(name: str) -> torch.device:
    """The device that ``--device`` names; ``auto`` is CUDA, else Apple's MPS, else the CPU.

    Raises:
        ArgumentError: no such device here. There is no silent fall-back.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if not torch.cuda.is_available() or (device.index or 0) >= count:
            found = f"CUDA devices here: {count}" if torch.cuda.is_available() else "PyTorch finds no CUDA device"
            raise ArgumentError(f"`device` is {name}: {found}; use cpu, or auto")
        # fp32 means float32: by default cuDNN rounds what convolutions multiply to 10 bits (TF32).
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise ArgumentError("`device` is mps: PyTorch finds no Metal device; use cpu, or auto")
    elif device.type not in ("cpu", "mps"):
        raise ArgumentError(f"`device` is {name!r}; it must be auto, cpu, cuda, cuda:N or mps")
    return device


def choose_precision(name: str, device: torch.device, predict: str = "eps") -> Precision:
    """The precision that ``--precision`` names; ``auto`` is bf16 where the hardware computes it, else fp32.

    For a network that predicts mu it is fp32: x_0_hat is mu's difference from nearly x_t, many times enlarged, of which
    eight bits leave nothing.

    Raises:
        ArgumentError: bf16 on a GPU that has none.
    """
    if name == "fp32" or (name == "auto" and predict == "mu"):
        return "fp32"
    if device.type == "cuda":
        in_hardware = torch.cuda.get_device_capability(device) >= (8, 0)
        if name == "bf16" and not in_hardware:
            raise ArgumentError("`precision` is bf16: this GPU has no bfloat16 arithmetic; use fp32")
    else:
        has = torch.cpu.get_capabilities()
        in_hardware = device.type == "cpu" and bool(has.get("avx512_bf16") or has.get("amx_bf16") or has.get("bf16"))
    return "bf16" if name == "bf16" or in_hardware else "fp32"
