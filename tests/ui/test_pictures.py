"""Pictures made for people: animations, and which frames of a chain they show."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from ddpm_cli.core.pixels import to_image
from ddpm_cli.ui.pictures import HOLD_MS, LONGEST_MS, chain_frames, encode, encode_animation

NOISE = np.random.default_rng(5).integers(0, 256, (3, 6, 9, 4), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_an_animated_png_keeps_every_pixel_and_every_duration(channels: int) -> None:
    frames = NOISE[..., :channels]
    data = encode_animation([*frames], ".apng", {"ddpm noise": "t → 0"})
    with Image.open(io.BytesIO(data)) as result:
        assert (result.format, result.n_frames, result.info["loop"]) == ("PNG", 3, 0)
        assert result.text == {"ddpm noise": "t → 0"}
        for index, (frame, duration) in enumerate(zip(frames, (LONGEST_MS, LONGEST_MS, HOLD_MS), strict=True)):
            result.seek(index)
            result.load()
            expected = to_image(frame).convert("RGBA") if channels == 2 else to_image(frame)
            assert result.mode == expected.mode
            np.testing.assert_array_equal(np.asarray(result), np.asarray(expected))
            assert result.info["duration"] == duration


@given(
    arrays.arrays(np.uint8, st.tuples(st.integers(2, 4), st.just(2), st.just(2), st.sampled_from([1, 3, 4]))),
    st.lists(st.integers(0, 1), min_size=2, max_size=8),
)
def test_at_every_moment_an_animated_png_shows_the_frame_of_that_moment(images: np.ndarray, order: list[int]) -> None:
    frames = [images[index] for index in order]
    shown = []
    with Image.open(io.BytesIO(encode_animation(frames, ".apng"))) as result:
        for index in range(getattr(result, "n_frames", 1)):
            result.seek(index)
            result.load()
            pixels = np.asarray(result).reshape(images[0].shape)
            shown += [pixels] * round(result.info.get("duration", 10 * LONGEST_MS * len(frames)) // 10)
    frame_ms = min(3600 // len(frames), LONGEST_MS)
    for index, frame in enumerate(frames):
        np.testing.assert_array_equal(shown[(index * frame_ms + frame_ms // 2) // 10], frame)


def test_one_frame_of_apng_is_a_png_of_all_its_bits() -> None:
    deep = np.arange(12, dtype=np.uint16).reshape(3, 4, 1) * 5000
    with Image.open(io.BytesIO(encode(deep, ".apng", {"a": "b"}))) as result:
        np.testing.assert_array_equal(np.asarray(result), deep[:, :, 0])
        assert result.text == {"a": "b"}


@given(st.integers(1, 4000), st.integers(1, 20))
def test_the_frames_of_a_chain_descend_from_its_first_step_to_its_last(steps: int, stride: int) -> None:
    visited = list(range(0, steps * stride, stride))
    shown = chain_frames(visited)
    assert set(shown) <= set(visited)
    assert shown == sorted(set(shown), reverse=True)
    assert (shown[0], shown[-1]) == (visited[-1], 0)
    assert len(shown) <= 60


def test_most_frames_are_of_the_part_in_which_the_image_comes_out_of_the_noise() -> None:
    shown = np.array(chain_frames(range(1000)))
    assert 50 <= len(shown) <= 60
    steps = -np.diff(shown)
    assert (np.diff(steps) <= 1).all()  # but for rounding, ever smaller
    assert 0.35 < ((shown >= 50) & (shown <= 300)).mean() < 0.5
    assert (shown > 500).mean() < 0.25
