"""Configurations refuse nonsense by name, survive JSON, and the presets are the published networks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm_cli.config import DiffusionConfig, TrainConfig, UNetConfig
from ddpm_cli.errors import ArgumentError, InputError
from ddpm_cli.training.presets import PRESETS, choose_preset, paper_preset
from helpers.models import GOOGLE_256, GOOGLE_CIFAR10

# What no field of any configuration may be.
NONSENSE: list[object] = [float("nan"), float("inf"), -float("inf"), -1, 10**400, "8 px", {"a": 1}, [[1]], [None], b"x"]
NOT_FOR_COUNTS: list[object] = [0, True, 1.0, 1.5, 10**9, "1"]
NOT_FOR_RATES: list[object] = [True, "0.1", 2]
NOT_FOR_SWITCHES: list[object] = [0, 1, "true", None]

UNET_EXTRA: dict[str, list[object]] = {
    "sample_size": [*NOT_FOR_COUNTS, [8], [8, 8, 8], [8, 0], [8, True], [8.0, 8], [[8], 8], 16385],
    "in_channels": [*NOT_FOR_COUNTS, None, 65],
    "out_channels": [*NOT_FOR_COUNTS, None, [3]],
    "center_input_sample": NOT_FOR_SWITCHES,
    "time_embedding_type": [None, "fourier", "Positional"],
    "time_embedding_dim": NOT_FOR_COUNTS,
    "freq_shift": [True, "1", None, 10**9, 112, [0]],
    "flip_sin_to_cos": NOT_FOR_SWITCHES,
    "down_block_types": [
        None,
        "DownBlock2D",
        [],
        ["DownBlock2D"] * 5,
        ["ResnetDownsampleBlock2D"] * 4,
        [["DownBlock2D"]],
    ],
    "mid_block_type": ["UNetMidBlock2DCrossAttn", 0, True],
    "up_block_types": [None, "UpBlock2D", ["UpBlock2D"] * 3, ["AttnUpBlock2D", "UpBlock2D", "DownBlock2D", 1]],
    "block_out_channels": [
        None,
        64,
        [],
        (64,) * 11,
        [64, 64, 64, 10**9],
        [64.0] * 4,
        [True] * 4,
        [[64]] * 4,
        ["64"] * 4,
    ],
    "layers_per_block": [*NOT_FOR_COUNTS, None, [2, 2, 2, 2], 33],
    "mid_block_scale_factor": [True, "1", 0, None, 10**9],
    "downsample_padding": [2, True, 0.0, None, "0"],
    "downsample_type": ["pool", None, 1],
    "upsample_type": ["nearest", None, 1],
    "dropout": [*NOT_FOR_RATES, None, 1, 1.0],
    "act_fn": ["tanh", "SiLU", None],
    "attention_head_dim": [*NOT_FOR_COUNTS, 449],
    "norm_num_groups": [*NOT_FOR_COUNTS, None, 3, 64],
    "attn_norm_num_groups": [*NOT_FOR_COUNTS, 3],
    "norm_eps": [*NOT_FOR_RATES, 0, None],
    "resnet_time_scale_shift": ["ada_group", None],
    "add_attention": NOT_FOR_SWITCHES,
    "class_embed_type": ["timestep", "identity", 0, False],
    "num_class_embeds": [10, 0, False],
    "num_train_timesteps": [*NOT_FOR_COUNTS, 10_001],
}
DIFFUSION_EXTRA: dict[str, list[object]] = {
    "timesteps": [*NOT_FOR_COUNTS, None, 10_001],
    "schedule": ["Linear", "sigmoid", None, 0],
    "beta_start": [*NOT_FOR_RATES, 0, 1, None],
    "beta_end": [*NOT_FOR_RATES, 0, 1, None],
    "predict": ["epsilon", None],
    "variance": ["fixed", None],
    "clip": NOT_FOR_SWITCHES,
}
TRAIN_EXTRA: dict[str, list[object]] = {
    "batch_size": [*NOT_FOR_COUNTS, None],
    "lr": [True, "0.1", 0, None, 10**4],
    "warmup": [True, 1.5, None, "0"],
    "ema": [*NOT_FOR_RATES, 1, 1.0, None],
    "ema_warmup": NOT_FOR_SWITCHES,
    "grad_clip": [True, 0, None],
    "flip": NOT_FOR_SWITCHES,
    "seed": [True, None, 1.0, 2**63],
    "loss": ["mse", None, 1],
    "precision": ["fp16", None, 32],
    "t_sampling": ["Uniform", None, 1],
}
CONFIGS: dict[type[UNetConfig] | type[DiffusionConfig] | type[TrainConfig], dict[str, list[object]]] = {
    UNetConfig: UNET_EXTRA,
    DiffusionConfig: DIFFUSION_EXTRA,
    TrainConfig: TRAIN_EXTRA,
}


def test_every_field_has_values_that_it_refuses() -> None:
    for cls in CONFIGS:
        assert set(CONFIGS[cls]) == set(cls.__dataclass_fields__)


def refusal(build: Callable[[], object]) -> str:
    """The message that something is refused with; empty if it is not."""
    try:
        build()
    except InputError as error:
        return str(error)
    return ""


def test_nonsense_is_refused_by_name_whether_built_or_read() -> None:
    for cls, field in ((cls, field) for cls, table in CONFIGS.items() for field in table):
        for value in [*NONSENSE, *CONFIGS[cls][field]]:
            for build in (partial(cls, **{field: value}), partial(cls.from_json, {field: value})):
                message = refusal(build)
                assert field in message, f"{field}={value!r}: {message or 'accepted'}"
                assert "must be" in message


def test_an_unknown_field_is_refused_with_those_that_are_known() -> None:
    for cls in CONFIGS:
        with pytest.raises(InputError, match="unknown field 'chanels'") as caught:
            cls.from_json({"chanels": 3})
        for field in cls.__dataclass_fields__:
            assert field in str(caught.value)


def test_json_that_is_no_object_is_refused() -> None:
    for cls in CONFIGS:
        for data in [[], ["timesteps"], "text", None, 3, [["seed", 1]]]:
            with pytest.raises(InputError, match="object"):
                cls.from_json(data)


def test_diffusers_notes_are_no_fields() -> None:
    notes = {"_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", "_name_or_path": 3}
    assert UNetConfig.from_json(notes) == UNetConfig()
    with pytest.raises(InputError, match="_note"):
        DiffusionConfig.from_json({"_note": 1})


unet_configs = st.builds(
    lambda size, channels, widths, groups, attend, **rest: UNetConfig(
        sample_size=size,
        in_channels=channels,
        out_channels=2 * channels,
        block_out_channels=tuple(groups * width for width in widths),
        norm_num_groups=groups,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attend[: len(widths)]),
        up_block_types=tuple("UpBlock2D" if a else "AttnUpBlock2D" for a in attend[: len(widths)]),
        attention_head_dim=None,
        freq_shift=0,
        **rest,
    ),
    size=st.none() | st.integers(1, 512) | st.tuples(st.integers(1, 512), st.integers(1, 512)),
    channels=st.integers(1, 32),
    widths=st.lists(st.integers(1, 12), min_size=1, max_size=10),
    groups=st.integers(1, 32),
    attend=st.lists(st.booleans(), min_size=10, max_size=10),
    dropout=st.floats(0, 1, exclude_max=True),
    act_fn=st.sampled_from(["silu", "swish", "mish", "gelu", "relu"]),
    add_attention=st.booleans(),
    norm_eps=st.floats(0, 1, exclude_min=True),
)
diffusion_configs = st.builds(
    DiffusionConfig,
    timesteps=st.integers(1, 10_000),
    schedule=st.sampled_from(["linear", "cosine"]),
    beta_start=st.floats(0, 1, exclude_min=True, exclude_max=True),
    beta_end=st.floats(0, 1, exclude_min=True, exclude_max=True),
    predict=st.sampled_from(["eps", "x0", "v"]),
    variance=st.sampled_from(["fixed-large", "fixed-small"]),
    clip=st.booleans(),
)
train_configs = st.builds(
    TrainConfig,
    batch_size=st.integers(1, 4096),
    lr=st.floats(1e-12, 10),
    warmup=st.integers(0, 10**6),
    ema=st.floats(0, 1, exclude_max=True),
    ema_warmup=st.booleans(),
    grad_clip=st.floats(0, 1e6, exclude_min=True),
    flip=st.booleans(),
    seed=st.integers(0, 2**63 - 1),
    precision=st.sampled_from(["fp32", "bf16"]),
    t_sampling=st.sampled_from(["uniform", "importance"]),
)


def test_importance_is_that_of_the_simple_loss() -> None:
    for loss in ["vlb", "hybrid"]:
        with pytest.raises(
            InputError, match=f"t_sampling is 'importance'; it must be uniform where the loss is {loss}"
        ):
            TrainConfig(loss=loss, t_sampling="importance")


@given(unet_configs | diffusion_configs | train_configs)
def test_a_configuration_survives_json(config: UNetConfig | DiffusionConfig | TrainConfig) -> None:
    assert type(config).from_json(json.loads(json.dumps(config.to_json()))) == config


# The published configurations on the Hub.
@pytest.mark.parametrize(
    ("name", "published", "variance"),
    [("cifar10", GOOGLE_CIFAR10, "fixed-large"), ("256", GOOGLE_256, "fixed-small")],
)
def test_the_papers_presets_are_the_published_networks(name: str, published: dict[str, Any], variance: str) -> None:
    side = published["sample_size"]
    ours = PRESETS[name].unet((side, side), 3)
    assert replace(ours, dropout=0.0) == UNetConfig.from_json(published)
    for field, value in published.items():
        if not field.startswith("_"):
            assert json.loads(json.dumps(ours.to_json()[field])) == value, field
    expected = DiffusionConfig(timesteps=1000, schedule="linear", beta_start=1e-4, beta_end=0.02, variance=variance)
    assert PRESETS[name].diffusion() == expected


def test_the_papers_presets_train_as_the_paper_did() -> None:
    cifar10, large = PRESETS["cifar10"], PRESETS["256"]
    paper = TrainConfig(batch_size=128, lr=2e-4, warmup=5000, ema=0.9999, ema_warmup=False, grad_clip=1.0, flip=True)
    assert cifar10.train == paper
    assert paper.t_sampling == "uniform"
    assert large.train == replace(paper, batch_size=64, lr=2e-5)
    assert (cifar10.dropout, large.dropout) == (0.1, 0.0)
    assert (cifar10.steps, large.steps) == (800_000, 500_000)


def test_a_preset_builds_a_network_for_any_size() -> None:
    for name in PRESETS:
        for channels in [1, 3, 4]:
            for size in [(1, 1), (7, 5), (8, 8), (16, 16), (28, 28), (32, 48), (64, 64), (96, 40), (256, 256)]:
                preset = PRESETS[name]
                network = preset.unet(size, channels)
                assert network.size == size
                assert (network.in_channels, network.out_channels) == (channels, channels)
                assert network.block_out_channels == preset.channels[: network.levels]
                # The way up mirrors the way down; attention is at one level at most, the first that is small enough.
                attends = [block == "AttnDownBlock2D" for block in network.down_block_types]
                assert [block == "AttnUpBlock2D" for block in network.up_block_types] == attends[::-1]
                small_enough = [min(size) / 2**level <= preset.attention for level in range(network.levels)]
                assert attends.count(True) == min(1, small_enough.count(True))
                assert attends.index(True) == small_enough.index(True) if any(attends) else True
                if preset.coarsest is not None:  # the small ones have as many levels as fit
                    network.check_size(size)


def test_tiny_has_as_many_levels_as_leave_four_pixels() -> None:
    for size, levels in [((8, 8), 2), ((16, 16), 3), ((32, 32), 4), ((64, 64), 4), ((28, 28), 3)]:
        assert PRESETS["tiny"].unet(size, 1).levels == levels


def test_the_size_of_a_network_is_height_and_width() -> None:
    assert UNetConfig(sample_size=32).size == (32, 32)
    assert UNetConfig(sample_size=(32, 48)).size == (32, 48)
    with pytest.raises(InputError, match="sample_size is null"):
        _ = UNetConfig().size


def test_check_size_names_the_nearest_size_that_fits() -> None:
    network = PRESETS["cifar10"].unet((32, 32), 3)  # 4 levels: multiples of 8
    for good in ((8, 8), (32, 32), (40, 8)):
        network.check_size(good)
    for bad, nearest in [((30, 32), "32x32"), ((28, 28), "32x32"), ((4, 9), "8x8"), ((1, 100), "8x96")]:
        with pytest.raises(InputError) as caught:
            network.check_size(bad)
        message = str(caught.value)
        assert f"{bad[0]}x{bad[1]} cannot be halved 3 times" in message
        assert f"`size={nearest}`," in message
        network.check_size(tuple(int(side) for side in nearest.split("x")))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "accelerated", "expected"),
    [
        ((8, 8), False, "tiny"),
        ((256, 256), False, "tiny"),
        ((8, 8), True, "small"),
        ((16, 40), True, "small"),
        ((32, 32), True, "cifar10"),
        ((64, 64), True, "cifar10"),
        ((64, 96), True, "256"),
        ((256, 256), True, "256"),
        ((28, 28), True, "small"),  # cannot be halved three times
        ((72, 72), True, "small"),  # cannot be halved five times
    ],
)
def test_auto_is_a_preset_that_suits_machine_and_images(
    size: tuple[int, int], accelerated: bool, expected: str
) -> None:
    assert choose_preset("auto", size, accelerated=accelerated) == expected
    PRESETS[expected].unet(size, 3).check_size(size)


def test_other_presets_stand_for_themselves_and_unknown_ones_are_refused() -> None:
    for name in PRESETS:
        assert choose_preset(name, (8, 8), accelerated=False) == name
    with pytest.raises(ArgumentError, match="`preset` is 'huge'") as caught:
        choose_preset("huge", (8, 8), accelerated=True)
    for name in ("auto", *PRESETS):
        assert name in str(caught.value)


def test_the_papers_preset_goes_by_the_larger_side() -> None:
    assert [paper_preset(size) for size in ((8, 8), (64, 64), (64, 65), (256, 256))] == ["cifar10"] * 2 + ["256"] * 2


@given(train_configs, st.integers(1, 10**7))
def test_the_learning_rate_grows_linearly_to_its_value(config: TrainConfig, step: int) -> None:
    assert config.lr_at(config.warmup + step) == config.lr
    if step < config.warmup:
        assert config.lr_at(step) == pytest.approx(config.lr * step / config.warmup)
    assert 0 < config.lr_at(1) <= config.lr


def test_the_papers_learning_rate() -> None:
    config = PRESETS["cifar10"].train
    assert [config.lr_at(step) for step in (1, 2500, 5000, 10**6)] == [4e-8, 1e-4, 2e-4, 2e-4]


@given(train_configs, st.integers(1, 10**7))
def test_the_ema_rate_never_exceeds_its_value(config: TrainConfig, step: int) -> None:
    rate = config.ema_at(step)
    assert 0 <= rate <= config.ema
    assert config.ema_at(step + 1) >= rate
    if not config.ema_warmup:
        assert rate == config.ema


def test_the_ema_rate_while_warming_up() -> None:
    config = TrainConfig(ema=0.9, ema_warmup=True)
    assert [config.ema_at(step) for step in (1, 10, 80, 1000)] == [2 / 11, 11 / 20, 0.9, 0.9]
    # Averaging with these rates forgets the start: its weight after n steps is the product of the rates.
    assert math.prod(TrainConfig(ema=0.9999).ema_at(step) for step in range(1, 501)) < 1e-15
