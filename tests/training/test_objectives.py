"""Every way to train: what is predicted, what is minimised, which variance, on which schedule."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline

from ddpm_cli.checkpoint import read_model
from ddpm_cli.config import PREDICTIONS, SCHEDULES, VARIANCES, DiffusionConfig
from ddpm_cli.diffusion.samplers import ancestral
from ddpm_cli.models import model
from ddpm_cli.models.card import card
from ddpm_cli.training.plan import TrainOptions, plan
from ddpm_cli.training.record import Cadence, RunConfig
from helpers.process import Ddpm
from helpers.runs import NETWORK, TRAIN, final, go, images

CPU = ("--device", "cpu", "--precision", "fp32")
OBJECTIVES = [
    ("simple", "fixed-large"),
    ("simple", "fixed-small"),
    ("vlb", "fixed-large"),
    ("vlb", "fixed-small"),
    ("vlb", "learned"),
    ("vlb", "learned-range"),
    ("hybrid", "learned"),
    ("hybrid", "learned-range"),
]
STEPS = 6


def trained(folder: Path, diffusion: DiffusionConfig, loss: str) -> Path:
    """A checkpoint of a few steps."""
    unet = replace(NETWORK, out_channels=NETWORK.in_channels * (1 + diffusion.learns_variance))
    data = images()
    config = RunConfig(unet, diffusion, replace(TRAIN, loss=loss), data.digest, data.shape)
    go(folder, Cadence(STEPS, log_every=1, save_every=0, sample_every=0), config, data)
    return final(folder, STEPS)


def test_these_are_all_that_make_sense() -> None:
    assert {variance for _, variance in OBJECTIVES} == set(VARIANCES)


# Each objective with each prediction, the schedules in turn.
COMBINATIONS = [
    (loss, variance, predict, SCHEDULES[(i + j) % len(SCHEDULES)])
    for i, (loss, variance) in enumerate(OBJECTIVES)
    for j, predict in enumerate(PREDICTIONS)
]


@pytest.mark.parametrize(("loss", "variance", "predict", "schedule"), COMBINATIONS)
def test_every_combination_trains_is_stored_samples_and_is_measured(
    tmp_path: Path, loss: str, variance: str, predict: str, schedule: str
) -> None:
    diffusion = DiffusionConfig(12, schedule, 0.01, 0.4, predict=predict, variance=variance)
    folder = trained(tmp_path / "run", diffusion, loss)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in lines)
    loaded = model.load(str(folder), device="cpu", precision="fp32")
    assert loaded.diffusion_config == diffusion
    assert loaded.provenance.loss == loss
    assert loaded.sample(3, batch_size=2).shape == (3, 8, 8, 1)
    assert loaded.sample(2, sampler="ddim", steps=5).shape == (2, 8, 8, 1)
    assert np.isfinite(loaded.bits_per_dim(images(1, 2)).bits_per_dim)
    eps = loaded.eps(torch.zeros(2, 1, 8, 8), torch.tensor([1, 12]))
    assert eps.shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("variance", "predict", "schedule"),
    [
        ("fixed-large", "eps", "linear"),
        ("fixed-large", "v", "cosine"),
        ("fixed-small", "x0", "linear"),
        ("fixed-small", "eps", "cosine"),
        ("learned-range", "v", "linear"),
        ("learned-range", "x0", "cosine"),
    ],
)
def test_diffusers_samples_the_same_from_the_same_folder(
    tmp_path: Path, variance: str, predict: str, schedule: str
) -> None:
    diffusion = DiffusionConfig(12, schedule, 0.01, 0.4, predict=predict, variance=variance)
    folder = trained(tmp_path / "run", diffusion, "hybrid" if diffusion.learns_variance else "simple")
    pipeline = DDPMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(2, torch.Generator().manual_seed(5), num_inference_steps=12, output_type="np").images
    loaded = model.load(str(folder), device="cpu", precision="fp32")
    source = torch.Generator().manual_seed(5)
    x = torch.randn(2, 1, 8, 8, generator=source)

    def noise(t: int, draw: int) -> torch.Tensor:
        return torch.randn(2, 1, 8, 8, generator=source)

    with torch.inference_mode():
        for step in ancestral(loaded.diffusion, loaded.denoiser, x, noise):
            x = step.x_t
    ours = ((x + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("predict", "variance"), [("mu", "fixed-large"), ("eps", "learned"), ("mu", "learned-range")])
def test_what_diffusers_cannot_express_it_refuses_to_sample(tmp_path: Path, predict: str, variance: str) -> None:
    diffusion = DiffusionConfig(12, "linear", 0.01, 0.4, predict=predict, variance=variance)
    folder = trained(tmp_path / "run", diffusion, "vlb")
    pipeline = DDPMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    with pytest.raises((ValueError, RuntimeError)):
        pipeline(1, num_inference_steps=12)
    stored = read_model(folder, "m")
    assert "diffusers" not in card("me/m", stored, None, None)
    assert "DDPMPipeline" in card("me/m", replace(stored, diffusion=DiffusionConfig()), None, None)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    path = tmp_path / "pictures.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (9, 8, 8, 1), dtype=np.uint8))
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--loss", "simple", "--variance", "learned"), "--variance learned would not be learned"),
        (("--loss", "hybrid"), "--loss hybrid adds to"),
        (("--from", "builtin:digits", "--variance", "learned"), "was made for fixed-"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(
    ddpm: Ddpm, pictures: Path, options: tuple[str, ...], message: str
) -> None:
    done = ddpm("train", pictures, *options, *CPU)
    assert done.returncode == 2
    assert message in done.stderr


def test_the_loss_that_goes_with_a_learned_variance_is_hybrid() -> None:
    for variance, loss in (("learned", "hybrid"), ("learned-range", "hybrid"), ("fixed-small", "simple")):
        what = plan(TrainOptions(variance=variance), (9, 8, 8, 3), "", None, torch.device("cpu"))
        assert what.config.train.loss == loss
        assert what.config.unet.out_channels == (3 if variance == "fixed-small" else 6)


def test_fine_tuning_keeps_a_learned_variance(ddpm: Ddpm, pictures: Path, tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", DiffusionConfig(12, "linear", 0.01, 0.4, variance="learned-range"), "hybrid")
    done = ddpm("train", pictures, "--from", folder, "-o", "more", "--batch-size", "4", "--steps", "2", *CPU)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "more" / "config.json").read_text())
    assert (config["train"]["loss"], config["diffusion"]["variance"]) == ("hybrid", "learned-range")


def test_the_unweighted_error_of_mu_is_allowed_and_warned_about(ddpm: Ddpm, pictures: Path) -> None:
    options = ("--predict", "mu", "--batch-size", "4", "--steps", "1", *CPU)
    done = ddpm("train", pictures, *options)
    assert done.returncode == 0, done.stderr
    assert "warning: the paper found the unweighted error of mu unstable (Table 2)" in done.stderr
    assert "warning" not in ddpm("train", pictures, *options, "--loss", "vlb", "-o", "other").stderr


def test_fine_tuning_towards_another_prediction_is_allowed_and_warned_about(ddpm: Ddpm, pictures: Path) -> None:
    options = ("--from", "builtin:digits", "--batch-size", "4", "--steps", "1", "--channels", "1", "--size", "8", *CPU)
    same = ddpm("train", pictures, *options)
    assert same.returncode == 0, same.stderr
    assert "warning" not in same.stderr
    other = ddpm("train", pictures, *options, "--predict", "v", "-o", "other")
    assert other.returncode == 0, other.stderr
    assert "warning: --predict v: builtin:digits was trained with eps, so most of what it knows is lost" in other.stderr


def test_fewer_steps_than_a_variance_was_learned_for(ddpm: Ddpm, tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", DiffusionConfig(12, "linear", 0.01, 0.4, variance="learned"), "vlb")
    sample = ("sample", "-m", folder, "-n", "1", "-o", "a.png", *CPU)
    done = ddpm(*sample, "--steps", "6")
    assert done.returncode == 2
    assert "has learned the variances of its 12 single steps" in done.stderr
    assert ddpm(*sample, "--steps", "6", "--sampler", "ddim").returncode == 0


def test_outputs_and_variance_must_go_together(tmp_path: Path, ddpm: Ddpm) -> None:
    folder = trained(tmp_path / "run", DiffusionConfig(12, "linear", 0.01, 0.4, variance="learned-range"), "vlb")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    (folder / "MANIFEST.json").unlink()
    scheduler.write_text(scheduler.read_text().replace("learned_range", "fixed_small"))
    done = ddpm("sample", "-m", folder, "-n", "1", "-o", "a.png")
    assert done.returncode == 3
    assert "out_channels is 2; it must be 1, for in_channels 1 and a variance that is fixed-small" in done.stderr
