"""Chains that begin in the middle, and the commands that steer them: denoise, interpolate, progressive, inpaint."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ddpm_cli
from ddpm_cli.core import rng
from ddpm_cli.data import open_images
from ddpm_cli.diffusion.process import Diffusion, q_sample
from ddpm_cli.diffusion.schedule import linear
from ddpm_cli.errors import ArgumentError
from ddpm_cli.models.model import Model
from ddpm_cli.sampling import generate
from ddpm_cli.sampling import start as starts
from ddpm_cli.sampling.generate import Start, last, pixels_of
from ddpm_cli.sampling.settings import Sampling
from helpers.process import Ddpm

FP32 = ("--precision", "fp32", "--device", "cpu")
FAST = ("-m", "builtin:digits", "--sampler", "ddim", "--steps", "5", *FP32)
T = 20  # of `tiny_run`


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> Model:
    return ddpm_cli.load(str(tiny_run), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    return open_images("builtin:digits").take(np.arange(4))


@pytest.fixture
def folder(tmp_path: Path, digits: np.ndarray) -> Path:
    """Where a.png, b.png, c.png and d.png are digits, and mask.png is white in its lower half."""
    for name, image in zip("abcd", digits, strict=True):
        Image.fromarray(image[:, :, 0]).save(tmp_path / f"{name}.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[4:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return tmp_path


def pixels(source: Path | bytes) -> np.ndarray:
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        return np.asarray(image)


def text(path: Path, key: str) -> dict[str, object]:
    with Image.open(path) as image:
        settings: dict[str, object] = json.loads(image.text[key])  # type: ignore[attr-defined]
        return settings


# --- where chains begin -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "langevin"])
@pytest.mark.parametrize("t", [1, 7, 19])
def test_a_chain_that_is_taken_up_again_in_the_middle_ends_the_same(model: Model, sampler: str, t: int) -> None:
    settings = {"eta": 0.7} if sampler == "ddim" else {}
    sampling = Sampling(sampler, timesteps=tuple(range(T, 0, -1)), seed=3, **settings)
    steps = {step.t: step.x_t for step in model.chain(sampling, [4, 9])}
    again = last(model.chain(sampling, [4, 9], Start(t, steps[t])))
    assert (again.x_t == steps[0]).all()


def test_a_chain_from_its_own_noise_is_the_whole_chain(model: Model) -> None:
    sampling = Sampling(seed=3)
    x_T = generate.normal(model.shape, 3, "x_T", [(4,), (9,)], torch.device("cpu"))
    assert (last(model.chain(sampling, [4, 9], Start(T, x_T))).x_t == last(model.chain(sampling, [4, 9])).x_t).all()


def test_images_are_noised_by_equation_4_with_the_noise_of_ddpm_noise() -> None:
    d, x_0 = Diffusion(linear()), torch.rand(2, 3, 4, 6) * 2 - 1
    for variation, name in ((0, ()), (5, (5,))):
        eps = rng.normal((1, 4, 6, 3), 7, "noise", *name)
        expected = q_sample(d.schedule, x_0.permute(0, 2, 3, 1).numpy(), 300, eps)
        ours = starts.noised(d, x_0, 300, 7, variation).permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(ours, expected, atol=1e-6)
    assert (starts.noised(d, x_0, 0, 7) == x_0).all()


def test_what_is_between_two_images_has_as_much_noise_as_they_have() -> None:
    d, a, b = Diffusion(linear()), torch.rand(1, 3, 4, 6) * 2 - 1, torch.rand(1, 3, 4, 6) * 2 - 1
    start = starts.between(d, a, b, 600, [0.0, 0.25, 1.0], 7)
    assert start.t == 600
    for weight, x_t in zip((0.0, 0.25, 1.0), start.x_t, strict=True):
        mixed = (1 - weight) * a + weight * b
        torch.testing.assert_close(x_t[None], starts.noised(d, mixed, 600, 7))


def test_a_chain_can_be_led_through_steps(model: Model) -> None:
    sampling = starts.through(Sampling("ddim", steps=4, eta=0.5), model.diffusion, 9, 13)
    assert generate.visited(sampling, model.diffusion) == sorted({1, 7, 14, 20, 9, 13})
    assert (sampling.sampler, sampling.settings) == ("ddim", {"eta": 0.5})
    for t in (0, 21):
        with pytest.raises(ArgumentError, match=f"`t` is {t}; it must be from 1 to 20"):
            starts.through(Sampling(), model.diffusion, t)


# --- denoise ----------------------------------------------------------------------------------------------------------


def test_a_pipe_of_noise_and_denoise_is_denoise_by_strength(ddpm: Ddpm, folder: Path) -> None:
    done = ddpm("denoise", "a.png", "--strength", "0.4", "-o", "-", *FAST)
    assert done.returncode == 0, done.stderr
    noise = ddpm("noise", "-", "--t", "400", "--format", "npy", stdin=(folder / "a.png").read_bytes())
    piped = ddpm("denoise", "-", "--t", "400", "-o", "-", *FAST, stdin=noise.stdout)
    assert piped.returncode == 0, piped.stderr
    np.testing.assert_array_equal(pixels(done.stdout), pixels(piped.stdout))
    assert "8 bits" not in piped.stderr
    rounded = ddpm("noise", "-", "--t", "400", stdin=(folder / "a.png").read_bytes())
    nearly = ddpm("denoise", "-", "--t", "400", "-o", "-", *FAST, stdin=rounded.stdout)
    assert "a picture holds x_t in 8 bits and clipped to [-1, 1]" in nearly.stderr
    assert nearly.returncode == 0


def test_a_picture_that_says_that_it_was_noised_otherwise_is_warned_about(ddpm: Ddpm, folder: Path) -> None:
    ddpm("noise", "a.png", "--t", "400", "-o", "x.png")
    options = ("-o", "y.png", "--force", *FAST)
    assert "warning" not in ddpm("denoise", "x.png", "--t", "400", *options).stderr
    assert "warning" not in ddpm("denoise", "a.png", "--t", "400", *options).stderr
    warning = "warning: x.png was noised with t = [400], and is denoised with t = [300]"
    assert warning in ddpm("denoise", "x.png", "--t", "300", *options).stderr
    ddpm("noise", "a.png", "--t", "400", "--schedule", "cosine", "-o", "x.png", "--force")
    assert "with schedule = cosine, and is" in ddpm("denoise", "x.png", "--t", "400", *options).stderr


def test_little_noise_leaves_the_image_as_it_is(ddpm: Ddpm, folder: Path, digits: np.ndarray) -> None:
    done = ddpm("denoise", "a.png", "--strength", "0.001", "-o", "x.png", *FAST)
    assert done.lines == ["x.png"]
    assert np.abs(pixels(folder / "x.png").astype(int) - digits[0, :, :, 0]).max() < 12
    assert text(folder / "x.png", "ddpm denoise")["t"] == 1


def test_each_image_and_variation_has_its_own_noise_whatever_the_batch(ddpm: Ddpm, folder: Path) -> None:
    options = ("--strength", "0.5", "--variations", "3", *FAST)
    done = ddpm("denoise", "a.png", "b.png", *options, "-o", "out")
    expected = [f"out/{name}-{v}.png" for name in "ab" for v in range(3)]
    assert done.lines == expected, done.stderr
    one_by_one = ddpm("denoise", "a.png", "b.png", *options, "-o", "single", "--batch-size", "1")
    for path, same in zip(done.lines, one_by_one.lines, strict=True):
        np.testing.assert_array_equal(pixels(folder / path), pixels(folder / same))
    alone = ddpm("denoise", "a.png", *options, "-o", "alone")
    assert alone.lines == [f"alone/a-{v}.png" for v in range(3)]
    for v in range(3):
        np.testing.assert_array_equal(pixels(folder / "out" / f"a-{v}.png"), pixels(folder / "alone" / f"a-{v}.png"))
    whole = ("--strength", "1", *FAST)  # nothing is left of the images, so only their noise tells them apart
    first, second = (pixels(folder / path) for path in ddpm("denoise", "a.png", "b.png", *whole, "-o", "new").lines)
    assert np.abs(first.astype(int) - second).mean() > 20
    results = [pixels(folder / path).tobytes() for path in expected]
    assert len(set(results)) == 6
    np.save(folder / "many.npy", np.zeros((2, 8, 8, 1), np.float32))
    assert ddpm("denoise", "many.npy", "--t", "9", *FAST, "-o", "n").lines == ["n/many-0.png", "n/many-1.png"]


def test_a_chain_that_begins_in_the_middle_can_be_watched(ddpm: Ddpm, folder: Path) -> None:
    done = ddpm("denoise", "a.png", "--strength", "0.5", "-o", "x.gif", *FAST)
    assert done.returncode == 0, done.stderr
    with Image.open(folder / "x.gif") as chain:
        assert chain.n_frames == 3  # at 500 the chain of 1, 251, 501, 751 and 1000 takes 500, 251 and 1


# --- interpolate ------------------------------------------------------------------------------------------------------

CHAIN = ("-m", "builtin:digits", "--sampler", "ddim", "--chain-steps", "5", *FP32)


def test_the_ends_of_an_interpolation_are_the_images_denoised(ddpm: Ddpm, folder: Path, digits: np.ndarray) -> None:
    done = ddpm(
        "interpolate", "a.png", "b.png", "--t", "0,300", "--steps", "5", "-o", "i.npy", "--batch-size", "2", *CHAIN
    )
    assert done.returncode == 0, done.stderr
    images = np.load(folder / "i.npy")
    assert images.shape == (10, 8, 8, 1)
    np.testing.assert_array_equal(images[[0, 4]], digits[[0, 1]])  # t = 0 mixes pixels
    middle = (digits[0].astype(float) + digits[1]) / 2
    assert np.abs(images[2] - middle).max() <= 0.5
    for name, index in (("a", 5), ("b", 9)):
        alone = ddpm("denoise", f"{name}.png", "--strength", "0.3", "-o", "-", *FAST)
        np.testing.assert_array_equal(images[index, :, :, 0], pixels(alone.stdout))


def test_an_interpolation_is_a_sheet_a_folder_or_an_animation(ddpm: Ddpm, folder: Path, digits: np.ndarray) -> None:
    options = ("a.png", "b.png", "--t", "300,600", "--steps", "3", *CHAIN)
    assert ddpm("interpolate", *options, "--scale", "6").lines == ["interpolation.png"]
    sheet = pixels(folder / "interpolation.png")
    source = digits[0, :, :, 0].repeat(6, 0).repeat(6, 1)
    windows = np.lib.stride_tricks.sliding_window_view(sheet, source.shape)
    assert (windows == source).all(axis=(2, 3)).sum() == 2  # beside each row
    assert text(folder / "interpolation.png", "ddpm interpolate")["lambdas"] == [0, 0.5, 1]
    done = ddpm("interpolate", *options, "-o", "out")
    ends = ("000-lambda0.000", "001-lambda0.500", "002-lambda1.000")
    assert done.lines == [f"out/t{t:04d}-{end}.png" for t in (300, 600) for end in ends]
    assert ddpm("interpolate", *options, "-o", "i.gif", "--scale", "6").returncode == 0
    with Image.open(folder / "i.gif") as animation:
        assert animation.n_frames == 3
        frames = []
        for number in range(3):
            animation.seek(number)
            frames.append(np.asarray(animation.convert("L")))
    changing = np.ptp(np.stack(frames), axis=0)
    assert changing[-2 * 6 * 8 :].any()  # the images
    assert changing[:16].any()  # what lambda is
    assert (changing[:, :20] == 0).all()  # the rows' labels stay where they are


# --- progressive ------------------------------------------------------------------------------------------------------


def test_progressive_shows_x_0_hat_at_each_t_and_the_sample_at_the_end(
    ddpm: Ddpm, tiny_run: Path, tmp_path: Path, model: Model
) -> None:
    options = ("-m", tiny_run, "-n", "3", "--t", "20,11,1,0", "--batch-size", "2", *FP32)
    done = ddpm("progressive", *options, "-o", "p.npy")
    assert done.returncode == 0, done.stderr
    images = np.load(tmp_path / "p.npy").reshape(3, 4, 8, 8, 1)
    np.testing.assert_array_equal(images[:, 3], model.sample(3))
    leaves = {step.t + 1: pixels_of(step.x_0_hat) for step in model.chain(Sampling(), range(3))}
    for column, t in enumerate((20, 11, 1)):
        np.testing.assert_array_equal(images[:, column], leaves[t])
    assert ddpm("progressive", "-m", tiny_run, "-n", "2", *FP32).lines == ["progressive.png"]


def test_images_that_share_x_t_are_those_of_one_chain(ddpm: Ddpm, tiny_run: Path, tmp_path: Path, model: Model) -> None:
    options = ("-m", tiny_run, "-n", "3", "--share-from", "20,6,1", *FP32)
    done = ddpm("progressive", *options, "-o", "p.npy")
    assert done.returncode == 0, done.stderr
    rows = np.load(tmp_path / "p.npy").reshape(3, 4, 8, 8, 1)
    sample = model.sample(1)[0]
    for row in rows:
        np.testing.assert_array_equal(row[1], sample)  # goes on with its own noise
    shared = {step.t: pixels_of(step.x_t)[0] for step in model.chain(Sampling(), [0])}
    np.testing.assert_array_equal(rows[1][0], shared[6])
    assert (rows[2][1:] == rows[2][1]).all()  # of x_1 nothing is left to draw
    assert not (rows[1][2] == rows[1][1]).all()


def test_chains_without_noise_that_end_at_one_image_are_warned_about(ddpm: Ddpm, folder: Path) -> None:
    warning = "warning: --sampler ddim adds no noise, so images from one x_t are all the same"
    assert warning in ddpm("progressive", "-n", "2", "--share-from", "500", *FAST).stderr
    assert warning in ddpm("denoise", "a.png", "--t", "9", "--variations", "2", *FAST).stderr
    assert (
        warning not in ddpm("denoise", "a.png", "--t", "9", "--variations", "2", *FAST, "--eta", "1", "--force").stderr
    )
    assert warning not in ddpm("denoise", "a.png", "--strength", "0.1", "--variations", "2", *FAST, "--force").stderr


# --- inpaint ----------------------------------------------------------------------------------------------------------


def test_known_pixels_come_back_and_the_others_are_made(ddpm: Ddpm, folder: Path, digits: np.ndarray) -> None:
    options = ("a.png", "mask.png", "-m", "builtin:digits", "--steps", "15", "--rounds", "2", *FP32)
    done = ddpm("inpaint", *options, "-n", "4", "-o", "i.npy", "--batch-size", "3")
    assert done.returncode == 0, done.stderr
    images = np.load(folder / "i.npy")
    assert (images[:, :4] == digits[0, :4]).all()
    assert len({image.tobytes() for image in images}) == 4
    assert not (images[:, 4:] == digits[0, 4:]).all(axis=(1, 2, 3)).any()
    one = ddpm("inpaint", *options, "-o", "one.png")
    assert one.lines == ["one.png"]
    np.testing.assert_array_equal(pixels(folder / "one.png"), images[0, :, :, 0])
    assert ddpm("inpaint", *options, "-n", "2", "-o", "i.gif").returncode == 0
    with Image.open(folder / "i.gif") as chain:
        assert 10 <= chain.n_frames <= 15


# --- what makes no sense ----------------------------------------------------------------------------------------------


@pytest.fixture
def strange(folder: Path) -> Path:
    """Images that do not fit the model, beside those of `folder`."""
    grey = np.full((12, 9), 90, np.uint8)
    Image.fromarray(grey).save(folder / "large.png")
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(folder / "colour.png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "black.png")
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(folder / "white.png")
    np.save(folder / "wide.npy", np.zeros((8, 9, 1), np.float32))
    np.save(folder / "bytes.npy", np.zeros((8, 8, 1), np.uint8))
    np.save(folder / "nan.npy", np.full((8, 8, 1), np.nan, np.float32))
    (folder / "cut.npy").write_bytes((folder / "wide.npy").read_bytes()[:-9])
    np.save(folder / "objects.npy", np.array([{}]), allow_pickle=True)
    (folder / "empty").mkdir()
    return folder


WRONG = [
    ("denoise a.png", 2, "give either --t, if the image is an x_t, or --strength"),
    ("denoise a.png --t 5 --strength 0.5", 2, "give either --t"),
    ("denoise a.png --t 1001", 2, "--t is 1001; it must be from 1 to 1000"),
    ("denoise a.png --t 0", 2, "0 is not in the range"),
    ("denoise a.png --strength 0", 2, "--strength is 0.0; it must be above 0, up to 1"),
    ("denoise a.png --strength nan", 2, "--strength is nan"),
    ("denoise a.png --t 5 --resize", 2, "--resize is for clean images"),
    ("denoise a.png --strength 0.5 --eta 0.5", 2, "--eta belongs to --sampler ddim, and this is --sampler ddpm"),
    ("denoise a.png --strength 0.5 --timesteps 5,9", 2, "--timesteps has 5 before 9"),
    ("denoise a.png --strength 0.5 --timesteps 9,9", 2, "--timesteps has 9 twice"),
    ("denoise a.png --strength 0.5 --timesteps 1001", 2, "--timesteps is 1001; it must be from 1 to 1000"),
    (
        "denoise large.png --strength 0.5",
        3,
        "large.png is 12x9, grey, and the model builtin:digits makes 8x8, grey",
    ),
    ("denoise colour.png --t 5", 3, "colour.png is 8x8, RGB, and the model builtin:digits makes 8x8, grey"),
    ("denoise wide.npy --t 5", 3, "wide.npy holds x_t of 8x9, grey; the model builtin:digits takes 8x8, grey"),
    ("denoise bytes.npy --t 5", 3, "bytes.npy holds uint8 (8, 8, 1); an x_t is of floating point"),
    ("denoise nan.npy --t 5", 3, "nan.npy holds numbers that are not finite"),
    ("denoise cut.npy --t 5", 3, "cut.npy is a .npy that is damaged, or holds no plain numbers"),
    ("denoise objects.npy --t 5", 3, "objects.npy is a .npy that is damaged, or holds no plain numbers"),
    ("denoise wide.npy --strength 0.5", 3, "wide.npy is a .npy, which holds x_t"),
    ("denoise empty --t 5", 3, "there is no image in empty"),
    ("denoise a.png a.png --strength 0.5", 2, "several images would become a.png"),
    ("interpolate a.png large.png", 3, "large.png is 12x9, grey"),
    ("interpolate a.png none.png", 3, "there is no file none.png"),
    ("interpolate a.png b.png --t 1001", 2, "--t is 1001; it must be from 0 to 1000"),
    ("interpolate a.png b.png --t 300,9,300", 2, "--t has 300 twice"),
    ("interpolate a.png b.png --steps 1", 2, "1 is not in the range"),
    ("progressive --t 1001", 2, "--t is 1001; it must be from 0 to 1000"),
    ("progressive --share-from 0", 2, "--share-from is 0; it must be from 1 to 1000"),
    ("progressive --share-from 7,7", 2, "--share-from has 7 twice"),
    ("progressive --t 7,7", 2, "--t has 7 twice"),
    ("progressive -n 600", 2, "30,000x450 pixels"),
    ("progressive --share-from 5 --t 9", 2, "--t is of Figure 6, and --share-from of Figure 7"),
    ("inpaint a.png large.png", 3, "large.png: the mask is 12x9, and a.png is 8x8; they must be of one size"),
    ("inpaint a.png black.png", 3, "black.png: no pixel of the mask is white (128 or more; its brightest is 0)"),
    ("inpaint a.png white.png", 3, "white.png: all of the mask is white, so nothing is known"),
    ("inpaint large.png mask.png", 3, "mask.png: the mask is 8x8, and large.png is 12x9"),
    ("inpaint large.png large.png", 3, "large.png is 12x9, grey, and the model"),
    ("inpaint a.png mask.png --steps 1001", 2, "--steps is 1001; this model has steps 1 to 1000"),
    ("sample --timesteps 500,600", 2, "--timesteps has 500 before 600"),
    ("sample --sampler dpm++ --eta 1", 2, "--eta belongs to --sampler ddim"),
    ("sample --steps 5 --timesteps 6,5", 2, "--timesteps names the steps; leave out --steps and --spacing"),
]


@pytest.mark.parametrize(("command", "code", "message"), WRONG, ids=[command for command, _, _ in WRONG])
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    ddpm: Ddpm, strange: Path, command: str, code: int, message: str
) -> None:
    before = sorted(strange.iterdir())
    done = ddpm(*command.split(), "-m", "builtin:digits", "-o", "x.png")
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert sorted(path for path in strange.iterdir() if not path.name.startswith(("ddpm-cache", "hf-home"))) == before
    assert done.stdout == b""


def test_images_of_another_size_can_be_resized(ddpm: Ddpm, strange: Path) -> None:
    done = ddpm("denoise", "large.png", "colour.png", "--strength", "0.1", "--resize", "-o", "out", *FAST)
    assert done.returncode == 0, done.stderr
    assert done.lines == ["out/large.png", "out/colour.png"]
    done = ddpm("inpaint", "large.png", "large.png", "--resize", "-m", "builtin:digits")
    assert "no pixel of the mask is white" in done.stderr


def test_an_output_that_exists_is_kept(ddpm: Ddpm, folder: Path) -> None:
    for command in (
        ("denoise", "a.png", "--strength", "0.1", *FAST),
        ("interpolate", "a.png", "b.png", *CHAIN),
        ("progressive", *FAST),
        ("inpaint", "a.png", "mask.png", "-m", "builtin:digits"),
    ):
        (folder / "x.png").write_bytes(b"mine")
        done = ddpm(*command, "-o", "x.png")
        assert done.returncode == 2
        assert "x.png exists already" in done.stderr
        assert (folder / "x.png").read_bytes() == b"mine"


def test_ctrl_c_leaves_finished_images_and_their_names(folder: Path, ddpm_env: dict[str, str]) -> None:
    command = ["denoise", "a.png", "--strength", "1", "--variations", "500", "--batch-size", "1", *FAST, "-o", "out"]
    with subprocess.Popen(
        [sys.executable, "-m", "ddpm_cli", *command],
        cwd=folder,
        env=ddpm_env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        named = [process.stdout.readline().strip() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    names = [*named, *rest.split()]
    assert names[:3] == ["out/a-0.png", "out/a-1.png", "out/a-2.png"]
    made = sorted(path.name for path in (folder / "out").iterdir())
    assert set(names) <= {f"out/{name}" for name in made}
    assert len(made) - len(names) <= 1  # written, and not yet named
    for name in made:
        assert pixels(folder / "out" / name).shape == (8, 8)


def test_a_reader_that_leaves_ends_it_quietly(folder: Path, ddpm_env: dict[str, str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "ddpm_cli", "denoise", "a.png", "--strength", "0.5", *FAST, "-o", "-", "-q"]
    done = subprocess.run(command, cwd=folder, env=ddpm_env, stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert done.returncode == 141
    assert done.stderr == b""


def test_ctrl_c_keeps_what_is_finished_of_a_sheet(folder: Path, ddpm_env: dict[str, str]) -> None:
    command = ["sample", "-n", "300", "--batch-size", "1", *FAST, "-o", "sheet.png"]
    with subprocess.Popen(
        [sys.executable, "-m", "ddpm_cli", *command], cwd=folder, env=ddpm_env, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        while "model builtin" not in process.stderr.readline():
            pass
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130, errors
    assert "images that were finished are in sheet-unfinished.npy" in errors
    finished = np.load(folder / "sheet-unfinished.npy")
    expected = ddpm_cli.load("builtin:digits", device="cpu", precision="fp32").sample(3, sampler="ddim", steps=5)
    np.testing.assert_array_equal(finished[:3], expected)
    assert len(finished) < 300
    assert not (folder / "sheet.png").exists()


def test_a_chain_that_begins_far_from_noise_is_warned_about(ddpm: Ddpm, folder: Path) -> None:
    options = ("-m", "builtin:digits", "-n", "1", "-o", "x.png", "--force", *FP32)
    warning = "warning: the chain begins with pure noise at t = 9 of 1000"
    assert warning in ddpm("sample", "--timesteps", "9,1", *options).stderr
    assert "warning" not in ddpm("sample", "--timesteps", "990,300,1", *options).stderr


def test_numbers_of_other_kinds_are_taken_for_x_t(ddpm: Ddpm, folder: Path) -> None:
    x = rng.normal((8, 8, 1), 0, "some")
    for name, array in (("a", x), ("b", x.astype(np.float64)), ("c", x[:, :, 0])):
        np.save(folder / f"{name}.npy", array)
    results = [ddpm("denoise", f"{name}.npy", "--t", "9", "-o", "-", *FAST).stdout for name in "abc"]
    assert results[0] == results[1] == results[2] != b""


def test_finished_rows_of_a_table_are_there_before_the_others(folder: Path, ddpm_env: dict[str, str]) -> None:
    times = ",".join(map(str, range(1000, 300, -1)))
    command = ["interpolate", "a.png", "b.png", "--t", times, "--steps", "2", *CHAIN, "-o", "out"]
    with subprocess.Popen(
        [sys.executable, "-m", "ddpm_cli", *command], cwd=folder, env=ddpm_env, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "out/t1000-000-lambda0.000.png\n"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert pixels(folder / "out" / "t1000-000-lambda0.000.png").shape == (8, 8)


@pytest.mark.parametrize("variance", ["learned", "learned-range"])
def test_models_that_learn_their_variance_are_steered_too(ddpm: Ddpm, folder: Path, variance: str) -> None:
    options = ("--variance", variance, "--timesteps", "20", "--batch-size", "4", "--steps", "1")
    assert ddpm("train", "builtin:digits", "-o", "run", *options, "--device", "cpu").returncode == 0
    for command in (
        ("denoise", "a.png", "--strength", "0.5"),
        ("interpolate", "a.png", "b.png"),
        ("progressive", "-n", "2"),
        ("progressive", "-n", "2", "--share-from", "9"),
        ("inpaint", "a.png", "mask.png"),
        ("sample", "--sampler", "langevin", "--steps", "20"),
        ("sample", "--sampler", "dpm++", "--steps", "5"),
    ):
        done = ddpm(*command, "-m", "run", "-o", "x.png", "--force", *FP32)
        assert done.returncode == 0, (command, done.stderr)
    few = ddpm("inpaint", "a.png", "mask.png", "-m", "run", "-o", "y.png", "--steps", "5", *FP32)
    assert (few.returncode, "use --steps 20" in few.stderr) == ((2, True) if variance == "learned" else (0, False))
