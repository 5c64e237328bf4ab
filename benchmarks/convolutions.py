"""The convolutions of a network and nothing else: what no network of these layers is faster than on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ddpm_cli.config import UNetConfig
from ddpm_cli.core.allocator import keep_freed_memory
from ddpm_cli.network.denoiser import Precision
from ddpm_cli.network.unet import UNet, build, init_weights

from .measure import wait_for


@dataclass(frozen=True, eq=False)
class Convolution:
    """One convolution, with an input and a gradient of its result, of the shapes that they have in the network.

    Args:
        first: whether its input is the image, which needs no gradient.
    """

    weight: Tensor
    bias: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    x: Tensor
    gradient: Tensor
    first: bool

    def forward(self) -> None:
        """The result."""
        nn.functional.conv2d(self.x, self.weight, self.bias, self.stride, self.padding)

    def backward(self) -> None:
        """The gradients of input, weight and bias."""
        needed = [not self.first, True, True]
        torch.ops.aten.convolution_backward(
            self.gradient,
            self.x,
            self.weight,
            [len(self.bias)],
            self.stride,
            self.padding,
            [1, 1],
            False,
            [0, 0],
            1,
            needed,
        )


@dataclass(frozen=True)
class _Seen:
    """A convolution as the network calls it."""

    layer: nn.Conv2d
    x: torch.Size
    y: torch.Size


def random_unet(config: UNetConfig, device: torch.device) -> UNet:
    """A network for inference whose weights are those of the first step of a training."""
    unet = build(replace(config, dropout=0.0), device)
    init_weights(unet, 0)
    return unet.eval().requires_grad_(False)


def convolutions(unet: UNet, batch: int, precision: Precision, device: torch.device) -> list[Convolution]:
    """Every convolution of the network, in the order of its forward pass, channels last.

    Arrays of one shape are one array, so they take less memory than the network does.
    """
    keep_freed_memory()  # as the commands do
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    seen: list[_Seen] = []
    hooks = [
        module.register_forward_hook(lambda layer, xs, y: seen.append(_Seen(layer, xs[0].shape, y.shape)))
        for module in unet.modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad():
        image = torch.zeros(batch, unet.config.in_channels, *unet.config.size, device=device)
        unet(image, torch.zeros(batch, dtype=torch.int64, device=device))
    for hook in hooks:
        hook.remove()
    arrays = {shape: _random(shape, dtype, device) for call in seen for shape in (call.x, call.y)}
    return [
        Convolution(
            weight=call.layer.weight.detach().to(dtype),
            bias=_bias(call.layer).detach().to(dtype),
            stride=call.layer.stride,
            padding=tuple(int(side) for side in call.layer.padding),
            x=arrays[call.x],
            gradient=arrays[call.y],
            first=place == 0,
        )
        for place, call in enumerate(seen)
    ]


@torch.inference_mode()
def run_forward(layers: Sequence[Convolution], times: int) -> None:
    """All of them, so many times."""
    for _ in range(times):
        for layer in layers:
            layer.forward()
    wait_for(layers[0].x.device)


@torch.inference_mode()
def run_both_ways(layers: Sequence[Convolution], times: int) -> None:
    """All of them forward and then backward, so many times."""
    for _ in range(times):
        for layer in layers:
            layer.forward()
        for layer in reversed(layers):
            layer.backward()
    wait_for(layers[0].x.device)


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


def _random(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return x.to(device, dtype, memory_format=torch.channels_last)
