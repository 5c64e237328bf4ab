"""The network forward and backward: ours and diffusers' on the same weights, beside the rate of convolutions alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from ddpm_cli.denoiser import choose_device, choose_precision
from ddpm_cli.presets import PRESETS
from ddpm_cli.unet import build, flops, init_weights

from .measure import Table, in_turn

BATCH = 16
TRAIN_TO_FORWARD = 3  # arithmetic of a training step over that of a forward pass


@dataclass(frozen=True)
class Layout:
    """How a network is run."""

    name: str
    memory_format: torch.memory_format
    bf16: bool


LAYOUTS = (
    Layout("contiguous weights, float32", torch.contiguous_format, False),
    Layout("channels_last, float32", torch.channels_last, False),
    Layout("channels_last, bfloat16", torch.channels_last, True),
)


def tables() -> Iterator[Table]:
    """Images/s of the paper's CIFAR-10 network."""
    from diffusers import UNet2DModel

    device = choose_device("auto")
    layouts = LAYOUTS if choose_precision("auto", device) == "bf16" else LAYOUTS[:2]
    config = replace(PRESETS["cifar10"].unet((32, 32), 3), dropout=0.0)
    ours = build(config, device)
    init_weights(ours, torch.Generator().manual_seed(0))
    theirs = UNet2DModel.from_config({k: v for k, v in config.to_json().items() if v is not None or "dim" in k})
    theirs.load_state_dict(ours.state_dict())
    theirs.to(device)
    x = torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)
    t = torch.arange(BATCH, device=device)

    forward, step = {}, {}
    for layout in layouts:
        forward[f"ddpm, {layout.name}"] = _forward(lambda x, t: ours(x, t), ours, layout, x, t)
        step[f"ddpm, {layout.name}"] = _step(lambda x, t: ours(x, t), ours, layout, x, t)
    plain = LAYOUTS[0]
    forward["diffusers, its defaults"] = _forward(lambda x, t: theirs(x, t).sample, theirs, plain, x, t)
    step["diffusers, its defaults"] = _step(lambda x, t: theirs(x, t).sample, theirs, plain, x, t)
    convolution = {layout.name: _convolution(layout, device) for layout in layouts}
    times = in_turn({**forward, **{f"step {k}": v for k, v in step.items()}, **convolution}, 5)

    per_image = flops(config, (32, 32))
    best = max(CONVOLUTION_FLOPS / times[name].median for name in convolution)
    peer = times["diffusers, its defaults"].median
    peer_step = times["step diffusers, its defaults"].median
    rows = []
    for name in forward:
        f, s = times[name].median, times[f"step {name}"].median
        rows.append(
            (
                name,
                f"{BATCH / f:.1f}",
                f"{peer / f:.2f}",
                f"{BATCH * per_image / f / best:.0%}",
                f"{BATCH / s:.2f}",
                f"{peer_step / s:.2f}",
                f"{BATCH * per_image * TRAIN_TO_FORWARD / s / best:.0%}",
            )
        )
    yield Table(
        "The paper's CIFAR-10 network",
        f"Batch {BATCH}, {device}, {torch.get_num_threads()} threads; forward without gradients, and forward with "
        f"backward; medians of 5 in turn. The limit is the fastest rate of a 3x3 convolution of 256 channels at 16x16 "
        f"in the same run, {best / 1e9:.0f} GFLOP/s.",
        (
            "",
            "forward images/s",
            "of diffusers",
            "of the limit",
            "forward+backward images/s",
            "of diffusers",
            "of the limit",
        ),
        tuple(rows),
    )


CONVOLUTION_FLOPS = 2 * 9 * 256 * 256 * 16 * 16 * BATCH


Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _forward(
    network: Network, module: torch.nn.Module, layout: Layout, x: torch.Tensor, t: torch.Tensor
) -> Callable[[], None]:
    x = x.contiguous(memory_format=layout.memory_format)

    def run() -> None:
        module.to(memory_format=layout.memory_format)
        with torch.inference_mode(), _autocast(layout, x.device):
            network(x, t)
        _wait(x.device)

    return run


def _step(
    network: Network, module: torch.nn.Module, layout: Layout, x: torch.Tensor, t: torch.Tensor
) -> Callable[[], None]:
    x = x.contiguous(memory_format=layout.memory_format)

    def run() -> None:
        module.to(memory_format=layout.memory_format)
        with _autocast(layout, x.device):
            output = network(x, t)
        F.mse_loss(output.float(), x).backward()
        module.zero_grad(set_to_none=True)
        _wait(x.device)

    return run


def _convolution(layout: Layout, device: torch.device) -> Callable[[], None]:
    dtype = torch.bfloat16 if layout.bf16 else torch.float32
    x = torch.randn(BATCH, 256, 16, 16, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(256, 256, 3, 3, generator=torch.Generator().manual_seed(1))
    x, weight = (v.to(device, dtype).contiguous(memory_format=layout.memory_format) for v in (x, weight))

    def run() -> None:
        with torch.inference_mode():
            F.conv2d(x, weight, padding=1)
        _wait(device)

    return run


def _autocast(layout: Layout, device: torch.device) -> contextlib.AbstractContextManager[object]:
    return torch.autocast(device.type, torch.bfloat16) if layout.bf16 else contextlib.nullcontext()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
