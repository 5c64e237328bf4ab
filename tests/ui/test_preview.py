"""Pictures in a terminal, and what is shown where there is none."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from rich.console import Console
from rich.segment import Segment

from ddpm_cli.core.pixels import Raster, to_channels
from ddpm_cli.ui.console import Screen
from ddpm_cli.ui.preview import INKS, LINES_LEFT, Preview, fitted, half_blocks, shades

PICTURES = arrays.arrays(
    np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 3, 4])), fill=st.nothing()
)


def colours(segment: Segment) -> tuple[object, object]:
    """The upper and the lower pixel of a cell; None is the terminal's background."""
    assert segment.text == "▀"
    assert segment.style is not None
    both = segment.style.color, segment.style.bgcolor
    return tuple(None if colour is None else tuple(colour.triplet) for colour in both)  # type: ignore[return-value, arg-type]


def drawn(pixels: np.ndarray, width: int = 80, height: int = 40, encoding: str = "utf-8", **environ: str) -> str:
    """What a terminal of that size is sent."""
    file = io.TextIOWrapper(io.BytesIO(), encoding)
    environ = {"TERM": "xterm", "COLORTERM": "truecolor"} | environ
    console = Console(file=file, force_terminal=True, width=width, height=height, _environ=environ)
    console.print(Preview(pixels))
    file.flush()
    return file.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


def test_a_cell_is_two_pixels_and_the_last_of_an_odd_number_of_rows_is_alone() -> None:
    pixels = np.arange(3 * 2 * 3, dtype=np.uint8).reshape(3, 2, 3)
    cells = [[colours(cell) for cell in line] for line in half_blocks(pixels, columns=2, lines=2)]
    assert cells == [[((0, 1, 2), (6, 7, 8)), ((3, 4, 5), (9, 10, 11))], [((12, 13, 14), None), ((15, 16, 17), None)]]


def test_grey_and_transparent_pixels() -> None:
    black_white = np.array([[[0]], [[255]]], np.uint8)
    assert colours(half_blocks(black_white, 1, 1)[0][0]) == ((0, 0, 0), (255, 255, 255))
    half = np.array([[[0, 128]], [[10, 0]]], np.uint8)  # black that is half there, and what is not there, on white
    assert colours(half_blocks(half, 1, 1)[0][0]) == ((127, 127, 127), (255, 255, 255))
    red = np.array([[[255, 0, 0, 255]], [[9, 9, 9, 0]]], np.uint8)
    assert colours(half_blocks(red, 1, 1)[0][0]) == ((255, 0, 0), (255, 255, 255))


@given(PICTURES, st.integers(1, 60), st.integers(1, 30))
def test_any_picture_fits_and_is_enlarged_by_whole_numbers_only(pixels: np.ndarray, columns: int, lines: int) -> None:
    height, width, _ = pixels.shape
    result = fitted(pixels, columns, lines)
    assert result.shape[1] <= columns
    assert result.shape[0] <= 2 * lines
    assert result.shape[2] == 3
    if width <= columns and height <= 2 * lines:
        factor = result.shape[0] // height
        assert result.shape[:2] == (height * factor, width * factor)
        tiles = result.reshape(height, factor, width, factor, 3)
        np.testing.assert_array_equal(
            tiles, np.broadcast_to(to_channels(Raster(pixels), 3)[:, None, :, None], tiles.shape)
        )
    cells = half_blocks(pixels, columns, lines)
    assert [len(line) for line in cells] == [result.shape[1]] * len(cells)
    assert len(cells) == len(shades(pixels, columns, lines)) == -(-len(result) // 2) <= lines


def test_digits_are_enlarged_and_large_pictures_averaged() -> None:
    assert fitted(np.zeros((8, 8, 1), np.uint8), 80, 32).shape == (32, 32, 3)
    assert fitted(np.zeros((40, 40, 1), np.uint8), 80, 32).shape == (40, 40, 3)
    assert fitted(np.zeros((8, 2000, 1), np.uint8), 80, 32).shape == (1, 80, 3)
    checks = np.indices((64, 64)).sum(0) % 2 * np.uint8(200)
    np.testing.assert_array_equal(fitted(checks[:, :, None].astype(np.uint8), 32, 16), 100)


def test_without_colour_lighter_letters_are_lighter_pixels() -> None:
    ramp = np.linspace(0, 255, 10).astype(np.uint8)[None, :, None].repeat(2, axis=0)
    assert shades(ramp, 10, 1) == [INKS]
    assert shades(np.array([[[255]], [[255]], [[0]]], np.uint8), 1, 2) == ["@", " "]


@pytest.mark.parametrize("environ", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"encoding": "ascii"}], ids=str)
def test_a_terminal_without_colours_or_half_blocks_gets_letters(environ: dict[str, str]) -> None:
    ramp = np.linspace(0, 255, 80).astype(np.uint8)[None, :, None].repeat(2, axis=0)
    assert drawn(ramp, **environ) == "".join(shades(ramp, 80, 1)) + "\n"
    assert "".join(dict.fromkeys(drawn(ramp, **environ))) == INKS + "\n"


def test_colours_are_those_that_the_terminal_has() -> None:
    red = np.full((2, 80, 3), (255, 0, 0), np.uint8)
    assert drawn(red) == "\x1b[38;2;255;0;0;48;2;255;0;0m▀\x1b[0m" * 80 + "\n"
    assert "\x1b[38;5;196;48;5;196m▀" in drawn(red, COLORTERM="", TERM="xterm-256color")
    assert "\x1b[31;41m▀" in drawn(red, COLORTERM="", TERM="xterm")


@pytest.mark.parametrize("width", [1, 7, 200])
@pytest.mark.parametrize("height", [1, LINES_LEFT, LINES_LEFT + 1, 20, 200])
def test_a_picture_leaves_room_on_a_low_terminal(width: int, height: int) -> None:
    lines = drawn(np.zeros((300, 300, 3), np.uint8), width, height, NO_COLOR="1").splitlines()
    assert len(lines) <= max(height - LINES_LEFT, 0)
    assert all(len(line) <= width for line in lines)


def test_where_there_is_no_terminal_a_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    pixels = np.zeros((8, 8, 1), np.uint8)
    asked: list[int] = []
    for verbosity in (0, -1):
        screen = Screen(verbosity)
        screen.picture(pixels)
        assert list(screen.progress(range(3), 3, "going", picture=asked.append)) == [0, 1, 2]
        said = ["no preview is drawn: stderr is no terminal"] if verbosity == 0 else []
        assert capsys.readouterr().err.splitlines() == said
    assert asked == []
    assert list(Screen().progress(range(3), 3, "going")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


@dataclass(frozen=True)
class Session:
    """What a program on a terminal did."""

    sent: str
    result: Any


def on_terminal(
    code: str, tmp_path: Path, env: dict[str, str], size: tuple[int, int] = (30, 90), *, hang_up: bool = False
) -> Session:
    """Run code, of which stderr is a terminal, which goes away during its first words if ``hang_up``."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    script = "import sys, time, numpy as np\nfrom ddpm_cli.ui.console import Screen\n" + code
    script += "\nimport json; open('result', 'w').write(json.dumps(result))"
    gone = {"COLUMNS", "LINES", "NO_COLOR"}
    terminal = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "PYTHONIOENCODING": "utf-8"}
    env = {name: value for name, value in env.items() if name not in gone} | terminal
    process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, env=env, stderr=theirs)
    os.close(theirs)
    sent = b""
    with contextlib.suppress(OSError):  # EIO: the other side has closed it
        while piece := os.read(ours, 65536):
            sent += piece
            if hang_up:
                break
    os.close(ours)
    assert process.wait(60) == 0, sent.decode()
    return Session(sent.decode(), json.loads((tmp_path / "result").read_text()))


LIVE = """
asked = []
def picture(item):
    asked.append(item)
    return None if item % 2 else np.full((8, 8, 1), 255, np.uint8)
def items():
    for item in range(1500):
        time.sleep(0.0005)
        yield item
passed = list(Screen().progress(items(), 1500, "going", picture=picture))
result = passed == list(range(1500)), asked
"""


def test_a_picture_is_live_above_the_bar_and_gone_at_the_end(tmp_path: Path, ddpm_env: dict[str, str]) -> None:
    session = on_terminal(LIVE, tmp_path, ddpm_env)
    whole, asked = session.result
    assert whole
    assert asked[0] == 0
    assert len(asked) < 100  # a few times a second, of 1500 items
    picture = ("\x1b[38;2;255;255;255;48;2;255;255;255m▀\x1b[0m" * 32 + "\r\n") * 16
    assert picture + "going" in session.sent
    assert session.sent.endswith("\x1b[1A\x1b[2K" * 17)


@pytest.mark.parametrize("size", [(1, 1), (2, 10), (5, 3), (0, 0)], ids=str)
def test_small_terminals_hinder_nothing(tmp_path: Path, ddpm_env: dict[str, str], size: tuple[int, int]) -> None:
    code = LIVE + "\nScreen().picture(np.zeros((30, 30, 4), np.uint8))"
    assert on_terminal(code, tmp_path, ddpm_env, size).result[0]


def test_a_closed_terminal_hinders_nothing(tmp_path: Path, ddpm_env: dict[str, str]) -> None:
    code = LIVE + "\nScreen().picture(np.zeros((30, 30, 4), np.uint8))"
    assert on_terminal(code, tmp_path, ddpm_env, hang_up=True).result[0]


def test_a_terminal_may_change_its_size(tmp_path: Path, ddpm_env: dict[str, str]) -> None:
    code = LIVE.replace(
        "        yield item\n",
        "        if item == 500:\n"
        "            import fcntl, struct, termios\n"
        "            fcntl.ioctl(2, termios.TIOCSWINSZ, struct.pack('HHHH', 9, 20, 0, 0))\n"
        "        yield item\n",
    )
    session = on_terminal(code, tmp_path, ddpm_env)
    assert session.result[0]
    drawn_lines = re.findall(r"(?:\x1b\[[0-9;]+m▀\x1b\[0m)+", session.sent)
    assert {line.count("▀") for line in drawn_lines} == {32, 8}


def test_a_picture_is_drawn_once(tmp_path: Path, ddpm_env: dict[str, str]) -> None:
    code = "Screen().picture(np.full((8, 8, 3), 255, np.uint8)); Screen(-1).picture(np.zeros((8, 8, 3), np.uint8))"
    sent = on_terminal(code + "\nresult = 0", tmp_path, ddpm_env).sent
    assert sent == ("\x1b[38;2;255;255;255;48;2;255;255;255m▀\x1b[0m" * 32 + "\r\n") * 16


def test_a_dumb_terminal_gets_lines_and_is_told_why(tmp_path: Path, ddpm_env: dict[str, str]) -> None:
    code = "import os; os.environ['TERM'] = 'dumb'" + LIVE + "Screen().picture(np.full((8, 8, 3), 255, np.uint8))"
    session = on_terminal(code, tmp_path, ddpm_env)
    assert session.result == [True, []]
    said, *picture = session.sent.splitlines()
    assert said == "no preview is drawn: TERM=dumb is a terminal that cannot go back"
    assert picture == ["@" * 32] * 16


def test_rich_is_not_imported_where_nothing_is_drawn(tmp_path: Path, ddpm_env: dict[str, str]) -> None:
    code = (
        "import sys; from ddpm_cli.ui.console import Screen\n"
        "list(Screen().progress([1], 1, 'a', picture=print)); Screen().picture(None)\n"
        "print({'rich', 'PIL', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ddpm_env, cwd=tmp_path)
    assert done.stdout == "set()\n", done.stderr
