"""The same promises on a CUDA device. Skipped, with a reason, where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ddpm_cli
from ddpm_cli.core.distributed import ALONE
from ddpm_cli.diffusion.samplers import SAMPLERS
from ddpm_cli.training.memory import arithmetic, available_memory, fit, trial
from helpers.nursery import Nursery
from helpers.plans import planned
from helpers.process import Ddpm

pytestmark = pytest.mark.gpu

SHORT = ("--preset", "tiny", "--batch-size", "16", "--steps", "8", "--sample-every", "0", "--log-every", "1")


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_training_on_the_gpu_follows_the_cpu(ddpm: Ddpm, tmp_path: Path) -> None:
    for device in ("cpu", "cuda"):
        done = ddpm(
            "train", "builtin:digits", "-o", device, "--device", device, "--precision", "fp32", "--dropout", "0", *SHORT
        )
        assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses(tmp_path / "cuda"), losses(tmp_path / "cpu"), rtol=1e-3)


def test_a_run_goes_on_where_it_stopped(ddpm: Ddpm, tmp_path: Path) -> None:
    options = ("--device", "cuda", "--save-every", "4", *SHORT)
    assert ddpm("train", "builtin:digits", "-o", "whole", *options).returncode == 0
    assert ddpm("train", "builtin:digits", "-o", "parts", *options, "--steps", "4").returncode == 0
    assert ddpm("train", "builtin:digits", "-o", "parts", *options).returncode == 0
    np.testing.assert_allclose(losses(tmp_path / "parts"), losses(tmp_path / "whole"), rtol=2e-2)


def test_two_gpus_follow_one(ddpm: Ddpm, nursery: Nursery, ddpm_env: dict[str, str], tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device here")
    options = ("builtin:digits", "--precision", "fp32", *SHORT)
    assert ddpm("train", *options, "-o", "one", "--device", "cuda").returncode == 0
    children = nursery.ranks(2, "train", *options, "-o", "two", "--device", "cuda", env=ddpm_env, cwd=tmp_path)
    assert [child.wait(240) for child in children] == [0, 0], children[0].stderr
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-3)


def test_a_compiled_network_follows_the_other(ddpm: Ddpm, tmp_path: Path) -> None:
    for folder, more in (("plain", ()), ("compiled", ("--compile",))):
        done = ddpm("train", "builtin:digits", "-o", folder, "--device", "cuda", *SHORT, *more, timeout=600)
        assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses(tmp_path / "compiled"), losses(tmp_path / "plain"), rtol=2e-2)


def test_a_batch_that_does_not_fit_is_computed_in_parts_that_do() -> None:
    device = torch.device("cuda")
    free = available_memory(device)
    one = planned((9, 64, 64, 3), preset="tiny", batch_size=1)
    batch = 3 * free // (arithmetic(one.config, 2) - arithmetic(one.config, 1))
    plan = planned((9, 64, 64, 3), preset="tiny", batch_size=int(batch))
    execution = fit(plan, device, ALONE)
    assert execution.accumulate > 1
    part = -(-int(batch) // execution.accumulate)
    assert 0.3 * free < trial(plan.config, device, part).peak < free


def test_a_step_that_is_not_finite_changes_nothing(ddpm: Ddpm, tmp_path: Path) -> None:
    options = ("train", "builtin:digits", "-o", "run", "--device", "cuda", *SHORT)
    done = ddpm(*options, "--lr", "1e30", "--warmup", "0")
    assert done.returncode == 5
    assert "not finite" in done.stderr
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_on_the_gpu_are_those_of_the_cpu(sampler: str) -> None:
    made = [
        ddpm_cli.load("builtin:digits", device=device, precision="fp32").sample(8, sampler=sampler, steps=20)
        for device in ("cpu", "cuda")
    ]
    difference = np.abs(made[0].astype(int) - made[1])
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.05


def test_bits_per_dim_on_the_gpu_is_that_of_the_cpu() -> None:
    images = ddpm_cli.open_images("builtin:digits").take(np.arange(2))
    bits = [
        ddpm_cli.load("builtin:digits", device=device, precision="fp32").bits_per_dim(images).bits_per_dim
        for device in ("cpu", "cuda")
    ]
    assert bits[0] == pytest.approx(bits[1], rel=1e-3)


def test_steered_chains_on_the_gpu_are_those_of_the_cpu(ddpm: Ddpm, tmp_path: Path) -> None:
    digits = ddpm_cli.open_images("builtin:digits").take(np.arange(2))
    for name, image in zip(("a", "b"), digits, strict=True):
        Image.fromarray(image[:, :, 0]).save(tmp_path / f"{name}.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[4:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    for command in (
        ("denoise", "a.png", "--strength", "0.5", "--steps", "20"),
        ("interpolate", "a.png", "b.png", "--chain-steps", "20"),
        ("progressive", "-n", "2", "--steps", "20"),
        ("progressive", "-n", "2", "--steps", "20", "--share-from", "500"),
        ("inpaint", "a.png", "mask.png", "--steps", "12", "--rounds", "2"),
    ):
        made = []
        for device in ("cpu", "cuda"):
            options = ("-m", "builtin:digits", "--device", device, "--precision", "fp32", "-o", f"{device}.npy")
            done = ddpm(*command, *options, "--force")
            assert done.returncode == 0, done.stderr
            made.append(np.load(tmp_path / f"{device}.npy").astype(int))
        assert np.abs(made[0] - made[1]).max() <= 2, command
