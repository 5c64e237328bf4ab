"""lucidrains/denoising-diffusion-pytorch: ``model-N.pt``. Its network is another one, and is refused, with reasons."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NoReturn

from ..checkpoint.weights import Tensors
from ..errors import InputError
from .format import Content, Format, Options, named_tensors

PREFIXES = ("model.", "ema_model.model.", "online_model.model.", "")


def _recognises(content: Content) -> bool:
    return bool(_network(content))


def _refuse(content: Content, _options: Options) -> NoReturn:
    raise InputError(
        f"{content.where}: a network of denoising-diffusion-pytorch cannot be expressed as diffusers' UNet2DModel: "
        f"{', '.join(_reasons(_network(content)))}"
    )


def _network(content: Content) -> Tensors:
    """The U-Net's tensors by their names in it; nothing if the file has none of this project."""
    for tensors in (named_tensors(content.part("model")), named_tensors(content.part("ema")), content.tensors):
        for prefix in PREFIXES:
            if f"{prefix}init_conv.weight" in tensors and f"{prefix}downs.0.0.block1.proj.weight" in tensors:
                return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    return {}


def _reasons(tensors: Tensors) -> Iterator[str]:
    """What of this network diffusers' has no place for."""
    kernel = tensors["init_conv.weight"].shape[-1] if tensors["init_conv.weight"].ndim == 4 else 0
    if kernel != 3:
        yield f"an input convolution of {kernel}x{kernel}"
    yield "norms after the convolutions instead of before them"
    if any(re.fullmatch(r"(downs|ups)\.\d+\.2\.(fn\.)*to_out\.1\..*", name) for name in tensors):
        yield "linear attention"
    if any(name.endswith(".mem_kv") for name in tensors):
        yield "keys and values that attention has learned by heart"
    yield "attention after every second block, on every level"
    yield "the input joined once more before the output"


FORMAT = Format("lucidrains/denoising-diffusion-pytorch", frozenset(), _recognises, _refuse)
