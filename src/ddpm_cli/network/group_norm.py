"""Group normalisation in float32, by whichever of the CPU's kernels is fast for an input, and always exact.

The CPU's kernels for channels_last compute the variance of a group as E[x^2] - E[x]^2, in float32: its relative error
grows with the square of the mean over the standard deviation, and the variance is lost altogether where that is 1000.
(Those for contiguous tensors, and the GPU's, subtract the mean first.) An input whose mean is large against its spread
is therefore normalised again without its mean, which changes neither the result nor its gradient.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

MANY_PIXELS = 32 * 32  # beyond which a norm is computed by channels on a CPU
LARGE_MEAN = 4  # standard deviations, from which on a mean is subtracted; those of trained networks stay below 2
WIDE_GROUP = 16  # channels, from which on its kernel for bfloat16 is fast
WIDE = 128  # channels, from which on a conversion takes no time beside the convolutions around it
AT_ONCE = 2**18  # numbers that are converted at once: they are still in the processor's cache when they are used


class _Frugal(torch.autograd.Function):
    """Group normalisation in float32 of an input in bfloat16 that is kept as it is for the gradient: half the bytes.

    What it takes in time is a second conversion to float32, unless the kernel for bfloat16 is taken (``fast``), which
    computes in float32 too. Its own gradient is slower than that of the kernel for float32 with its conversions.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, fast: bool) -> Tensor:
        y, mean, rstd, center = _normalized(x if fast else x.float(), weight, bias, groups, eps)
        ctx.save_for_backward(x, weight, mean, rstd, center)
        ctx.shape = x.shape[1], x.shape[2] * x.shape[3], groups
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd, center = ctx.saved_tensors
        if center is not None:
            x = x - center
        # The kernel takes it for granted that both are laid out alike.
        last = x.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        dx, d_weight, d_bias = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
        images = len(x) if torch.compiler.is_compiling() else max(1, AT_ONCE // x[0].numel())
        parts = (tensor.split(images) for tensor in (dx, grads[0], x, mean, rstd))
        for dx_part, dy_part, x_part, *moments in zip(*parts, strict=True):
            dy = dy_part.float().contiguous(memory_format=layout)
            shape = len(dy), *ctx.shape
            part, d_weight_part, d_bias_part = torch.ops.aten.native_group_norm_backward(
                dy, x_part.float(), *moments, weight, *shape, [True, True, True]
            )
            dx_part.copy_(part)
            d_weight += d_weight_part
            d_bias += d_bias_part
        return dx, d_weight, d_bias, None, None, None


def _normalized(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The kernel's result, mean and 1 / standard deviation, of x or of what is left of x after ``center`` is taken off.

    Args:
        x: (B, C, H, W), on a CPU.

    Returns:
        (y, mean, rstd, center); mean and rstd are (B, groups), center is None or float32 (B, C, 1, 1).
    """
    batch, channels, height, width = x.shape
    shape = batch, channels, height * width, groups
    y, mean, rstd = torch.native_group_norm(x, weight, bias, *shape, eps)
    if not _is_large(mean, rstd):
        return y, mean, rstd, None
    center = _of_channels(mean, channels)
    return *torch.native_group_norm(x.float() - center, weight, bias, *shape, eps), center


def _is_large(mean: Tensor, rstd: Tensor) -> bool:
    if torch.compiler.is_compiling():  # which cannot branch on numbers, and need not: its own variance does not cancel
        return False
    low, high = torch.aminmax(mean * rstd)  # with a small image, each operation that is saved is one in a hundred
    return max(high.item(), -low.item()) >= LARGE_MEAN


def _of_channels(mean: Tensor, channels: int) -> Tensor:
    """(B, C, 1, 1) of what is (B, groups), without a gradient: the result does not depend on what is taken off."""
    return mean.detach().repeat_interleave(channels // mean.shape[1], 1)[:, :, None, None]


class GroupNorm(nn.GroupNorm):
    """Group normalisation computed in float32 and returned in the precision of its input.

    The CPU's kernel for bfloat16 does that too, two to four times as fast as the one for float32 with its conversions;
    but it is up to five times slower where images are small and groups narrow.
    """

    def forward(self, x: Tensor) -> Tensor:
        settings = self.weight, self.bias, self.num_groups, self.eps
        if x.device.type != "cpu":
            # nn.GroupNorm refuses a single value per group, which is all that one small image may have at 1x1.
            return torch.group_norm(x.float(), self.num_groups, self.weight, self.bias, self.eps).to(x.dtype)
        _, channels, height, width = x.shape
        pixels = height * width
        if pixels > MANY_PIXELS:
            return self._by_channels(x.float()).to(x.dtype)
        if x.dtype == torch.float32:
            return _normalized(x, *settings)[0]
        fast = pixels == MANY_PIXELS or channels // self.num_groups >= WIDE_GROUP
        if x.dtype == torch.bfloat16 and (fast or channels >= WIDE):
            return cast(Tensor, _Frugal.apply(x, *settings, fast))  # type: ignore[no-untyped-call]
        return _normalized(x.float(), *settings)[0].to(x.dtype)

    def _by_channels(self, x: Tensor) -> Tensor:
        """The same from the mean and variance of each channel, which PyTorch adds up in many parts.

        The CPU's kernel for channels_last adds up all of a channel in one float32, and at 256x256 loses a digit or two
        of its seven even where the mean is 0.
        """
        groups = self.num_groups
        variance, mean = (each.reshape(len(x), groups, -1) for each in torch.var_mean(x, (2, 3), correction=0))
        group_mean = mean.mean(2, keepdim=True)
        group_variance = (variance + (mean - group_mean).square()).mean(2, keepdim=True)
        rstd = torch.rsqrt(group_variance + self.eps)
        if _is_large(group_mean, rstd):
            return self._by_channels(x - _of_channels(group_mean[..., 0], x.shape[1]))
        scale = rstd * self.weight.reshape(groups, -1)
        shift = self.bias.reshape(groups, -1) - group_mean * scale
        return torch.addcmul(shift.flatten(1)[:, :, None, None], x, scale.flatten(1)[:, :, None, None])
