"""``ddpm sample`` as a process."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ddpm_cli
from ddpm_cli.core.pixels import grid
from ddpm_cli.sampling.metadata import Recipe
from ddpm_cli.sampling.settings import Sampling
from ddpm_cli.ui.pictures import encode_animation
from helpers.nursery import Nursery, wait_until
from helpers.process import Ddpm

FP32 = ("--precision", "fp32", "--device", "cpu")


def pixels(source: Path | bytes) -> np.ndarray:
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        return np.asarray(image)


@pytest.fixture(scope="module")
def expected(tiny_run: Path) -> np.ndarray:
    """The first ten images of seed 0, from Python."""
    return ddpm_cli.load(str(tiny_run), device="cpu", precision="fp32").sample(10)


def test_a_png_is_a_sheet_of_the_images(ddpm: Ddpm, tiny_run: Path, tmp_path: Path, expected: np.ndarray) -> None:
    done = ddpm("sample", "-m", tiny_run, "-n", "10", "-o", "sheet.png", *FP32)
    assert done.returncode == 0, done.stderr
    assert done.lines == ["sheet.png"]
    assert f"model {tiny_run}" in done.stderr
    assert "trained for 7 steps" in done.stderr
    np.testing.assert_array_equal(pixels(tmp_path / "sheet.png"), grid(expected, 3, 4, scale=4)[:, :, 0])


@pytest.mark.parametrize("batch_size", ["1", "3", "64"])
def test_images_do_not_depend_on_their_batch(
    ddpm: Ddpm, tiny_run: Path, tmp_path: Path, expected: np.ndarray, batch_size: str
) -> None:
    done = ddpm("sample", "-m", tiny_run, "-n", "10", "-o", "s.npy", "--batch-size", batch_size, *FP32)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "s.npy"), expected)


@pytest.mark.parametrize(
    ("output", "count", "sampler"),
    [
        ("s.npz", 2, "ddpm"),
        ("sheet.png", 3, "ddpm"),
        ("chain.gif", 3, "ddpm"),
        ("chain.gif", 2, "langevin"),
        ("out", 2, "langevin"),
        ("-", 3, "ddpm"),
    ],
)
def test_several_processes_make_the_bytes_of_one(
    nursery: Nursery, ddpm_env: dict[str, str], tiny_run: Path, tmp_path: Path, output: str, sampler: str, count: int
) -> None:
    command = ["sample", "-m", tiny_run, "-n", "11", "-o", output, "--batch-size", "2", "--sampler", sampler]
    made = []
    for processes in (1, count):
        folder = tmp_path / str(processes)
        folder.mkdir()
        children = nursery.ranks(processes, *command, "--device", "cpu", env=ddpm_env, cwd=folder)
        assert [child.wait() for child in children] == [0] * processes, children[0].stderr
        files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        made.append((children[0].out.read_bytes(), files))
        assert all(child.out.read_bytes() + child.err.read_bytes() == b"" for child in children[1:])
    assert made[0] == made[1]
    assert any(made[0])


def test_of_several_processes_one_that_ends_stops_the_others(
    nursery: Nursery, ddpm_env: dict[str, str], tiny_run: Path, tmp_path: Path
) -> None:
    command = ["sample", "-m", tiny_run, "-n", "100000", "-o", "out", "--batch-size", "4", "--device", "cpu"]
    children = nursery.ranks(2, *command, env=ddpm_env, cwd=tmp_path)
    wait_until(lambda: len([*tmp_path.glob("out/*.png")]) > 8, "images")
    children[1].kill()
    assert children[0].wait() == 8
    assert "another process that shared the work has ended" in children[0].stderr


def test_a_folder_gets_a_file_an_image(ddpm: Ddpm, tiny_run: Path, tmp_path: Path, expected: np.ndarray) -> None:
    done = ddpm("sample", "-m", tiny_run, "-n", "10", "-o", "out", *FP32)
    assert done.lines == [f"out/{index:06d}.png" for index in range(10)]
    for index in range(10):
        np.testing.assert_array_equal(pixels(tmp_path / "out" / f"{index:06d}.png"), expected[index, :, :, 0])


def test_raw_arrays(ddpm: Ddpm, tiny_run: Path, tmp_path: Path, expected: np.ndarray) -> None:
    assert ddpm("sample", "-m", tiny_run, "-n", "10", "-o", "s.npz", *FP32).returncode == 0
    with np.load(tmp_path / "s.npz") as file:
        np.testing.assert_array_equal(file["images"], expected)
        assert file["images"].dtype == np.uint8


def test_raw_samples_can_be_trained_on(ddpm: Ddpm, tiny_run: Path) -> None:
    ddpm("sample", "-m", tiny_run, "-n", "10", "-o", "s.npz", *FP32)
    done = ddpm("train", "s.npz", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["data"]["shape"] == [10, 8, 8, 1]


def test_stdout_gets_the_png_and_nothing_else(ddpm: Ddpm, tiny_run: Path, expected: np.ndarray) -> None:
    done = ddpm("sample", "-m", tiny_run, "-n", "10", "-o", "-", "--grid", "2x5", "--scale", "1", *FP32)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(pixels(done.stdout), grid(expected, 2, 5)[:, :, 0])


def test_a_single_image_is_written_as_it_is(ddpm: Ddpm, tiny_run: Path, expected: np.ndarray) -> None:
    done = ddpm("sample", "-m", tiny_run, "-n", "1", "-o", "-", *FP32)
    np.testing.assert_array_equal(pixels(done.stdout), expected[0, :, :, 0])


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".apng"])
def test_an_animation_shows_the_chain(ddpm: Ddpm, tiny_run: Path, tmp_path: Path, suffix: str) -> None:
    done = ddpm("sample", "-m", tiny_run, "-n", "4", "-o", f"chain{suffix}", *FP32)
    assert done.returncode == 0, done.stderr
    sheet = pixels(ddpm("sample", "-m", tiny_run, "-n", "4", "-o", "-", *FP32).stdout)
    with Image.open(tmp_path / f"chain{suffix}") as chain:
        assert 10 <= chain.n_frames <= 20
        chain.seek(chain.n_frames - 1)
        np.testing.assert_array_equal(np.asarray(chain.convert("L")), sheet)
        chain.seek(0)
        assert (np.asarray(chain.convert("L")) != sheet).mean() > 0.3


def test_like_makes_the_same_again(ddpm: Ddpm, tiny_run: Path, tmp_path: Path) -> None:
    options = ("-n", "6", "--seed", "5", "--sampler", "ddim", "--steps", "7", "--eta", "0.5", "--grid", "2x3")
    first = ddpm("sample", "-m", tiny_run, *options, "-o", "a.png", "--scale", "2", *FP32)
    assert first.returncode == 0, first.stderr
    again = ddpm("sample", "--like", "a.png", "-o", "b.png")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    other = ddpm("sample", "--like", "a.png", "-o", "c.png", "--seed", "6")
    assert other.returncode == 0, other.stderr
    assert not np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "c.png"))


def test_like_one_image_of_a_folder(ddpm: Ddpm, tiny_run: Path, tmp_path: Path) -> None:
    ddpm("sample", "-m", tiny_run, "-n", "5", "-o", "out", *FP32)
    done = ddpm("sample", "--like", "out/000003.png", "-o", "again.png")
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(pixels(tmp_path / "again.png"), pixels(tmp_path / "out" / "000003.png"))


@pytest.mark.parametrize(
    "text",
    [
        None,
        "{",
        "[]",
        '{"n": "many"}',
        '{"unknown": 1}',
        '{"n": true}',
        '{"seed": 1e999}',
        '{"sampler": "ddim", "eta": "1"}',
    ],
)
def test_like_a_picture_without_settings_is_refused(ddpm: Ddpm, tmp_path: Path, text: str | None) -> None:
    from ddpm_cli.core.pixels import encode_png

    png = encode_png(Image.new("L", (8, 8)), {"ddpm sample": text} if text else {})
    (tmp_path / "a.png").write_bytes(png)
    done = ddpm("sample", "--like", "a.png", "-o", "b.png")
    assert done.returncode == 3
    assert "a.png" in done.stderr


def test_ddim_takes_fewer_steps_and_other_seeds_give_other_images(ddpm: Ddpm, tiny_run: Path) -> None:
    def run(*options: str) -> np.ndarray:
        done = ddpm("sample", "-m", tiny_run, "-n", "4", "-o", "-", *options, *FP32)
        assert done.returncode == 0, done.stderr
        return pixels(done.stdout)

    quick = run("--sampler", "ddim", "--steps", "5", "--eta", "0")
    np.testing.assert_array_equal(quick, run("--sampler", "ddim", "--steps", "5"))
    for other in (("--seed", "1"), ("--steps", "6"), ("--eta", "1")):
        options = dict(zip(("--sampler", "--steps"), ("ddim", "5"), strict=True)) | dict([other])
        assert not np.array_equal(quick, run(*(word for pair in options.items() for word in pair)))


def test_which_model_is_meant(ddpm: Ddpm, tiny_run: Path, tmp_path: Path) -> None:
    options = ("-n", "1", "-o", "-", "--sampler", "ddim", "--steps", "2")
    assert "model builtin:digits" in ddpm("sample", *options).stderr
    shutil.copytree(tiny_run, tmp_path / "ddpm-out")
    assert "model ddpm-out" in ddpm("sample", *options).stderr
    checkpoint = tiny_run / "checkpoints" / "step-00000007"
    assert f"model {checkpoint}" in ddpm("sample", *options, env={"DDPM_MODEL": str(checkpoint)}).stderr
    assert "model builtin:digits" in ddpm("sample", *options, "-m", "builtin:digits").stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--steps", "21"], ["--steps is 21", "1 to 20"]),
        (["--eta", "0.5"], ["--eta", "ddim"]),
        (["-n", "7", "--grid", "2x3"], ["2x3", "7 images"]),
        (["-o", "x.docx"], [".png"]),
        (["--sampler", "magic"], ["magic"]),
        (["--sampler", "ddim", "--eta", "1.5"], ["1.5"]),
    ],
    ids=str,
)
def test_settings_that_make_no_sense(
    ddpm: Ddpm, tiny_run: Path, tmp_path: Path, options: list[str], words: list[str]
) -> None:
    done = ddpm("sample", "-m", tiny_run, *options)
    assert done.returncode == 2
    for word in words:
        assert word in done.stderr
    assert not list(tmp_path.glob("*.png"))


def test_outputs_are_checked_before_the_work(ddpm: Ddpm, tmp_path: Path) -> None:
    (tmp_path / "grid.png").write_bytes(b"precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "000001.png").write_bytes(b"precious")
    # a model that does not exist: the output is refused first
    for output, code in (("grid.png", 2), ("out", 2), ("no/grid.png", 7), ("no/folder/", 7)):
        done = ddpm("sample", "-m", "nowhere", "-o", output)
        assert done.returncode == code, output
    assert (tmp_path / "grid.png").read_bytes() == b"precious"
    assert ddpm("sample", "-m", "nowhere", "-o", "new.png").returncode == 3


def test_models_that_cannot_be_used(ddpm: Ddpm, tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for spec in ("nowhere", "empty", "file", "builtin:cats"):
        done = ddpm("sample", "-m", spec, "-o", "x.png")
        assert done.returncode == 3, spec
        assert spec in done.stderr
    for name, damage in {
        "unet/diffusion_pytorch_model.safetensors": lambda data: data[:-1],
        "scheduler/scheduler_config.json": lambda data: data.replace(b"linear", b"linaer"),
        "unet/config.json": lambda data: None,
    }.items():
        shutil.copytree(tiny_run, tmp_path / "broken")
        file = tmp_path / "broken" / "checkpoints" / "step-00000007" / name
        data = damage(file.read_bytes())
        file.unlink() if data is None else file.write_bytes(data)
        for model in (tmp_path / "broken", file.parents[1]):
            done = ddpm("sample", "-m", model, "-o", "x.png")
            assert done.returncode == 3
            assert name.split("/")[1] in done.stderr
        shutil.rmtree(tmp_path / "broken")


def test_a_config_of_absurd_size_is_refused_without_allocating(ddpm: Ddpm, tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run / "checkpoints" / "step-00000007", tmp_path / "m")
    (tmp_path / "m" / "MANIFEST.json").unlink()
    config = tmp_path / "m" / "unet" / "config.json"
    data = json.loads(config.read_text())
    for value in (10**9, 8192):
        config.write_text(json.dumps({**data, "block_out_channels": [value, value]}))
        done = ddpm("sample", "-m", "m", "-o", "x.png")
        assert done.returncode == 3, done.stderr
        assert "block_out_channels" in done.stderr or "shape" in done.stderr


def test_interrupting_keeps_what_is_finished(tiny_run: Path, tmp_path: Path, ddpm_env: dict[str, str]) -> None:
    command = [sys.executable, "-m", "ddpm_cli", "sample", "-m", str(tiny_run), "-n", "5000", "-o", "out"]
    process = subprocess.Popen(
        [*command, "--batch-size", "4"], cwd=tmp_path, env=ddpm_env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    first = process.stdout.readline().decode().strip()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in stderr
    for name in [first, *stdout.decode().splitlines()]:
        assert pixels(tmp_path / name).shape == (8, 8)
    assert not list((tmp_path / "out").glob(".tmp*"))


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".apng"])
def test_frames_of_transparent_pictures_do_not_show_through(suffix: str) -> None:
    hole = np.zeros((3, 8, 8, 4), np.uint8)
    for frame, image in enumerate(hole):
        image[:, frame : frame + 2] = (200, 100 * frame, 0, 255)  # a stripe that moves over nothing
    with Image.open(io.BytesIO(encode_animation([*hole], suffix))) as result:
        for frame, image in enumerate(hole):
            result.seek(frame)
            alpha = np.asarray(result.convert("RGBA"))[:, :, 3]
            np.testing.assert_array_equal(alpha, image[:, :, 3])


def test_what_belonged_to_other_settings_goes_with_them() -> None:
    recipe = Recipe(Sampling("ddim", steps=9, eta=0.5), model="a", step=5, n=6, rows=2, columns=3)
    assert Recipe.of(recipe.to_json()) == recipe
    assert recipe.overridden({"model": "a", "n": 6, "sampler": "ddim"}) == recipe
    assert recipe.overridden({"model": "b"}) == replace(recipe, model="b", step=None)
    assert recipe.overridden({"n": 20}) == replace(recipe, n=20, rows=None, columns=None)
    assert recipe.overridden({"n": 20, "rows": 4, "columns": 5}) == replace(recipe, n=20, rows=4, columns=5)
    assert recipe.overridden({"sampler": "ddpm"}) == replace(recipe, sampling=Sampling())
    assert recipe.overridden({"timesteps": (9, 3)}) == replace(
        recipe, sampling=Sampling("ddim", timesteps=(9, 3), eta=0.5)
    )


def test_bfloat16_moves_few_pixels_by_little_between_batch_sizes() -> None:
    model = ddpm_cli.load("builtin:digits", device="cpu", precision="bf16")
    images = [model.sample(6, sampler="ddim", steps=20, batch_size=size).astype(int) for size in (1, 4, 6)]
    for other in images[1:]:
        difference = np.abs(other - images[0])
        assert difference.max() <= 8
        assert (difference > 2).mean() < 0.02
