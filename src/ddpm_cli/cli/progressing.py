"""What ``ddpm progressive`` does once its options are known: Figures 6 and 7."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from .. import generate, steering
from ..errors import ArgumentError
from ..generate import Start, pixels_of
from ..model import Model
from ..pixels import Pixels
from .making import Made, Making
from .output import (
    Batch,
    Table,
    chains,
    check_pictures,
    watched,
    write_table,
)

COLUMNS = 9  # of a sheet, unless they are named


@dataclass(frozen=True)
class Progressive:
    """The options of ``ddpm progressive``."""

    n: int
    times: tuple[int, ...] | None
    share_from: tuple[int, ...] | None

    def __post_init__(self) -> None:
        if self.times and self.share_from:
            raise ArgumentError("--t is of Figure 6, and --share-from of Figure 7; give one of them")


def progressive(options: Progressive, making: Making) -> Iterator[Path | bytes]:
    """Figure 6: x_0_hat over the reverse process; or Figure 7: images that share one x_t."""
    model = making.open()
    if options.share_from:
        return _figure_7(model, options.n, options.share_from, making)
    return _figure_6(model, options, making)


def _figure_6(model: Model, options: Progressive, making: Making) -> Iterator[Path | bytes]:
    n, T = options.n, model.diffusion.schedule.T
    times = options.times or tuple(dict.fromkeys(round(t) for t in np.linspace(T, 0, COLUMNS)))
    if bad := [t for t in times if not 0 <= t <= T]:
        raise ArgumentError(f"--t {bad[0]} is outside 0..{T}")
    sampling = steering.through(making.sampling, model.diffusion, *(t for t in times if t))
    names = [f"{index:06d}-t{t:04d}" for index in range(n) for t in times]
    settings = {"model": model.source, "n": n, "t": list(times), **asdict(sampling)}
    made = Made("progressive", names, (n, len(times)), making.scale, settings)
    check_pictures(making.to, made)
    chain = generate.visited(sampling, model.diffusion)
    left = dict(zip([0, *chain], chain, strict=False))  # which t a step has left that has come to another
    parts = list(generate.batches(0, n, making.batch_size))
    batches = [Batch(indices, indices) for indices in parts]
    seen: dict[int, list[Pixels]] = {t: [] for t in times}
    steps = chains(model, sampling, batches)
    for step in watched(steps, len(parts) * len(chain), "sampling", making.screen, preview=making.to.preview):
        if left[step.t] in seen:
            seen[left[step.t]].append(pixels_of(step.x_0_hat))
        if step.t == 0 and 0 in seen:
            seen[0].append(pixels_of(step.x_t))
    cells = np.stack([np.concatenate(seen[t]) for t in times], axis=1)
    yield from write_table(making.to, made, Table(cells, [], [f"t = {t}" for t in times]), making.screen)


def _figure_7(model: Model, n: int, times: tuple[int, ...], making: Making) -> Iterator[Path | bytes]:
    sampling = steering.through(making.sampling, model.diffusion, *times)
    names = [f"t{t:04d}-{name}" for t in times for name in ("x_t", *(f"{i:06d}" for i in range(n)))]
    settings = {"model": model.source, "n": n, "share_from": list(times), **asdict(sampling)}
    made = Made("progressive", names, (len(times), 1 + n), making.scale, settings)
    check_pictures(making.to, made)
    shared = {step.t: step.x_t for step in model.chain(sampling, [0]) if step.t in times}
    shared[model.diffusion.schedule.T] = generate.normal(model.shape, sampling.seed, "x_T", [(0,)], model.device)
    parts = list(generate.batches(0, n, making.batch_size))
    batches = [Batch(ids, ids, Start(t, shared[t].expand(len(ids), -1, -1, -1))) for t in times for ids in parts]
    total = sum(len(parts) * len(generate.visited(sampling, model.diffusion, t)) for t in times)
    steps = watched(chains(model, sampling, batches), total, "sampling", making.screen, preview=making.to.preview)
    ends = (pixels_of(step.x_t) for step in steps if step.t == 0)
    rows = [np.concatenate([pixels_of(shared[t]), *islice(ends, len(parts))]) for t in times]
    table = Table(np.stack(rows), [f"t = {t}" for t in times], ["x_t", *map(str, range(n))], "image")
    yield from write_table(making.to, made, table, making.screen)
