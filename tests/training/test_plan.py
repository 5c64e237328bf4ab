"""The plan of a run: defaults by preset, and each option in its place."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from ddpm_cli.checkpoint import StoredModel
from ddpm_cli.config import DiffusionConfig, TrainConfig
from ddpm_cli.core.distributed import ALONE, World
from ddpm_cli.errors import ArgumentError, InputError
from ddpm_cli.network.denoiser import choose_precision
from ddpm_cli.training.memory import fit
from ddpm_cli.training.plan import Plan, TrainOptions, check, resumed
from ddpm_cli.training.presets import PRESETS
from ddpm_cli.training.record import Cadence, Computed, RunConfig, RunRecord
from helpers.models import DIFFUSION, random_unet, tiny
from helpers.plans import CPU, DIGEST, planned

MODEL = StoredModel(
    replace(tiny(3, (8, 16)), dropout=0.3),
    replace(DIFFUSION, schedule="cosine", predict="v"),
    random_unet(tiny(3), 1).state_dict(),
    "a/model",
)


def settings(config: RunConfig) -> dict[str, object]:
    parts = {"unet": config.unet, "diffusion": config.diffusion, "train": config.train}
    return {f"{part}.{name}": value for part, fields in parts.items() for name, value in asdict(fields).items()}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_decides_all_that_no_option_does(name: str) -> None:
    preset, size = PRESETS[name], (64, 32)
    made = planned((100, *size, 3), preset=name, precision="fp32")
    assert made.preset == name
    assert made.config == RunConfig(
        preset.unet(size, 3), preset.diffusion(), preset.train, DIGEST, (100, *size, 3), None
    )
    assert made.cadence.steps == preset.steps


def test_on_a_cpu_auto_is_what_shows_something_in_minutes() -> None:
    assert planned().preset == "tiny"
    assert planned().config == planned(preset="tiny").config


OPTIONS: tuple[tuple[str, object, str], ...] = (
    ("batch_size", 17, "train.batch_size"),
    ("lr", 0.25, "train.lr"),
    ("warmup", 0, "train.warmup"),
    ("ema", 0.0, "train.ema"),
    ("flip", False, "train.flip"),
    ("t_sampling", "uniform", "train.t_sampling"),
    ("seed", 12, "train.seed"),
    ("dropout", 0.0, "unet.dropout"),
    ("variance", "fixed-small", "diffusion.variance"),
    ("schedule", "cosine", "diffusion.schedule"),
    ("timesteps", 10, "diffusion.timesteps"),
)


def test_each_option_changes_its_setting_and_no_other() -> None:
    for shape, start in (((100, 32, 32, 3), None), ((9, 8, 16, 3), MODEL)):
        before = settings(planned(shape, start).config)
        for option, value, field in OPTIONS:
            assert settings(planned(shape, start, **{option: value}).config) == before | {field: value}


# A run that has begun.


def begun(made: Plan, cadence: Cadence | None = None, computed: Computed | None = None) -> RunRecord:
    return RunRecord(made.config, cadence, computed or Computed(), has_checkpoints=True)


def test_a_run_that_has_begun_is_what_it_was_on_any_machine_and_in_any_release(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = planned(lr=0.25, precision="bf16")
    record = begun(made, made.cadence)
    monkeypatch.setitem(PRESETS, "tiny", replace(PRESETS["small"], steps=7, train=replace(TrainConfig(), lr=3e-3)))
    for has_bf16 in (True, False):
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda has=has_bf16: {"avx512_bf16": has})
        for options in (TrainOptions(), TrainOptions(lr=0.25), TrainOptions(preset="tiny", precision="auto")):
            again = resumed(options, record, tmp_path)
            assert again.config == made.config
            assert again.cadence == made.cadence


def test_each_option_that_was_given_and_differs_is_named_with_both_values(tmp_path: Path) -> None:
    made = planned()
    record = begun(made)
    before = settings(made.config)
    for option, value, field in OPTIONS:
        resumed(TrainOptions(**{option: before[field]}), record, tmp_path)
        with pytest.raises(ArgumentError, match=re.escape(f"`{option}` was {before[field]} and is now {value}")):
            resumed(TrainOptions(**{option: value}), record, tmp_path)
    for name, value, was in (("size", (8, 16), "32x32"), ("channels", 1, "3"), ("start", "a/b", "None")):
        with pytest.raises(ArgumentError, match=f"`{name}` was {was} and is now"):
            resumed(TrainOptions(), record, tmp_path, **{name: value})
    with pytest.raises(ArgumentError, match="`preset` was tiny and is now small"):
        resumed(TrainOptions(preset="small"), record, tmp_path)


def test_how_long_and_how_often_may_change_and_are_kept_otherwise(tmp_path: Path) -> None:
    made = planned(steps=50, keep=7, log_every=3)
    again = resumed(TrainOptions(steps=60, max_time=5.0), begun(made, made.cadence), tmp_path)
    assert again.cadence == replace(made.cadence, steps=60, max_time=5.0)


def test_how_a_run_was_computed_is_kept_unless_asked_otherwise(tmp_path: Path) -> None:
    made = planned(batch_size=8)
    record = begun(made, computed=Computed(accumulate=4, recompute=True, compile=True))
    kept = resumed(TrainOptions(), record, tmp_path)
    execution = fit(kept, CPU, ALONE)
    assert (execution.accumulate, execution.recompute, execution.compile) == (4, True, True)
    asked = fit(resumed(TrainOptions(accumulate=2, compile=False), record, tmp_path), CPU, ALONE)
    assert (asked.accumulate, asked.compile) == (2, False)
    shared = fit(kept, CPU, World(0, 2))
    assert (shared.accumulate, shared.recompute) == (1, False), "other processes have other shares"


def test_t_is_drawn_by_importance_only_where_that_is_for() -> None:
    assert planned().config.train.t_sampling == "importance"
    assert planned(preset="cifar10").config.train.t_sampling == "uniform"
    assert planned(preset="cifar10", t_sampling="importance").config.train.t_sampling == "importance"
    others: tuple[dict[str, str], ...] = ({"predict": "v"}, {"loss": "vlb"}, {"variance": "learned-range"})
    for other in others:
        assert planned(**other).config.train.t_sampling == "uniform"
        with pytest.raises(ArgumentError, match="`t_sampling=importance` is made for the error of eps"):
            planned(**other, t_sampling="importance")
    before = settings(planned(t_sampling="uniform").config)
    assert settings(planned(predict="v").config) == before | {"diffusion.predict": "v"}


@pytest.mark.parametrize("diffusion", [{"predict": "eps"}, {"predict": "v"}, {"variance": "learned-range"}], ids=str)
def test_fine_tuning_draws_t_as_the_model_needs_it(diffusion: dict[str, str]) -> None:
    model = replace(
        MODEL,
        diffusion=replace(DiffusionConfig(), **diffusion),
        unet=replace(MODEL.unet, out_channels=6 if "variance" in diffusion else 3),
    )
    expected = "importance" if diffusion == {"predict": "eps"} else "uniform"
    assert planned((9, 8, 16, 3), model).config.train.t_sampling == expected


def test_precision_is_decided_by_the_machine_unless_asked() -> None:
    assert planned(precision="fp32").config.train.precision == "fp32"
    assert planned(precision="bf16").config.train.precision == "bf16"
    assert planned().config.train.precision == choose_precision("auto", CPU)
    assert planned(predict="mu").config.train.precision == "fp32"
    assert planned(predict="mu", precision="bf16").config.train.precision == "bf16"


def test_only_the_digits_are_not_mirrored_by_default() -> None:
    shape = (9, 8, 8, 1)
    assert planned(shape).config.train.flip is True
    assert planned(shape, source="builtin:digits").config.train.flip is False
    assert planned(shape, source="builtin:digits", flip=True).config.train.flip is True


def test_how_often_a_run_writes_follows_its_length() -> None:
    for steps in (1, 50, 2000, 10_000, 10_001, 800_000):
        cadence = planned(steps=steps).cadence
        assert cadence.steps == steps
        assert cadence.log_every == (10 if steps <= 10_000 else 100)
        assert cadence.save_every == cadence.sample_every == min(max(100, steps // 10), 5000)
        assert (cadence.keep, cadence.max_time) == (3, None)


def test_every_cadence_can_be_set_and_switched_off() -> None:
    for value in (0, 7):
        cadence = planned(log_every=value, save_every=value, sample_every=value, keep=5, max_time=1.5).cadence
        assert (cadence.log_every, cadence.save_every, cadence.sample_every) == (value, value, value)
        assert (cadence.keep, cadence.max_time) == (5, 1.5)


# Fine-tuning.


def test_the_model_decides_the_network_and_the_diffusion() -> None:
    config = planned((9, 8, 16, 3), MODEL).config
    assert config.unet == MODEL.unet
    assert config.diffusion == MODEL.diffusion
    assert config.start == "a/model"
    assert config.train.lr == 2e-4
    assert planned((9, 8, 16, 3), MODEL, lr=0.01).config.train.lr == 0.01


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (24, 8)])
def test_a_model_is_fine_tuned_at_the_size_of_the_images(size: tuple[int, int]) -> None:
    unet = planned((9, *size, 3), MODEL).config.unet
    assert unet.size == size
    assert replace(unet, sample_size=MODEL.unet.sample_size) == MODEL.unet


@pytest.mark.parametrize(
    ("shape", "start", "options", "error", "words"),
    [
        ((9, 8, 8, 1), MODEL, {}, InputError, ["1 channel(s)", "a/model 3", "`channels=3`"]),
        ((9, 9, 8, 3), MODEL, {}, InputError, ["9x8", "`size="]),
        ((9, 28, 28, 3), None, {"preset": "cifar10"}, InputError, ["28x28", "`size="]),
        ((9, 8, 8, 3), None, {"preset": "huge"}, ArgumentError, ["`preset`", "huge", "cifar10"]),
        ((9, 8, 8, 3), None, {"lr": -1.0}, ArgumentError, ["lr is -1.0"]),
        ((9, 8, 8, 3), None, {"lr": float("nan")}, ArgumentError, ["lr is nan"]),
        ((9, 8, 8, 3), None, {"batch_size": 4, "accumulate": 5}, ArgumentError, ["`accumulate` is 5"]),
        ((9, 8, 8, 3), None, {"timesteps": 10**9}, ArgumentError, ["timesteps is 1000000000"]),
        ((9, 8, 8, 3), None, {"dropout": 1.0}, ArgumentError, ["dropout is 1.0"]),
    ],
)
def test_what_does_not_go_together_is_refused(
    shape: tuple[int, int, int, int],
    start: StoredModel | None,
    options: dict[str, Any],
    error: type[Exception],
    words: list[str],
) -> None:
    with pytest.raises(error) as caught:
        planned(shape, start, **options)
    for word in words:
        assert word in str(caught.value)


def test_a_network_that_learned_its_steps_has_no_more_of_them() -> None:
    learned = StoredModel(
        replace(tiny(), time_embedding_type="learned", num_train_timesteps=20), DIFFUSION, {}, "learned"
    )
    assert planned((9, 8, 8, 1), learned, timesteps=15).config.diffusion.timesteps == 15
    with pytest.raises(ArgumentError, match=r"`timesteps` is 21; .* 20"):
        planned((9, 8, 8, 1), learned, timesteps=21)


def test_a_preset_and_a_model_exclude_each_other() -> None:
    with pytest.raises(ArgumentError, match="`preset` and `start`"):
        check(TrainOptions(preset="tiny"), MODEL)
