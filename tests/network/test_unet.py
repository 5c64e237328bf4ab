"""The U-Net equals diffusers' on the same weights, starts as the paper's code does, and keeps its memory layout."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_cli.config import UNetConfig
from ddpm_cli.errors import InputError
from ddpm_cli.network.attention import Attention
from ddpm_cli.network.dropout import draw_masks, kept
from ddpm_cli.network.embedding import sinusoids
from ddpm_cli.network.resblock import ResBlock
from ddpm_cli.network.unet import UNet, build, flops, init_weights, parameter_count
from ddpm_cli.training.presets import PRESETS
from helpers.models import GOOGLE_CIFAR10

aten = torch.ops.aten
CIFAR10 = PRESETS["cifar10"].unet((32, 32), 3)
SMALL = UNetConfig(
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(8, 16),
    layers_per_block=1,
    norm_num_groups=4,
    attention_head_dim=None,
)

CASES = 20
TOGETHER = 5  # of these in one test
# Each value is dealt equally often to the random configurations. Names that are no field are turned into some below.
CHOICES: dict[str, tuple[Any, ...]] = {
    "levels": (1, 2, 2, 3, 4),
    "groups": (1, 2, 3, 8),
    "heads": ("one", "any width", "a divisor"),
    "attention_groups": ("default", "default", "a divisor"),
    "in_channels": (1, 3, 4, 5),
    "out_channels": (1, 3, 4, 6),
    "center_input_sample": (False, True),
    "time_embedding_type": ("positional", "positional", "learned"),
    "time_embedding_dim": (None, 7, 24),
    "freq_shift": (0, 1, 0.5),
    "flip_sin_to_cos": (False, True),
    "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2D", "UNetMidBlock2D", None),
    "mid_block_scale_factor": (1, 0.7, 1.5),
    "add_attention": (True, True, False),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "downsample_padding": (0, 1),
    "act_fn": ("silu", "swish", "mish", "gelu", "relu"),
    "dropout": (0.0, 0.1, 0.4),
    "layers_per_block": (1, 2, 3),
    "norm_eps": (1e-6, 1e-5, 1e-3),
}


def random_config(case: int) -> tuple[UNetConfig, tuple[int, int]]:
    """A small configuration and an image size (height, width) for it, not always square."""
    fields: dict[str, Any] = {}
    for name, values in CHOICES.items():
        deck = np.random.default_rng(list(name.encode())).permutation(np.arange(CASES) % len(values))
        fields[name] = values[deck[case]]
    levels, groups = fields.pop("levels"), fields.pop("groups")
    rng = np.random.default_rng(case)
    widths = tuple(groups * int(k) for k in rng.integers(4 if groups < 3 else 2, 7, levels))
    divisors = [d for d in range(1, widths[-1]) if widths[-1] % d == 0]
    head_dims = {"one": None, "any width": int(rng.integers(1, min(widths) + 1)), "a divisor": groups}
    attention_groups = {"default": None, "a divisor": int(rng.choice(divisors))}
    height, width = (int(side) << (levels - 1) for side in rng.integers(2, 6, 2))
    config = UNetConfig(
        sample_size=(height, width),
        block_out_channels=widths,
        down_block_types=tuple(str(block) for block in rng.choice(["DownBlock2D", "AttnDownBlock2D"], levels)),
        up_block_types=tuple(str(block) for block in rng.choice(["UpBlock2D", "AttnUpBlock2D"], levels)),
        norm_num_groups=groups,
        attention_head_dim=head_dims[fields.pop("heads")],
        attn_norm_num_groups=attention_groups[fields.pop("attention_groups")],
        num_train_timesteps=1000 if fields["time_embedding_type"] == "learned" else None,
        **fields,
    )
    return config, (height, width)


def random_unet(config: UNetConfig, seed: int) -> UNet:
    """A network in evaluation mode, no weight of it at 0 or 1, whose activations stay near 1."""
    unet = build(config, "cpu").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / math.sqrt(parameter[0].numel()) if name != "time_proj.weight" else noise)
            else:
                parameter.copy_(0.1 * noise + float("norm" in name and name.endswith("weight")))
    return unet


def random_inputs(config: UNetConfig, size: tuple[int, int], batch: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, config.in_channels, *size, generator=generator)
    return x, torch.randint(0, 1000, (batch,), generator=generator)


def autocast(enabled: bool) -> contextlib.AbstractContextManager[object]:
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


@torch.no_grad()
def assert_equals_diffusers(config: UNetConfig, size: tuple[int, int], batch: int, seed: int) -> None:
    ours = random_unet(config, seed)
    with torch.device("meta"):
        theirs = UNet2DModel(**config.to_json()).eval()
    shapes = {key: value.shape for key, value in theirs.state_dict().items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == shapes
    # Copied into its own memory order: in ours (channels_last) its norms of large images would lose two digits.
    theirs.to_empty(device="cpu").load_state_dict(ours.state_dict(), strict=True)
    x, t = random_inputs(config, size, batch, seed)
    expected = theirs(x, t).sample
    got = ours(x, t)
    assert got.shape == expected.shape == (batch, config.out_channels, *size)
    assert 0.1 < expected.std() < 10, "the comparison means nothing for outputs that are tiny or huge"
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


# ---------------------------------------------------------------- the same network as diffusers'


@pytest.mark.parametrize(
    ("config", "size"),
    [
        pytest.param(CIFAR10, (32, 32), id="cifar10"),
        pytest.param(PRESETS["256"].unet((256, 256), 3), (256, 256), id="256"),
        pytest.param(UNetConfig.from_json(GOOGLE_CIFAR10), (32, 32), id="google/ddpm-cifar10-32"),
    ],
)
def test_published_networks_equal_diffusers(config: UNetConfig, size: tuple[int, int]) -> None:
    assert_equals_diffusers(config, size, batch=1, seed=0)


@pytest.mark.parametrize("first", range(0, CASES, TOGETHER))
def test_random_networks_equal_diffusers(first: int) -> None:
    for case in range(first, first + TOGETHER):
        config, size = random_config(case)
        print(case, size, config)
        assert_equals_diffusers(config, size, batch=2, seed=case)


def test_weights_go_both_ways() -> None:
    ours = random_unet(SMALL, 0)
    theirs = UNet2DModel(**SMALL.to_json())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value)


def test_random_configurations_are_varied() -> None:
    """The 20 comparisons above would prove little if they all drew the same branch."""
    drawn = [random_config(case) for case in range(CASES)]
    configs = [config for config, _ in drawn]
    for name in CHOICES.keys() & {field.name for field in dataclasses.fields(UNetConfig)}:
        assert {getattr(config, name) for config in configs} == set(CHOICES[name])
    assert any(height != width for _, (height, width) in drawn)
    assert {config.levels for config in configs} == set(CHOICES["levels"])
    assert any(config.block_out_channels[0] % 2 for config in configs)
    blocks = {block for config in configs for block in (*config.down_block_types, *config.up_block_types)}
    assert len(blocks) == 4
    heads = {config.attention_head_dim for config in configs}
    assert None in heads
    assert any(dim and any(c % dim for c in config.block_out_channels) for config in configs for dim in heads)
    resized = [
        r for config in configs for r in build(config, "meta").modules() if isinstance(r, ResBlock) and r.resample
    ]
    assert len(resized) > 5
    middles = [config for config in configs if config.mid_block_type and config.add_attention]
    norms = {(c.resnet_time_scale_shift, c.attn_norm_num_groups is None) for c in middles}
    assert norms >= {("default", True), ("scale_shift", True)}
    assert {null for _, null in norms} == {True, False}


def test_head_dim_is_bounded_by_the_levels_that_attend() -> None:
    """diffusers builds a head of 8 channels where only the level of 8 channels attends, and none that is wider."""
    config = dataclasses.replace(SMALL, block_out_channels=(4, 8), attention_head_dim=8)
    assert_equals_diffusers(config, (8, 8), batch=2, seed=0)
    with pytest.raises(InputError, match="attention_head_dim is 9"):
        dataclasses.replace(config, attention_head_dim=9)
    with pytest.raises(InputError, match="attention_head_dim is 8"):
        dataclasses.replace(config, down_block_types=("AttnDownBlock2D", "DownBlock2D"))


# ---------------------------------------------------------------- sizes


def test_size_that_cannot_be_halved_is_refused() -> None:
    for size in [(30, 32), (32, 30), (4, 8), (1, 1), (33, 33)]:
        config = dataclasses.replace(
            SMALL,
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownBlock2D",) * 4,
            up_block_types=("UpBlock2D",) * 4,
        )
        unet = random_unet(config, 0)
        with pytest.raises(InputError, match=re.escape(f"{size[0]}x{size[1]} cannot be halved 3 times")):
            unet(*random_inputs(config, size, 1, 0))


def test_a_single_pixel_is_an_image() -> None:
    """A group of one value is its own mean, so it is normalised to the norm's bias."""
    config = dataclasses.replace(
        SMALL, block_out_channels=(4,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)
    )
    unet = random_unet(config, 0)
    x, t = random_inputs(config, (1, 1), 2, 0)
    both = unet(x, t)
    assert both.shape == (2, 3, 1, 1)
    assert both.isfinite().all()
    torch.testing.assert_close(unet(x[:1], t[:1]), both[:1], rtol=0, atol=1e-5)


def test_images_of_a_batch_do_not_mix() -> None:
    unet = random_unet(SMALL, 3)
    x, t = random_inputs(SMALL, (8, 12), 3, 3)
    with torch.no_grad():
        together = unet(x, t)
        for i in range(3):
            torch.testing.assert_close(unet(x[i : i + 1], t[i : i + 1]), together[i : i + 1], rtol=0, atol=1e-5)
        assert (unet(x, t.flip(0)) - together).abs().max() > 1e-3, "the output must depend on t"


# ---------------------------------------------------------------- counting


def test_parameter_counts_of_the_paper() -> None:
    assert parameter_count(CIFAR10) == 35_746_307
    assert parameter_count(PRESETS["256"].unet((256, 256), 3)) == 113_673_219


def test_counting_allocates_nothing() -> None:
    """8e10 parameters would take 320 GB."""
    levels = 8
    config = UNetConfig(
        block_out_channels=(8192,) * levels,
        down_block_types=("AttnDownBlock2D",) * levels,
        up_block_types=("AttnUpBlock2D",) * levels,
        layers_per_block=2,
    )
    assert parameter_count(config) > 8e10
    assert flops(config, (1024, 1024)) > 1e17


def test_flops_are_those_of_the_layers() -> None:
    """2 x inputs of a number x numbers, summed over what really runs."""
    for case in [0, 1, 2, 3]:
        config, size = random_config(case)
        unet = random_unet(config, case)
        total = 0

        def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            nonlocal total
            if isinstance(module, nn.Conv2d | nn.Linear):
                total += 2 * output.numel() * module.weight[0].numel()
            elif isinstance(module, Attention):
                pixels = output.shape[2] * output.shape[3]
                total += 4 * pixels**2 * module.to_q.out_features

        for module in unet.modules():
            module.register_forward_hook(count)
        with torch.no_grad():
            unet(*random_inputs(config, size, 1, case))
        assert flops(config, size) == total


def test_flops_of_the_paper() -> None:
    """12.1 GFLOP in convolutions and linear layers; the six attentions' products of 256 and 16 pixels add to them."""
    products = 4 * 256 * (5 * 256**2 + 16**2)
    assert (flops(CIFAR10, (32, 32)) - products) / 1e9 == pytest.approx(12.1, abs=0.05)


# ---------------------------------------------------------------- start weights


def test_start_weights_follow_the_papers_code() -> None:
    config = dataclasses.replace(
        SMALL,
        block_out_channels=(64, 128),
        norm_num_groups=32,
        time_embedding_type="learned",
        num_train_timesteps=1000,
    )
    unet = build(config, "cpu")
    init_weights(unet, 5)
    seen = set()
    for name, parameter in unet.state_dict().items():
        if name == "time_proj.weight":
            assert abs(parameter.mean()) < 0.02
            assert parameter.std() == pytest.approx(1, abs=0.02)
        elif "norm" in name:
            assert (parameter == (1 if name.endswith("weight") else 0)).all()
        elif name.endswith("bias"):
            assert (parameter == 0).all()
        else:
            field = parameter[0, 0].numel()
            fan_average = (parameter.shape[0] + parameter.shape[1]) * field / 2
            near_zero = name == "conv_out.weight" or re.search(r"conv2\.weight|to_out", name) is not None
            bound = math.sqrt(3 * (1e-10 if near_zero else 1) / fan_average)
            assert 0.9 * bound < parameter.abs().max() <= bound, name
            assert parameter.std() == pytest.approx(bound / math.sqrt(3), rel=0.08), name
            seen.add((parameter.ndim, near_zero))
    assert seen == {(4, False), (4, True), (2, False), (2, True)}


def test_start_weights_give_outputs_near_zero() -> None:
    unet = build(CIFAR10, "cpu").eval()
    init_weights(unet, 0)
    with torch.no_grad():
        out = unet(*random_inputs(CIFAR10, (32, 32), 1, 0))
    assert 0 < out.abs().max() < 1e-3


def test_start_weights_depend_on_the_seed_alone() -> None:
    def weights(seed: int, global_seed: int, unet: UNet) -> dict[str, Tensor]:
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        init_weights(unet, seed)
        assert torch.equal(torch.get_rng_state(), state), "the global generator must stay untouched"
        return unet.state_dict()

    first = weights(1, 10, build(SMALL, "cpu"))
    again = weights(1, 20, UNet(SMALL))  # in the other memory layout
    other = weights(2, 10, build(SMALL, "cpu"))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["conv_in.weight"], other["conv_in.weight"])
    assert not torch.equal(first["down_blocks.0.resnets.0.conv1.weight"], first["up_blocks.1.resnets.1.conv1.weight"])


def test_build_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    build(SMALL, "cpu")
    assert torch.equal(torch.get_rng_state(), state)


def test_every_parameter_learns_in_its_own_layout() -> None:
    """A gradient in another memory order than its parameter's would be copied in each step."""
    for channels in [1, 3]:
        config = dataclasses.replace(SMALL, in_channels=channels, out_channels=channels)
        unet = build(config, "cpu")
        init_weights(unet, 0)
        unet(*random_inputs(config, (16, 16), 2, 0)).square().sum().backward()
        for name, parameter in unet.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
            assert parameter.grad.stride() == parameter.stride(), name
            if parameter.ndim == 4:
                assert parameter.is_contiguous(memory_format=torch.channels_last), name


# ---------------------------------------------------------------- dropout


def masks_of(unet: UNet, size: tuple[int, int], seeds: list[int], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    names = [(each,) for each in seeds]
    return draw_masks(unet.dropout_shapes(size), unet.config.dropout, 0, names, torch.device("cpu"), dtype)


def dropping(rate: float = 0.3, **fields: Any) -> UNet:
    return random_unet(dataclasses.replace(SMALL, dropout=rate, **fields), 0).train()


def test_dropout_is_a_function_of_the_seeds_of_the_images() -> None:
    unet = dropping()
    x, t = random_inputs(SMALL, (8, 8), 3, 0)

    def run(seeds: list[int], rows: slice = slice(None)) -> Tensor:
        state = torch.get_rng_state()
        out = unet(x[rows], t[rows], masks_of(unet, (8, 8), seeds[rows]))
        assert torch.equal(torch.get_rng_state(), state), "the global generator must stay untouched"
        return out

    whole = run([1, 2, 3])
    assert torch.equal(whole, run([1, 2, 3]))
    assert (whole - run([1, 2, 4])).abs().amax((1, 2, 3)).tolist()[:2] == [0, 0]
    assert (whole - run([1, 2, 4])).abs().max() > 1e-2
    parts = torch.cat([run([1, 2, 3], slice(0, 1)), run([1, 2, 3], slice(1, 3))])
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)


def test_without_masks_nothing_is_dropped() -> None:
    unet = dropping()
    inputs = random_inputs(SMALL, (8, 8), 2, 0)
    assert torch.equal(unet(*inputs), unet.eval()(*inputs))
    assert masks_of(random_unet(SMALL, 0), (8, 8), [1]) == []


def test_masks_keep_what_they_say() -> None:
    for rate in [0.0, 1e-7, 0.1, 0.5, 0.999, 1 - 1e-9]:
        masks = masks_of(dropping(rate), (64, 64), [0, 1, 2, 3])
        assert kept(rate) == pytest.approx(1 - rate, abs=2**-16)
        assert kept(rate) > 0
        for mask in masks:
            assert set(mask.unique().tolist()) <= {0.0, 1.0}
            deviation = math.sqrt(kept(rate) * (1 - kept(rate)) / mask.numel())
            assert mask.mean(dtype=torch.float64).item() == pytest.approx(kept(rate), abs=5 * deviation)


def test_dropout_drops_at_its_rate_and_keeps_the_mean() -> None:
    """Seen at the input of each residual block's second convolution: exact zeros, and the rest over 1 - rate."""
    for rate in [0.1, 0.5]:
        for amp in [False, True]:
            unet = dropping(rate)
            blocks = [module for module in unet.modules() if isinstance(module, ResBlock)]
            seen: list[Tensor] = []
            for block in blocks:
                block.conv2.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
            x, t = random_inputs(SMALL, (32, 32), 8, 0)
            with torch.no_grad(), autocast(amp):
                unet(x, t, masks_of(unet, (32, 32), [*range(8)], torch.bfloat16 if amp else torch.float32))
                dropped, seen[:] = list(seen), []
                unet.eval()(x, t)
            assert len(dropped) == len(blocks) == 8
            for values in dropped:
                zeros = (values == 0).float()
                assert zeros.mean() == pytest.approx(rate, abs=5 * math.sqrt(rate * (1 - rate) / values.numel()))
                assert (zeros[0] != zeros[1]).any(), "each image has its own mask"
            passed = dropped[0] != 0
            tolerance = 2**-7 if amp else 1e-6
            torch.testing.assert_close(dropped[0][passed], seen[0][passed] / kept(rate), rtol=tolerance, atol=0)
            assert ((dropped[2] == 0) != (dropped[3] == 0)).any(), (
                "each block, such as the two in the middle, has its own mask"
            )


def test_every_residual_block_of_a_random_network_drops() -> None:
    for case in range(CASES):
        config, size = random_config(case)
        print(case, size, config)
        unet = random_unet(dataclasses.replace(config, dropout=0.5), case).train()
        blocks = [module for module in unet.modules() if isinstance(module, ResBlock)]
        zeros: list[float] = []
        for block in blocks:
            block.conv2.register_forward_pre_hook(
                lambda _, inputs, zeros=zeros: zeros.append((inputs[0] == 0).float().mean().item())
            )
        masks = masks_of(unet, size, [*range(8)])
        unet(*random_inputs(config, size, 8, case), masks)
        assert len(masks) == len(zeros) == len(blocks)
        assert all(share > 0.25 for share in zeros)


# ---------------------------------------------------------------- memory layout and precision


class Recorder(TorchDispatchMode):
    """Notes each operation that copies, each new image-like result not in channels_last, and norms' precision."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[str] = []
        self.strays: list[str] = []
        self.norms: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (aten.clone.default, aten.copy_.default, aten._to_copy.default):
            self.copies.append(str(func))
        if func is aten.native_group_norm.default:
            self.norms.add(args[0].dtype)
        images = isinstance(result, Tensor) and result.ndim == 4 and min(result.shape[1:]) > 1
        if images and not func.is_view and not result.is_contiguous(memory_format=torch.channels_last):
            self.strays.append(f"{func} {tuple(result.shape)}")
        return result


def test_channels_last_and_float32_norms_are_kept() -> None:
    for case in [0, 3, 4, 7, 11]:
        for channels in [1, 3]:
            for amp in [False, True]:
                config, size = random_config(case)
                config = dataclasses.replace(config, in_channels=channels, dropout=0.1)
                unet = random_unet(config, 0).train()
                x, t = random_inputs(config, size, 2, 0)
                masks = masks_of(unet, size, [0, 1], torch.bfloat16 if amp else torch.float32)
                with torch.no_grad(), autocast(amp), Recorder() as recorder:
                    out = unet(x, t, masks)
                assert recorder.strays == []
                assert out.is_contiguous(memory_format=torch.channels_last)
                assert recorder.norms == {torch.float32}
                if not amp:  # autocast copies to change precision
                    expected = 1  # of the images into channels_last
                    expected += config.time_embedding_type == "positional"  # of t into float32
                    assert len(recorder.copies) == expected, recorder.copies


def test_time_waves_are_float32_under_autocast() -> None:
    t = torch.arange(1000)
    waves = sinusoids(t, CIFAR10)
    with autocast(True):
        assert torch.equal(sinusoids(t, CIFAR10), waves)
    assert waves.dtype == torch.float32
    assert waves.shape == (1000, 128)
    half = np.exp(-math.log(10_000) * np.arange(64) / 63)  # freq_shift 1: the last frequency is 1 / 10,000
    phases = np.arange(1000)[:, None] * half
    expected = np.concatenate([np.sin(phases), np.cos(phases)], axis=1)
    assert np.abs(waves.numpy() - expected).max() < 2e-4  # float32 phases up to 999


def test_bfloat16_is_near_float32() -> None:
    for case in [1, 5, 9]:
        config, size = random_config(case)
        unet = random_unet(config, case)
        x, t = random_inputs(config, size, 2, case)
        with torch.no_grad():
            full = unet(x, t)
            with autocast(True):
                half = unet(x, t)
        assert half.dtype == torch.bfloat16
        error = (half.float() - full).square().mean().sqrt() / full.std()
        assert 1e-4 < error < 0.05
