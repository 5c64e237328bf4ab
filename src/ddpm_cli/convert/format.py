"""What a converter gets, and what it makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

from ..checkpoint import Provenance
from ..checkpoint.pickles import Plain, state_dict
from ..checkpoint.weights import Tensors
from ..config import DiffusionConfig, UNetConfig
from ..core.files import printable


@dataclass(frozen=True)
class Options:
    """What a checkpoint does not say of itself; None stands for what its project assumes where nothing is said.

    Args:
        size: (height, width) of the images; a network of convolutions does not know it.
        heads: of each attention; their number does not show in the weights.
        head_channels: of each head, for networks whose levels have different numbers of heads.
        schedule: ``linear`` or ``cosine``.
        timesteps: T.
        rescale_timesteps: whether the network was told t in thousandths of T, instead of t itself.
    """

    size: tuple[int, int] | None = None
    heads: int | None = None
    head_channels: int | None = None
    schedule: str | None = None
    timesteps: int | None = None
    rescale_timesteps: bool | None = None

    @property
    def given(self) -> Iterator[str]:
        """Names of the options that say something."""
        return (field.name for field in fields(self) if getattr(self, field.name) is not None)


@dataclass(frozen=True, eq=False)
class Content:
    """What was read from a file."""

    path: Path
    tree: Plain

    @property
    def where(self) -> str:
        """The file, for messages."""
        return printable(self.path)

    @cached_property
    def tensors(self) -> Tensors:
        """The tensors by name, if the file is a bare state dict; else nothing."""
        return named_tensors(self.tree)

    def part(self, key: str) -> Plain:
        """What lies under a key of the file."""
        return self.tree.get(key) if isinstance(self.tree, dict) else None


@dataclass(frozen=True, eq=False)
class Converted:
    """A model as a converter leaves it, its origin not yet filled in."""

    unet: UNetConfig
    diffusion: DiffusionConfig
    weights: Tensors
    provenance: Provenance


@dataclass(frozen=True)
class Format:
    """A kind of checkpoint.

    Args:
        project: whose it is, for people.
        options: those of `Options` that say something about it.
        recognises: whether a file is one.
        convert: what becomes of it.
    """

    project: str
    options: frozenset[str]
    recognises: Callable[[Content], bool]
    convert: Callable[[Content, Options], Converted]


def named_tensors(tree: Plain) -> Tensors:
    """A state dict, without the prefix that `torch.nn.DataParallel` gives all names; nothing if it is none."""
    tensors = state_dict(tree) or {}
    wrapped = all(name.startswith("module.") for name in tensors)
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()} if wrapped else tensors
