"""Random numbers by our own transforms, beside numpy's distributions with a generator keyed for each row."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator

import numpy as np

from ddpm_cli.core import rng

from .measure import Table, Times, in_turn

ROWS = 128
SHAPES = (1, 8, 8), (3, 32, 32), (3, 256, 256)
IMAGES = 1_797, 1_000_000
VALUES = 100_000_000  # so many numbers are drawn in a run


def tables() -> Iterator[Table]:
    """Noise of a batch, and the order of an epoch."""
    rows = []
    for shape in SHAPES:
        times = _timed(lambda shape=shape: _numpys(shape), lambda shape=shape: _ours(shape), ROWS * math.prod(shape))
        rows.append((f"noise, {ROWS} rows of {'x'.join(map(str, shape))}", *_cells(times)))
    for n in IMAGES:
        times = _timed(lambda n=n: _keyed(0).permutation(n), lambda n=n: rng.permutation(n, 0, "benchmark", 0), n * 20)
        rows.append((f"the order of {n:,} images", *_cells(times)))
    yield Table(
        "Random numbers",
        "One thread, median of 7 runs in turn (least to most) after a first. Ours are made from the words of Philox by "
        "exact operations and are the same on every processor and in every release; numpy's are those of its "
        "`standard_normal` and `permutation`, from Philox keyed for each row.",
        ("", "numpy's", "ours", "times as fast"),
        tuple(rows),
    )


def _timed(theirs: Callable[[], object], ours: Callable[[], object], values: int) -> tuple[Times, Times]:
    """Seconds of one call each."""
    calls = max(1, min(500, VALUES // values // 20))

    def several(thing: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(calls):
                thing()

        return run

    times = in_turn({"theirs": several(theirs), "ours": several(ours)}, 7)
    each = (Times(tuple(second / calls for second in times[name].seconds)) for name in ("theirs", "ours"))
    return next(each), next(each)


def _cells(times: tuple[Times, Times]) -> tuple[str, str, str]:
    theirs, ours = times
    return str(theirs), str(ours), f"{theirs.median / ours.median:.2f}"


def _ours(shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal_batch(shape, 0, "benchmark", [(7, row) for row in range(ROWS)])


def _numpys(shape: tuple[int, ...]) -> np.ndarray:
    noise = np.empty((ROWS, *shape), np.float32)
    philox = np.random.Philox(key=0)
    generator, fresh = np.random.Generator(philox), philox.state
    for number, row in enumerate(noise):
        fresh["state"]["key"] = np.frombuffer(_key(number), "<u8")
        philox.state = fresh
        generator.standard_normal(out=row, dtype=np.float32)
    return noise


def _keyed(row: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=int.from_bytes(_key(row), "little")))


def _key(row: int) -> bytes:
    return hashlib.blake2b(f"0,benchmark,7,{row}".encode(), digest_size=16).digest()
