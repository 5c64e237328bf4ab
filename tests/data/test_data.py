"""Sources of images: what is found in them, what is skipped and why, and which pixels come out."""

from __future__ import annotations

import io
import os
import socket
import struct
import sys
import tarfile
import threading
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from ddpm_cli import data
from ddpm_cli.core.pixels import MAX_FILE_BYTES, Pixels
from ddpm_cli.data.fit import ENLARGED, FLATTENED, GREYED, REDUCED, cover
from ddpm_cli.errors import ArgumentError, InputError

NOISE = np.random.default_rng(11).integers(0, 256, (16, 12, 4), dtype=np.uint8)
GREY, COLOUR = NOISE[:, :, :1], NOISE[:, :, :3]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


def picture(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


PNG = encoded(picture(COLOUR))


def survey_of(path: Path) -> data.Survey:
    return data.scan(data.find_source(path)).result()


def on_white(pixels: np.ndarray) -> np.ndarray:
    alpha = pixels[:, :, -1:].astype(float) / 255
    return np.rint(pixels[:, :, :-1] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def palette() -> Image.Image:
    image = Image.fromarray(GREY[:, :, 0] % 4)
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    return image


PALETTE = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], np.uint8)[GREY[:, :, 0] % 4]
PALETTE_ALPHA = np.where(GREY % 4 == 1, 0, 255).astype(np.uint8)
DEEP = np.random.default_rng(2).integers(0, 65536, (16, 12), dtype=np.uint16)
BIT = np.where(GREY > 127, 255, 0).astype(np.uint8)


def png16(values: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, RGB."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


# Name: the file, the channels that suit it, its pixels in those, and whether it is transparent.
LOSSLESS: dict[str, tuple[bytes, Pixels, bool]] = {
    "l.png": (encoded(picture(GREY)), GREY, False),
    "la.png": (encoded(picture(NOISE[:, :, :2])), np.concatenate([GREY] * 3 + [NOISE[:, :, 1:2]], 2), True),
    "rgb.png": (PNG, COLOUR, False),
    "rgba.png": (encoded(picture(NOISE)), NOISE, True),
    "opaque.png": (encoded(picture(COLOUR).convert("RGBA")), COLOUR, False),
    "p.png": (encoded(palette()), PALETTE, False),
    "p-t.png": (encoded(palette(), transparency=1), np.concatenate([PALETTE, PALETTE_ALPHA], 2), True),
    "1.png": (encoded(picture(BIT).convert("1")), BIT, False),
    "i16.png": (encoded(Image.fromarray(DEEP)), np.rint(DEEP / 257).astype(np.uint8)[:, :, None], False),
    "rgb16.png": (png16(COLOUR.astype(np.uint16) * 257), COLOUR, False),
    "rgb.webp": (encoded(picture(COLOUR), "WEBP", lossless=True), COLOUR, False),
    "rgba.webp": (encoded(picture(NOISE), "WEBP", lossless=True, exact=True), NOISE, True),
    "l.gif": (encoded(picture(GREY), "GIF"), GREY, False),
    "p.gif": (encoded(palette(), "GIF"), PALETTE, False),
    "l.bmp": (encoded(picture(GREY), "BMP"), GREY, False),
    "rgb.bmp": (encoded(picture(COLOUR), "BMP"), COLOUR, False),
    "p.bmp": (encoded(palette(), "BMP"), PALETTE, False),
    "1.bmp": (encoded(picture(BIT).convert("1"), "BMP"), BIT, False),
    "l.tif": (encoded(picture(GREY), "TIFF"), GREY, False),
    "rgb.tiff": (encoded(picture(COLOUR), "TIFF", compression="tiff_lzw"), COLOUR, False),
    "rgba.tif": (encoded(picture(NOISE), "TIFF"), NOISE, True),
    "i16.tif": (encoded(Image.fromarray(DEEP), "TIFF"), np.rint(DEEP / 257).astype(np.uint8)[:, :, None], False),
    "cmyk.tif": (encoded(picture(COLOUR).convert("CMYK"), "TIFF"), COLOUR, False),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_each_format_in_each_mode_keeps_its_pixels(folder: Path, name: str) -> None:
    content, expected, transparent = LOSSLESS[name]
    (folder / name).write_bytes(content)
    survey = survey_of(folder)
    channels = data.auto_channels(survey)
    assert (survey.images, survey.transparent, channels) == (1, transparent, expected.shape[2])
    assert (survey.height, survey.width) == (data.Spread(16, 16, 16), data.Spread(12, 12, 12))
    images = data.open_images(folder)
    np.testing.assert_array_equal(images.take([0])[0], expected)
    if transparent:
        flat = data.open_images(folder, channels=3)
        np.testing.assert_array_equal(flat.take([0])[0], on_white(expected))
        assert flat.notes == ((FLATTENED, 1),)
    deep = "16" in name
    assert survey.notes == images.notes == (((REDUCED, 1),) if deep else ())


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpegs_of_each_mode_are_read(folder: Path, mode: str) -> None:
    smooth = picture(COLOUR).resize((64, 48), Image.Resampling.BICUBIC).convert(mode)
    smooth.save(folder / "x.jpeg", quality=100, subsampling=0)
    pixels = data.open_images(folder).take([0])[0]
    assert pixels.shape == (48, 64, 1 if mode == "L" else 3)
    expected = np.asarray(smooth if mode == "L" else smooth.convert("RGB")).reshape(pixels.shape)
    assert np.abs(pixels.astype(int) - expected).max() <= 4


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_exif_orientation_is_seen_and_applied(folder: Path, form: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    shown = np.zeros((16, 32, 3), np.uint8)
    shown[:, 16:] = 200
    picture(np.rot90(shown, 1)).save(folder / f"x.{form}", form, exif=exif, quality=100)
    survey = survey_of(folder)
    assert (survey.height.median, survey.width.median) == (16, 32)
    assert np.abs(data.open_images(folder).take([0])[0].astype(int) - shown).max() <= 2


def test_an_animation_gives_its_first_frame_and_a_note(folder: Path) -> None:
    palette().save(folder / "x.gif", save_all=True, append_images=[palette().rotate(180)])
    images = data.open_images(folder)
    np.testing.assert_array_equal(images.take([0])[0], PALETTE)
    assert images.notes == survey_of(folder).notes == (("only the first frame is used", 1),)


def test_the_case_of_an_extension_and_the_wrong_one_do_not_matter(folder: Path) -> None:
    for name in ("a.PNG", "b.JpEg", "c.TIFF", "d.bmp"):
        (folder / name).write_bytes(PNG)
    images = data.open_images(folder)
    assert list(images.names()) == ["a.PNG", "b.JpEg", "c.TIFF", "d.bmp"]
    np.testing.assert_array_equal(images.take([3, 0]), [COLOUR, COLOUR])


# Choosing size and channels


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
    [
        ([(16, 12)], 32, (16, 12)),
        ([(28, 28)] * 3, 32, (28, 28)),
        ([(32, 32)] * 2, 32, (32, 32)),
        ([(30, 30)] * 2, 32, (24, 24)),  # cannot be halved twice
        ([(64, 64)] * 2, 32, (32, 32)),
        ([(64, 32)] * 2, 64, (64, 32)),
        ([(3, 3)], 32, (8, 8)),
        ([(100, 20), (50, 60), (90, 45)], 64, (40, 40)),  # shorter sides 20, 45, 50
        ([(100, 20), (50, 60), (90, 45)], 32, (32, 32)),
        ([(16, 32), (32, 16)], 32, (16, 16)),
    ],
)
def test_the_size_that_suits(folder: Path, sizes: list[tuple[int, int]], limit: int, expected: tuple[int, int]) -> None:
    for index, (height, width) in enumerate(sizes):
        Image.new("L", (width, height)).save(folder / f"{index}.png")
    survey = survey_of(folder)
    assert survey.same_size == (len(set(sizes)) == 1)
    assert data.auto_size(survey, limit) == expected
    assert data.open_images(folder, limit=limit).shape == (len(sizes), *expected, 1)


@pytest.mark.parametrize(
    ("names", "channels"),
    [
        (["l.png", "1.png", "i16.png"], 1),
        (["l.png", "rgb.png"], 3),
        (["rgb.png", "rgba.png"], 4),
        (["rgb.png", "opaque.png", "rgba.png"], 3),
        (["l.png", "1.png", "la.png"], 1),
    ],
)
def test_the_channels_that_suit(folder: Path, names: list[str], channels: int) -> None:
    for name in names:
        (folder / name).write_bytes(LOSSLESS[name][0])
    images = data.open_images(folder)
    assert images.shape == (len(names), 16, 12, channels)
    flattened = 1 if channels != 4 and {"rgba.png", "la.png"} & set(names) else 0
    assert dict(images.notes).get(FLATTENED, 0) == flattened


def test_channels_can_be_asked_for(folder: Path) -> None:
    (folder / "x.png").write_bytes(PNG)
    (folder / "y.png").write_bytes(LOSSLESS["l.png"][0])
    one = data.open_images(folder, channels=1)
    np.testing.assert_array_equal(one.take([0])[0, :, :, 0], np.asarray(picture(COLOUR).convert("L")))
    assert one.notes == ((GREYED, 1),)
    four = data.open_images(folder, channels=4)
    np.testing.assert_array_equal(four.take([0])[0], np.concatenate([COLOUR, np.full_like(GREY, 255)], 2))
    for channels in (2, 5):
        with pytest.raises(ArgumentError, match=f"`channels` is {channels}"):
            data.open_images(folder, channels=channels)
    with pytest.raises(ArgumentError, match="0x8"):
        data.open_images(folder, size=(0, 8))


# Resizing and cropping


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 24), st.integers(1, 24), st.sampled_from([1, 3, 4]))
def test_one_colour_stays_that_colour_at_any_size(
    height: int, width: int, rows: int, columns: int, channels: int
) -> None:
    colour = np.array([10, 200, 77, 255], np.uint8)[:channels]
    pixels = cover(np.broadcast_to(colour, (height, width, channels)), (rows, columns))
    assert pixels.shape == (rows, columns, channels)
    np.testing.assert_array_equal(pixels, np.broadcast_to(colour, pixels.shape))


@pytest.mark.parametrize("size", [(16, 12), (10, 12), (16, 7), (16, 1)])
def test_an_image_that_covers_the_size_already_is_only_cropped(size: tuple[int, int]) -> None:
    top, left = (16 - size[0]) // 2, (12 - size[1]) // 2
    np.testing.assert_array_equal(cover(NOISE, size), NOISE[top : top + size[0], left : left + size[1]])


@pytest.mark.parametrize(
    ("shape", "size"), [((64, 128), (32, 32)), ((90, 60), (20, 20)), ((64, 64), (8, 32)), ((300, 30), (10, 10))]
)
def test_resizing_is_scaling_without_distortion_and_cropping_at_the_centre(
    shape: tuple[int, int], size: tuple[int, int]
) -> None:
    image = picture(np.random.default_rng(shape).integers(0, 256, (*shape, 3), dtype=np.uint8))
    scale = max(size[0] / shape[0], size[1] / shape[1])
    whole = image.resize((round(shape[1] * scale), round(shape[0] * scale)), Image.Resampling.LANCZOS)
    left, top = (whole.width - size[1]) // 2, (whole.height - size[0]) // 2
    expected = whole.crop((left, top, left + size[1], top + size[0]))
    difference = cover(np.asarray(image), size).astype(int) - np.asarray(expected)
    assert np.abs(difference).max() <= 1


def test_only_the_centre_of_an_image_is_left(folder: Path) -> None:
    pixels = np.zeros((40, 120, 3), np.uint8)
    pixels[:, :40], pixels[:, 40:80], pixels[:, 80:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    picture(pixels).save(folder / "x.png")
    left = data.open_images(folder, size=(20, 20)).take([0])[0]
    np.testing.assert_array_equal(left[:, 3:-3], np.broadcast_to([0, 255, 0], (20, 14, 3)))
    stripe = data.open_images(folder, size=(10, 60)).take([0])[0]  # the upper and lower parts go
    np.testing.assert_array_equal(stripe[:, [5, 30, 55]], np.broadcast_to(np.eye(3) * 255, (10, 3, 3)))


def test_fine_detail_does_not_alias() -> None:
    board = np.indices((64, 64)).sum(0)[:, :, None] % 2 * np.uint8(255)
    assert np.abs(cover(board.astype(np.uint8), (16, 16)).astype(float) - 127.5).max() < 3


@pytest.mark.parametrize("size", [(8, 8), (24, 24)])
def test_colours_that_cannot_be_seen_do_not_bleed(folder: Path, size: tuple[int, int]) -> None:
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[:, :7], pixels[:, 7:] = (0, 255, 0, 255), (255, 0, 0, 0)
    picture(pixels).save(folder / "x.png")
    kept = data.open_images(folder, size=size).take([0])[0]
    seen = kept[kept[:, :, 3] > 0]
    assert (seen[:, 0] == 0).all()
    assert (seen[:, 1] >= 250).all()
    flat = data.open_images(folder, size=size, channels=3).take([0])[0].astype(int)
    assert (flat[:, :, 0] == flat[:, :, 2]).all()  # green and white, no red
    assert (flat[:, -2:] == 255).all()


def test_smaller_images_are_enlarged_with_a_note(folder: Path) -> None:
    (folder / "x.png").write_bytes(PNG)
    images = data.open_images(folder, size=(32, 24))
    expected = picture(COLOUR).resize((24, 32), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(images.take([0])[0], np.asarray(expected))
    assert images.notes == ((ENLARGED, 1),)


@pytest.mark.parametrize("orientation", [1, 8])
def test_a_large_jpeg_looks_as_if_it_had_been_decoded_whole(folder: Path, orientation: int) -> None:
    rng = np.random.default_rng(4)
    large = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((1600, 1200), 3)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    large.save(folder / "x.jpg", quality=95, exif=exif)
    pixels = data.open_images(folder, size=(32, 48)).take([0])[0]
    whole = np.asarray(Image.open(folder / "x.jpg"))
    expected = cover(whole if orientation == 1 else np.rot90(whole, 1), (32, 48))
    assert np.abs(pixels.astype(int) - expected).max() <= 3


# Folders


def test_the_order_is_by_name_files_before_subfolders(folder: Path) -> None:
    for name in ("b/2.png", "b/1.png", "a/x/9.png", "z.png", "c.png", "x.png/inside.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PNG)
    expected = ["c.png", "z.png", "a/x/9.png", "b/1.png", "b/2.png", "x.png/inside.png"]
    images = data.open_images(folder)
    assert list(images.names()) == expected
    assert [images.name(index) for index in range(6)] == expected
    with pytest.raises(IndexError):
        images.name(6)


def test_what_does_not_claim_to_be_an_image_is_ignored_and_counted(folder: Path) -> None:
    (folder / "x.png").write_bytes(PNG)
    for name in ("a.txt", "b.TXT", "c.csv", "README", "._x.png", ".DS_Store"):
        (folder / name).write_bytes(PNG)
    survey = survey_of(folder)
    assert survey.images == 1
    assert dict(survey.ignored) == {".txt": 2, ".csv": 1, ".png": 1, "no extension": 2}
    assert survey.skipped == ()


def test_what_the_program_itself_made_is_no_data(folder: Path) -> None:
    (folder / "x.png").write_bytes(PNG)
    samples = folder / "ddpm-out" / "samples"
    samples.mkdir(parents=True)
    (folder / "ddpm-out" / "checkpoints").mkdir()
    (folder / "ddpm-out" / "config.json").write_text("{}")
    (samples / "step-00001000.png").write_bytes(PNG)
    assert list(data.open_images(folder).names()) == ["x.png"]


def test_damaged_images_are_skipped_with_a_reason(folder: Path) -> None:
    noise = picture(np.random.default_rng(8).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        whole = encoded(noise, form)
        for tenths in (1, 5, 9):
            (folder / f"{tenths}.{form}").write_bytes(whole[: len(whole) * tenths // 10])
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("not a picture")
    (folder / "bomb.png").write_bytes(encoded(Image.new("1", (20000, 20000))))
    (folder / "long.png").write_bytes(encoded(Image.new("1", (16385, 1))))
    (folder / "float.tif").write_bytes(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))
    with (folder / "huge.png").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(InputError) as failure:
        data.open_images(folder)
    assert "no images in" in str(failure.value)
    (folder / "good.png").write_bytes(PNG)
    (folder / "zgood.png").write_bytes(PNG)
    images = data.open_images(folder, size=(16, 12))
    assert list(images.names()) == ["good.png", "zgood.png"]
    np.testing.assert_array_equal(images.take([0, 1]), [COLOUR, COLOUR])
    assert sum(skip.count for skip in images.skipped) == 24
    said = "\n".join(map(str, images.skipped))
    for expected in (
        "1 skipped, empty file: empty.png",
        "1 skipped, more than 256 MiB: huge.png",
        "1 skipped, more than 16384x8192 pixels: bomb.png",
        "1 skipped, more than 16384 pixels a side: long.png (16385x1)",
        "floating-point pixels have no known scale; save it with 8 or 16 bits: float.tif",
        "not an image that can be read; PNG, JPEG, WEBP, GIF, BMP, TIFF are:",
        "damaged image:",
    ):
        assert expected in said


def test_links_are_followed_once_and_loops_end(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "far.png").write_bytes(PNG)
    (folder / "near.png").write_bytes(PNG)
    (folder / "file-link.png").symlink_to(elsewhere / "far.png")
    (folder / "link").symlink_to(elsewhere)
    (folder / "link-again").symlink_to(elsewhere)
    (folder / "loop").symlink_to(folder)
    (elsewhere / "back").symlink_to(folder)
    (folder / "self.png").symlink_to(folder / "self.png")
    (folder / "dangling.png").symlink_to(tmp_path / "nothing")
    images = data.open_images(folder)
    assert list(images.names()) == ["file-link.png", "near.png", "link/far.png"]
    assert [(skip.reason, skip.count) for skip in images.skipped] == [("link that leads nowhere", 2)]


def test_nothing_that_is_not_a_file_is_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "fifo.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket.png"))
        (folder / "x.png").write_bytes(PNG)
        images: list[data.Images] = []
        thread = threading.Thread(target=lambda: images.append(data.open_images(folder)), daemon=True)
        thread.start()
        thread.join(20)
    assert images, "reading the folder hangs"
    assert list(images[0].names()) == ["x.png"]
    assert [str(skip) for skip in images[0].skipped] == ["2 skipped, not a regular file: fifo.png, socket.png"]


def test_files_that_vanish_or_change_their_kind_meanwhile_are_skipped(folder: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        (folder / name).write_bytes(PNG)
    source = data.find_source(folder)
    (folder / "a.png").unlink()
    (folder / "b.png").unlink()
    os.mkfifo(folder / "b.png")
    survey = data.scan(source).result()
    assert survey.images == 1
    images = data.pack(source, survey, (16, 12), 3).result()
    assert list(images.names()) == ["c.png"]
    assert {str(skip) for skip in images.skipped} == {
        "1 skipped, it has vanished: a.png",
        "1 skipped, not a regular file: b.png",
    }


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are UTF-8")
def test_hostile_names_are_kept_and_shown_harmless(folder: Path) -> None:
    names = [
        b"-x.png",
        b"new\nline.png",
        b"esc\x1b[31m.png",
        b"\xff\xfe.png",
        "\u202egnp.png".encode(),
        b"x" * 251 + b".png",
    ]
    for name in names:
        (folder / os.fsdecode(name)).write_bytes(PNG)
        (folder / os.fsdecode(b"b" + name[1:])).write_bytes(b"no image")
    images = data.open_images(folder)
    assert {os.fsencode(name) for name in images.names()} == set(names)
    assert sum(skip.count for skip in images.skipped) == len(names)
    said = "\n".join(map(str, images.skipped))
    assert all(character.isprintable() or character == "\n" for character in said)
    assert len(said.split("\n")) == len(images.skipped)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "there is no file or folder"),
        (lambda path: path.mkdir(), "it is empty"),
        (
            lambda path: (path.mkdir(), (path / "a.txt").touch(), (path / "b.csv").touch()),
            r"2 files, none an image \(.txt 1, .csv 1\)",
        ),
        (lambda path: (path.mkdir(), (path / "a.png").touch()), "1 skipped, empty file: a.png"),
        (lambda path: path.write_text("hello"), "a file of a kind that is not read"),
        (os.mkfifo, "neither a file nor a folder"),
    ],
)
def test_a_source_without_images_is_an_error_that_says_what_was_found(tmp_path: Path, make: Any, said: str) -> None:
    make(tmp_path / "x")
    with pytest.raises(InputError, match=said) as failure:
        data.open_images(tmp_path / "x")
    assert str(tmp_path / "x") in str(failure.value)
    assert "builtin:digits" in str(failure.value)


def test_one_image_instead_of_a_folder_is_an_error_that_names_the_folder(folder: Path) -> None:
    (folder / "x.PNG").write_bytes(PNG)
    with pytest.raises(InputError, match=f"is one image; give the folder that it lies in, {folder}"):
        data.find_source(folder / "x.PNG")


# Archives


def write_zip(
    path: Path, members: list[tuple[str | zipfile.ZipInfo, bytes]], method: int = zipfile.ZIP_DEFLATED
) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)


def write_tar(path: Path, members: list[tuple[str, bytes]], mode: str = "w", **options: Any) -> None:
    with tarfile.open(path, mode, **options) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


MEMBERS = [
    ("../../escape.png", PNG),
    ("/absolute/x.PNG", LOSSLESS["p.png"][0]),
    ("notes.txt", b"hello"),
    ("damaged.png", PNG[:100]),
    ("__MACOSX/._x.png", b"junk"),
    ("deep/er/x.gif", LOSSLESS["p.gif"][0]),
    ("twice.png", PNG),
]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("x.zip", ""),
        ("x.ZIP", ""),
        ("x.tar", "w"),
        ("x.TAR", "w:xz"),  # what it is, not what it is called
        ("x.tar.gz", "w:gz"),
        ("x.tgz", "w:gz"),
        ("x.tar.bz2", "w:bz2"),
        ("x.Tar.XZ", "w:xz"),
    ],
)
def test_archives_are_read_without_being_extracted(tmp_path: Path, name: str, mode: str) -> None:
    members = [*MEMBERS, MEMBERS[-1]]
    path = tmp_path / "inner" / name
    path.parent.mkdir()
    if mode:
        write_tar(path, members, mode)
    else:
        write_zip(path, list(members))
    before = {file for file in tmp_path.rglob("*") if "cache" not in file.parts}
    stage = data.scan(data.find_source(path))
    assert sum(stage) == stage.total
    survey = stage.result()
    assert dict(survey.ignored) == {".txt": 1, ".png": 1}
    images = data.open_images(path)
    assert [*images.names()] == ["../../escape.png", "/absolute/x.PNG", "deep/er/x.gif", "twice.png", "twice.png"]
    np.testing.assert_array_equal(images.take(range(5)), [COLOUR, PALETTE, PALETTE, COLOUR, COLOUR])
    assert [(skip.count, skip.examples[0].partition(" ")[0]) for skip in images.skipped] == [(1, "damaged.png")]
    assert {file for file in tmp_path.rglob("*") if "cache" not in file.parts} == before


def test_links_and_devices_in_a_tar_are_names_only(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(PNG)
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, kind, target in [
            ("soft.png", tarfile.SYMTYPE, str(tmp_path / "secret.png")),
            ("hard.png", tarfile.LNKTYPE, "/etc/passwd"),
            ("device.png", tarfile.CHRTYPE, ""),
            ("fifo.png", tarfile.FIFOTYPE, ""),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    with pytest.raises(InputError, match=r"4 skipped, not a regular file: device\.png, fifo\.png"):
        data.open_images(tmp_path / "x.tar")


def test_a_link_in_a_zip_is_a_name_only(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.png")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    write_zip(tmp_path / "x.zip", [(link, b"/etc/passwd"), ("x.png", PNG)])
    images = data.open_images(tmp_path / "x.zip")
    assert [*images.names()] == ["x.png"]
    assert [str(skip) for skip in images.skipped] == ["1 skipped, not a regular file: link.png"]


def test_an_encrypted_zip_says_so(tmp_path: Path) -> None:
    write_zip(tmp_path / "x.zip", [("x.png", PNG)], zipfile.ZIP_STORED)
    content = bytearray((tmp_path / "x.zip").read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(InputError, match="encrypted; unpack the archive first"):
        data.open_images(tmp_path / "x.zip")


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
def test_a_member_that_inflates_beyond_all_bounds_is_refused(tmp_path: Path, name: str) -> None:
    zeros = b"\0" * (MAX_FILE_BYTES + 1)
    if name == "x.zip":
        write_zip(tmp_path / name, [("bomb.png", zeros), ("x.png", PNG)])
    else:
        write_tar(tmp_path / name, [("bomb.png", zeros), ("x.png", PNG)], "w:gz", compresslevel=1)
    del zeros
    assert (tmp_path / name).stat().st_size < 2**21
    images = data.open_images(tmp_path / name)
    assert [*images.names()] == ["x.png"]
    assert [str(skip) for skip in images.skipped] == ["1 skipped, more than 256 MiB: bomb.png"]


def test_a_zip_member_that_is_longer_than_it_says_is_not_read_further(tmp_path: Path) -> None:
    write_zip(tmp_path / "x.zip", [("bomb.png", PNG + b"\0" * 10_000_000), ("x.png", PNG)])
    content = bytearray((tmp_path / "x.zip").read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = struct.pack("<I", len(PNG))
    (tmp_path / "x.zip").write_bytes(content)
    images = data.open_images(tmp_path / "x.zip")
    assert len(images) + sum(skip.count for skip in images.skipped) == 2
    assert [*images.names()][-1] == "x.png"


def test_a_tar_header_that_claims_gigabytes_is_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("long")
    header.type, header.size = tarfile.XHDTYPE, 7 * 2**30
    (tmp_path / "x.tar").write_bytes(header.tobuf() + b"\0" * 10240)
    with pytest.raises(InputError, match=f"damaged one, after 0 images .a header of {7 * 2**30} bytes"):
        data.open_images(tmp_path / "x.tar")


def test_the_memory_that_a_tar_takes_does_not_grow_with_its_members(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [("x.png", PNG)] + [(f"{index}.txt", b"") for index in range(5000)])
    source = data.find_source(tmp_path / "x.tar")
    tracemalloc.start()
    try:
        assert [chunk.names for chunk in source.chunks(source.tally)] == [("x.png",)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "x.tar.xz", "x.npz", "x.npy"])
@pytest.mark.parametrize("content", [b"", b"no archive at all" * 100])
def test_what_is_no_archive_is_an_error(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        data.open_images(tmp_path / name)


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz"])
def test_an_archive_that_was_cut_is_an_error(tmp_path: Path, name: str) -> None:
    noise = encoded(picture(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    members = [(f"{index}.png", noise) for index in range(20)]
    if name == "x.zip":
        write_zip(tmp_path / name, list(members))
    else:
        write_tar(tmp_path / name, members, "w:gz" if name.endswith("gz") else "w")
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2 + 77])
    with pytest.raises(InputError, match="not a zip archive" if name == "x.zip" else r"damaged one, after \d+ images"):
        data.open_images(tmp_path / name)


# Arrays


@pytest.mark.parametrize("shape", [(3, 8, 12), (3, 8, 12, 1), (3, 8, 12, 3), (3, 8, 12, 4)])
@pytest.mark.parametrize("name", ["x.npy", "x.npz", "X.NPZ"])
def test_arrays_are_read(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(shape).integers(0, 256, shape, dtype=np.uint8)
    with (tmp_path / name).open("wb") as file:
        if name == "x.npy":
            np.save(file, array)
        elif name == "x.npz":
            np.savez_compressed(file, array, np.arange(3))
        else:
            np.savez(file, labels=np.arange(3), images=array, arr_0=np.zeros((4, 4)))
    stage = data.scan(data.find_source(tmp_path / name))
    assert sum(stage) == stage.total == 3
    survey = stage.result()
    assert (survey.images, survey.grey, survey.transparent) == (3, 3 * (array.size == 288), 3 * (shape[3:] == (4,)))
    images = data.open_images(tmp_path / name)
    np.testing.assert_array_equal(images.take([2, 0, 1]), array.reshape(*shape[:3], -1)[[2, 0, 1]])
    stem = name.partition(".")[0]
    assert [*images.names()] == [f"{stem}[0]", f"{stem}[1]", f"{stem}[2]"]


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((3, 8, 8)), "Save .* as|astype"),
        (np.zeros((3, 8, 8), np.int64), "save them as uint8"),
        (np.zeros((3, 8, 8), np.uint16), "Scale the values"),
        (np.array([None, "x"]), "Python objects"),
        (np.zeros((8, 8), np.uint8), "C is 1, 3 or 4"),
        (np.zeros((64, 64, 3), np.uint8), "This is one image"),
        (np.zeros((5, 3, 8, 8), np.uint8), "channels must come last"),
        (np.zeros((5, 8, 8, 2), np.uint8), "C is 1, 3 or 4"),
        (np.zeros((0, 8, 8), np.uint8), "at least one"),
        (np.zeros((1, 20000, 1, 1), np.uint8), "16384 pixels a side"),
        (np.zeros((5, 8, 9, 3), np.uint8, order="F"), "ascontiguousarray"),
    ],
)
def test_arrays_that_are_no_images_are_refused_with_advice(tmp_path: Path, array: np.ndarray, said: str) -> None:
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=said):
        data.open_images(tmp_path / "x.npy")


def test_an_npz_must_leave_no_doubt(tmp_path: Path) -> None:
    images = np.zeros((3, 8, 8), np.uint8)
    np.savez(tmp_path / "two.npz", train=images, test=images, labels=np.arange(3))
    with pytest.raises(InputError, match=r"several: train uint8 \(3, 8, 8\), test"):
        data.open_images(tmp_path / "two.npz")
    np.savez(tmp_path / "none.npz", labels=np.arange(3))
    with pytest.raises(InputError, match="none of 3 or 4 dimensions"):
        data.open_images(tmp_path / "none.npz")
    np.savez(tmp_path / "one.npz", x=images, labels=np.arange(3), who=np.array([None]))
    assert data.open_images(tmp_path / "one.npz").shape == (3, 8, 8, 1)


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_an_array_that_was_cut_is_an_error(tmp_path: Path, name: str) -> None:
    array = np.random.default_rng(0).integers(0, 256, (50, 8, 8), dtype=np.uint8)
    if name == "x.npy":
        np.save(tmp_path / name, array)
        os.truncate(tmp_path / name, 2000)
    else:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (50, 8, 8)})
        write_zip(tmp_path / name, [("images.npy", header.getvalue() + array[:20].tobytes())])
    with pytest.raises(InputError, match=f"{name} was cut: its header promises 3,200 bytes"):
        data.open_images(tmp_path / name)


def test_an_absurd_header_is_refused_before_room_is_made_for_it(tmp_path: Path) -> None:
    header = io.BytesIO()
    shape = (10**13, 8, 8)
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    (tmp_path / "x.npy").write_bytes(header.getvalue() + bytes(64))
    with pytest.raises(InputError, match="and 64 are there"):
        data.open_images(tmp_path / "x.npy")


# The bundled digits


def test_the_digits_are_what_the_tool_makes() -> None:
    sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
    try:
        import make_digits
    finally:
        sys.path.pop(0)
    made = make_digits.make_digits()
    assert made == make_digits.make_digits()
    with np.load(io.BytesIO(made)) as new, np.load(data.builtin("builtin:digits")) as kept:
        assert set(new) == set(kept) == {"images", "labels", "attribution"}
        for name in new:
            np.testing.assert_array_equal(kept[name], new[name])
            assert kept[name].dtype == new[name].dtype
        assert "Alpaydin" in str(kept["attribution"])
        assert "CC BY 4.0" in str(kept["attribution"])
        assert np.bincount(kept["labels"]).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
        assert sorted(set(kept["images"].ravel())) == [round(level * 255 / 16) for level in range(17)]
    assert data.builtin("builtin:digits").stat().st_size < 50_000


def test_the_digits_open_at_their_size_and_larger() -> None:
    images = data.open_images("builtin:digits")
    assert images.shape == (1797, 8, 8, 1)
    with np.load(data.builtin("builtin:digits")) as kept:
        np.testing.assert_array_equal(images.take(range(1797)), kept["images"])
    assert images.name(1796) == "digits[1796]"
    larger = data.open_images("builtin:digits", size=(16, 16))
    assert (larger.shape, larger.notes) == ((1797, 16, 16, 1), ((ENLARGED, 1797),))
    with pytest.raises(InputError, match="builtin:digits"):
        data.open_images("builtin:cats")


# Images by number


def test_images_of_an_array_and_of_a_file_are_the_same_to_use(tmp_path: Path) -> None:
    array = np.random.default_rng(6).integers(0, 256, (40, 8, 12, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", array)
    in_memory, packed = data.Images.from_array(array), data.open_images(tmp_path / "x.npy")
    assert in_memory.digest == packed.digest
    assert [*in_memory.names()][:3] == ["0", "1", "2"]
    for images in (in_memory, packed):
        assert (images.shape, len(images)) == ((40, 8, 12, 3), 40)
        chosen = np.random.default_rng(7).integers(0, 40, 100)
        taken = images.take(chosen)
        np.testing.assert_array_equal(taken, array[chosen])
        taken[:] = 0  # a copy
        np.testing.assert_array_equal(images.take(chosen), array[chosen])
        assert images.take([]).shape == (0, 8, 12, 3)
        for wrong in ([-1], [40], [0, 99]):
            with pytest.raises(IndexError, match=r"from 0 to 39"):
                images.take(wrong)
    other = array.copy()
    other[7, 3, 3, 0] ^= 1
    assert data.Images.from_array(other).digest != in_memory.digest
    for wrong_array in (array.astype(float), array[0], array[..., :2], array[:0]):
        with pytest.raises(InputError, match="must be uint8"):
            data.Images.from_array(wrong_array)
