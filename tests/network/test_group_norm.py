"""Group normalisation on a CPU: as exact where the mean is large against the spread as where it is 0."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ddpm_cli.network.group_norm import GroupNorm

# Each path there is: groups narrow and wide, few and many pixels.
SHAPES = [(8, 8, 8), (64, 32, 32), (64, 8, 8), (128, 8, 8), (32, 33, 32), (16, 64, 64), (8, 256, 256)]


def case(
    shape: tuple[int, int, int], mean: float, dtype: torch.dtype, layout: torch.memory_format
) -> tuple[Tensor, ...]:
    """x, weight, bias and the gradient of the output; channels have means of their own, too."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, *shape, generator=generator) + 0.5 * torch.randn(1, shape[0], 1, 1, generator=generator) + mean
    weight, bias = torch.randn(2, shape[0], generator=generator)
    grad = torch.randn(x.shape, generator=generator).to(dtype)
    return x.to(dtype, memory_format=layout), weight, bias, grad.contiguous(memory_format=layout)


def value_and_gradients(x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    norm = GroupNorm(8, x.shape[1], 1e-6)
    with torch.no_grad():
        norm.weight.copy_(weight)
        norm.bias.copy_(bias)
    # PyTorch 2.13 ends in a segmentation fault where a channels_last input needs no gradient and weights do.
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = norm(x)
    assert y.dtype == x.dtype
    assert y.stride() == x.stride()
    return y.detach(), *torch.autograd.grad(y, (x, norm.weight, norm.bias), grad)


def exact_value_and_gradients(x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """By the definition, in float64 and contiguous memory."""
    x, weight, bias = (each.double().contiguous().requires_grad_() for each in (x, weight, bias))
    groups = x.reshape(len(x), 8, -1)
    centered = groups - groups.mean(2, keepdim=True)
    normalized = centered / (centered.square().mean(2, keepdim=True) + 1e-6).sqrt()
    y = normalized.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]
    return y.detach(), *torch.autograd.grad(y, (x, weight, bias), grad.double())


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_value_and_gradients_are_exact_whatever_the_mean(dtype: torch.dtype, layout: torch.memory_format) -> None:
    for shape in SHAPES:
        for mean in (0, 3, -30, 100, 1000):
            given = case(shape, mean, dtype, layout)
            found, exact = value_and_gradients(*given), exact_value_and_gradients(*given)
            # A bfloat16 has 8 bits, and so have the value and the gradient of x; the sums are float32 in both.
            # A mean of a few standard deviations costs a digit.
            image, sums = (2e-6, 2e-5) if mean == 0 else (1e-5, 1e-4)
            image = max(image, 2**-8) if dtype == torch.bfloat16 else image
            for ours, true, allowed in zip(found, exact, (image, image, sums, sums), strict=True):
                error = (ours.double() - true).abs().max() / true.abs().max()
                assert error < allowed, (shape, mean, error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_groups_of_one_value_give_the_bias(dtype: torch.dtype) -> None:
    for shape in [*SHAPES, (8, 1, 1)]:
        for value in (0.0, 1.0, 1000.0):
            x = torch.full((2, *shape), value, dtype=dtype).contiguous(memory_format=torch.channels_last)
            _, weight, bias, grad = case(shape, 0, dtype, torch.channels_last)
            y, gradient, *_ = value_and_gradients(x, weight, bias, grad)
            assert (y == bias.to(dtype)[:, None, None]).all(), (shape, value)
            assert gradient.isfinite().all()


def test_numbers_that_are_not_finite_stay_in_their_group() -> None:
    for bad in (float("nan"), float("inf")):
        x, weight, bias, grad = case((16, 8, 8), 0, torch.float32, torch.channels_last)
        x[0, 3, 2, 1] = bad
        y = value_and_gradients(x, weight, bias, grad)[0]
        assert y[0, 2:4].isnan().all()
        assert y[0, :2].isfinite().all()
        assert y[0, 4:].isfinite().all()
        assert y[1].isfinite().all()


def test_norms_keep_the_precision_of_their_input() -> None:
    norm = GroupNorm(4, 16, 1e-6)
    x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0)) + 3
    expected = torch.nn.functional.group_norm(x.bfloat16().float(), 4, eps=1e-6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(norm(x.bfloat16()), expected.bfloat16())
        assert norm(x).dtype == torch.float32
