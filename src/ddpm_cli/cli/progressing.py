"""What ``ddpm progressive`` does once its options are known: Figures 6 and 7."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from .. import generate, steering
from ..diffusion.samplers import Step
from ..errors import ArgumentError
from ..generate import Start, pixels_of
from ..model import Model
from ..pixels import Pixels
from ..sampling import Sampling
from ..ui.console import Screen
from .making import Machine, Made
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
class Progressive:
    """The options of ``ddpm progressive``."""

    n: int
    times: tuple[int, ...] | None
    share_from: tuple[int, ...] | None
    scale: int | None

    def __post_init__(self) -> None:
        if self.times and self.share_from:
            raise ArgumentError("--t is of Figure 6, and --share-from of Figure 7; give one of them")


def progressive(
    options: Progressive, sampling: Sampling, machine: Machine, to: Destination, screen: Screen
) -> Iterator[Path | bytes]:
    """Figure 6: x_0_hat over the reverse process; or Figure 7: images that share one x_t."""
    model = machine.open(screen)
    if options.share_from:
        yield from _shared(model, options, options.share_from, sampling, machine, to, screen)
        return
    T = model.diffusion.schedule.T
    wanted = options.times or tuple(dict.fromkeys(round(t) for t in np.linspace(T, 0, 9)))
    if bad := [t for t in wanted if not 0 <= t <= T]:
        raise ArgumentError(f"--t {bad[0]} is outside 0..{T}")
    sampling = steering.through(sampling, model.diffusion, *(t for t in wanted if t))
    chain = generate.visited(sampling, model.diffusion)
    names = [f"{index:06d}-t{t:04d}" for index in range(options.n) for t in wanted]
    settings = {"model": model.source, "n": options.n, "t": list(wanted), **asdict(sampling)}
    made = Made("progressive", names, (options.n, len(wanted)), options.scale, settings)
    check_pictures(to, made)
    parts = list(generate.batches(0, options.n, machine.batch_size))
    seen: dict[int, list[Pixels]] = {t: [] for t in wanted}
    for indices in parts:
        steps = model.chain(sampling, indices)
        for at, step in zip([*chain[::-1], 0], _and_the_end(steps), strict=True):
            if at in seen:
                seen[at].append(pixels_of(step.x_0_hat if at else step.x_t))
    cells = np.stack([np.concatenate(seen[t]) for t in wanted], axis=1)
    table = Table(cells, [], [f"t = {t}" for t in wanted])
    yield from write_table(to, made, table, screen)


def _and_the_end(steps: Iterator[Step]) -> Iterator[Step]:
    """Each step, whose x_0_hat is of the t that it leaves, and the last one again, which has come to 0."""
    step = None
    for step in steps:
        yield step
    assert step is not None
    yield step


def _shared(
    model: Model,
    options: Progressive,
    times: tuple[int, ...],
    sampling: Sampling,
    machine: Machine,
    to: Destination,
    screen: Screen,
) -> Iterator[Path | bytes]:
    sampling = steering.through(sampling, model.diffusion, *times)
    n = options.n
    names = [f"t{t:04d}-{name}" for t in times for name in ("x_t", *(f"{i:06d}" for i in range(n)))]
    settings = {"model": model.source, "n": n, "share_from": list(times), **asdict(sampling)}
    made = Made("progressive", names, (len(times), 1 + n), options.scale, settings)
    check_pictures(to, made)
    T = model.diffusion.schedule.T
    shared = {step.t: step.x_t for step in model.chain(sampling, [0]) if step.t in times}
    shared[T] = generate.normal(model.shape, sampling.seed, "x_T", [(0,)], model.device)
    parts = list(generate.batches(0, n, machine.batch_size))
    batches = [Batch(ids, ids, Start(t, shared[t].expand(len(ids), -1, -1, -1))) for t in times for ids in parts]
    total = sum(len(parts) * len(generate.visited(sampling, model.diffusion, t)) for t in times)
    steps = watched(chains(model, sampling, batches), total, "sampling", screen, preview=to.preview)
    ends = (pixels_of(step.x_t) for step in steps if step.t == 0)
    rows = [np.concatenate([pixels_of(shared[t]), *islice(ends, len(parts))]) for t in times]
    table = Table(np.stack(rows), [f"t = {t}" for t in times], ["x_t", *map(str, range(n))], "image")
    yield from write_table(to, made, table, screen)
