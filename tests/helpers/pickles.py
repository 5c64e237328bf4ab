"""Pickles, hostile and old."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from ddpm_cli.checkpoint.weights import LEGACY_NAMES


class Payload:
    """Something whose pickle makes a folder when it is read."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.sentinel),)


def old_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As diffusers before 0.1 called them, the halving under two names."""
    result = {}
    for name, tensor in weights.items():
        for old, new in LEGACY_NAMES.items():
            name = name.replace(new, old) if ".attentions." in name else name
        for old, new in {"downsample": "down", "upsample": "up"}.items():
            name = name.replace(f"{new}_blocks.", f"{old}_blocks.")
        name = name.replace("mid_block.", "mid.")
        result[name] = tensor
        if ".downsamplers." in name:
            result[name.replace(".conv.", ".op.")] = tensor
    return result
