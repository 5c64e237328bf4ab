"""Checkpoints of other projects become models that compute the same; what cannot is refused by name."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline
from safetensors.torch import save_file
from torch import nn

from ddpm_cli.checkpoint import StoredModel, read_model, save_model
from ddpm_cli.checkpoint.layout import WEIGHTS
from ddpm_cli.config import DiffusionConfig
from ddpm_cli.convert import Options, convert
from ddpm_cli.errors import ArgumentError, DdpmError, InputError
from ddpm_cli.models.model import load
from ddpm_cli.network.unet import build
from helpers import foreign
from helpers.models import random_unet, tiny, write_model
from helpers.pickles import Payload, old_names
from helpers.process import Ddpm

TOLERANCE = 1e-5
LINEAR_250 = DiffusionConfig(250, beta_start=4e-4, beta_end=0.08, variance="fixed-large")


@dataclass(frozen=True)
class Case:
    """A network of another project, the options that its checkpoint needs, and what its diffusion is to be."""

    network: Callable[[], nn.Module]
    options: Options = field(default_factory=Options)
    size: tuple[int, int] = (32, 32)
    diffusion: DiffusionConfig = field(default_factory=lambda: DiffusionConfig(variance="fixed-large"))
    channels: int = 3


# The published networks, an eighth or a quarter as wide, and some whose every part differs from those.
CASES = {
    "improved-diffusion, CIFAR-10": Case(
        lambda: foreign.Openai(
            32, (1, 2, 2, 2), 3, (1, 2), heads=4, scale_shift=True, learn_sigma=True, t_scale=1000 / 4000
        ),
        Options(schedule="cosine", timesteps=4000),
        diffusion=DiffusionConfig(4000, "cosine", variance="learned-range"),
    ),
    "improved-diffusion, LSUN 256": Case(
        lambda: foreign.Openai(32, (1, 1, 2, 2, 4, 4), 2, (4,), learn_sigma=True),
        Options(heads=1),
        (256, 256),
        DiffusionConfig(variance="learned-range"),
    ),
    "improved-diffusion, T = 250": Case(
        lambda: foreign.Openai(mult=(1, 2), attention=(0, 1), t_scale=4),
        Options((16, 24), 1, timesteps=250),
        (16, 24),
        LINEAR_250,
    ),
    "guided-diffusion, t as it is": Case(
        lambda: foreign.Openai(mult=(1, 3), channels=1, heads=4, scale_shift=True),
        Options(timesteps=250, rescale_timesteps=False),
        diffusion=LINEAR_250,
        channels=1,
    ),
    "guided-diffusion, heads of one width": Case(
        lambda: foreign.Openai(mult=(1, 2, 3), attention=(1, 2), head_channels=16, scale_shift=True),
        Options(head_channels=16),
    ),
    "pesser, CIFAR-10": Case(lambda: foreign.Pesser(32, (1, 2, 2, 2), 2, (1,))),
    "pesser, 256": Case(
        lambda: foreign.Pesser(32, (1, 1, 2, 2, 4, 4), 2, (4,)),
        size=(256, 256),
        diffusion=DiffusionConfig(variance="fixed-small"),
    ),
    "pesser, two levels with attention": Case(
        lambda: foreign.Pesser(mult=(1, 2, 3), attention=(1, 2)),
        Options((64, 64)),
        (64, 64),
        DiffusionConfig(variance="fixed-small"),
    ),
    "pytorch-ddpm, CIFAR-10": Case(lambda: foreign.W86(32, (1, 2, 2, 2), 2, (1,))),
    "pytorch-ddpm, T = 250": Case(
        lambda: foreign.W86(mult=(1, 2), attention=(0,), T=250),
        Options((16, 16)),
        (16, 16),
        DiffusionConfig(250, variance="fixed-large"),
    ),
}
each_case = pytest.mark.parametrize("name", CASES)


def saved(path: Path, content: object, *, zipped: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def difference(network: nn.Module, model: StoredModel, x: torch.Tensor) -> float:
    """Largest difference between eps of another project's network and of ours, at the first t, the last, and one."""
    T = model.diffusion.timesteps
    unet = build(model.unet, "cpu").eval()
    unet.load_state_dict(model.weights)
    t = torch.tensor([0, T // 3, T - 1])
    with torch.inference_mode():
        theirs = network(x, t)
        assert theirs.std() > 0.1, "a network that does nothing"
        return float((unet(x, t) - theirs).abs().max())


def noise(seed: int, channels: int = 3, side: int = 32) -> torch.Tensor:
    return torch.randn(3, channels, side, side, generator=torch.Generator().manual_seed(seed))


def openai(**changes: Any) -> dict[str, torch.Tensor]:
    return foreign.randomise(foreign.Openai(**changes), 1).state_dict()


# The same numbers.


@each_case
def test_the_published_networks_compute_the_same(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    network = foreign.randomise(case.network(), 1)
    model = convert(saved(tmp_path / "x.pt", network.state_dict()), case.options, allow_pickle=True)
    assert model.unet.size == case.size
    assert model.diffusion == case.diffusion
    assert difference(network, model, noise(2, case.channels)) < TOLERANCE


@each_case
def test_diffusers_computes_the_same(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    network = foreign.randomise(case.network(), 3)
    save_model(
        tmp_path / "out", convert(saved(tmp_path / "x.pt", network.state_dict()), case.options, allow_pickle=True)
    )
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "out", low_cpu_mem_usage=False)
    assert pipeline.scheduler.config.num_train_timesteps == case.diffusion.timesteps
    x, t = noise(4, case.channels), torch.tensor([0, 99, case.diffusion.timesteps - 1])
    with torch.inference_mode():
        assert (pipeline.unet(x, t).sample - network(x, t)).abs().max() < TOLERANCE


@pytest.mark.parametrize("seed", range(12))
def test_random_small_networks_compute_the_same(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    mult = [1, *(rng.randint(1, 3) for _ in range(rng.randint(1, 3)))]
    levels = range(len(mult))
    shape: dict[str, Any] = {
        "width": rng.choice([32, 64]) if len(mult) < 3 else 32,
        "mult": mult,
        "layers": rng.randint(1, 3),
        "attention": rng.sample(levels, rng.randint(1, min(2, len(mult)))),
    }
    options = Options(size=(32, 32))
    project = rng.choice(["openai", "pesser", "w86"])
    if project == "openai":
        one_width = {mult[level] for level in [*shape["attention"], -1]} == {mult[-1]}
        heads = rng.choice([1, 2, 4]) if one_width else 1
        shape |= {"heads": heads, "scale_shift": rng.random() < 0.5, "learn_sigma": rng.random() < 0.5}
        options = Options(size=(32, 32), heads=heads)
    print(project, shape)  # shown if it fails
    classes = {"openai": foreign.Openai, "pesser": foreign.Pesser, "w86": foreign.W86}
    network = foreign.randomise(classes[project](**shape), seed)
    model = convert(saved(tmp_path / "x.pt", network.state_dict()), options, allow_pickle=True)
    assert difference(network, model, noise(seed)) < TOLERANCE


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_the_number_of_heads_matters(heads: int, tmp_path: Path) -> None:
    network = foreign.randomise(foreign.Openai(heads=heads), 1)
    path = saved(tmp_path / "x.pt", network.state_dict())
    for given in (1, 2, 4):
        equal = difference(network, convert(path, Options(heads=given), allow_pickle=True), noise(1)) < TOLERANCE
        assert equal == (given == heads)


# In which shapes a checkpoint may come.


@pytest.mark.parametrize("shape", ["zip", "before PyTorch 1.6", "DataParallel", "half", "double", "safetensors"])
def test_a_state_dict_is_read_in_many_shapes(shape: str, tmp_path: Path) -> None:
    network = foreign.randomise(foreign.Pesser(), 1)
    state = network.state_dict()
    path = tmp_path / "x.ckpt"
    if shape == "safetensors":
        path = tmp_path / "x.safetensors"
        save_file(state, path)
    elif shape == "DataParallel":
        saved(path, {f"module.{name}": tensor for name, tensor in state.items()})
    elif shape in ("half", "double"):
        dtype = {"half": torch.float16, "double": torch.float64}[shape]
        saved(path, {name: tensor.to(dtype) for name, tensor in state.items()})
    else:
        saved(path, state, zipped=shape == "zip")
    model = convert(path, Options(), allow_pickle=shape != "safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in model.weights.values())
    assert difference(network, model, noise(1)) < (1e-2 if shape == "half" else TOLERANCE)


def test_of_pytorch_ddpm_the_moving_average_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    training, average = (foreign.randomise(foreign.W86(), seed) for seed in (1, 2))
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(2))])
    content = {
        "net_model": training.state_dict(),
        "ema_model": average.state_dict(),
        "sched": torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0).state_dict(),
        "optim": optimizer.state_dict(),
        "step": 5000,
        "x_T": torch.zeros(2, 3, 48, 48),
    }
    model = convert(saved(tmp_path / "ckpt.pt", content), Options(), allow_pickle=True)
    assert difference(average, model, noise(1)) < TOLERANCE
    assert (model.provenance.step, model.provenance.average) == (5001, True)
    assert model.unet.size == (48, 48)
    assert convert(tmp_path / "ckpt.pt", Options((64, 64)), allow_pickle=True).unet.size == (64, 64)
    assert caplog.messages == []
    del content["ema_model"]
    model = convert(saved(tmp_path / "ckpt.pt", content), Options(), allow_pickle=True)
    assert difference(training, model, noise(1)) < TOLERANCE
    assert (model.provenance.step, model.provenance.average) == (5001, False)
    assert "no EMA" in caplog.text


@pytest.mark.parametrize(
    ("network", "name", "step", "average"),
    [
        (foreign.Openai, "ema_0.9999_500000.pt", 500_000, True),
        (foreign.Openai, "model500000.pt", 500_000, False),
        (foreign.Openai, "cifar10_uncond_50M_500K.pt", None, None),
        (foreign.Pesser, "ema_diffusion_cifar10_model/model-790000.ckpt", 790_000, True),
        (foreign.Pesser, "diffusion_lsun_church_model/model-4432000.ckpt", 4_432_000, False),
        (foreign.Pesser, "celeba.ckpt", None, None),
    ],
)
def test_names_of_files_say_what_they_hold(
    network: Callable[[], nn.Module], name: str, step: int | None, average: bool | None, tmp_path: Path
) -> None:
    path = saved(tmp_path / name, foreign.randomise(network(), 1).state_dict())
    past = convert(path, Options(heads=1) if network is foreign.Openai else Options(), allow_pickle=True).provenance
    assert (past.step, past.average) == (step, average)
    assert past.origin is not None
    assert past.origin.startswith(f"{path.name} of ")
    assert len(past.origin.rpartition("sha256 ")[2]) == 16
    assert "/tmp" not in past.origin


# What is said.


def warnings_of(caplog: pytest.LogCaptureFixture, path: Path, options: Options) -> str:
    caplog.clear()
    convert(path, options, allow_pickle=True)
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    return caplog.text


def test_what_is_assumed_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = saved(tmp_path / "x.pt", openai(learn_sigma=True))
    text = warnings_of(caplog, path, Options())
    assert "size 32, heads 4, schedule linear, timesteps 1000" in text
    text = warnings_of(caplog, path, Options(size=(16, 24), head_channels=16))
    assert "default: schedule linear, timesteps 1000." in text
    saved(path, openai())
    assert warnings_of(caplog, path, Options((32, 32), 4, None, "linear", 1000)) == ""
    assert "rescale_timesteps" in warnings_of(caplog, path, Options((32, 32), 4, None, "linear", 250))
    assert "as ema_*.pt" in warnings_of(caplog, saved(tmp_path / "model000100.pt", openai()), Options())


# What is refused.


def changed(state: dict[str, torch.Tensor], **changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """A state dict with tensors added, replaced or (None) taken away; "__" stands for a dot."""
    new = state | {name.replace("__", "."): tensor for name, tensor in changes.items()}  # type: ignore[arg-type]
    return {name: tensor for name, tensor in new.items() if tensor is not None}


REFUSED: dict[str, tuple[Callable[[], object], Options, str]] = {
    "classes": (lambda: openai(classes=10), Options(), "expressed as diffusers' UNet2DModel: classes"),
    "resblock_updown": (
        lambda: changed(openai(), output_blocks__1__1__in_layers__0__weight=torch.ones(64)),
        Options(),
        "resblock_updown",
    ),
    "heads of several widths": (
        lambda: openai(mult=(1, 2, 3), attention=(1, 2)),
        Options(),
        "4 heads are 16, 24 channels wide",
    ),
    "no attention, no size": (lambda: openai(attention=()), Options(heads=1), "give it with `size`"),
    "pesser's, two levels with attention": (
        lambda: foreign.Pesser(attention=(0, 1)).state_dict(),
        Options(),
        "give it with `size`",
    ),
    "another time embedding": (
        lambda: changed(foreign.W86().state_dict(), time_embedding__timembedding__0__weight=torch.ones(1000, 32)),
        Options(),
        "not the table of sin and cos",
    ),
    "conv_resample false": (
        lambda: {n: t for n, t in openai().items() if "input_blocks.2." not in n and "output_blocks.1.2." not in n},
        Options(heads=1),
        "input_blocks.3.0.in_layers.0.weight has no place in the paper's network",
    ),
    "super-resolution": (
        lambda: changed(openai(), input_blocks__0__0__weight=torch.ones(32, 6, 3, 3)),
        Options(heads=1),
        "out_channels is 3; it must be 6, for in_channels 6",
    ),
    "another tensor": (lambda: changed(openai(), more__weight=torch.ones(1)), Options(), "more.weight has no place"),
    "a tensor missing": (lambda: changed(openai(), out__2__bias=None), Options(heads=1), "conv_out.bias is missing"),
    "NaN": (lambda: changed(openai(), out__2__bias=torch.full((3,), torch.nan)), Options(), "not finite"),
    "integers": (lambda: changed(openai(), out__2__bias=torch.ones(3, dtype=torch.int8)), Options(), "dtype int8"),
    "narrow": (lambda: foreign_narrow(), Options(), "norm_num_groups is 32; it must be a divisor"),
    "diffusers": (lambda: dict(random_unet(tiny(), 1).state_dict()), Options(), "give the folder with both"),
    "something else": (lambda: {"epoch": 1, "state\x1b": {}}, Options(), r"it has epoch, state\\x1b, ..."),
    "a list": (lambda: [1, 2], Options(), "it holds no table of tensors"),
    "T of 10,000 in cosine's place": (lambda: openai(), Options(timesteps=15), "beta_end is 1.3"),
}


def foreign_narrow() -> dict[str, torch.Tensor]:
    """Tensors as of a network of 16 channels, which no norm of 32 groups has."""
    return {
        name: tensor[tuple(slice(0, (n + 1) // 2) if n >= 32 else slice(None) for n in tensor.shape)].clone()
        for name, tensor in foreign.Pesser().state_dict().items()
    }


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_expressed_is_refused_by_name(what: str, tmp_path: Path) -> None:
    content, options, message = REFUSED[what]
    path = saved(tmp_path / "x.pt", content())
    with pytest.raises(InputError, match=message) as caught:
        convert(path, options, allow_pickle=True)
    assert str(path) in str(caught.value) or what.startswith(("narrow", "T of"))


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (foreign.Pesser, Options(heads=1), "`heads` does not apply to a checkpoint of pesser"),
        (foreign.W86, Options(timesteps=5), "`timesteps` does not apply to a checkpoint of w86763777"),
        (foreign.Openai, Options(heads=1, head_channels=8), "both given"),
        (foreign.Openai, Options(heads=7), "7 heads do not divide 64 channels"),
        (foreign.Openai, Options(head_channels=7), "`head_channels` is 7, which does not divide 64 channels"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    network: Callable[[], nn.Module], options: Options, message: str, tmp_path: Path
) -> None:
    path = saved(tmp_path / "x.pt", network().state_dict())
    with pytest.raises(ArgumentError, match=message):
        convert(path, options, allow_pickle=True)


@pytest.mark.parametrize("network", [foreign.Openai, foreign.Pesser, foreign.W86])
def test_any_change_of_a_tensor_is_an_error_of_ours_or_none(network: Callable[[], nn.Module], tmp_path: Path) -> None:
    state = network().state_dict()
    rng = random.Random(0)
    for _ in range(80):
        name = rng.choice(list(state))
        shape = rng.choice([(), (0,), (2,), (1, 1), (96, 96), (3, 64, 3, 3), (1, 0, 3, 3), (1, 1, 1, 1, 1)])
        how = rng.choice(["shape", "drop", "rename"])
        new = {n: t for n, t in state.items() if how == "shape" or n != name}
        if how == "shape":
            new[name] = torch.zeros(shape)
        elif how == "rename":
            new[rng.choice([name + ".x", "x." + name, name[:-1], name.replace("0", "1")])] = state[name]
        try:
            convert(saved(tmp_path / "x.pt", new), Options(), allow_pickle=True)
        except DdpmError:
            pass
        except Exception as error:
            pytest.fail(f"{how} {name} {shape}: {type(error).__name__}: {error}")


# The command.


def test_a_round_trip_through_the_program(ddpm: Ddpm, tmp_path: Path) -> None:
    network = foreign.randomise(foreign.Openai(mult=(1, 1), t_scale=1000 / 200), 5)
    saved(tmp_path / "ema_0.9999_001000.pt", network.state_dict())
    done = ddpm(
        *("convert", "--allow-pickle", "ema_0.9999_001000.pt", "-o", "out"),
        *("--size", "8x16", "--heads", "1", "--timesteps", "200", "--schedule", "cosine"),
    )
    assert done.returncode == 0, done.stderr
    assert done.lines == ["out"]
    first, second, third = done.stderr.splitlines()
    assert first.startswith("warning: t is scaled to 0..1000")
    assert second.startswith("ema_0.9999_001000.pt of improved-diffusion or guided-diffusion, sha256 ")
    assert second.endswith(", step 1000, EMA weights")
    assert third.startswith("8x16x3, 0.3 M parameters, trained for 1,000 steps; T = 200, cosine schedule, ")
    done = ddpm("sample", "-m", "out", "-n", "2", "--sampler", "ddim", "--steps", "3", "-o", "x.npy")
    assert done.returncode == 0, done.stderr
    model = load(str(tmp_path / "out"), device="cpu", precision="fp32")
    x, t = noise(6)[:, :, :8, :16], torch.tensor([1, 77, 200])
    with torch.inference_mode():
        expected = network(x, t - 1)
        pipeline = DDPMPipeline.from_pretrained(tmp_path / "out", low_cpu_mem_usage=False)
        assert (model.eps(x, t) - expected).abs().max() < TOLERANCE
        assert (pipeline.unet(x, t - 1).sample - expected).abs().max() < TOLERANCE
    assert model.provenance.average


@pytest.mark.parametrize("flat", [True, False])
def test_a_folder_of_diffusers_with_a_pickle(ddpm: Ddpm, tmp_path: Path, flat: bool) -> None:
    unet = random_unet(tiny(), 1)
    folder = write_model(tmp_path / "a model", unet, flat=flat)
    weights = next(folder.rglob(WEIGHTS))
    weights.unlink()
    saved(weights.with_suffix(".bin"), old_names(dict(unet.state_dict())))
    refused = ddpm("sample", "-m", "a model")
    assert refused.returncode == 3
    assert "ddpm convert --allow-pickle 'a model' -o OUT" in refused.stderr
    refused = ddpm("convert", "a model", "-o", "out")
    assert refused.returncode == 3
    assert "only read when you allow it: --allow-pickle" in refused.stderr
    done = ddpm("convert", "a model", "-o", "out", "--allow-pickle")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("diffusion_pytorch_model.bin of diffusers, sha256 ")
    model = read_model(tmp_path / "out", "m")
    assert all(torch.equal(model.weights[name], tensor) for name, tensor in unet.state_dict().items())
    assert ddpm("convert", "a model", "-o", "more", "--allow-pickle", "--size", "8").returncode == 2


def test_a_folder_with_safetensors_needs_no_flag_and_keeps_its_past(tiny_run: Path, tmp_path: Path) -> None:
    model = convert(tiny_run / "checkpoints" / "step-00000007", Options())
    assert model.provenance.step == 7
    assert model.provenance.origin is not None
    save_model(tmp_path / "one", model)
    assert convert(tmp_path / "one", Options()).provenance == model.provenance


def test_nothing_is_opened_unasked(ddpm: Ddpm, tmp_path: Path) -> None:
    saved(tmp_path / "x.pt", {"a": torch.zeros(1)})
    done = ddpm("convert", "x.pt", "-o", "out", "--heads", "2")
    assert done.returncode == 3
    assert "only read when you allow it: --allow-pickle" in done.stderr
    with pytest.raises(InputError, match="`allow_pickle=true`"):
        convert(tmp_path / "x.pt", Options())
    sentinel = tmp_path / "executed"
    saved(tmp_path / "x.pt", Payload(sentinel))
    assert ddpm("convert", "x.pt", "-o", "out").returncode == 3
    with pytest.raises(InputError):
        convert(tmp_path / "x.pt", Options())
    assert not sentinel.exists()
    done = ddpm("convert", "x.pt", "-o", "out", "--allow-pickle")
    assert done.returncode == 3
    assert "names 'posix.mkdir', which no weights are made of" in done.stderr
    assert not sentinel.exists()
    assert not (tmp_path / "out").exists()


def test_a_pickle_that_claims_to_be_longer_than_memory(ddpm: Ddpm, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"\x80\x02\x8d" + (2**62).to_bytes(8, "little"))
    for flags in ((), ("--allow-pickle",)):
        done = ddpm("convert", "x.pt", "-o", "out", *flags)
        assert done.returncode == 3, done.stderr


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["missing.pt", "-o", "out"], 3, "there is no file missing.pt"),
        ([".", "-o", "out"], 3, "is a folder without a model of diffusers"),
        (["x.pt", "-o", "taken"], 2, "taken exists already"),
        (["x.pt", "-o", "no/where"], 7, "there is no folder no"),
        (["x.pt"], 2, "Missing option '-o'"),
        (["x.safetensors", "-o", "out"], 3, "not a safetensors file"),
        (["x.pt", "-o", "out", "--allow-pickle"], 3, "x.pt is no file of torch.save"),
        (["x.pt", "-o", "out"], 3, "x.pt is no file of torch.save"),
        (["x.pt", "-o", "x.safetensors/out"], 7, "x.safetensors is a file, not a folder"),
    ],
)
def test_errors_of_the_command(ddpm: Ddpm, tmp_path: Path, args: list[str], code: int, message: str) -> None:
    for name in ("x.pt", "x.safetensors"):
        (tmp_path / name).write_text("hello")
    (tmp_path / "taken").mkdir()
    done = ddpm("convert", *args)
    assert done.returncode == code
    assert message in done.stderr
    assert done.stdout == b""
    assert not (tmp_path / "out").exists()
