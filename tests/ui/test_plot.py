"""The axes of plots."""

from __future__ import annotations

import numpy as np
import pytest

from ddpm_cli.ui.plot import COLOURS, Curve, Panel, draw


def drawn(*curves: Curve, log: bool) -> np.ndarray:
    panel = Panel("title", "x", "y", curves, log_x=log, log_y=log)
    return np.asarray(draw([panel])).astype(int)


@pytest.mark.parametrize("log", [True, False])
def test_a_power_law_is_a_straight_line_on_logarithmic_axes_only(log: bool) -> None:
    x = [5.0, 20.0, 100.0, 1000.0]
    every = drawn(Curve(x, [1000 / v for v in x]), log=log)
    ends = drawn(Curve([5.0, 1000.0], [200.0, 1.0]), log=log)
    assert (np.abs(every - ends).max() < 100) == log


@pytest.mark.parametrize(("least", "largest"), [(5, 1000), (3, 999), (0.19, 12.0), (1, 1.5), (1e-3, 2e5)])
def test_a_logarithmic_axis_has_room_for_all_numbers(least: float, largest: float) -> None:
    image = drawn(Curve([least, largest], [least, largest]), log=True)
    coloured = np.argwhere(np.abs(image - COLOURS[0]).sum(2) < 60)
    (top, left), (bottom, right) = coloured.min(0), coloured.max(0)
    assert 42 <= top <= bottom <= 480 - 58
    assert 78 <= left <= right <= 640 - 20


def test_five_curves_have_five_colours() -> None:
    image = drawn(*(Curve([1, 2], [i, i], str(i)) for i in range(1, 6)), log=False)
    for colour in COLOURS:
        assert (np.abs(image - colour).sum(2) < 90).sum() > 100
