"""``ddpm eval-bpd`` as a process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import ddpm_cli
from conftest import Ddpm

CPU = ("--device", "cpu")


@pytest.fixture
def images(tmp_path: Path) -> np.ndarray:
    """Five grey 8x8 images, also in images.npy."""
    pixels = np.random.Generator(np.random.Philox(3)).integers(0, 256, (5, 8, 8, 1), np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    return pixels


def test_json_has_the_parts_and_they_add_up(ddpm: Ddpm, tiny_run: Path, images: np.ndarray) -> None:
    done = ddpm("eval-bpd", "images.npy", "-m", tiny_run, "--json", *CPU)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert set(data) == {"bits_per_dim", "stderr", "prior", "rate", "decoder", "images", "terms", "model"}
    assert data["images"] == 5
    assert data["model"] == str(tiny_run)
    assert len(data["terms"]) == 20
    assert data["bits_per_dim"] == pytest.approx(data["prior"] + data["rate"] + data["decoder"], rel=1e-12)
    assert data["rate"] == pytest.approx(sum(data["terms"][1:]), rel=1e-12)
    assert data["decoder"] == pytest.approx(data["terms"][0], rel=1e-12)
    expected = ddpm_cli.load(str(tiny_run), device="cpu", precision="fp32").bits_per_dim(images)
    assert data["bits_per_dim"] == pytest.approx(expected.bits_per_dim, rel=1e-6)
    assert data["stderr"] == pytest.approx(expected.stderr, rel=1e-5)


def test_the_table_says_the_same(ddpm: Ddpm, tiny_run: Path, images: np.ndarray) -> None:
    data = json.loads(ddpm("eval-bpd", "images.npy", "-m", tiny_run, "--json", *CPU).stdout)
    done = ddpm("eval-bpd", "images.npy", "-m", tiny_run, *CPU)
    first = done.lines[0].split()
    assert first[:2] == ["bits/dim", f"{data['bits_per_dim']:.4f}"]
    assert first[3] == f"{data['stderr']:.4f}"
    rows = {line.split()[0]: line.split()[1:] for line in done.lines[6:]}
    assert rows["20"][0] == f"{data['terms'][19]:.6f}"


def test_batch_size_does_not_matter_and_the_seed_does(ddpm: Ddpm, tiny_run: Path, images: np.ndarray) -> None:
    def total(*options: str) -> float:
        done = ddpm("eval-bpd", "images.npy", "-m", tiny_run, "--json", *CPU, *options)
        return float(json.loads(done.stdout)["bits_per_dim"])

    assert total("--batch-size", "7") == pytest.approx(total("--batch-size", "64"), rel=1e-6)
    assert total("--seed", "1") != pytest.approx(total("--seed", "2"), rel=1e-6)


def test_limit_measures_the_first_images(ddpm: Ddpm, tiny_run: Path, images: np.ndarray) -> None:
    done = ddpm("eval-bpd", "images.npy", "-m", tiny_run, "--limit", "2", "--json", *CPU)
    data = json.loads(done.stdout)
    assert data["images"] == 2
    per_image = ddpm_cli.load(str(tiny_run), device="cpu", precision="fp32").bits_per_dim(images).per_image
    assert data["bits_per_dim"] == pytest.approx(per_image[:2].mean(), rel=1e-6)
    one = json.loads(ddpm("eval-bpd", "images.npy", "-m", tiny_run, "--limit", "1", "--json", *CPU).stdout)
    assert one["stderr"] is None


def test_images_are_brought_to_the_models_size(ddpm: Ddpm, tiny_run: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "large.npy", np.full((2, 20, 30, 3), 99, np.uint8))
    np.save(tmp_path / "small.npy", np.full((2, 8, 8, 1), 99, np.uint8))
    large, small = (
        json.loads(ddpm("eval-bpd", f"{name}.npy", "-m", tiny_run, "--json", *CPU).stdout)
        for name in ("large", "small")
    )
    assert large["bits_per_dim"] == small["bits_per_dim"]


@pytest.mark.parametrize(
    ("source", "code"), [("nowhere", 3), ("empty", 3), ("text.npy", 3), ("builtin:cats", 3), ("one.png", 3)]
)
def test_sources_that_cannot_be_used(ddpm: Ddpm, tiny_run: Path, tmp_path: Path, source: str, code: int) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npy").write_text("not an array")
    (tmp_path / "one.png").write_bytes(b"x")
    done = ddpm("eval-bpd", source, "-m", tiny_run)
    assert done.returncode == code
    assert source in done.stderr
    assert "Traceback" not in done.stderr
