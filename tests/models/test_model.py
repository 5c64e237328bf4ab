"""The Python API: every kind of model that can be named, and what a model answers."""

from __future__ import annotations

import logging
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel

import ddpm_cli as ddpm
from ddpm_cli.checkpoint import Snapshot, publish
from ddpm_cli.config import DiffusionConfig
from ddpm_cli.diffusion.schedule import from_config
from ddpm_cli.errors import ArgumentError, InputError
from ddpm_cli.evaluation import bits_per_dim
from ddpm_cli.models import model
from ddpm_cli.sampling import generate
from helpers.models import DIFFUSION, random_unet, tiny, write_model

UNET = random_unet(tiny(), 0)
RGB = random_unet(tiny(3, (4, 8)), 1)
STEPS = torch.tensor([1, 7, 20])


def load(folder: Path) -> ddpm.Model:
    return ddpm.load(str(folder), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as diffusers writes it. Not to be changed."""
    return write_model(tmp_path_factory.mktemp("nested"), UNET)


@pytest.fixture(scope="module")
def grey(nested: Path) -> ddpm.Model:
    """A model of 8x8 grey images."""
    return load(nested)


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> ddpm.Model:
    """A model of 4x8 RGB images."""
    return load(write_model(tmp_path_factory.mktemp("colour"), RGB))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with checkpoints of steps 3 and 12; the network of step 12 is UNET. Not to be changed."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "checkpoints").mkdir()
    for step, unet in ((3, random_unet(tiny(), 3)), (12, UNET)):
        ema, raw = unet.state_dict(), random_unet(tiny(), 100 + step).state_dict()
        moments = {f"{name}.{m}": torch.zeros_like(w) for name, w in raw.items() for m in ("exp_avg", "exp_avg_sq")}
        publish(folder, Snapshot(step, unet.config, DIFFUSION, ema, raw, moments, 0.0, 0), keep=2)
    return folder


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- the package ------------------------------------------------------------------------------------------------------


def test_every_public_name_is_there() -> None:
    for name in ddpm.__all__:
        assert getattr(ddpm, name).__name__ == name
        assert name in dir(ddpm)
    assert ddpm.load is model.load
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        ddpm.lode  # noqa: B018


# --- what a model may be ----------------------------------------------------------------------------------------------


def test_every_kind_of_folder_holds_the_same_model(run: Path, nested: Path, tmp_path: Path, grey: ddpm.Model) -> None:
    kinds = {
        "run": (run, 12),
        "checkpoint": (run / "checkpoints" / "step-00000012", 12),
        "nested": (nested, None),
        "flat": (write_model(tmp_path / "flat", UNET, flat=True), None),
        "copied checkpoint": (shutil.copytree(run / "checkpoints" / "step-00000012", tmp_path / "mine"), 12),
    }
    x_t = noise(0, 3, 1, 8, 8)
    for kind, (folder, step) in kinds.items():
        loaded = load(folder)
        assert loaded.provenance.step == step, kind
        assert loaded.source == str(folder)
        assert loaded.diffusion_config == DIFFUSION
        assert loaded.unet_config == UNET.config
        assert (loaded.eps(x_t, STEPS) == grey.eps(x_t, STEPS)).all(), kind
    older = load(run / "checkpoints" / "step-00000003")
    assert older.provenance.step == 3
    assert not (older.eps(x_t, STEPS) == grey.eps(x_t, STEPS)).any()


def test_a_run_is_its_newest_whole_checkpoint(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "checkpoints" / "step-00000012" / "scheduler" / "scheduler_config.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert load(copy).provenance.step == 3
    assert "step-00000012" in caplog.text


def test_the_model_that_comes_with_the_program(nested: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(model, "builtin_folder", lambda: nested)
    monkeypatch.chdir(tmp_path)
    assert ddpm.load("builtin:digits", device="cpu").source == "builtin:digits"
    monkeypatch.delenv("DDPM_MODEL", raising=False)
    assert ddpm.load(device="cpu").source == "builtin:digits"


def test_which_model_is_meant_where_none_is_named(
    nested: Path, run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DDPM_MODEL", raising=False)
    assert model.default_spec() == "builtin:digits"
    (tmp_path / "ddpm-out").write_text("a file is no run")
    assert model.default_spec() == "builtin:digits"
    (tmp_path / "ddpm-out").unlink()
    shutil.copytree(run, tmp_path / "ddpm-out")
    assert model.default_spec() == "ddpm-out"
    assert ddpm.load(device="cpu").provenance.step == 12
    monkeypatch.setenv("DDPM_MODEL", str(nested))
    assert model.default_spec() == str(nested)
    assert ddpm.load(device="cpu").provenance.step is None
    assert ddpm.load("ddpm-out", device="cpu").provenance.step == 12
    monkeypatch.setenv("DDPM_MODEL", "")
    assert model.default_spec() == "ddpm-out"


def test_folders_that_hold_no_model_are_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "young" / "checkpoints").mkdir(parents=True)
    ruined = shutil.copytree(run, tmp_path / "ruined")
    for weights in ruined.glob("checkpoints/*/unet/*.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-1])
    for name, message in {
        "nowhere": "there is no model .*nowhere",
        "builtin:cats": "it is not builtin:digits",
        "file": "is a file; a model is a folder",
        "empty": "holds no model",
        "young": "has no checkpoint yet",
        "ruined": "none of the 2 checkpoints",
        "ruined/checkpoints/step-00000012": "bytes; its manifest says",
    }.items():
        with pytest.raises(InputError, match=message):
            load(tmp_path / name if ":" not in name else Path(name))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out_channels": 2}, "out_channels is 2"),
        ({"time_embedding_type": "learned", "num_train_timesteps": 19}, "num_train_timesteps is 19"),
    ],
)
def test_networks_that_cannot_serve_this_diffusion_are_refused(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    folder = write_model(tmp_path, random_unet(replace(tiny(), **changes), 0))
    with pytest.raises(InputError, match=message):
        load(folder)


def test_a_network_without_an_image_size_is_refused_when_a_size_is_needed(tmp_path: Path) -> None:
    loaded = load(write_model(tmp_path, random_unet(replace(tiny(), sample_size=None), 0)))
    assert loaded.eps(noise(0, 3, 1, 4, 8), STEPS).shape == (3, 1, 4, 8)
    with pytest.raises(InputError, match="sample_size is null"):
        loaded.sample(1)


def test_devices_and_precisions(nested: Path, grey: ddpm.Model) -> None:
    for device in ("tpu", "meta", "cuda:99"):
        with pytest.raises(ArgumentError, match=device):
            ddpm.load(str(nested), device=device)
    half = ddpm.load(str(nested), device="cpu", precision="bf16")
    assert (grey.denoiser.precision, half.denoiser.precision) == ("fp32", "bf16")
    assert {p.dtype for p in half.denoiser.unet.parameters()} == {torch.float32}
    x_t = noise(1, 3, 1, 8, 8)
    rough, exact = half.eps(x_t, STEPS), grey.eps(x_t, STEPS)
    assert rough.dtype == torch.float32
    assert not (rough == exact).all()
    # bfloat16 has 8 bits, and each of a dozen layers rounds.
    assert (rough - exact).square().mean().sqrt() < 0.03 * exact.square().mean().sqrt()


def test_a_loaded_model_neither_trains_nor_drops_out(tmp_path: Path) -> None:
    loaded = load(write_model(tmp_path, random_unet(replace(tiny(), dropout=0.5), 0)))
    assert not any(parameter.requires_grad for parameter in loaded.denoiser.unet.parameters())
    x_t = noise(2, 3, 1, 8, 8)
    assert (loaded.eps(x_t, STEPS) == loaded.eps(x_t, STEPS)).all()


def test_description(run: Path, colour: ddpm.Model) -> None:
    parameters = sum(p.numel() for p in UNET.parameters()) / 1e6
    assert load(run).describe() == (
        f"8x8x1, {parameters:.1f} M parameters, trained for 12 steps; "
        f"T = 20, linear schedule (beta 0.0001 to 0.3), predicts eps, fixed-large variance; cpu, fp32"
    )
    assert colour.shape == (3, 4, 8)
    assert colour.describe().startswith("4x8x3, ")
    assert "trained" not in colour.describe()


# --- eps --------------------------------------------------------------------------------------------------------------


def test_eps_is_diffusers_network_asked_at_t_minus_1(nested: Path, grey: ddpm.Model) -> None:
    theirs = UNet2DModel.from_pretrained(nested, subfolder="unet", low_cpu_mem_usage=False)
    x_t = noise(3, 3, 1, 8, 8)
    eps = grey.eps(x_t, STEPS)
    assert eps.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(eps, theirs(x_t, STEPS - 1).sample, rtol=0, atol=1e-5)
        assert not torch.allclose(eps, theirs(x_t, STEPS).sample, atol=1e-3)


@pytest.mark.parametrize("predict", ["x0", "v"])
def test_eps_of_a_network_that_predicts_something_else(predict: str, grey: ddpm.Model, tmp_path: Path) -> None:
    other = load(write_model(tmp_path, UNET, replace(DIFFUSION, predict=predict)))
    x_t = 3 * noise(4, 3, 1, 8, 8)
    output, ab = grey.eps(x_t, STEPS), torch.from_numpy(from_config(DIFFUSION).alpha_bar)[STEPS].reshape(3, 1, 1, 1)
    assert output.abs().max() > 1  # so that clipping would show
    if predict == "x0":
        expected = (x_t - ab.sqrt() * output) / (1 - ab).sqrt()
    else:
        expected = ab.sqrt() * output + (1 - ab).sqrt() * x_t
    eps = other.eps(x_t, STEPS)
    assert eps.dtype == torch.float32
    torch.testing.assert_close(eps, expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("t", "message"),
    [
        (torch.tensor([0, 1, 2]), r"t is outside 1\.\.20"),
        (torch.tensor([1, 2, 21]), r"t is outside 1\.\.20"),
        (torch.tensor([1, 2]), r"must be int64 \(3,\)"),
        (torch.tensor(5), r"must be int64 \(3,\)"),
        (torch.tensor([[1], [2], [3]]), r"must be int64 \(3,\)"),
        (torch.tensor([1.0, 2.0, 3.0]), r"must be int64 \(3,\)"),
    ],
)
def test_eps_refuses_steps_that_are_none(t: torch.Tensor, message: str, grey: ddpm.Model) -> None:
    with pytest.raises(ArgumentError, match=message):
        grey.eps(noise(5, 3, 1, 8, 8), t)


# --- sample -----------------------------------------------------------------------------------------------------------


def test_samples_are_uint8_images_of_the_models_shape(grey: ddpm.Model, colour: ddpm.Model) -> None:
    for loaded, shape in ((grey, (3, 8, 8, 1)), (colour, (3, 4, 8, 3))):
        images = loaded.sample(3)
        assert images.shape == shape
        assert images.dtype == np.uint8
        assert images.std() > 10
        assert loaded.sample(0).shape == (0, *shape[1:])
        assert loaded.sample(0).dtype == np.uint8


def test_samples_are_a_function_of_seed_and_number(grey: ddpm.Model) -> None:
    images = grey.sample(6, seed=4)
    assert (grey.sample(6, seed=4) == images).all()
    assert (grey.sample(6, seed=4, batch_size=6) == images).all()
    assert not (grey.sample(6, seed=5) == images).all(axis=(1, 2, 3)).any()
    # In batches of another size the network's sums may be rounded otherwise, and a pixel on an edge then flips.
    for others in (
        grey.sample(6, seed=4, batch_size=4),
        np.concatenate([grey.sample(2, 4), grey.sample(4, 4, first=2)]),
    ):
        changes = np.abs(others.astype(int) - images)
        assert changes.max() <= 1
        assert changes.mean() <= 0.01


def test_a_sample_is_the_end_of_its_chain(grey: ddpm.Model) -> None:
    for settings in ({}, {"steps": 5}, {"sampler": "ddim"}, {"sampler": "ddim", "steps": 4, "eta": 0.7}):
        chain = list(grey.chain(ddpm.Sampling(seed=3, **settings), range(2)))
        assert len(chain) == settings.get("steps", 20)
        assert (grey.sample(2, 3, **settings) == generate.pixels_of(chain[-1].x_t)).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 21}, "`steps` is 21; this model has steps 1 to 20"),
        ({"eta": 0.5}, "`eta` belongs to `sampler=ddim`"),
        ({"sampler": "heun"}, "`sampler` is 'heun'"),
    ],
)
def test_sample_refuses_settings_that_make_no_sense(
    settings: dict[str, object], message: str, grey: ddpm.Model
) -> None:
    with pytest.raises(ArgumentError, match=message):
        grey.sample(1, **settings)


# --- bits/dim ---------------------------------------------------------------------------------------------------------


def test_bits_per_dim_of_an_array_or_of_images(colour: ddpm.Model) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 8, 3), np.uint8)
    bound = colour.bits_per_dim(pixels, seed=6)
    images = ddpm.Images.from_array(pixels)
    assert colour.bits_per_dim(images, seed=6).per_image.tolist() == bound.per_image.tolist()
    tally = bits_per_dim.PartialBound(bits_per_dim.Protocol(3, 20, seed=6))
    assert sum(colour.measure(images, tally, batch_size=64)) == 60
    expected = tally.bound(bits_per_dim.prior(colour.diffusion, images, 3))
    assert (bound.bits_per_dim, bound.stderr) == (expected.bits_per_dim, expected.stderr)
    assert bound.terms.tolist() == expected.terms.tolist()
    assert bound.rmse.tolist() == expected.rmse.tolist()
    np.testing.assert_allclose(colour.bits_per_dim(pixels, seed=6, batch_size=7).per_image, bound.per_image, rtol=1e-5)
    assert not np.isclose(colour.bits_per_dim(pixels, seed=7).per_image, bound.per_image, rtol=1e-4).any()
    assert colour.bits_per_dim(pixels[:1]).stderr is None


def test_the_network_that_returns_0_has_its_closed_form(tmp_path: Path) -> None:
    # A fresh network's last convolution is zero; see test_evaluate for the derivation.
    unet = random_unet(tiny(), 7)
    unet.conv_out.weight.zero_()
    unet.conv_out.bias.zero_()
    config = DiffusionConfig(timesteps=50, beta_end=0.2, clip=False)
    zero = load(write_model(tmp_path, unet, config))
    n, dimensions = 8, 64
    pixels = np.random.default_rng(1).integers(0, 256, (n, 8, 8, 1), np.uint8)
    bound = zero.bits_per_dim(pixels)
    s = from_config(config)
    weights = s.beta[2:] / (2 * s.alpha[2:] * (1 - s.alpha_bar[2:])) / math.log(2)
    ratio = s.beta_tilde[2:] / s.beta[2:]
    expected = (weights + (ratio - 1 - np.log(ratio)) / 2 / math.log(2)).sum()
    assert abs(bound.rate - expected) <= 5 * math.sqrt(2 / (n * dimensions) * (weights**2).sum())


@pytest.mark.parametrize("shape", [(2, 8, 4, 3), (2, 4, 8, 1), (2, 4, 8, 4), (2, 8, 8, 1)])
def test_images_that_do_not_fit_are_refused(shape: tuple[int, ...], colour: ddpm.Model) -> None:
    with pytest.raises(InputError, match=rf"the images are {shape[1]}x{shape[2]} with {shape[3]} .* makes 4x8 with 3"):
        colour.bits_per_dim(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    "pixels", [np.zeros((2, 4, 8, 3), np.float32), np.zeros((4, 8, 3), np.uint8), np.zeros((0, 4, 8, 3), np.uint8)]
)
def test_arrays_that_are_no_images_are_refused(pixels: np.ndarray, colour: ddpm.Model) -> None:
    with pytest.raises(InputError, match="images must be uint8"):
        colour.bits_per_dim(pixels)
