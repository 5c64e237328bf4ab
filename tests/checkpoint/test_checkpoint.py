"""A checkpoint is read back as it was written, by us and by diffusers; damage and hostile files never pass."""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import random
import resource
import shutil
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ddpm_cli.checkpoint import (
    MODEL_FILES,
    Provenance,
    Snapshot,
    StoredModel,
    newest,
    publish,
    read_json,
    read_model,
    read_provenance,
    read_snapshot,
    save_model,
    verify,
)
from ddpm_cli.checkpoint.layout import DOCUMENTS, MAX_JSON_BYTES, WEIGHTS, describe
from ddpm_cli.config import DiffusionConfig, UNetConfig
from ddpm_cli.core.files import printable
from ddpm_cli.diffusion.process import Diffusion, p_theta, q_sample
from ddpm_cli.errors import ArgumentError, DdpmError, DiskError, InputError
from ddpm_cli.models.model import load
from ddpm_cli.network.unet import UNet, build, init_weights
from helpers.checkpoints import (
    DIFFUSION,
    FILES,
    HUB_SCHEDULER,
    NETWORK,
    SMALLEST,
    differences,
    old_name,
    random_snapshot,
)
from helpers.models import GOOGLE_CIFAR10
from helpers.nursery import Nursery


def random_unet(seed: int, config: UNetConfig) -> UNet:
    """A network in evaluation mode whose every weight matters."""
    generator = torch.Generator().manual_seed(seed)
    unet = build(config, "cpu").eval().requires_grad_(False)
    init_weights(unet, seed)
    for parameter in unet.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return unet


def runnable_snapshot(unet: UNet, step: int, diffusion: DiffusionConfig = DIFFUSION) -> Snapshot:
    """A snapshot of a network that can be run."""
    weights = unet.state_dict()
    return replace(random_snapshot(0, step, unet.config, diffusion), ema=weights)


def listing(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An empty run folder."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    return tmp_path / "run"


# Written and read back.


@pytest.mark.parametrize(
    ("seed", "unet"),
    [*enumerate([SMALLEST, NETWORK, replace(NETWORK, sample_size=(8, 16), in_channels=4, out_channels=4)])],
)
def test_what_is_published_is_read_back_bit_for_bit(run: Path, seed: int, unet: UNetConfig) -> None:
    rng = random.Random(seed)
    diffusion = DiffusionConfig(
        timesteps=rng.randint(1, 2000),
        schedule=rng.choice(["linear", "cosine"]),
        beta_start=rng.uniform(1e-6, 1e-3),
        beta_end=rng.uniform(1e-3, 0.5),
        predict=rng.choice(["eps", "x0", "v"]),
        variance=rng.choice(["fixed-large", "fixed-small"]),
        clip=rng.random() < 0.5,
    )
    snapshot = random_snapshot(seed, rng.randint(0, 10**7), unet, diffusion)
    folder = publish(run, snapshot, keep=3)
    assert folder == run / "checkpoints" / f"step-{snapshot.step:08d}"
    assert listing(folder) == sorted(FILES)
    assert verify(folder) == snapshot.step
    assert newest(run) == folder
    assert differences(read_snapshot(folder), snapshot) == []
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_step_beyond_eight_digits_is_still_the_newest(run: Path) -> None:
    for step in (99_999_999, 100_000_000):
        publish(run, random_snapshot(step, step), keep=3)
    assert newest(run) == run / "checkpoints" / "step-100000000"


def test_the_manifest_lists_every_other_file_with_its_size(run: Path) -> None:
    folder = publish(run, random_snapshot(1, 5), keep=1)
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    assert manifest["schema"] == 1
    assert manifest["step"] == 5
    sizes = {name: (folder / name).stat().st_size for name in FILES if name != "MANIFEST.json"}
    assert {name: entry["size"] for name, entry in manifest["files"].items()} == sizes


def test_files_are_readable_as_the_umask_says(run: Path) -> None:
    before = os.umask(0o027)
    try:
        folder = publish(run, random_snapshot(1, 5), keep=1)
    finally:
        os.umask(before)
    assert {(folder / name).stat().st_mode & 0o777 for name in FILES} == {0o640}


def test_publishing_a_step_again_changes_nothing(run: Path) -> None:
    snapshot = random_snapshot(1, 5)
    folder = publish(run, snapshot, keep=1)

    def state() -> dict[str, tuple[int, int]]:
        return {name: ((folder / name).stat().st_ino, (folder / name).stat().st_mtime_ns) for name in FILES}

    before = state()
    assert publish(run, random_snapshot(2, 5), keep=1) == folder
    assert state() == before
    assert differences(read_snapshot(folder), snapshot) == []


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign"])
def test_publishing_onto_a_damaged_checkpoint_replaces_it(run: Path, damage: str) -> None:
    folder = publish(run, random_snapshot(1, 5), keep=1)
    if damage == "cut":
        os.truncate(folder / "unet" / WEIGHTS, 100)
    else:
        shutil.rmtree(folder)
        folder.mkdir()
        if damage == "foreign":
            (folder / "notes.txt").write_text("mine")
    snapshot = random_snapshot(2, 5)
    assert publish(run, snapshot, keep=1) == folder
    assert differences(read_snapshot(folder), snapshot) == []
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


# Retention.


def test_the_newest_valid_checkpoints_are_kept_and_damaged_ones_do_not_count(run: Path) -> None:
    rng = random.Random(3)
    damaged, valid = set(), []
    for step in range(1, 13):
        folder = publish(run, random_snapshot(step, step), keep=3)
        valid.append(folder.name)
        there = {path.name for path in folder.parent.iterdir()}
        assert there == damaged | set(valid[-3:])
        valid = valid[-3:]
        if step in (4, 5, 9):
            victim = rng.choice(valid)
            valid.remove(victim)
            damaged.add(victim)
            os.truncate(run / "checkpoints" / victim / rng.choice(FILES), 7)


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_keep(run: Path, keep: int) -> None:
    for step in (2, 4, 6, 8):
        publish(run, random_snapshot(step, step), keep=keep)
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == [f"step-{step:08d}" for step in (2, 4, 6, 8)][-keep:]


def test_an_older_step_published_late_does_not_push_out_newer_ones(run: Path) -> None:
    for step in (10, 20, 5):
        publish(run, random_snapshot(step, step), keep=2)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000010", "step-00000020"]


# Damage is detected.


def test_no_checkpoint_yet(run: Path, tmp_path: Path) -> None:
    assert newest(run) is None
    assert newest(tmp_path / "nowhere") is None
    for stranger in ("step-", "step-x", "latest", ".tmp-step-00000001-7", "step-00000001.bak"):
        (run / "checkpoints" / stranger).mkdir()
    (run / "checkpoints" / "step-00000001").write_text("a file")
    assert newest(run) is None


def mutations(folder: Path, other: Path, name: str, rng: random.Random) -> Iterator[tuple[str, bytes | None]]:
    """Damaged contents of one file of a checkpoint; None is no file at all."""
    data = (folder / name).read_bytes()
    size = len(data)
    yield "missing", None
    # A manifest that has lost no more than its last line's end says all that it said.
    for cut in sorted({0, 1, size // 2, size - (2 if name == "MANIFEST.json" else 1)}):
        yield f"cut to {cut} bytes", data[:cut]
    yield "a byte appended", data + b"\0"
    yield "zeros of the same size", bytes(size)
    if (theirs := (other / name).read_bytes()) != data:
        yield "another step's", theirs
    header = range(min(size, 600) * 8)  # of a safetensors file, where a flip might go unnoticed
    bits = {0, size * 8 - 1, *rng.sample(header, 15), *(rng.randrange(size * 8) for _ in range(30))}
    for bit in sorted(bits):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit} flipped", bytes(flipped)


def test_no_damage_passes_and_the_previous_checkpoint_takes_over(
    run: Path, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    older = publish(run, random_snapshot(1, 4), keep=2)
    folder = publish(run, random_snapshot(2, 8), keep=2)
    rng = random.Random(seed)
    tried, undetected = 0, []
    for name in FILES:
        original = (folder / name).read_bytes()
        for what, data in mutations(folder, older, name, rng):
            (folder / name).unlink()
            if data is not None:
                (folder / name).write_bytes(data)
            caplog.clear()
            tried += 1
            if newest(run) != older:
                undetected.append(f"{name}: {what}")
                continue
            assert [record.levelno for record in caplog.records] == [logging.WARNING]
            assert "skipping a damaged checkpoint" in caplog.text
            # A flip in the manifest may be blamed on the file that it speaks of.
            assert str(folder if name == "MANIFEST.json" else folder / name) in caplog.text, f"{name}: {what}"
            (folder / name).write_bytes(original)
    assert undetected == [], f"seed {seed}"
    assert tried >= 300
    assert newest(run) == folder  # all damage was undone


def test_a_renamed_checkpoint_is_not_that_step(run: Path) -> None:
    older = publish(run, random_snapshot(1, 4), keep=2)
    publish(run, random_snapshot(2, 8), keep=2).rename(run / "checkpoints" / "step-00000009")
    assert newest(run) == older


def test_a_checkpoint_that_is_retired_while_it_is_looked_at_gives_way_to_the_newer_one(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = publish(run, random_snapshot(1, 4), keep=1)

    def verify_too_late(folder: Path, **how: Any) -> int:
        if folder == older:
            publish(run, random_snapshot(2, 8), keep=1)
        return verify(folder, **how)

    monkeypatch.setattr("ddpm_cli.checkpoint.store.verify", verify_too_late)
    assert newest(run) == run / "checkpoints" / "step-00000008"
    assert not older.exists()


@pytest.mark.parametrize(
    ("name", "value"), [("train/model.safetensors", math.nan), ("train/optimizer.safetensors", math.inf)]
)
def test_weights_that_are_not_finite_are_refused(run: Path, name: str, value: float) -> None:
    snapshot = random_snapshot(1, 4)
    tensors = snapshot.weights if "model" in name else snapshot.optimizer
    broken = [*tensors][3]
    tensors[broken].view(-1)[0] = value
    with pytest.raises(InputError, match=rf"{name}: tensor {broken} holds numbers that are not finite"):
        read_snapshot(publish(run, snapshot, keep=1))


def test_a_manifest_that_vouches_for_too_little_is_none(run: Path) -> None:
    older = publish(run, random_snapshot(1, 4), keep=2)
    folder = publish(run, random_snapshot(2, 8), keep=2)
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    some = {"unet/config.json": manifest["files"]["unet/config.json"]}
    changes: list[dict[str, object]] = [{"files": files} for files in ({}, some, ["unet/config.json"], None, 7, "all")]
    changes += [{"schema": schema} for schema in (2, "1", None, [1])]
    for change in changes:
        (folder / "MANIFEST.json").write_text(json.dumps(manifest | change))
        for hashed in (None, MODEL_FILES, ()):
            with pytest.raises(InputError, match="MANIFEST"):
                verify(folder, hashed=hashed)
            assert newest(run, hashed=hashed) == older, change


def test_only_the_files_that_are_read_are_hashed_but_the_sizes_of_all_are_compared(run: Path) -> None:
    older = publish(run, random_snapshot(1, 4), keep=2)
    folder = publish(run, random_snapshot(2, 8), keep=2)
    for name in FILES:
        if name == "MANIFEST.json":
            continue
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(bytes([data[0] ^ 1]) + data[1:])
        assert newest(run) == older, name
        assert newest(run, hashed=MODEL_FILES) == (folder if name.startswith("train/") else older), name
        assert newest(run, hashed=()) == folder, name
        (folder / name).write_bytes(data[:-1])
        assert newest(run, hashed=()) == older, name
        (folder / name).write_bytes(data)
    assert newest(run) == folder
    assert set(FILES) == {*MODEL_FILES, "MANIFEST.json"} | {name for name in FILES if name.startswith("train/")}


def test_it_fails_loudly_if_none_is_valid(run: Path) -> None:
    for step in (4, 8, 12):
        folder = publish(run, random_snapshot(step, step), keep=3)
        (folder / "train" / "state.json").write_text("{}")
    with pytest.raises(
        InputError, match=r"none of the 3 checkpoints .*step-00000012/train/state.json has 2 bytes"
    ) as caught:
        newest(run)
    assert caught.value.exit_code == 3


def test_a_file_that_cannot_be_read_is_damage_too(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    # /proc/self/mem is a regular file that answers the first read with EIO, as a dying disk does.
    older = publish(run, random_snapshot(1, 4), keep=2)
    folder = publish(run, random_snapshot(2, 8), keep=2)
    original = (folder / "MANIFEST.json").read_text()
    for name in FILES:
        if name != "MANIFEST.json":
            manifest = json.loads(original)
            manifest["files"][name]["size"] = 0
            (folder / "MANIFEST.json").write_text(json.dumps(manifest))
        (folder / name).rename(folder / "saved")
        (folder / name).symlink_to("/proc/self/mem")
        assert newest(run) == older
        assert str(folder / name) in caplog.text
        with pytest.raises(InputError, match="cannot be read"):
            verify(folder)
        (folder / name).unlink()
        (folder / "saved").rename(folder / name)
        (folder / "MANIFEST.json").write_text(original)


def test_a_pipe_in_place_of_a_file_does_not_hang(run: Path) -> None:
    older = publish(run, random_snapshot(1, 4), keep=2)
    folder = publish(run, random_snapshot(2, 8), keep=2)
    for name in FILES:
        (folder / name).rename(folder / "saved")
        os.mkfifo(folder / name)
        assert newest(run) == older
        with pytest.raises(InputError, match="is not a file"):
            verify(folder)
        if name not in ("MANIFEST.json", "model_index.json", "ddpm.json"):  # which a model need not have
            # Without unet/config.json it looks like a folder of the flat layout.
            what = r"/config\.json is missing" if name == "unet/config.json" else f"{name} is not a file"
            with pytest.raises(InputError, match=what):
                read_snapshot(folder)
        (folder / name).unlink()
        (folder / "saved").rename(folder / name)


# diffusers reads what we write, and we what it writes.


CASES = [
    (1, (8, 8), DIFFUSION),
    (3, (8, 8), replace(DIFFUSION, predict="v", variance="fixed-small")),
    (4, (8, 8), replace(DIFFUSION, schedule="cosine", clip=False)),
    (3, (8, 16), replace(DIFFUSION, predict="x0")),
    (1, (16, 8), replace(DIFFUSION, timesteps=1000, beta_start=2e-4, beta_end=0.03)),
]


@pytest.mark.parametrize(("channels", "size", "diffusion"), CASES)
def test_diffusers_loads_and_runs_what_was_published(
    run: Path, channels: int, size: tuple[int, int], diffusion: DiffusionConfig
) -> None:
    from diffusers import DDPMPipeline

    height, width = size
    sample_size = height if height == width else size
    config = replace(NETWORK, sample_size=sample_size, in_channels=channels, out_channels=channels, dropout=0.1)
    unet = random_unet(channels, config)
    folder = publish(run, runnable_snapshot(unet, 6, diffusion), keep=1)

    pipe = DDPMPipeline.from_pretrained(str(folder))
    pipe.set_progress_bar_config(disable=True)
    theirs = {name: pipe.unet.config[name] for name in config.to_json()}
    assert json.loads(json.dumps(theirs)) == json.loads(json.dumps(config.to_json()))
    x = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0, diffusion.timesteps - 1])
    torch.testing.assert_close(unet(x, t), pipe.unet.eval()(x, t).sample, rtol=0, atol=1e-5)

    ours = Diffusion.from_config(diffusion)
    alpha_bar = torch.from_numpy(ours.schedule.alpha_bar[1:]).float()
    torch.testing.assert_close(pipe.scheduler.alphas_cumprod, alpha_bar, rtol=1e-4, atol=1e-6)
    for step in range(1, diffusion.timesteps, 7):  # theirs counts from 0, and has no variance there
        variance = pipe.scheduler._get_variance(step).item()
        assert variance == pytest.approx(ours.sigma2[step + 1], rel=1e-3), step
    for step in (1, diffusion.timesteps // 2):
        theirs = pipe.scheduler.step(pipe.unet(x, step).sample, step, x).pred_original_sample
        mine = p_theta(ours, lambda x, t: unet(x, t - 1), x, np.array([step + 1] * 2)).x_0_hat
        torch.testing.assert_close(theirs, mine, rtol=1e-3, atol=1e-3)

    images = pipe(batch_size=2, num_inference_steps=2, output_type="np").images
    assert images.shape == (2, height, width, channels)
    assert np.isfinite(images).all()


def test_what_diffusers_saved_is_read_with_equal_outputs(tmp_path: Path) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(5)
    theirs = UNet2DModel(
        sample_size=(8, 16),
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        down_block_types=("AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D"),
        norm_num_groups=4,
    ).eval()
    DDPMPipeline(theirs, DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample")).save_pretrained(
        tmp_path
    )
    stored = read_model(tmp_path, "theirs")
    assert stored.diffusion == DiffusionConfig(schedule="cosine", predict="x0", variance="fixed-small")
    assert stored.unet.sample_size == (8, 16)
    ours = build(stored.unet, "cpu").eval()
    ours.load_state_dict(stored.weights)
    x, t = torch.randn(2, 3, 8, 16), torch.tensor([3, 800])
    with torch.inference_mode():
        torch.testing.assert_close(ours(x, t), theirs(x, t).sample, rtol=0, atol=1e-5)


# As google/ddpm-cifar10-32 has it, but narrower: its config.json, its flat layout and its old names of the attention.
HUB_CONFIG = GOOGLE_CIFAR10 | {"block_out_channels": [32, 64, 64, 64]}


def flat_folder(folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "scheduler_config.json").write_text(json.dumps(HUB_SCHEDULER))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / WEIGHTS)


def test_a_flat_folder_with_the_old_names_of_the_hub(tmp_path: Path) -> None:
    from diffusers import UNet2DModel

    unet = random_unet(2, UNetConfig.from_json(HUB_CONFIG))
    weights = unet.state_dict()
    old = {old_name(name): tensor for name, tensor in weights.items()}
    assert sum(name not in weights for name in old) == 8 * (2 + 1 + 3)  # weights and biases of 4 matrices
    flat_folder(tmp_path / "hub", HUB_CONFIG, old)

    model = load(str(tmp_path / "hub"), device="cpu", precision="fp32")
    assert model.diffusion_config == DiffusionConfig(variance="fixed-large")
    assert model.provenance == Provenance()
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = unet(x, torch.tensor([10]))
        theirs = UNet2DModel.from_pretrained(str(tmp_path / "hub")).eval().double()(x.double(), 10).sample
    torch.testing.assert_close(model.eps(x, torch.tensor([11])), expected, rtol=0, atol=0)
    torch.testing.assert_close(expected.double(), theirs, rtol=0, atol=1e-5)


def test_a_tensor_under_its_old_and_its_new_name_is_refused(tmp_path: Path) -> None:
    weights = random_unet(2, NETWORK).state_dict()
    name = next(name for name in weights if ".to_q." in name)
    config = {"_class_name": "UNet2DModel", **NETWORK.to_json()}
    flat_folder(tmp_path / "both", config, weights | {old_name(name): weights[name].clone()})
    with pytest.raises(InputError, match="old and its new name"):
        read_model(tmp_path / "both", "both")


def test_half_precision_weights_are_read_as_float32(tmp_path: Path) -> None:
    dtypes = cycle((torch.float16, torch.bfloat16))
    weights = {name: tensor.to(next(dtypes)) for name, tensor in random_unet(2, NETWORK).state_dict().items()}
    flat_folder(tmp_path / "half", {"_class_name": "UNet2DModel", **NETWORK.to_json()}, weights)
    stored = read_model(tmp_path / "half", "half")
    for name, tensor in stored.weights.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, weights[name].float())


# The scheduler's configuration, both ways.


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A folder of diffusers' layout, without a manifest, so that only what is in the files protects us."""
    (tmp_path / "models" / "checkpoints").mkdir(parents=True)
    folder = publish(tmp_path / "models", runnable_snapshot(random_unet(1, NETWORK), 3), keep=1)
    (folder / "MANIFEST.json").unlink()
    return folder.rename(tmp_path / "model")


def with_scheduler(folder: Path, config: object) -> DiffusionConfig:
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return read_model(folder, "m").diffusion


def test_every_diffusion_survives_the_scheduler_config(model_folder: Path) -> None:
    for schedule, predict, variance, clip in product(
        ("linear", "cosine"), ("eps", "x0", "v"), ("fixed-large", "fixed-small"), (True, False)
    ):
        diffusion = DiffusionConfig(50, schedule, 1e-3, 0.5, predict, variance, clip)
        written = describe(NETWORK, diffusion)["scheduler/scheduler_config.json"]
        assert with_scheduler(model_folder, written) == diffusion


def test_where_the_file_is_silent_diffusers_defaults_hold(model_folder: Path) -> None:
    from diffusers import DDPMScheduler

    full = dict(DDPMScheduler().config)
    assert with_scheduler(model_folder, {"_class_name": "DDPMScheduler"}) == with_scheduler(model_folder, full)
    assert with_scheduler(model_folder, {}) == DiffusionConfig(variance="fixed-small")


def test_schedulers_that_only_sample_differently_are_read(model_folder: Path) -> None:
    import diffusers

    for name in ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler"):
        scheduler = getattr(diffusers, name)(
            num_train_timesteps=500, beta_start=2e-4, beta_end=0.03, beta_schedule="linear"
        )
        scheduler.save_pretrained(model_folder / "scheduler")
        d = read_model(model_folder, "m").diffusion
        assert (d.timesteps, d.schedule, d.beta_start, d.beta_end, d.predict) == (500, "linear", 2e-4, 0.03, "eps")


def test_a_scheduler_that_is_not_ours_is_refused_by_field(model_folder: Path) -> None:
    fields: list[tuple[str, object]] = [
        ("beta_schedule", "scaled_linear"),
        ("beta_schedule", "sigmoid"),
        ("beta_schedule", ["linear"]),
        ("beta_schedule", None),
        ("prediction_type", "flow_prediction"),
        ("variance_type", "learned"),
        ("variance_type", {"a": 1}),
        ("trained_betas", [0.1, 0.2]),
        ("thresholding", True),
        ("clip_sample_range", 2.0),
        ("rescale_betas_zero_snr", True),
        ("num_train_timesteps", 10**9),
        ("num_train_timesteps", 2**63),
        ("num_train_timesteps", 0),
        ("num_train_timesteps", -1),
        ("num_train_timesteps", 10.0),
        ("num_train_timesteps", "1000"),
        ("num_train_timesteps", True),
        ("num_train_timesteps", [1000]),
        ("beta_start", 1e999),
        ("beta_end", -0.1),
        ("beta_end", "0.02"),
        ("clip_sample", 1),
        ("clip_sample", "yes"),
        ("beta_schedual", "linear"),
        ("\x1b[31mred", 1),
        ("_class_name", "EulerDiscreteScheduler"),
        ("_class_name", "\x1b[31mred"),
        ("_class_name", ["DDPMScheduler"]),
        ("_class_name", None),
    ]
    names = {"num_train_timesteps": "timesteps", "clip_sample": "clip"}
    for field, value in fields:
        text = json.dumps({**HUB_SCHEDULER, field: value}).replace("Infinity", "1e999")
        (model_folder / "scheduler" / "scheduler_config.json").write_text(text)
        with pytest.raises(InputError) as caught:
            read_model(model_folder, "m")
        message = str(caught.value)
        assert "scheduler_config.json" in message
        assert printable(names.get(field, field)) in message
        assert printable(message) == message


# Hostile files: refused at once, by name, in words that a terminal may show, and nothing they name is run.


def damaged_json() -> dict[str, bytes]:
    """Contents of a JSON file that are no configuration at all."""
    return {
        "empty": b"",
        "text": b"hello",
        "a git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
        "a web page": b"<!DOCTYPE html><html></html>",
        "NaN": b'{"dropout": NaN}',
        "Infinity": b'{"dropout": Infinity}',
        "minus Infinity": b'{"dropout": -Infinity}',
        "a list": b"[]",
        "a string": b'"UNet2DModel"',
        "null": b"null",
        "a number": b"1e999",
        "deep lists": b"[" * 100_000,
        "deep objects": b'{"a":' * 100_000,
        "too large": b'{"a": "' + b" " * MAX_JSON_BYTES + b'"}',
        "two MiB of lists": b"[" + b"[]," * (2**20 // 2) + b"[]]",
        "an endless number": b'{"sample_size": ' + b"9" * 100_000 + b"}",
        "not UTF-8": b'{"a": "\xff\xfe"}',
        "UTF-16": '{"a": 1}'.encode("utf-16"),
        "zeros": bytes(1000),
        "cut": b'{"sample_size": 8, ',
        "escape codes": b'{"\x1b[31m": 1}',
    }


@pytest.mark.parametrize("name", ["unet/config.json", "scheduler/scheduler_config.json"])
def test_what_is_no_configuration_is_refused(model_folder: Path, name: str) -> None:
    for what, data in damaged_json().items():
        (model_folder / name).write_bytes(data)
        with pytest.raises(InputError, match=name) as caught:
            read_model(model_folder, "m")
        message = str(caught.value)
        assert printable(message) == message, what
        assert len(message) < 1000, what


def absurd_configs() -> list[dict[str, Any]]:
    """Fields of a network that cannot be, each on its own."""
    numbers: tuple[Any, ...] = (10**9, 2**63, 10**30, -1, 0, 1.5, "32", [], {}, None, True)
    fields: list[dict[str, Any]] = [{"block_out_channels": value} for value in numbers]
    fields += [{"block_out_channels": [value, 16]} for value in numbers]
    fields += [{name: value} for name in ("in_channels", "layers_per_block", "norm_num_groups") for value in numbers]
    fields += [{"sample_size": value} for value in numbers if value is not None]
    fields += [{"attention_head_dim": value} for value in numbers if value is not None]
    fields += [
        {"block_out_channels": [4] * 100_000, "down_block_types": ["DownBlock2D"] * 100_000},
        {"down_block_types": ["os.system", "AttnDownBlock2D"]},
        {"down_block_types": "DownBlock2D"},
        {"up_block_types": [["UpBlock2D"], "UpBlock2D"]},
        {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"},
        {"class_embed_type": "timestep"},
        {"num_class_embeds": 10},
        {"act_fn": {"_target_": "os.system"}},
        {"time_embedding_type": "fourier"},
        {"_class_name": "UNet2DConditionModel"},
        {"_class_name": "os.system"},
        {"_class_name": {"evil": "Evil"}},
        {"unknown": 1},
        {"\x1b]0;owned\x07": 1},
        {"x" * 500_000: 1},
        {"act_fn": "\x1b[2J" * 100_000},
    ]
    return fields


def vast_configs() -> list[dict[str, Any]]:
    """Networks that are allowed, as large as can be: only their weights are not there."""
    down, up = ["AttnDownBlock2D"] * 10, ["AttnUpBlock2D"] * 10
    layers = {"layers_per_block": 32, "down_block_types": down, "up_block_types": up}
    return [{"block_out_channels": [8192, 8192]}, {"block_out_channels": [8192] * 10, "sample_size": 512, **layers}]


def tensor_headers(header: dict[str, Any]) -> dict[str, bytes]:
    """Contents of a weights file of the network with this header, each wrong in one way."""
    size = max(entry["data_offsets"][1] for entry in header.values())
    data = bytes(size)
    first, second = list(header)[:2]

    def file(changes: dict[str, Any] | str, body: bytes = data) -> bytes:
        text = changes if isinstance(changes, str) else json.dumps(header | changes)
        return struct.pack("<Q", len(text.encode())) + text.encode() + body

    def changed(**values: Any) -> bytes:
        return file({first: header[first] | values})

    plain = json.dumps(header)
    begin, end = header[first]["data_offsets"]
    return {
        "empty": b"",
        "seven bytes": bytes(7),
        "eight zeros": bytes(8),
        "a header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
        "a header of 2^64 - 1 bytes": struct.pack("<Q", 2**64 - 1) + b"{}",
        "a header longer than the file": struct.pack("<Q", 10_000) + b"{}",
        "a header of 2 MiB": file(plain[:-1] + " " * 2**21 + "}"),
        "a million empty tensors": file(json.dumps({str(i): 0 for i in range(10**6)})),
        "no JSON": file("x" * 100),
        "a list": file("[]"),
        "NaN": file("NaN"),
        "deep": file("[" * 500_000),
        "a name twice": file(plain[:-1] + f', "{first}": {json.dumps(header[first])}}}'),
        "a field twice": file(plain.replace('"dtype": "F32"', '"dtype": "F32", "dtype": "F32"', 1)),
        "a tensor missing": file(json.dumps({name: entry for name, entry in header.items() if name != first})),
        "a tensor more": file({"more": header[first]}),
        "a name with escape codes": file({"\x1b[31m\x07../../etc\0": header[first]}),
        "a name of 900 kB": file({"x" * 900_000: header[first]}),
        "integers": changed(dtype="I32"),
        "float64": changed(dtype="F64"),
        "no such dtype": changed(dtype="\x1b[31mF32"),
        "a dtype that is a list": changed(dtype=["F32"]),
        "half the bytes": changed(dtype="F16"),
        "another shape": changed(shape=[1, *header[first]["shape"]]),
        "a transposed shape": file({second: header[second] | {"shape": [*header[second]["shape"][::-1], 1]}}),
        "a huge shape": changed(shape=[0, 2**62]),
        "a negative shape": changed(shape=[-1]),
        "a long shape": changed(shape=[1] * 100_000),
        "a shape of text": changed(shape="\x1b[31m"),
        "an entry that is no object": file({first: [1, 2]}),
        "no entry": file({first: None}),
        "no offsets": file({first: {"dtype": "F32", "shape": header[first]["shape"]}}),
        "offsets beyond the file": changed(data_offsets=[begin + 2**40, end + 2**40]),
        "offsets reversed": changed(data_offsets=[end, begin]),
        "offsets overlapping": file({first: header[first] | {"data_offsets": header[second]["data_offsets"]}}),
        "offsets negative": changed(data_offsets=[-4, end]),
        "offsets of text": changed(data_offsets=["0", "4"]),
        "data missing": file({}, data[:-1]),
        "data to spare": file({}, data + b"\0"),
        "metadata that is no object": file({"__metadata__": 7}),
        "a git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 99\n",
        "a web page": b"<!DOCTYPE html><html><body>Not found</body></html>",
        "a pickle": pickle.dumps({"conv_in.weight": [1.0] * 100}),
        "a zip": b"PK\x03\x04" + bytes(1000),
        "gzip": b"\x1f\x8b\x08" + bytes(1000),
    }


def header_of(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    header: dict[str, Any] = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    header.pop("__metadata__", None)
    return header


def refusals(folder: str) -> None:
    """In a process of its own with little memory: try all hostile files, and print what came of each."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 2**20,) * 2)
    model = Path(folder)
    config, weights = model / "unet" / "config.json", model / "unet" / WEIGHTS
    outcomes = []

    def attempt(what: str) -> None:
        began = time.process_time()  # not of a busy machine
        try:
            read_model(model, "m")
        except InputError as error:
            outcomes.append((what, time.process_time() - began, str(error)))
        except BaseException as error:
            outcomes.append((what, 0, f"UNEXPECTED {type(error).__name__}: {error}"[:300]))
        else:
            outcomes.append((what, 0, "ACCEPTED"))

    original = config.read_text()
    for fields in absurd_configs():
        config.write_text(json.dumps(json.loads(original) | fields))
        attempt("config: " + json.dumps(fields)[:80])
    for fields in vast_configs():
        config.write_text(json.dumps(json.loads(original) | fields))
        attempt("vast: " + json.dumps(fields)[:80])
    config.write_text(original)
    for what, data in tensor_headers(header_of(weights)).items():
        weights.write_bytes(data)
        attempt("weights: " + what)
    print(json.dumps(outcomes))


def test_hostile_configs_and_weights_cost_neither_memory_nor_time(model_folder: Path, nursery: Nursery) -> None:
    child = nursery.call(refusals, str(model_folder))
    assert child.wait() == 0, child.stderr
    outcomes = json.loads(child.stdout)
    assert len(outcomes) > 120
    for what, seconds, message in outcomes:
        expected = "unet/config.json" if what.startswith("config") else "safetensors"
        assert expected in message, f"{what}: {message}"
        assert printable(message) == message, what
        assert len(message) < 1000, f"{what}: a message of {len(message)} characters"
        assert seconds < (5 if what.startswith("vast") else 1), f"{what}: {seconds:.1f} s"


def test_nothing_that_a_file_names_is_imported(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sentinel = model_folder / "imported"
    for place in (model_folder, model_folder / "unet", model_folder / "scheduler"):
        (place / "evil.py").write_text(f"from pathlib import Path\nPath({str(sentinel)!r}).touch()\nEvil = None\n")
        monkeypatch.syspath_prepend(place)
    index = {"_class_name": ["evil", "Evil"], "unet": ["evil", "Evil"], "scheduler": ["evil", "Evil"]}
    (model_folder / "model_index.json").write_text(json.dumps(index))
    load(str(model_folder), device="cpu")  # the two classes are known without it
    for name in ("unet/config.json", "scheduler/scheduler_config.json"):
        original = (model_folder / name).read_text()
        for extra in ({"_class_name": "evil.Evil"}, {"auto_map": {"AutoModel": "evil.Evil"}}, {"act_fn": "evil.Evil"}):
            (model_folder / name).write_text(json.dumps(json.loads(original) | extra))
            with pytest.raises(InputError, match=next(iter(extra))):
                load(str(model_folder), device="cpu")
        (model_folder / name).write_text(original)
    assert "evil" not in sys.modules
    assert not sentinel.exists()


class Payload:
    """Something whose pickle makes a folder when it is read."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.sentinel),)


def test_a_pickle_is_never_read(model_folder: Path, run: Path) -> None:
    sentinel = model_folder / "executed"
    payload = pickle.dumps(Payload(sentinel))
    pickle.loads(payload)  # it works
    sentinel.rmdir()
    names = ("diffusion_pytorch_model.bin", "pytorch_model.bin", "model.pt", "x.ckpt", "x.pkl", "optimizer.pt")
    for place in (model_folder, model_folder / "unet", model_folder / "scheduler"):
        for name in names:
            (place / name).write_bytes(payload)
    load(str(model_folder), device="cpu")
    (model_folder / "unet" / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"diffusion_pytorch_model.bin is a pickle"):
        load(str(model_folder), device="cpu")
    (model_folder / "unet" / WEIGHTS).write_bytes(payload)
    with pytest.raises(InputError, match="not a safetensors file"):
        load(str(model_folder), device="cpu")
    folder = publish(run, random_snapshot(1, 1), keep=1)
    for name in ("train/state.json", "train/model.safetensors", "train/optimizer.safetensors"):
        original = (folder / name).read_bytes()
        (folder / name).write_bytes(payload)
        with pytest.raises(InputError):
            read_snapshot(folder)
        (folder / name).write_bytes(original)
    assert not sentinel.exists()


def test_a_training_state_that_cannot_be_is_refused(run: Path) -> None:
    folder = publish(run, random_snapshot(1, 5), keep=1)
    good = {"step": 5, "loss_sum": 0.0, "loss_count": 0}
    for state in ({}, good | {"step": "5"}, good | {"loss_sum": None}, good | {"loss_count": 0.5}):
        (folder / "train" / "state.json").write_text(json.dumps(state))
        with pytest.raises(InputError, match=r"state\.json"):
            read_snapshot(folder)


def test_a_folder_with_a_missing_part_names_it(model_folder: Path) -> None:
    for name in ("unet/config.json", "scheduler/scheduler_config.json", f"unet/{WEIGHTS}"):
        (model_folder / name).rename(model_folder / "away")
        with pytest.raises(DdpmError, match=r"config\.json" if name == "unet/config.json" else f"{name} is missing"):
            load(str(model_folder), device="cpu")
        (model_folder / "away").rename(model_folder / name)


def test_read_json_reads_what_json_writes(tmp_path: Path) -> None:
    data = {"a": [1, 2.5, None, True, "ü\x1b"], "b": {"c": {}}}
    (tmp_path / "a.json").write_text(json.dumps(data))
    assert read_json(tmp_path / "a.json") == data
    with pytest.raises(InputError, match="missing"):
        read_json(tmp_path / "b.json")
    with pytest.raises(InputError):
        read_json(tmp_path)


def test_a_model_in_the_hubs_cache_is_made_of_links(model_folder: Path, tmp_path: Path) -> None:
    blobs, link = tmp_path / "blobs", tmp_path / "link"
    blobs.mkdir()
    for number, name in enumerate(listing(model_folder)):
        (link / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(model_folder / name, blobs / str(number))
        (link / name).symlink_to(blobs / str(number))
    x, t = q_sample(Diffusion.from_config(DIFFUSION).schedule, torch.zeros(1, 1, 8, 8), 5, torch.ones(1, 1, 8, 8)), 5
    ours, theirs = (load(str(folder), device="cpu").eps(x, torch.tensor([t])) for folder in (model_folder, link))
    assert torch.equal(ours, theirs)


# What is known of a model's past, and models that are saved by themselves.


def test_a_model_is_saved_whole_and_read_back_with_its_past(tmp_path: Path) -> None:
    past = Provenance(7, average=False, start="builtin:digits", origin="a.ckpt of pesser/pytorch_diffusion")
    model = StoredModel(SMALLEST, DIFFUSION, random_snapshot(1, 4).ema, "here", past)
    save_model(tmp_path / "model", model)
    assert listing(tmp_path) == ["model/" + name for name in sorted((*DOCUMENTS, f"unet/{WEIGHTS}"))]
    read = read_model(tmp_path / "model", "there")
    assert (read.unet, read.diffusion, read.provenance) == (SMALLEST, DIFFUSION, past)
    assert all(torch.equal(tensor, read.weights[name]) for name, tensor in model.weights.items())
    with pytest.raises(ArgumentError, match="model exists already"):
        save_model(tmp_path / "model", model)
    with pytest.raises(DiskError, match="there is no folder"):
        save_model(tmp_path / "no" / "model", model)


def test_a_past_that_is_not_understood_is_refused(tmp_path: Path) -> None:
    contents: list[dict[str, object]] = [{"schema": 2}, {"step": 3}]
    changes = ({"step": "3"}, {"step": True}, {"average": 1}, {"origin": ["x"]}, {"later": None})
    for content in [*contents, *({"schema": 1} | change for change in changes)]:
        (tmp_path / "ddpm.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=r"ddpm\.json"):
            read_provenance(tmp_path)


def test_a_model_is_known_by_a_name_without_folders() -> None:
    def named(source: str, **past: Any) -> str:
        return StoredModel(SMALLEST, DIFFUSION, {}, source, Provenance(**past)).identity

    assert named("/home/me/secret/run", step=5) == "a local model, step 5"
    assert named("/home/me/secret/run") == "a local model"
    assert named("builtin:digits", step=3000) == "builtin:digits"
    assert named("u/m", origin="u/m@0123") == "u/m@0123"
