"""From another project's tensors to ours: new names, the network's measures, and a last check of everything.

All the formats here are the paper's network in other words, so a converter only says what each module is called with
us. Measures are then read off names and shapes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..checkpoint.layout import shapes
from ..checkpoint.pickles import dtype_name, to_weights
from ..checkpoint.weights import Entry, Tensors, check
from ..config import UNetConfig
from ..core.files import printable
from ..errors import InputError

FINEST_ATTENTION = 16  # pixels a side: where attention begins in the paper, and in all that followed it
FLOATS = ("F32", "F16", "BF16", "F64")


@dataclass(frozen=True)
class Measures:
    """What names and shapes say of a network.

    Args:
        widths: channels of each level, the finest first.
        layers: residual blocks of a level on the way down.
        down: for each level whether it has attention on the way down, ``up`` on the way up; both the finest first.
    """

    widths: tuple[int, ...]
    layers: int
    down: tuple[bool, ...]
    up: tuple[bool, ...]
    in_channels: int
    out_channels: int
    embedding: int
    scale_shift: bool

    @property
    def attending(self) -> list[int]:
        """Levels with attention on the way down, the finest first."""
        return [level for level, attends in enumerate(self.down) if attends]


def rename(where: str, tensors: Tensors, modules: Mapping[str, str]) -> Tensors:
    """The tensors under our names.

    Args:
        where: the file, for messages.
        modules: for each module of theirs, its name with us; it may have more than are there.

    Raises:
        InputError: a tensor is of none of these modules.
    """
    result = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if module not in modules:
            raise InputError(f"{where}: tensor {printable(name)[:100]} has no place in the paper's network")
        if ".attentions." in modules[module] and tensor.ndim > 2:
            tensor = tensor.flatten(1)  # a convolution of 1x1 is a linear layer
        result[f"{modules[module]}.{leaf}"] = tensor
    return result


def measure(where: str, tensors: Tensors) -> Measures:
    """Read a network's measures off its tensors, which have our names.

    Raises:
        InputError: a tensor is missing, or has not the number of dimensions that it has in every network.
    """

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        if name not in tensors or tensors[name].ndim != dimensions:
            raise InputError(f"{where}: tensor {name} (as diffusers calls it) is missing, or no {dimensions}-d array")
        return tuple(tensors[name].shape)

    first = "down_blocks.0.resnets.0"
    levels = _count(tensors, "down_blocks.{}.resnets.0.conv1.weight")
    widths = tuple(shape(f"down_blocks.{level}.resnets.0.conv1.weight", 4)[0] for level in range(levels))
    attends = [f"{way}_blocks.{i}.attentions.0.group_norm.weight" for way in ("down", "up") for i in range(levels)]
    present = [name in tensors for name in attends]
    return Measures(
        widths=widths,
        layers=_count(tensors, "down_blocks.0.resnets.{}.conv1.weight"),
        down=tuple(present[:levels]),
        up=tuple(present[levels:][::-1]),
        in_channels=shape("conv_in.weight", 4)[1],
        out_channels=shape("conv_out.weight", 4)[0],
        embedding=shape("time_embedding.linear_1.weight", 2)[0],
        scale_shift=shape(f"{first}.time_emb_proj.weight", 2)[0] == 2 * shape(f"{first}.conv1.weight", 4)[0],
    )


def network(measures: Measures, size: tuple[int, int], **habits: Any) -> UNetConfig:
    """The configuration of a network.

    Args:
        habits: fields of `UNetConfig` that show neither in names nor in shapes.

    Raises:
        InputError: its measures are none that diffusers' UNet2DModel has.
    """
    width = measures.widths[0] if measures.widths else 0
    fields: dict[str, Any] = {
        "sample_size": size[0] if size[0] == size[1] else size,
        "in_channels": measures.in_channels,
        "out_channels": measures.out_channels,
        "block_out_channels": measures.widths,
        "layers_per_block": measures.layers,
        "down_block_types": tuple("AttnDownBlock2D" if attends else "DownBlock2D" for attends in measures.down),
        "up_block_types": tuple("AttnUpBlock2D" if attends else "UpBlock2D" for attends in measures.up[::-1]),
        "time_embedding_dim": None if measures.embedding == 4 * width else measures.embedding,
        "norm_num_groups": 32,
    }
    return UNetConfig(**(fields | habits))


def size_of(where: str, measures: Measures, size: tuple[int, int] | None) -> tuple[int, int]:
    """The size of the images: the one given, else such that the finest attention is at 16x16.

    Raises:
        InputError: it was not given, and no level has attention.
    """
    if size is not None:
        return size
    if not measures.attending:
        raise InputError(f"{where} does not say the size of its images; give it with `size`")
    side = FINEST_ATTENTION * 2 ** measures.attending[0]
    return side, side


def finish(where: str, tensors: Tensors, unet: UNetConfig) -> Tensors:
    """Weights of a network, after a comparison of every name, shape, dtype and number with what it needs.

    Raises:
        InputError: something does not fit; the message names it as diffusers does.
    """
    found = {name: Entry(dtype_name(tensor), list(tensor.shape)) for name, tensor in tensors.items()}
    names = check(where, found, shapes(unet), FLOATS)
    return to_weights(where, {name: tensors[old] for name, old in names.items()})


def residual(theirs: str, ours: str, parts: Mapping[str, str]) -> dict[str, str]:
    """The names of the modules within a block: ``parts`` says for each of theirs what it is with us."""
    return {f"{theirs}.{part}": f"{ours}.{name}" for part, name in parts.items()}


def _count(tensors: Tensors, pattern: str) -> int:
    return next(i for i in itertools.count() if pattern.format(i) not in tensors)
