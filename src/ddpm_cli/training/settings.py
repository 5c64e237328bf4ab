"""Settings compared: of a run folder with those that are asked for, and of processes with each other."""

from __future__ import annotations

import json
from typing import Any

from ..core.distributed import World
from ..errors import ArgumentError

ADDED = {"train.t_sampling": "uniform"}  # settings that earlier runs do not name, and what they did


def check_same(mine: dict[str, Any], world: World) -> None:
    """Refuse processes that were given different settings or images, or that are different themselves.

    Args:
        mine: what this one was given, as JSON.

    Raises:
        ArgumentError: names the first that differs from rank 0, the settings, and both values of each.
        PeerError: another process has ended.
    """
    first, *others = (json.loads(text) for text in world.all_gather(json.dumps(mine).encode()))
    for rank, other in enumerate(others, start=1):
        if differing := differing_settings(first, other):
            text = in_words(differing, "{name} is {b} there and {a} for rank 0")
            raise ArgumentError(
                f"rank {rank} of {world.size} was given other settings or images than rank 0: {text}. "
                "Start all processes with the same command, version and images"
            )


def differing_settings(there: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Settings that differ but for how a run is computed: the name and both values of each, the network's last."""
    a, b = ADDED | _flatten(there), _flatten(now)
    names = sorted({*a, *b} - {"version"}, key=lambda name: (name.startswith("unet."), name))
    return [
        (name, _short(a.get(name)), _short(b.get(name)))
        for name in names
        if a.get(name) != b.get(name) and not name.startswith("execution.")
    ]


def in_words(differing: list[tuple[str, str, str]], sentence: str) -> str:
    """The first few of them, each in a sentence of its ``{name}`` and both values, ``{a}`` and ``{b}``."""
    images = ["the images are others"] if any(name == "data.digest" for name, *_ in differing) else []
    others = [sentence.format(name=name, a=a, b=b) for name, a, b in differing if name != "data.digest"]
    return "; ".join((images + others)[:6])


def _flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:12] + "..."
