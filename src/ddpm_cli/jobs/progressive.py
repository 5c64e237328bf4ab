"""What ``ddpm progressive`` does once its options are known: Figures 6 and 7."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..diffusion.spacing import check_times
from ..errors import ArgumentError
from ..models.model import Model
from ..sampling import generate
from ..sampling import start as starts
from ..sampling.generate import Start, pixels_of
from .making import Making
from .output import LABELLED, Batch, BatchStep, Cells, Table, chains, watched, write_table

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
    T = model.diffusion.schedule.T
    if options.share_from:
        check_times(options.share_from, T, "share_from", distinct=True)
        making.warn_of_copies()
        return _figure_7(model, options.n, options.share_from, making)
    times = options.times or tuple(dict.fromkeys(round(t) for t in np.linspace(T, 0, COLUMNS)))
    check_times(times, T, "times", low=0, distinct=True)
    return _figure_6(model, options.n, times, making)


def _figure_6(model: Model, n: int, times: tuple[int, ...], making: Making) -> Iterator[Path | bytes]:
    names = [f"{index:06d}-t{t:04d}" for index in range(n) for t in times]
    made = making.made(model, "progressive", names, (n, len(times)), {"n": n, "t": list(times)})
    making.check(made, model, LABELLED)
    sampling = starts.through(making.sampling, model.diffusion, *(t for t in times if t))
    chain = generate.visited(sampling, model.diffusion)
    batches = [Batch(indices, indices) for indices in generate.batches(0, n, making.batch_size)]
    steps = watched(
        chains(model, sampling, batches),
        len(batches) * len(chain),
        "sampling",
        making.screen,
        preview=making.to.preview,
    )
    cells = _columns(steps, dict(zip([0, *chain], chain, strict=False)), times)
    yield from write_table(making.to, made, cells, Table([], [f"t = {t}" for t in times]), making.screen)


def _columns(steps: Iterator[BatchStep], left: dict[int, int], times: tuple[int, ...]) -> Iterator[Cells]:
    """x_0_hat where it is of one of the times, and the image itself at 0.

    Args:
        left: which t a step has left that has come to another.
    """
    for step in steps:
        for column, t in enumerate(times):
            places = [place * len(times) + column for place in step.places]
            if t == left[step.t]:
                assert step.x_0_hat is not None, "these are chains of this process"
                yield Cells(places, pixels_of(step.x_0_hat))
            elif t == step.t == 0:
                yield Cells(places, pixels_of(step.x_t))


def _figure_7(model: Model, n: int, times: tuple[int, ...], making: Making) -> Iterator[Path | bytes]:
    names = [f"t{t:04d}-{name}" for t in times for name in ("x_t", *(f"{i:06d}" for i in range(n)))]
    made = making.made(model, "progressive", names, (len(times), 1 + n), {"n": n, "share_from": list(times)})
    making.check(made, model, LABELLED)
    labels = ["x_t", *map(str, range(n))]
    table = Table([f"t = {t}" for t in times], labels, "image")
    yield from write_table(making.to, made, _rows(model, n, times, making), table, making.screen)


def _rows(model: Model, n: int, times: tuple[int, ...], making: Making) -> Iterator[Cells]:
    """For each t the x_t of image 0, and the images that chains from there end at."""
    sampling = starts.through(making.sampling, model.diffusion, *times)
    shared = {step.t: step.x_t for step in model.chain(sampling, [0]) if step.t in times}
    shared[model.diffusion.schedule.T] = generate.normal(model.shape, sampling.seed, "x_T", [(0,)], model.device)
    batches = []
    for row, t in enumerate(times):
        first = row * (1 + n)
        yield Cells([first], pixels_of(shared[t]))
        for indices in generate.batches(0, n, making.batch_size):
            places = range(first + 1 + indices.start, first + 1 + indices.stop)
            batches.append(Batch(places, indices, Start(t, shared[t].expand(len(indices), -1, -1, -1))))
    total = sum(len(generate.visited(sampling, model.diffusion, batch.start.t)) for batch in batches if batch.start)
    steps = watched(chains(model, sampling, batches), total, "sampling", making.screen, preview=making.to.preview)
    yield from (Cells(step.places, pixels_of(step.x_t)) for step in steps if step.t == 0)
