"""Sheets with labels for rows and columns, and captions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm_cli.core.pixels import MAX_PIXELS, MAX_SIDE, grid
from ddpm_cli.errors import ArgumentError
from ddpm_cli.ui.plot import INK
from ddpm_cli.ui.sheet import LONGEST, Caption, Layout, check_size, draw


def images(rows: int, columns: int, size: tuple[int, int], channels: int, most: int = 200) -> np.ndarray:
    """Noise that is nowhere white."""
    generator = np.random.default_rng([rows, columns, channels])
    return generator.integers(1, most, (rows, columns, *size, channels), dtype=np.uint8)


def labelled(
    tiles: np.ndarray, rows: Sequence[str], columns: Sequence[str], scale: int = 1, corner: str = ""
) -> np.ndarray:
    n_rows, n_columns, *size = tiles.shape
    layout = Layout((n_rows, n_columns), (size[0], size[1], size[2]), scale, rows, columns, corner)
    return draw(layout, tiles)


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
    sheet = labelled(tiles, rows, columns, scale, word)
    assert sheet.dtype == np.uint8
    assert sheet.shape[2] == channels
    at = [[places(sheet, tiles[r, c], scale) for c in range(n_columns)] for r in range(n_rows)]
    assert all(len(place) == 1 for row in at for place in row)
    assert len({place[0][0] for row in at for place in row}) == n_rows  # in lines
    assert len({place[0][1] for row in at for place in row}) == n_columns


@pytest.mark.parametrize(("channels", "colours"), [(1, 1), (2, 1), (3, 3), (4, 3)])
def test_letters_are_grey_and_opaque_and_smooth(channels: int, colours: int) -> None:
    sheet = labelled(images(1, 2, (64, 48), channels), ["one"], ["t = 5", "t = 10"])
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
    sheet = labelled(tiles, [], [], 4, "t")
    np.testing.assert_array_equal(sheet, grid(tiles.reshape(6, 8, 8, 3), 2, 3, scale=4))
    assert labelled(tiles, ["a", "b"], [], 4).shape[0] == sheet.shape[0]
    assert labelled(tiles, [], ["a", "b", "c"], 4).shape[1] == sheet.shape[1]


def test_labels_of_tiny_images_do_not_touch() -> None:
    tiles = images(3, 4, (8, 8), 1)
    sheet = labelled(tiles, ["Ägypten"] * 3, ["t = 1000"] * 4)[:, :, 0]
    (top, left) = places(sheet[:, :, None], tiles[0, 0], 1)[0]
    # Columns of white between the last letter of a label and the first of the next are wider than those within.
    inked = np.flatnonzero((sheet[:top, left - 40 :] < 255).any(0))
    assert sum(np.diff(inked) >= 8) == 3
    # And rows of white between the row labels.
    dark = (sheet[top:, :50] < 255).any(1)
    assert (np.diff(dark.astype(int)) == 1).sum() + int(dark[0]) >= 3


def test_a_label_is_one_line_of_bounded_length_and_there_is_one_for_each_or_none() -> None:
    tiles = images(1, 1, (32, 32), 1)
    sheets = [labelled(tiles, [word], [word]) for word in ("a", "a\nb", "\ud800\x1b", "w" * 500)]
    assert len({sheet.shape[0] for sheet in sheets}) == 1
    assert sheets[-1].shape[1] < 2.5 * LONGEST
    with pytest.raises(ValueError, match="2 labels for 3 rows of images"):
        labelled(images(3, 1, (4, 4), 1), ["a", "b"], [])


def test_a_label_covers_the_columns_after_it_that_have_none() -> None:
    word = "a label of some length"
    one, four = (
        labelled(images(1, 2, (8, 8), 1), [], ["x", word]),
        labelled(images(1, 5, (8, 8), 1), [], ["x", word, "", "", ""]),
    )
    assert abs(four.shape[1] - one.shape[1]) < one.shape[1] / 2  # as wide as the word in both, and not four times
    lit = np.flatnonzero((four[:20, :, 0] < 128).any(0))
    assert lit[-1] - lit[0] > 100


def test_captions_are_below_their_images_and_marked_ones_have_a_colour() -> None:
    tiles = images(2, 2, (8, 8), 3)
    layout = Layout((2, 2), (8, 8, 3), 8, columns=("sample", "others"), captions=True)
    line = (Caption("a long name that has no room.png"), Caption("0.00", marked=True))
    sheet = draw(layout, iter(tiles), [line, line])
    assert sheet.shape == (layout.height, layout.width, 3)
    for row, column in np.ndindex(2, 2):
        top, left = layout.place(row, column)
        tile = tiles[row, column].repeat(8, axis=0).repeat(8, axis=1)
        np.testing.assert_array_equal(sheet[top : top + 64, left : left + 64], tile)
        below = sheet[top + 66 : top + 84, left - 3 : left + 67]
        assert (below < 200).any(), "there is text"
        assert (np.ptp(below.astype(int), axis=2).max() > 100) == (column == 1), "and what is marked has a colour"
    for edge in (sheet[0], sheet[-1], sheet[:, 0], sheet[:, -1]):
        assert (edge == 255).all()


def test_a_sheet_that_nothing_could_show_is_refused() -> None:
    check_size(MAX_SIDE, MAX_PIXELS // MAX_SIDE, "")
    for height, width in [(MAX_SIDE, MAX_PIXELS // MAX_SIDE + 1), (1, MAX_SIDE + 1)]:
        with pytest.raises(ArgumentError, match=f"{height:,}x{width:,} pixels.*less of it"):
            check_size(height, width, "take less of it")
