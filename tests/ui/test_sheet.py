"""Sheets with names for rows and columns."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm_cli.core.pixels import grid
from ddpm_cli.ui.plot import INK
from ddpm_cli.ui.sheet import LONGEST, labelled


def images(rows: int, columns: int, size: tuple[int, int], channels: int, most: int = 200) -> np.ndarray:
    """Noise that is nowhere white."""
    generator = np.random.default_rng([rows, columns, channels])
    return generator.integers(1, most, (rows, columns, *size, channels), dtype=np.uint8)


def places(sheet: np.ndarray, image: np.ndarray, scale: int) -> list[tuple[int, int]]:
    """Where an enlarged image is on a sheet: the rows and columns of its upper left pixel."""
    tile = image.repeat(scale, 0).repeat(scale, 1)
    windows = np.lib.stride_tricks.sliding_window_view(sheet, tile.shape)[:, :, 0]
    found = (windows == tile).all((-1, -2, -3))
    return [(int(y), int(x)) for y, x in np.argwhere(found)]


@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.tuples(st.integers(3, 9), st.integers(3, 9)),
    st.sampled_from([1, 2, 3, 4]),
    st.integers(1, 3),
    st.text(max_size=12),
)
def test_labels_leave_every_image_as_it_is(
    n_rows: int, n_columns: int, size: tuple[int, int], channels: int, scale: int, word: str
) -> None:
    tiles = images(n_rows, n_columns, size, channels)
    rows, columns = [f"{word}{row}" for row in range(n_rows)], [f"t = {column}{word}" for column in range(n_columns)]
    sheet = labelled(tiles, rows=rows, columns=columns, scale=scale, corner=word)
    assert sheet.dtype == np.uint8
    assert sheet.shape[2] == channels
    at = [[places(sheet, tiles[r, c], scale) for c in range(n_columns)] for r in range(n_rows)]
    assert all(len(place) == 1 for row in at for place in row)
    assert len({place[0][0] for row in at for place in row}) == n_rows  # in lines
    assert len({place[0][1] for row in at for place in row}) == n_columns


@pytest.mark.parametrize(("channels", "colours"), [(1, 1), (2, 1), (3, 3), (4, 3)])
def test_letters_are_grey_and_opaque_and_smooth(channels: int, colours: int) -> None:
    sheet = labelled(images(1, 2, (64, 48), channels), rows=["one"], columns=["t = 5", "t = 10"], scale=1)
    for band in (sheet[:20], sheet[:, :40]):
        assert (band[:, :, :1] == band[:, :, :colours]).all()
        assert (band[:, :, colours:] == 255).all()
        levels = set(band[:, :, 0].ravel().tolist())
        assert min(levels) >= INK[0]
        assert len(levels) > 10
    assert (sheet[0] == 255).all()  # nothing is cut off at an edge
    assert (sheet[:, 0] == 255).all()
    assert (sheet[:, -1] == 255).all()


def test_without_labels_it_is_the_plain_grid() -> None:
    tiles = images(2, 3, (8, 8), 3)
    sheet = labelled(tiles, rows=[], columns=[], scale=4, corner="t")
    np.testing.assert_array_equal(sheet, grid(tiles.reshape(6, 8, 8, 3), 2, 3, scale=4))
    assert labelled(tiles, rows=["a", "b"], columns=[], scale=4).shape[0] == sheet.shape[0]
    assert labelled(tiles, rows=[], columns=["a", "b", "c"], scale=4).shape[1] == sheet.shape[1]


def test_labels_of_tiny_images_do_not_touch() -> None:
    tiles = images(3, 4, (8, 8), 1)
    sheet = labelled(tiles, rows=["Ägypten"] * 3, columns=["t = 1000"] * 4, scale=1)[:, :, 0]
    (top, left) = places(sheet[:, :, None], tiles[0, 0], 1)[0]
    # Columns of white between the last letter of a label and the first of the next are wider than those within.
    inked = np.flatnonzero((sheet[:top, left - 40 :] < 255).any(0))
    assert sum(np.diff(inked) >= 8) == 3
    # And rows of white between the row labels.
    dark = (sheet[top:, :50] < 255).any(1)
    assert (np.diff(dark.astype(int)) == 1).sum() + int(dark[0]) >= 3


def test_a_label_that_is_too_long_is_cut() -> None:
    tiles = images(1, 1, (8, 8), 1)
    sheet = labelled(tiles, rows=["w" * 500], columns=["m" * 500], scale=1)
    assert sheet.shape[1] < 2.5 * LONGEST


def test_a_label_is_one_line_whatever_is_in_it() -> None:
    tiles = images(1, 1, (32, 32), 1)
    sheets = [labelled(tiles, rows=[word], columns=[word], scale=1) for word in ("a", "a\nb", "\ud800\x1b")]
    assert len({sheet.shape[0] for sheet in sheets}) == 1


def test_a_label_for_each_or_none() -> None:
    with pytest.raises(ValueError, match="2 labels for 3 rows of images"):
        labelled(images(3, 1, (4, 4), 1), rows=["a", "b"], columns=[], scale=1)


def test_a_grid_may_have_other_gaps_between_columns() -> None:
    tiles = images(1, 6, (3, 4), 3)[0]
    sheet = grid(tiles, 2, 3, gap=1, column_gap=5)
    assert sheet.shape == (2 * 4 + 1, 3 * 9 + 5, 3)
    np.testing.assert_array_equal(sheet[5:8, 14:18], tiles[4])
