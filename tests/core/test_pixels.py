"""uint8 and 16-bit levels to floats and back, decoding of every mode, PNG text, and grids."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from ddpm_cli.core import pixels
from ddpm_cli.errors import InputError


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, form, **options)
    file.seek(0)
    return file


def png16(values: np.ndarray) -> io.BytesIO:
    """A PNG of 16 bits a channel, (H, W, C): PIL writes 16 bits in grey only."""
    height, width, channels = values.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + data)


@pytest.mark.parametrize("levels", [255, 65535])
def test_to_levels_is_the_inverse_of_to_float(levels: int) -> None:
    every = np.arange(levels + 1).astype(np.uint8 if levels == 255 else np.uint16)
    floats = pixels.to_float(every, levels)
    assert floats.dtype == np.float32
    assert (floats[0], floats[-1]) == (-1, 1)
    assert (np.diff(floats) > 0).all()
    back = pixels.to_levels(floats, levels)
    assert back.dtype == every.dtype
    np.testing.assert_array_equal(back, every)


@pytest.mark.parametrize("levels", [255, 65535])
def test_torch_gives_what_numpy_gives(levels: int) -> None:
    every = np.arange(levels + 1).astype(np.uint8 if levels == 255 else np.uint16)
    tensor = torch.from_numpy(every.astype(np.int32))
    np.testing.assert_array_equal(pixels.to_float(tensor, levels).numpy(), pixels.to_float(every, levels))
    x = np.random.default_rng(levels).uniform(-1.2, 1.2, 100_000).astype(np.float32)
    np.testing.assert_array_equal(pixels.to_levels(torch.from_numpy(x), levels).numpy(), pixels.to_levels(x, levels))


@given(st.floats(-3, 3, width=32))
def test_to_levels_gives_the_nearest_level(x: float) -> None:
    level = int(pixels.to_levels(np.array([x], np.float32))[0])
    assert abs(level - min(max((x + 1) * 127.5, 0), 255)) <= 0.5 + 1e-4


SOME = np.random.default_rng(5).integers(0, 256, (6, 5, 4), dtype=np.uint8)
PLAIN = {
    "L": Image.fromarray(SOME[:, :, 0].copy()),
    "LA": Image.fromarray(SOME[:, :, :2].copy()),
    "RGB": Image.fromarray(SOME[:, :, :3].copy()),
    "RGBA": Image.fromarray(SOME),
}


@pytest.mark.parametrize("mode", PLAIN)
def test_plain_modes_come_back_bit_for_bit(mode: str) -> None:
    raster = pixels.decode(encoded(PLAIN[mode]))
    channels = len(mode)
    np.testing.assert_array_equal(raster.pixels, SOME[:, :, :channels])
    assert (raster.note, raster.levels, raster.is_grey) == ("", 255, mode.startswith("L"))
    assert raster.has_alpha == mode.endswith("A")
    np.testing.assert_array_equal(np.asarray(pixels.to_image(raster.pixels)), np.asarray(PLAIN[mode]))


def test_black_and_white_is_grey() -> None:
    raster = pixels.decode(encoded(Image.fromarray(SOME[:, :, 0] > 127)))
    np.testing.assert_array_equal(raster.pixels[:, :, 0], np.where(SOME[:, :, 0] > 127, 255, 0))
    assert raster.is_grey


def test_a_palette_of_greys_is_grey_and_any_other_is_not() -> None:
    grey = Image.fromarray(SOME[:, :, 0] % 4)
    grey.putpalette([value for level in (7, 90, 160, 250) for value in (level,) * 3])
    raster = pixels.decode(encoded(grey))
    np.testing.assert_array_equal(raster.pixels[:, :, 0], np.array([7, 90, 160, 250])[SOME[:, :, 0] % 4])
    assert raster.is_grey
    grey.putpalette([7, 7, 7, 90, 90, 91, 160, 160, 160, 250, 250, 250])
    assert pixels.decode(encoded(grey)).pixels.shape == (6, 5, 3)


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_transparency_of_a_palette_is_kept(form: str) -> None:
    image = Image.fromarray(SOME[:, :, 0] % 2)
    image.putpalette([255, 0, 0, 0, 0, 255])
    raster = pixels.decode(encoded(image, form, transparency=0))
    transparent = SOME[:, :, 0] % 2 == 0
    np.testing.assert_array_equal(raster.pixels[:, :, 3], np.where(transparent, 0, 255))
    on_white = pixels.to_channels(raster, 3)
    np.testing.assert_array_equal(on_white[transparent], np.broadcast_to(255, (transparent.sum(), 3)))
    np.testing.assert_array_equal(on_white[~transparent], np.broadcast_to([0, 0, 255], ((~transparent).sum(), 3)))


@pytest.mark.parametrize(("mode", "key"), [("L", 7), ("RGB", (1, 2, 3))])
def test_a_colour_that_stands_for_transparent_becomes_alpha(mode: str, key: object) -> None:
    values = np.asarray(PLAIN[mode]).copy()
    values[2, 3] = key
    raster = pixels.decode(encoded(Image.fromarray(values), transparency=key))
    assert raster.pixels[2, 3, -1] == 0
    assert (raster.pixels[:, :, -1] == 0).sum() == 1


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_of_grey_are_kept_and_reduced_by_scaling(form: str) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    raster = pixels.decode(encoded(Image.fromarray(values), form))
    np.testing.assert_array_equal(raster.pixels[:, :, 0], values)
    assert raster.levels == 65535
    reduced = pixels.to_channels(raster, 1)[:, :, 0]
    np.testing.assert_array_equal(reduced, np.rint(values / 257))
    assert reduced.mean() == 127.5
    np.testing.assert_array_equal(np.asarray(pixels.to_image(raster.pixels)), values)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_sixteen_bits_of_colour_are_reduced_with_a_note(channels: int) -> None:
    values = np.random.default_rng(channels).integers(0, 65536, (4, 5, channels), dtype=np.uint16)
    raster = pixels.decode(png16(values))
    assert raster.pixels.dtype == np.uint8
    shown = values if channels > 2 else values[:, :, [0, 0, 0, 1]]  # grey and alpha come out of PIL as RGBA
    assert np.abs(raster.pixels - shown / 257).max() <= 1
    assert raster.note == "16 bits a channel reduced to 8"


@given(st.integers(0, 255), st.integers(0, 255))
def test_transparency_is_put_on_white_and_rounded(value: int, alpha: int) -> None:
    raster = pixels.Raster(np.array([[[value, alpha]]], np.uint8))
    assert pixels.to_channels(raster, 1).item() == round((value * alpha + 255 * (255 - alpha)) / 255)
    np.testing.assert_array_equal(pixels.to_channels(raster, 4)[0, 0], [value, value, value, alpha])
    assert raster.has_alpha == (alpha < 255)


def test_channels_are_added_and_taken_away() -> None:
    grey, colour = pixels.Raster(SOME[:, :, :1]), pixels.Raster(SOME[:, :, :3])
    np.testing.assert_array_equal(pixels.to_channels(grey, 3), np.repeat(SOME[:, :, :1], 3, 2))
    assert (pixels.to_channels(colour, 4)[:, :, 3] == 255).all()
    np.testing.assert_array_equal(pixels.to_channels(colour, 4)[:, :, :3], SOME[:, :, :3])
    np.testing.assert_array_equal(pixels.to_channels(pixels.Raster(np.repeat(SOME[:, :, :1], 3, 2)), 1), SOME[:, :, :1])
    luma = SOME[:, :, :3] @ np.array([0.299, 0.587, 0.114])
    assert np.abs(pixels.to_channels(colour, 1)[:, :, 0] - luma).max() <= 0.51


# For each EXIF orientation, what turns the upright image into the stored one.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


def test_exif_orientation_is_applied() -> None:
    for form in ["PNG", "TIFF", "WEBP"]:
        for orientation in STORED:
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = orientation
            stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](SOME[:, :, :3])))
            file = encoded(stored, form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
            np.testing.assert_array_equal(pixels.decode(file).pixels, SOME[:, :, :3])


def test_exif_data_that_cannot_be_read_say_nothing() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.ImageDescription] = "x" * 50
    whole = exif.tobytes()
    for length in range(len(whole)):
        file = encoded(PLAIN["RGB"], "TIFF" if length == 0 else "PNG", exif=whole[:length])
        assert sorted(pixels.decode(file).pixels.shape) == [3, 5, 6], length


def test_an_animation_gives_its_first_frame_with_a_note() -> None:
    second = Image.fromarray(255 - np.asarray(PLAIN["RGB"]))
    for form in ("PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if form == "WEBP" else {}
        raster = pixels.decode(encoded(PLAIN["RGB"], form, save_all=True, append_images=[second], **options))
        np.testing.assert_array_equal(raster.pixels, SOME[:, :, :3])
        assert raster.note == "only the first frame is used"


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (Image.fromarray(np.ones((2, 2), np.float32)), "floating-point"),
        (Image.fromarray(np.full((2, 2), 70000, np.int32)), "beyond 65535"),
        (Image.new("L", (pixels.MAX_SIDE + 1, 1)), "more than 16384 pixels a side"),
        (Image.new("1", (12000, 12000)), "more than 16384x8192 pixels"),
    ],
)
def test_what_has_no_scale_or_is_too_large_is_refused(image: Image.Image, said: str) -> None:
    with pytest.raises(InputError, match=said):
        pixels.decode(encoded(image, "TIFF"))


@pytest.mark.parametrize("data", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="not an image"):
        pixels.decode(io.BytesIO(data))


def test_damage_is_an_input_error_or_not_noticed_but_nothing_else() -> None:
    for form in pixels.FORMATS:
        for seed in range(3):
            rng = np.random.default_rng([seed, len(form), ord(form[0])])
            whole = encoded(PLAIN["RGB"], form).getvalue()
            for _ in range(150):
                data = bytearray(whole)
                for _ in range(rng.integers(1, 4)):
                    data[rng.integers(len(data))] = rng.integers(256)
                cut = rng.integers(len(data)) if rng.random() < 0.3 else len(data)
                with contextlib.suppress(InputError):
                    assert pixels.decode(io.BytesIO(bytes(data[:cut]))).pixels.ndim == 3


def test_a_file_that_was_cut_is_refused() -> None:
    for form in pixels.FORMATS:
        noise = np.random.default_rng(3).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        whole = encoded(Image.fromarray(noise), form).getvalue()
        for tenths in range(10):
            with pytest.raises(InputError):
                pixels.decode(io.BytesIO(whole[: len(whole) * tenths // 10]))


def test_png_text_comes_back(tmp_path: Path) -> None:
    text = {"ddpm": '{"seed": 3}', "name": "Größe → ∞\n2"}
    path = tmp_path / "x.png"
    path.write_bytes(pixels.encode_png(PLAIN["RGBA"], text))
    assert pixels.decode_text(path) == text
    np.testing.assert_array_equal(pixels.decode(path).pixels, SOME)
    path.write_bytes(encoded(PLAIN["RGB"], "JPEG").getvalue())
    with pytest.raises(InputError, match="not a PNG"):
        pixels.decode_text(path)


@given(st.integers(1, 5000))
def test_a_grid_has_room_for_all_and_no_empty_row(n: int) -> None:
    rows, columns = pixels.grid_shape(n)
    assert (rows - 1) * columns < n <= rows * columns
    assert rows <= columns <= rows + 1


@pytest.mark.parametrize(("channels", "scale", "gap"), [(1, 1, 2), (3, 2, 0), (4, 3, 1)])
def test_a_grid_shows_each_image_and_white_elsewhere(channels: int, scale: int, gap: int) -> None:
    images = np.random.default_rng(channels).integers(0, 255, (5, 3, 4, channels), dtype=np.uint8)
    sheet = pixels.grid(images, 2, 3, scale=scale, gap=gap)
    high, wide = 3 * scale + gap, 4 * scale + gap
    assert sheet.shape == (2 * high + gap, 3 * wide + gap, channels)
    left = np.ones(sheet.shape[:2], bool)
    for index, image in enumerate(images):
        top, start = gap + index // 3 * high, gap + index % 3 * wide
        area = np.s_[top : top + 3 * scale, start : start + 4 * scale]
        np.testing.assert_array_equal(sheet[area], np.kron(image, np.ones((scale, scale, 1), np.uint8)))
        left[area] = False
    assert (sheet[left] == 255).all()
    assert left.sum() == sheet.shape[0] * sheet.shape[1] - 5 * 12 * scale**2


def test_tiny_images_are_enlarged_on_a_sheet() -> None:
    assert [pixels.sheet_scale((side, side)) for side in (8, 12, 31, 32, 256)] == [4, 3, 2, 1, 1]


def test_a_damaged_tiff_is_an_error_and_nothing_else_on_the_screen(capfd: pytest.CaptureFixture[str]) -> None:
    pixels_ = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = encoded(Image.fromarray(pixels_), "TIFF", compression="tiff_lzw").getvalue()
    damaged = bytearray(whole)
    damaged[100:4000] = bytes(3900)
    with pytest.raises(InputError, match="damaged image"):
        pixels.decode(io.BytesIO(damaged))
    os.write(2, b"still there")
    assert capfd.readouterr() == ("", "still there")
