"""The cost of a run, which is worked out before it begins."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ddpm_cli.checkpoint import StoredModel
from ddpm_cli.config import UNetConfig
from ddpm_cli.core.distributed import ALONE
from ddpm_cli.network.unet import build, flops
from ddpm_cli.training.estimate import Cost
from ddpm_cli.training.estimate import estimate as estimate_for
from ddpm_cli.training.loop import Execution
from ddpm_cli.training.memory import Trial, fit
from ddpm_cli.training.plan import Plan
from ddpm_cli.training.record import RunConfig
from helpers.models import DIFFUSION, random_unet, tiny
from helpers.plans import CPU, planned


def small(**options: Any) -> Plan:
    return planned((9, 8, 8, 1), StoredModel(tiny(), DIFFUSION, {}, "m"), precision="fp32", **options)


def estimate(plan: Plan, device: torch.device) -> Cost:
    return estimate_for(plan, device, fit(plan, device, ALONE))


def saved_bytes(config: UNetConfig) -> int:
    """What autograd really keeps of one image."""
    kept: dict[int, int] = {}
    held = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            held.append(tensor)
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    unet = random_unet(config, 1).requires_grad_(True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        unet(torch.zeros(1, config.in_channels, *config.size), torch.zeros(1, dtype=torch.int64))
    return sum(kept.values())


def test_the_cost_of_a_run() -> None:
    made = small(batch_size=6, steps=50)
    price = estimate(made, CPU)
    parameters = sum(parameter.numel() for parameter in build(tiny(), "meta").parameters())
    assert price.parameters == parameters
    assert price.memory == pytest.approx(20 * parameters + 6 * saved_bytes(tiny()), rel=0.1)
    assert 0 < price.step_seconds < 10
    assert price.total_seconds == pytest.approx(50 * price.step_seconds)


def test_a_batch_in_parts_takes_the_memory_of_a_part() -> None:
    whole, parts, part = (
        estimate(small(**options), CPU).memory
        for options in ({"batch_size": 12}, {"batch_size": 12, "accumulate": 5}, {"batch_size": 3})
    )
    assert parts == part < whole


@pytest.mark.parametrize("accumulate", [1, 4, 8])
def test_no_more_is_tried_than_fits(monkeypatch: pytest.MonkeyPatch, accumulate: int) -> None:
    tried = []

    def trial(config: RunConfig, device: torch.device, n: int, *, recompute: bool = False) -> Trial:
        tried.append((config.unet == made.config.unet, n, recompute))
        return Trial(0.5 + 0.25 * n, 0)

    monkeypatch.setattr("ddpm_cli.training.estimate.trial", trial)
    monkeypatch.setattr("ddpm_cli.training.estimate.TRIAL_FLOPS", 3 * 2 * flops(tiny(), (8, 8)))  # of two images
    made = small(batch_size=8)
    price = estimate_for(made, CPU, Execution(accumulate=accumulate, recompute=True))
    own = [(n, recompute) for is_own, n, recompute in tried if is_own]
    assert own == {1: [(2, True), (4, True)], 4: [(2, True)], 8: [(1, True)]}[accumulate]
    assert price.step_seconds == pytest.approx({1: 2.5, 4: 4.0, 8: 6.0}[accumulate])


def test_a_trial_is_no_training() -> None:
    before = torch.get_rng_state()
    estimate(small(batch_size=2, lr=1000.0, warmup=0), CPU)  # which would end in a loss that is not finite
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("batch", [1, 2, 3, 64])
def test_a_step_is_reckoned_from_two_smaller_ones(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    monkeypatch.setattr("ddpm_cli.training.estimate.TRIAL_FLOPS", 3 * flops(tiny(), (8, 8)))  # a trial of one image
    monkeypatch.setattr("ddpm_cli.training.estimate.trial", lambda config, device, n, **_: Trial(0.5 + 0.25 * n, 0))
    assert estimate(small(batch_size=batch), CPU).step_seconds == pytest.approx(0.5 + 0.25 * batch)


def test_a_machine_that_is_quicker_the_second_time_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddpm_cli.training.estimate.TRIAL_FLOPS", 3 * flops(tiny(), (8, 8)))
    monkeypatch.setattr("ddpm_cli.training.estimate.trial", lambda config, device, n, **_: Trial(1.0 / n, 0))
    assert estimate(small(batch_size=64), CPU).step_seconds > 0.5
