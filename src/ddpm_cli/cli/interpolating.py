"""What ``ddpm interpolate`` does once its options are known: Figures 8 and 9."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from .. import generate, steering
from ..errors import ArgumentError
from ..generate import pixels_of
from ..model import Model
from .inputs import read
from .making import Made, Making, fitted, tensor
from .output import (
    Batch,
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


def interpolate(a: Path, b: Path, options: Interpolate, making: Making) -> Iterator[Path | bytes]:
    """Figures 8 and 9: what lies between two images at each t, a row each; t = 0 mixes their pixels."""
    model, sampling = making.open(), making.sampling
    T = model.diffusion.schedule.T
    times = options.times or (T // 2,)
    if bad := [t for t in times if not 0 <= t <= T]:
        raise ArgumentError(f"--t {bad[0]} is outside 0..{T}")
    ends = [fitted(read(path), model, options.resize, making.screen) for path in (a, b)]
    x, y = (tensor(end)[None].to(model.device) for end in ends)
    lambdas = np.linspace(0, 1, options.lambdas).tolist()
    names = [f"t{t:04d}-{i:03d}-lambda{weight:.3f}" for t in times for i, weight in enumerate(lambdas)]
    settings = {"model": model.source, "t": list(times), "lambdas": lambdas, **asdict(sampling)}
    made = Made("interpolate", names, (len(times), len(lambdas)), making.scale, settings)
    check_pictures(making.to, made)
    parts = list(generate.batches(0, len(lambdas), making.batch_size))
    batches = [_batch(model, x, y, t, [lambdas[i] for i in part], sampling.seed) for t in times if t for part in parts]
    total = sum(len(parts) * len(generate.visited(sampling, model.diffusion, t)) for t in times if t)
    steps = watched(chains(model, sampling, batches), total, "interpolating", making.screen, preview=making.to.preview)
    done = (pixels_of(step.x_t) for step in steps if step.t == 0)
    mixed = pixels_of(torch.cat([(1 - weight) * x + weight * y for weight in lambdas]))
    cells = np.stack([np.concatenate(list(islice(done, len(parts)))) if t else mixed for t in times])
    labels = [f"{weight:.3g}" for weight in lambdas]
    if not making.to.is_folder and making.to.suffix == ".png":
        first, last = (np.repeat(end[None, None], len(times), axis=0) for end in ends)
        cells, labels = np.concatenate([first, cells, last], axis=1), ["source", *labels, "source"]
    table = Table(cells, [f"t = {t}" for t in times], labels, "lambda")
    yield from write_table(making.to, made, table, making.screen)


def _batch(model: Model, x: torch.Tensor, y: torch.Tensor, t: int, lambdas: list[float], seed: int) -> Batch:
    """Chains from x_t that lie between two images. They meet one noise, so that only lambda makes the difference."""
    start = steering.between(model.diffusion, x, y, t, lambdas, seed)
    return Batch(range(len(lambdas)), [0] * len(lambdas), start)
