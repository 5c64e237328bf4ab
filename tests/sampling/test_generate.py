"""Images of a seed: each is its own, whatever is made with it, and its noise has a name that stays."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ddpm_cli.core import rng
from ddpm_cli.diffusion.process import Diffusion
from ddpm_cli.diffusion.schedule import linear
from ddpm_cli.diffusion.spacing import spaced_steps
from ddpm_cli.errors import ArgumentError
from ddpm_cli.network.denoiser import NetworkDenoiser
from ddpm_cli.sampling.generate import batches, chain, last, pixels_of, visited
from ddpm_cli.sampling.settings import Sampling
from helpers.models import random_unet, tiny

CPU = torch.device("cpu")
SHAPE = (3, 4, 6)
D = Diffusion(linear(20, 0.01, 0.3))
SAMPLINGS = [
    Sampling(),
    Sampling(seed=20201123),
    Sampling(steps=7, seed=1),
    Sampling("ddim", steps=7, eta=0.5, seed=2),
    Sampling("ddim", seed=3),
    Sampling("dpm++", steps=5, seed=4),
    Sampling("langevin", steps=5, corrector_steps=2, snr=0.2, seed=5),
]


def each_pixel(x_t: Tensor, t: Tensor) -> Tensor:
    """A network without sums, so that no order of adding can change a bit."""
    return 0.9 * x_t + 0.3 * torch.sin(3 * x_t + t.reshape(-1, 1, 1, 1))


def images(sampling: Sampling, indices: list[int] | range, d: Diffusion = D) -> Tensor:
    return last(chain(each_pixel, d, sampling, SHAPE, indices, CPU)).x_t


# --- an image is a function of its seed and number --------------------------------------------------------------------


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_an_image_does_not_depend_on_the_others_nor_on_their_order(sampling: Sampling) -> None:
    together = images(sampling, range(6))
    for indices in ([4], [5, 0], [3, 3, 1], [2, 1000, 4]):
        some = images(sampling, indices)
        for row, index in enumerate(indices):
            if index < 6:
                assert some[row].numpy().tobytes() == together[index].numpy().tobytes()
    assert len({row.numpy().tobytes() for row in together}) == 6


@pytest.mark.parametrize("sampling", [Sampling(seed=5), Sampling("ddim", steps=10, seed=5)], ids=str)
def test_with_a_network_batches_change_no_more_than_a_rounding(sampling: Sampling) -> None:
    # The convolutions of one image are added up in another order in another batch: 1e-6 at a step, 1e-5 at the end.
    # A level of uint8 is 8e-3 wide, so a pixel changes, by one level, only if it is that near to the edge of one.
    denoiser = NetworkDenoiser(random_unet(tiny(), 5), "fp32")

    def make(indices: range) -> Tensor:
        return last(chain(denoiser, D, sampling, (1, 8, 8), indices, CPU)).x_t

    together = make(range(12))
    assert together.std() > 0.2
    for size in (1, 5):
        apart = torch.cat([make(indices) for indices in batches(0, 12, size)])
        torch.testing.assert_close(apart, together, rtol=0, atol=1e-4)
        changes = np.abs(pixels_of(apart).astype(int) - pixels_of(together))
        assert changes.max() <= 1
        assert changes.mean() <= 0.01


def test_seeds_make_different_images_and_x_T_has_nothing_to_do_with_the_settings() -> None:  # noqa: N802
    seen: dict[int, set[bytes]] = {0: set(), 1: set()}

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        if t[0] == 20:
            seen[seed].add(x_t.numpy().tobytes())
        return each_pixel(x_t, t)

    for seed in seen:
        for sampling in (Sampling(seed=seed), Sampling(steps=3, seed=seed), Sampling("ddim", eta=1, seed=seed)):
            last(chain(network, D, sampling, SHAPE, range(4), CPU))
    assert [len(starts) for starts in seen.values()] == [1, 1]
    assert seen[0] != seen[1]


@pytest.mark.parametrize("steps", [20, 7, 1])
@pytest.mark.parametrize("variance", ["fixed-large", "fixed-small"])
def test_algorithm_2_with_the_noise_that_has_these_names(variance: str, steps: int) -> None:
    # x_T of image i is named (seed, "x_T", i), and the noise that is added on leaving the trained chain's step t
    # (seed, "z", i, t).
    s = D.schedule
    visited = [0, *spaced_steps(s, steps)]
    x = np.stack([rng.normal(SHAPE, 9, "x_T", i) for i in (3, 8)]).astype(np.float64)
    for before, t in reversed(list(pairwise(visited))):
        ab, ab_before = s.alpha_bar[t], s.alpha_bar[before]
        alpha = ab / ab_before
        eps = each_pixel(torch.from_numpy(x), torch.tensor([t, t])).numpy()
        x = (x - (1 - alpha) / math.sqrt(1 - ab) * eps) / math.sqrt(alpha)
        sigma2 = 1 - alpha if variance == "fixed-large" else (1 - ab_before) / (1 - ab) * (1 - alpha)
        if before:
            x += math.sqrt(sigma2) * np.stack([rng.normal(SHAPE, 9, "z", i, t) for i in (3, 8)])
    d = Diffusion(s, variance=variance, clip=False)
    ours = images(Sampling(steps=steps, seed=9), [3, 8], d)
    np.testing.assert_allclose(ours.numpy(), x, rtol=0, atol=2e-5 * np.abs(x).max())


def test_the_network_runs_without_gradients_and_the_caller_keeps_them() -> None:
    def network(x_t: Tensor, t: Tensor) -> Tensor:
        assert torch.is_inference_mode_enabled()
        return each_pixel(x_t, t)

    steps = 0
    for _ in chain(network, D, Sampling(), SHAPE, range(2), CPU):
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()
        steps += 1
    assert steps == 20


# --- settings ---------------------------------------------------------------------------------------------------------


def test_steps_of_the_samplers() -> None:
    long = Diffusion(linear())
    assert visited(Sampling(), long) == list(range(1, 1001))
    assert visited(Sampling("ddim"), long) == spaced_steps(linear(), 50)
    assert visited(Sampling("ddim"), D) == list(range(1, 21))
    assert visited(Sampling(steps=3), long) == visited(Sampling("ddim", steps=3), long) == [1, 500, 1000]
    assert visited(Sampling("dpm++"), long) == spaced_steps(linear(), 20, "logsnr")
    assert visited(Sampling("dpm++", steps=4, spacing="trailing"), long) == [250, 500, 750, 1000]
    assert visited(Sampling("ddim", timesteps=(999, 750, 3)), long) == [3, 750, 999]


def test_a_chain_that_begins_in_the_middle_visits_what_is_below() -> None:
    long = Diffusion(linear())
    assert visited(Sampling(), long, 300) == list(range(1, 301))
    assert visited(Sampling(steps=3), long, 700) == [1, 500, 700]
    assert visited(Sampling(steps=3), long, 500) == [1, 500]
    assert visited(Sampling("ddim", timesteps=(999, 750, 3)), long, 800) == [3, 750, 800]
    for start in (0, 1001, -1):
        with pytest.raises(ArgumentError, match=f"`t` is {start}; it must be from 1 to 1000"):
            visited(Sampling(), long, start)


@pytest.mark.parametrize(
    ("timesteps", "message"),
    [
        ((1001, 5), "`timesteps` is 1001; it must be from 1 to 1000"),
        ((500, 0), "`timesteps` is 0; it must be from 1 to 1000"),
        ((500, -3), "`timesteps` is -3; it must be from 1 to 1000"),
        ((500, 500, 3), "`timesteps` has 500 twice"),
        ((500, 3, 7), "`timesteps` has 3 before 7"),
        ((), "`timesteps` is empty"),
    ],
)
def test_lists_of_steps_that_are_no_chain_are_refused(timesteps: tuple[int, ...], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        visited(Sampling(timesteps=timesteps), Diffusion(linear()))


def test_ddim_has_no_noise_unless_it_is_asked_for() -> None:
    assert (images(Sampling("ddim"), range(2)) == images(Sampling("ddim", eta=0.0), range(2))).all()
    assert not (images(Sampling("ddim"), range(2)) == images(Sampling("ddim", eta=0.1), range(2))).all()


def test_more_steps_than_there_are_or_none_are_refused() -> None:
    for sampler, steps in (("ddpm", 0), ("ddim", -1), ("dpm++", 21)):
        with pytest.raises(ArgumentError, match=rf"`steps` is {steps}.* 1 to 20"):
            images(Sampling(sampler, steps=steps), range(1))


# --- batches and pixels -----------------------------------------------------------------------------------------------


@given(st.integers(0, 2**40), st.integers(0, 200), st.integers(1, 70))
def test_batches_cut_the_range_without_loss(first: int, n: int, batch_size: int) -> None:
    parts = list(batches(first, n, batch_size))
    assert [index for part in parts for index in part] == list(range(first, first + n))
    assert all(len(part) == batch_size for part in parts[:-1])
    assert all(1 <= len(part) <= batch_size for part in parts[-1:])


def test_pixels_are_the_nearest_levels_with_channels_last() -> None:
    x = torch.linspace(-1, 1, 120).reshape(2, 3, 4, 5)
    pixels = pixels_of(x)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (2, 4, 5, 3)
    for b, c, h, w in np.ndindex(2, 3, 4, 5):
        assert abs(pixels[b, h, w, c] - (float(x[b, c, h, w]) + 1) * 127.5) <= 0.5 + 1e-5
    assert pixels_of(torch.tensor([-9.0, 9.0]).reshape(1, 1, 1, 2)).flatten().tolist() == [0, 255]


def test_last_runs_a_chain_to_its_end() -> None:
    steps = list(chain(each_pixel, D, Sampling(), SHAPE, range(2), CPU))
    end = last(iter(steps))
    assert end is steps[-1]
    assert end.t == 0
