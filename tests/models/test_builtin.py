"""The model that comes with the program: small, whole, and good. tools/judge_digits.py is the judge."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import ddpm_cli
from ddpm_cli.config import BUILTIN_DIGITS
from ddpm_cli.models.model import builtin_folder

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from judge_digits import Verdict, judge


def assert_good(verdict: Verdict) -> None:
    """What the bundled model promises."""
    assert verdict.confidence_ratio >= 0.95, verdict
    assert verdict.rarest_class >= 0.04, verdict
    # no nearer to the training images than these are to each other
    assert verdict.distance >= 0.9 * verdict.distance_real, verdict
    assert verdict.copies <= 0.05, verdict  # of the real digits, 0.01 by definition


def test_it_has_at_most_4_megabytes_and_its_recipe() -> None:
    files = [path for path in builtin_folder().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 4_000_000
    recipe = (builtin_folder() / "RECIPE.md").read_text()
    assert "ddpm train builtin:digits" in recipe


def test_diffusers_loads_it() -> None:
    from diffusers import DDPMPipeline

    pipeline = DDPMPipeline.from_pretrained(builtin_folder())
    pipeline.set_progress_bar_config(disable=True)
    size = ddpm_cli.load(BUILTIN_DIGITS, device="cpu").unet_config.size
    assert pipeline(num_inference_steps=2).images[0].size == size[::-1]


def test_the_judge_accepts_real_digits_as_good_but_as_copies() -> None:
    images = ddpm_cli.open_images("builtin:digits")
    verdict = judge(images.take(np.arange(len(images))))
    assert verdict.confidence_ratio > 0.99
    assert verdict.rarest_class > 0.09
    assert verdict.distance == 0
    assert verdict.copies == 1


def test_the_judge_refuses_noise_and_one_digit_only() -> None:
    rng = np.random.Generator(np.random.Philox(2))
    assert judge(rng.integers(0, 256, (300, 8, 8, 1), np.uint8)).confidence_ratio < 0.95
    with np.load(builtin_folder().parent / "digits.npz") as file:
        zeros = file["images"][file["labels"] == 0]
    assert judge(zeros).rarest_class < 0.04


def test_quick_samples_are_good_digits() -> None:
    assert_good(judge(ddpm_cli.load(BUILTIN_DIGITS, device="cpu").sample(200, sampler="ddim", steps=50, eta=1.0)))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand_samples_are_good_digits() -> None:
    assert_good(judge(ddpm_cli.load(BUILTIN_DIGITS, device="cpu").sample(1000)))
