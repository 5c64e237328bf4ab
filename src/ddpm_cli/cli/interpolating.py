"""What ``ddpm interpolate`` does once its options are known: Figures 8 and 9."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from .. import generate, steering
from ..errors import ArgumentError
from ..generate import pixels_of
from ..sampling import Sampling
from ..ui.console import Screen
from .inputs import read
from .making import Machine, Made, fitted, tensor
from .output import (
    Batch,
    Destination,
    Table,
    chains,
    check_pictures,
    watched,
    write_table,
)


@dataclass(frozen=True)
class Interpolate:
    """The options of ``ddpm interpolate``."""

    times: tuple[int, ...] | None
    lambdas: int
    resize: bool
    scale: int | None


def interpolate(
    a: Path, b: Path, options: Interpolate, sampling: Sampling, machine: Machine, to: Destination, screen: Screen
) -> Iterator[Path | bytes]:
    """Figures 8 and 9: what lies between two images at each t, a row each; t = 0 mixes their pixels."""
    model = machine.open(screen)
    T = model.diffusion.schedule.T
    times = options.times or (T // 2,)
    if bad := [t for t in times if not 0 <= t <= T]:
        raise ArgumentError(f"--t {bad[0]} is outside 0..{T}")
    ends = [fitted(read(path), model, options.resize, screen) for path in (a, b)]
    x, y = (tensor(end)[None].to(model.device) for end in ends)
    lambdas = np.linspace(0, 1, options.lambdas).tolist()
    names = [f"t{t:04d}-lambda{weight:.3f}" for t in times for weight in lambdas]
    settings = {"model": model.source, "t": list(times), "lambdas": lambdas, **asdict(sampling)}
    made = Made("interpolate", names, (len(times), len(lambdas)), options.scale, settings)
    check_pictures(to, made)
    # All rows of a chain have one noise, too: then only lambda makes the difference.
    starts = [steering.between(model.diffusion, x, y, t, lambdas, sampling.seed) for t in times if t]
    batches = [Batch(range(0), [0] * len(lambdas), start) for start in starts]
    total = sum(len(generate.visited(sampling, model.diffusion, start.t)) for start in starts)
    steps = watched(chains(model, sampling, batches), total, "interpolating", screen, preview=to.preview)
    done = [pixels_of(step.x_t) for step in steps if step.t == 0]
    mixed = pixels_of(torch.cat([(1 - weight) * x + weight * y for weight in lambdas]))
    cells = np.stack([done.pop(0) if t else mixed for t in times])
    labels = [f"{weight:.3g}" for weight in lambdas]
    if not to.is_folder and to.suffix == ".png":
        sources = (np.repeat(end[None, None], len(times), axis=0) for end in ends)
        first, last = sources
        cells, labels = np.concatenate([first, cells, last], axis=1), ["source", *labels, "source"]
    table = Table(cells, [f"t = {t}" for t in times], labels, "lambda")
    yield from write_table(to, made, table, screen)
