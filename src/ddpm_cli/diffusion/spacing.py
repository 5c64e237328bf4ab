"""Which of the steps 1..T a shorter reverse chain visits: ascending lists, for `Schedule.respaced`. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..errors import ArgumentError
from .schedule import Schedule, Table

LEAST_LOG_SNR = -10.2  # 2 lambda, as Lu et al. have lambda from -5.1 on


def check_times(times: Sequence[int], T: int, field: str = "t", *, low: int = 1, distinct: bool = False) -> None:
    """Refuse steps that a chain does not have, or that are named twice.

    Args:
        T: its last step.
        field: the name of what holds them, for the message.
        low: its first; 0 where x_0 itself may be meant.
        distinct: whether each step may be there once only.

    Raises:
        ArgumentError: names the first such step.
    """
    for place, t in enumerate(times):
        if not low <= t <= T:
            raise ArgumentError(f"`{field}` is {t}; it must be from {low} to {T}, the steps of this chain")
        if distinct and t in times[:place]:
            raise ArgumentError(f"`{field}` has {t} twice")


def uniform(s: Schedule, count: int) -> Table:
    """From 1 to T in equal steps; T alone for a count of 1."""
    return np.linspace(1, s.T, count) if count > 1 else np.array([float(s.T)])


def quad(s: Schedule, count: int) -> Table:
    """From 1 to T, equally spaced in sqrt(t): most of them at small t (Song, Meng and Ermon 2020, appendix D.2).

    Theirs end at .8 T, where an x_t is no pure noise; these end at T.
    """
    return np.linspace(1, np.sqrt(s.T), count) ** 2 if count > 1 else np.array([float(s.T)])


def trailing(s: Schedule, count: int) -> Table:
    """T, T - T/count, T - 2 T/count, ...: equal steps of which the last one leads to the image itself."""
    return s.T * np.arange(1, count + 1) / count


def logsnr(s: Schedule, count: int) -> Table:
    """From 1 to T, equally spaced in log SNR_t (Lu et al. 2022, DPM-Solver, section 3.4).

    Down to the log SNR that the linear chain ends at, as theirs: what a cosine chain has beyond it is noise alone, and
    one step, the last.
    """
    if count == 1:
        return np.array([float(s.T)])
    descending = np.log(s.snr[1:])
    wanted = np.linspace(descending[0], max(descending[-1], LEAST_LOG_SNR), count)
    wanted[-1] = descending[-1]
    steps: Table = np.interp(-wanted, -descending, np.arange(1.0, s.T + 1))
    return steps


SPACINGS: dict[str, Callable[[Schedule, int], Table]] = {
    "uniform": uniform,
    "quad": quad,
    "trailing": trailing,
    "logsnr": logsnr,
}


def spaced_steps(s: Schedule, count: int, spacing: str = "uniform") -> list[int]:
    """``count`` of the steps 1..T, ascending and different, T the last, by one of `SPACINGS`.

    Where a spacing is finer than the steps are, the ones next to those take their place.

    Raises:
        ArgumentError: count is not in 1..T.
    """
    if not 1 <= count <= s.T:
        raise ArgumentError(f"`steps` is {count}; this model has steps 1 to {s.T}")
    steps = np.rint(SPACINGS[spacing](s, count)).astype(np.int64)
    places = np.arange(count)
    # At least one apart from below, then from above, where there is room for all.
    steps = np.maximum.accumulate(np.maximum(steps, 1) - places) + places
    steps = np.minimum.accumulate((np.minimum(steps, s.T) - places)[::-1])[::-1] + places
    return [int(t) for t in np.maximum(steps, places + 1)]
