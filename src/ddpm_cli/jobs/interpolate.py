"""What ``ddpm interpolate`` does once its options are known: Figures 8 and 9."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..diffusion.spacing import check_times
from ..models.model import Model
from ..sampling import generate
from ..sampling import start as starts
from ..sampling.generate import pixels_of
from .inputs import read
from .making import Making, fitted, tensor
from .output import LABELLED, Batch, Cells, Table, chains, watched, write_table


@dataclass(frozen=True)
class Interpolate:
    """The options of ``ddpm interpolate``."""

    times: tuple[int, ...] | None
    lambdas: int
    resize: bool


def interpolate(a: Path, b: Path, options: Interpolate, making: Making) -> Iterator[Path | bytes]:
    """Figures 8 and 9: what lies between two images at each t, a row each; t = 0 mixes their pixels."""
    model = making.open()
    T = model.diffusion.schedule.T
    times = options.times or (T // 2,)
    check_times(times, T, "times", low=0, distinct=True)
    ends = [fitted(read(path), model, options.resize, making.screen) for path in (a, b)]
    lambdas = np.linspace(0, 1, options.lambdas).tolist()
    names = [f"t{t:04d}-{i:03d}-lambda{weight:.3f}" for t in times for i, weight in enumerate(lambdas)]
    settings = {"lambdas": lambdas, "t": list(times)}
    made = making.made(model, "interpolate", names, (len(times), len(lambdas)), settings)
    making.check(made, model, LABELLED)
    x_0, other = (tensor(end)[None].to(model.device) for end in ends)
    cells = _cells(model, (x_0, other), times, lambdas, making)
    labels = ["source", *(f"{weight:.3g}" for weight in lambdas), "source"]
    table = Table([f"t = {t}" for t in times], labels, "lambda", *ends)
    yield from write_table(making.to, made, cells, table, making.screen)


def _cells(
    model: Model, ends: tuple[torch.Tensor, torch.Tensor], times: tuple[int, ...], lambdas: list[float], making: Making
) -> Iterator[Cells]:
    (x_0, other), sampling, n = ends, making.sampling, len(lambdas)
    batches = []
    for row, t in enumerate(times):
        for part in generate.batches(0, n, making.batch_size):
            places = range(row * n + part.start, row * n + part.stop)
            weights = lambdas[part.start : part.stop]
            if t == 0:
                yield Cells(places, pixels_of(torch.cat([(1 - w) * x_0 + w * other for w in weights])))
            else:
                start = starts.between(model.diffusion, x_0, other, t, weights, sampling.seed)
                # They all meet one noise, so that only lambda makes the difference.
                batches.append(Batch(places, [0] * len(part), start))
    total = sum(len(generate.visited(sampling, model.diffusion, batch.start.t)) for batch in batches if batch.start)
    steps = watched(chains(model, sampling, batches), total, "interpolating", making.screen, preview=making.to.preview)
    yield from (Cells(step.places, pixels_of(step.x_t)) for step in steps if step.t == 0)
