"""``ddpm info``: what is said of a model, and whether it is what was published."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from ddpm_cli.config import UNetConfig
from ddpm_cli.models.published import PUBLISHED, TOLERANCE, Published, difference
from helpers.hub import environment, hub_files
from helpers.hub_server import serving
from helpers.models import GOOGLE_CIFAR10, random_unet
from helpers.process import Ddpm


def test_a_run_and_its_manifest(ddpm: Ddpm, tiny_run: Path) -> None:
    done = ddpm("info", tiny_run)
    assert done.returncode == 0, done.stderr
    rows = dict(re.split(r"  +", line, maxsplit=1) for line in done.lines)
    assert rows["model"] == str(tiny_run)
    assert rows["images"] == "8x8, grey"
    assert rows["parameters"] == "44,969"
    assert rows["trained for"] == "7 steps"
    assert rows["weights"] == "EMA, says its ddpm.json"
    assert rows["files"].endswith("all agree with MANIFEST.json")
    assert "origin" not in rows


def test_json_has_it_all(ddpm: Ddpm) -> None:
    data = json.loads(ddpm("info", "builtin:digits", "--json").stdout)
    assert data["model"] == "builtin:digits"
    assert data["parameters"] == sum(p.numel() for p in random_unet(UNetConfig.from_json(data["unet"]), 0).parameters())
    assert (data["step"], data["average"], data["start"], data["origin"]) == (3000, True, None, None)
    assert data["diffusion"]["timesteps"] == 1000
    assert data["warnings"] == []
    assert "verification" not in data


def test_without_a_model_it_is_about_the_one_that_is_meant(ddpm: Ddpm, tiny_run: Path) -> None:
    assert ddpm("info").lines[0].split() == ["model", "builtin:digits"]
    assert ddpm("info", env={"DDPM_MODEL": str(tiny_run)}).lines[0].split() == ["model", str(tiny_run)]


def test_an_altered_file_is_found(ddpm: Ddpm, tiny_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run") / "checkpoints" / "step-00000007"
    (run / "train" / "state.json").write_text("{}")
    done = ddpm("info", run)
    assert done.returncode == 3
    assert "state.json" in done.stderr


def test_what_was_published_is_compared_with(ddpm: Ddpm, tmp_path: Path) -> None:
    unet = random_unet(UNetConfig.from_json(GOOGLE_CIFAR10), 3)
    with serving() as hub:
        hub.put("google/ddpm-cifar10-32", hub_files(GOOGLE_CIFAR10, unet))
        hub.put("google/ddpm-mine", hub_files(GOOGLE_CIFAR10, unet))
        env = environment(hub)
        done = ddpm("info", "google/ddpm-cifar10-32", "--verify", env=env)
        assert done.returncode == 3
        assert "NOT as published: largest difference" in done.stdout.decode()
        assert "not known whether they are the EMA" in done.stdout.decode()
        assert "is not the network that was published" in done.stderr
        unasked = ddpm("info", "google/ddpm-cifar10-32", "--json", env=env)
        assert "warning: these seem to be the raw weights" in unasked.stderr
        data = json.loads(unasked.stdout)
        assert data["weights"].startswith("raw, by its name")
        assert data["checked"] == "all agree with the digests that the Hub lists"
        assert data["origin"].startswith("google/ddpm-cifar10-32@")
        assert data["parameters"] == 35_746_307
        other = ddpm("info", "google/ddpm-mine", "--verify", env=env)
        assert other.returncode == 2
        assert "no outputs were published for google/ddpm-mine" in other.stderr


def test_the_outputs_are_those_that_diffusers_would_have() -> None:
    from diffusers import UNet2DModel

    config = GOOGLE_CIFAR10 | {"block_out_channels": [32, 64, 64, 64]}
    unet = random_unet(UNetConfig.from_json(config), 3)
    theirs = UNet2DModel.from_config(config)
    theirs.load_state_dict(unet.state_dict())
    torch.manual_seed(0)
    with torch.inference_mode():
        logits = theirs.eval()(torch.randn(1, 3, 32, 32), torch.tensor([10])).sample[0, 0, 0, :30]
    assert difference(Published(False, tuple(logits.tolist())), unet) < 1e-5
    off = logits + torch.eye(30)[17] * 2 * TOLERANCE
    assert difference(Published(False, tuple(off.tolist())), unet) == pytest.approx(2 * TOLERANCE, rel=0.01)


def test_all_nine_are_known() -> None:
    assert len(PUBLISHED) == 9
    assert {len(published.outputs) for published in PUBLISHED.values()} == {8, 30}
    for repo, published in PUBLISHED.items():
        assert published.average == ("-ema-" in repo)


def test_a_folder_that_only_says_where_it_is_from_proves_nothing(ddpm: Ddpm, tiny_run: Path, tmp_path: Path) -> None:
    forged = tmp_path / "snapshots" / "x"
    shutil.copytree(tiny_run / "checkpoints" / "step-00000007", forged)
    shutil.rmtree(forged / "train")
    (forged / "MANIFEST.json").unlink()
    (forged / "ddpm.json").write_text(json.dumps({"schema": 1, "origin": "google/ddpm-cifar10-32@x"}))
    done = ddpm("info", forged)
    assert "no digests to compare them with" in done.stdout.decode()
    assert "by its name" not in done.stdout.decode()
    assert ddpm("info", forged, "--verify").returncode == 3
