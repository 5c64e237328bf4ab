"""``ddpm noise`` as a process."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_cli.core import rng
from ddpm_cli.core.pixels import to_float, to_levels
from ddpm_cli.diffusion.process import q_sample
from ddpm_cli.diffusion.schedule import cosine, linear
from helpers.process import Ddpm

RNG = np.random.Generator(np.random.Philox(7))


def picture(mode: str, size: tuple[int, int] = (23, 17)) -> Image.Image:
    """A picture of random pixels in the middle of their range, so that little noise does not clip."""
    width, height = size
    if mode == "I;16":
        return Image.fromarray(RNG.integers(20_000, 45_000, (height, width), dtype=np.uint16))
    channels = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,)}[mode]
    return Image.fromarray(RNG.integers(60, 190, (height, width, *channels), dtype=np.uint8))


def opened(source: Path | bytes) -> Image.Image:
    """A picture read to its end, so that its file is closed."""
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        image.load()
        return image


def save(path: Path, image: Image.Image) -> Path:
    image.save(path)
    return path


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16"])
def test_step_zero_is_the_image_itself_in_its_own_mode(ddpm: Ddpm, tmp_path: Path, mode: str) -> None:
    source = save(tmp_path / "a.png", picture(mode))
    done = ddpm("noise", source, "--t", "0")
    assert done.returncode == 0, done.stderr
    assert done.lines == ["a-t0.png"]
    result = opened(tmp_path / "a-t0.png")
    assert result.mode == mode
    np.testing.assert_array_equal(np.asarray(result), np.asarray(opened(source)))


@pytest.mark.parametrize(("schedule", "table"), [("linear", linear()), ("cosine", cosine())], ids=["linear", "cosine"])
def test_the_result_is_equation_4(ddpm: Ddpm, tmp_path: Path, schedule: str, table: object) -> None:
    image = picture("RGB")
    done = ddpm("noise", save(tmp_path / "a.png", image), "--t", "20", "--schedule", schedule, "--seed", "3")
    x_0 = to_float(np.asarray(image))[None]
    expected = to_levels(q_sample(table, x_0, 20, rng.normal(x_0.shape, 3, "noise")))[0]  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.asarray(opened(tmp_path / "a-t20.png")), expected)
    s = linear() if schedule == "linear" else cosine()
    assert f"alpha_bar {s.alpha_bar[20]:.6g}, SNR {s.snr[20]:.6g}" in done.stderr


def test_stepwise_has_the_same_moments_as_the_jump(ddpm: Ddpm, tmp_path: Path) -> None:
    source = save(tmp_path / "grey.png", Image.new("L", (200, 200), 128))
    ddpm("noise", source, "--t", "5", "-o", "jump.png")
    ddpm("noise", source, "--t", "5", "-o", "walk.png", "--stepwise")
    jump, walk = (np.asarray(opened(tmp_path / name), np.float64) for name in ("jump.png", "walk.png"))
    assert not np.array_equal(jump, walk)
    s = linear()
    sigma = 127.5 * np.sqrt(1 - s.alpha_bar[5])
    mean = 127.5 + 0.5 * np.sqrt(s.alpha_bar[5])
    for noisy in (jump, walk):
        n = noisy.size
        assert abs(noisy.mean() - mean) < 5 * sigma / np.sqrt(n)
        assert abs(noisy.std() / np.sqrt(sigma**2 + 1 / 12) - 1) < 5 / np.sqrt(2 * n)  # rounding adds 1/12


def test_last_step_is_all_but_pure_noise(ddpm: Ddpm, tmp_path: Path) -> None:
    image = picture("RGB", (64, 64))
    ddpm("noise", save(tmp_path / "a.png", image), "--t", "1000")
    noisy = np.asarray(opened(tmp_path / "a-t1000.png"), np.float64).ravel()
    assert abs(np.corrcoef(noisy, np.asarray(image, np.float64).ravel())[0, 1]) < 5 / np.sqrt(noisy.size)


def test_alpha_is_left_alone(ddpm: Ddpm, tmp_path: Path) -> None:
    image = picture("RGBA")
    ddpm("noise", save(tmp_path / "a.png", image), "--t", "700")
    result = np.asarray(opened(tmp_path / "a-t700.png"))
    np.testing.assert_array_equal(result[:, :, 3], np.asarray(image)[:, :, 3])
    assert (result[:, :, :3] != np.asarray(image)[:, :, :3]).mean() > 0.9


def test_sixteen_bits_stay_sixteen_bits(ddpm: Ddpm, tmp_path: Path) -> None:
    image = picture("I;16", (60, 60))
    ddpm("noise", save(tmp_path / "a.png", image), "--t", "10")
    result = np.asarray(opened(tmp_path / "a-t10.png"), np.float64)
    s = linear()
    noise = result / 65535 * 2 - 1 - np.sqrt(s.alpha_bar[10]) * (np.asarray(image, np.float64) / 65535 * 2 - 1)
    sigma = np.sqrt(1 - s.alpha_bar[10])
    assert abs(noise.std() / sigma - 1) < 5 / np.sqrt(2 * noise.size)
    assert len(np.unique(result)) > 1000


def test_several_steps_make_a_strip_and_share_their_noise(ddpm: Ddpm, tmp_path: Path) -> None:
    source = save(tmp_path / "a.png", picture("RGB"))
    assert ddpm("noise", source, "--t", "0,300,1000").lines == ["a-t0-300-1000.png"]
    ddpm("noise", source, "--t", "300")
    strip = np.asarray(opened(tmp_path / "a-t0-300-1000.png"))
    assert strip.shape == (17 + 4, 3 * 25 + 2, 3)
    np.testing.assert_array_equal(strip[2:19, 2:25], np.asarray(opened(source)))
    np.testing.assert_array_equal(strip[2:19, 27:50], np.asarray(opened(tmp_path / "a-t300.png")))


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".apng"])
def test_several_steps_make_an_animation(ddpm: Ddpm, tmp_path: Path, suffix: str) -> None:
    done = ddpm("noise", save(tmp_path / "a.png", picture("RGB")), "--t", "0,10,500,1000", "-o", f"b{suffix}")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / f"b{suffix}") as result:
        assert result.n_frames == 4
        assert result.size == (23, 17)
        durations = []
        for frame in range(4):
            result.seek(frame)
            result.load()
            durations.append(result.info["duration"])
        assert durations == [500, 500, 500, 1500]  # a few frames are to be looked at


def test_a_gif_of_half_transparent_pixels_is_warned_about(ddpm: Ddpm, tmp_path: Path) -> None:
    source = save(tmp_path / "a.png", picture("RGBA"))
    for suffix, warned in ((".gif", True), (".webp", False), (".apng", False)):
        done = ddpm("noise", source, "--t", "0,10", "-o", f"b{suffix}")
        assert done.returncode == 0, done.stderr
        assert ("a GIF has no half-transparent pixels" in done.stderr) == warned


def test_pipes(ddpm: Ddpm, tmp_path: Path) -> None:
    source = save(tmp_path / "a.png", picture("RGB"))
    done = ddpm("noise", "-", "--t", "100", stdin=source.read_bytes())
    assert done.returncode == 0, done.stderr
    ddpm("noise", source, "--t", "100")
    piped = np.asarray(opened(done.stdout))
    np.testing.assert_array_equal(piped, np.asarray(opened(tmp_path / "a-t100.png")))


def test_same_seed_same_noise_other_seed_other_noise(ddpm: Ddpm, tmp_path: Path) -> None:
    source = save(tmp_path / "a.png", picture("L"))
    outputs = [ddpm("noise", source, "-o", "-", "--seed", seed).stdout for seed in ("1", "1", "2")]
    assert outputs[0] == outputs[1] != outputs[2]


def test_settings_are_in_the_png(ddpm: Ddpm, tmp_path: Path) -> None:
    done = ddpm("noise", save(tmp_path / "a.png", picture("L")), "-o", "-", "--seed", "9")
    assert '"seed": 9' in opened(done.stdout).text["ddpm noise"]


def test_quiet_says_nothing(ddpm: Ddpm, tmp_path: Path) -> None:
    assert ddpm("noise", save(tmp_path / "a.png", picture("L")), "-q").stderr == ""


@pytest.mark.parametrize("t", ["-1", "1001", "0,2000"])
def test_steps_outside_the_chain_are_refused(ddpm: Ddpm, tmp_path: Path, t: str) -> None:
    done = ddpm("noise", save(tmp_path / "a.png", picture("L")), f"--t={t}")
    assert done.returncode == 2
    assert "from 0 to 1000" in done.stderr


def test_an_existing_output_is_kept_unless_forced(ddpm: Ddpm, tmp_path: Path) -> None:
    source = save(tmp_path / "a.png", picture("L"))
    (tmp_path / "b.png").write_bytes(b"precious")
    done = ddpm("noise", source, "-o", "b.png")
    assert done.returncode == 2
    assert "--force" in done.stderr
    assert (tmp_path / "b.png").read_bytes() == b"precious"
    assert ddpm("noise", source, "-o", "b.png", "--force").returncode == 0
    assert opened(tmp_path / "b.png").size == (23, 17)


def test_outputs_that_cannot_be_written(ddpm: Ddpm, tmp_path: Path) -> None:
    source = save(tmp_path / "a.png", picture("L"))
    assert ddpm("noise", source, "-o", "nowhere/b.png").returncode == 7
    odd = ddpm("noise", source, "-o", "b.docx")
    assert odd.returncode == 2
    assert ".png" in odd.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png"]


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(30)])
def test_damaged_images_are_refused(ddpm: Ddpm, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    done = ddpm("noise", "bad.png")
    assert done.returncode == 3
    assert "bad.png" in done.stderr
    assert ddpm("noise", "-", stdin=content).returncode == 3
    assert not (tmp_path / "bad-t500.png").exists()


def test_a_folder_or_a_missing_file_is_refused(ddpm: Ddpm, tmp_path: Path) -> None:
    assert "there is no image in" in ddpm("noise", tmp_path).stderr
    assert ddpm("noise", "nowhere.png").returncode == 3


def test_torch_is_not_imported(tmp_path: Path, ddpm_env: dict[str, str]) -> None:
    source = save(tmp_path / "a.png", picture("RGB"))
    code = "import sys; from ddpm_cli.cli import run; run(sys.argv[1:]); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, "noise", str(source), "-q"],
        capture_output=True, text=True, env=ddpm_env, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout.split() == ["a-t500.png", "False"]


def test_empty_input_is_said_to_be_empty(ddpm: Ddpm, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    assert ddpm("noise", "a.png").stderr == "error: a.png is empty; give an image\n"
    assert ddpm("noise", "-").stderr == "error: stdin is empty; give an image\n"


def test_a_npy_is_equation_4_without_a_rounding(ddpm: Ddpm, tmp_path: Path) -> None:
    image = picture("RGB")
    save(tmp_path / "a.png", image)
    x_0 = to_float(np.asarray(image))[None]
    eps = rng.normal(x_0.shape, 3, "noise")
    done = ddpm("noise", "a.png", "--t", "700", "--seed", "3", "-o", "x.npy")
    assert done.lines == ["x.npy"]
    one = np.load(tmp_path / "x.npy")
    assert one.dtype == np.float32
    np.testing.assert_array_equal(one, q_sample(linear(), x_0, 700, eps)[0])
    assert np.abs(one).max() > 1  # what a picture clips
    piped = ddpm(
        "noise", "-", "--t", "0,700", "--seed", "3", "--format", "npy", stdin=(tmp_path / "a.png").read_bytes()
    )
    both = np.load(io.BytesIO(piped.stdout))
    np.testing.assert_array_equal(both, np.stack([x_0[0], one]))


def test_an_alpha_channel_has_no_place_in_a_npy_and_that_is_said(ddpm: Ddpm, tmp_path: Path) -> None:
    save(tmp_path / "a.png", picture("RGBA"))
    done = ddpm("noise", "a.png", "-o", "x.npy")
    assert "alpha channel is left out" in done.stderr
    assert np.load(tmp_path / "x.npy").shape == (17, 23, 3)


def test_several_images_make_a_folder(ddpm: Ddpm, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("b", "a", "c d"):
        save(tmp_path / "photos" / f"{name}.png", picture("L"))
    expected = ["noisy/a-t9.png", "noisy/b-t9.png", "noisy/c d-t9.png"]
    assert ddpm("noise", "photos", "--t", "9", "-o", "noisy").lines == expected
    first = (tmp_path / "noisy" / "a-t9.png").read_bytes()
    again = ddpm("noise", "photos", "--t", "9", "-o", "noisy")
    assert (again.returncode, again.stdout) == (2, b"")
    assert "exists already" in again.stderr
    for names in (("photos/*.png",), ("photos/a.png", "photos/b.png", "photos/c d.png")):
        assert ddpm("noise", *names, "--t", "9", "-o", "noisy", "--force").lines == expected
    for listed, options in ((b"photos/a.png\nphotos/c d.png\n", ()), (b"photos/a.png\0photos/c d.png\0", ("-0",))):
        done = ddpm("noise", "--files-from", "-", *options, "--t", "9", "-o", "noisy", "--force", stdin=listed)
        assert done.lines == [expected[0], expected[2]], done.stderr
    assert (tmp_path / "noisy" / "a-t9.png").read_bytes() == first
    done = ddpm("noise", "photos", "--t", "9", "-o", "x", "--format", "npy")
    assert done.lines == ["x/a-t9.npy", "x/b-t9.npy", "x/c d-t9.npy"]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ((), 2, "no image is named; give some, a folder, or --files-from"),
        (("a.png", "a.png", "-o", "x"), 2, "several images would become a-t500.png"),
        (("a.png", "b.png"), 2, "2 images make as many files"),
        (("a.png", "b.png", "-o", "x.png"), 2, "2 images make as many files"),
        (("-", "-", "-o", "x"), 2, "stdin (-) is named twice"),
        (("-", "--files-from", "-", "-o", "x"), 2, "stdin (-) is named twice"),
        (("a.png", "-0"), 2, "-0 says how the names of --files-from end"),
        (("a.png", "--format", "npy", "-o", "x.png"), 2, "--format is npy"),
        (("*.jpg", "-o", "x"), 3, "nothing matches *.jpg"),
        (("--files-from", "none.txt", "-o", "x"), 3, "there is no file none.txt"),
        (("a.png", "b.png", "-o", "nowhere/x"), 7, "there is no folder nowhere"),
    ],
)
def test_several_images_that_make_no_sense(
    ddpm: Ddpm, tmp_path: Path, args: tuple[str, ...], code: int, message: str
) -> None:
    for name in "ab":
        save(tmp_path / f"{name}.png", picture("L"))
    done = ddpm("noise", *args)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert not (tmp_path / "x").exists()
