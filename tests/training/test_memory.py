"""How a run is made to fit into the memory that is free."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm_cli import cli
from ddpm_cli.core.allocator import keep_freed_memory
from ddpm_cli.core.distributed import ALONE, World
from ddpm_cli.errors import InputError
from ddpm_cli.network.unet import parameter_count
from ddpm_cli.training import memory
from ddpm_cli.training.loop import Execution
from ddpm_cli.training.memory import (
    STAGED_BYTES,
    activation_bytes,
    arithmetic,
    available_memory,
    fit,
    prepared_bytes,
    trial,
)
from ddpm_cli.training.plan import Plan
from helpers.nursery import Nursery
from helpers.plans import CPU, planned

MIB = 2**20


@pytest.fixture
def wide() -> Plan:
    """A network whose images take much more memory than its weights."""
    return planned((9, 32, 32, 3), preset="tiny", batch_size=64, precision="fp32")


def leave(monkeypatch: pytest.MonkeyPatch, free: int, beside: int = 0) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda device: free + beside)


def beside(plan: Plan) -> int:
    """Bytes that batches and a checkpoint under way take."""
    config = plan.config
    return config.train.batch_size * prepared_bytes(config.unet) + STAGED_BYTES * parameter_count(config.unet)


def peaks(monkeypatch: pytest.MonkeyPatch, whole: int, recomputing: int, fixed: int) -> list[tuple[int, bool]]:
    """Let trials have peaks of so much an image, and a fixed part; returns what will be tried."""
    tried = []

    def measured(config: object, device: torch.device, n: int, *, recompute: bool = False) -> memory.Trial:
        tried.append((n, recompute))
        return memory.Trial(1.0, fixed + n * (recomputing if recompute else whole))

    monkeypatch.setattr(memory, "trial", measured)
    monkeypatch.setattr(memory, "memory_now", lambda device: 0)
    return tried


def test_what_surely_fits_is_not_tried(monkeypatch: pytest.MonkeyPatch, wide: Plan) -> None:
    tried = peaks(monkeypatch, 1, 1, 1)
    assert fit(wide, CPU, ALONE) == Execution()
    leave(monkeypatch, 2 * arithmetic(wide.config, 64), beside(wide))
    assert fit(wide, CPU, ALONE) == Execution()
    assert tried == []


def test_parts_are_as_large_as_what_was_measured_allows(monkeypatch: pytest.MonkeyPatch, wide: Plan) -> None:
    an_image = activation_bytes(wide.config.unet, "fp32")
    free = arithmetic(wide.config, 40)
    leave(monkeypatch, free, beside(wide))
    peaks(monkeypatch, an_image, an_image // 8, 10 * MIB)
    execution = fit(wide, CPU, ALONE)
    part = -(-64 // execution.accumulate)
    assert not execution.recompute
    assert 1 < execution.accumulate < 64
    assert 10 * MIB + part * an_image <= 0.9 * free < 10 * MIB + 64 / (execution.accumulate - 1) * an_image
    halves = fit(wide, CPU, World(1, 2))
    assert halves.accumulate < execution.accumulate
    assert halves.world.size == 2


def test_activations_are_computed_twice_where_not_even_one_image_fits(
    monkeypatch: pytest.MonkeyPatch, wide: Plan
) -> None:
    one, less = arithmetic(wide.config, 1), arithmetic(wide.config, 1, recompute=True)
    assert less < one
    leave(monkeypatch, (one + less) // 2, beside(wide))
    tried = peaks(monkeypatch, one, less // 10, 0)
    execution = fit(wide, CPU, ALONE)
    assert execution.recompute
    assert 1 < execution.accumulate <= 64
    assert {recompute for _, recompute in tried} == {True}


@pytest.mark.parametrize("accumulate", [None, 2])
def test_what_cannot_fit_is_refused(monkeypatch: pytest.MonkeyPatch, accumulate: int | None) -> None:
    made = planned((9, 32, 32, 3), preset="tiny", batch_size=64, accumulate=accumulate)
    leave(monkeypatch, MIB)
    tried = peaks(monkeypatch, 1, 1, 1)
    with pytest.raises(
        InputError,
        match=r"about [\d.]+ GiB of memory, of [\d.]+ GiB .*`batch_size`" + (".*`accumulate`" if accumulate else "$"),
    ):
        fit(made, CPU, ALONE)
    assert tried == []


@pytest.mark.parametrize(("fits", "parts"), [(0, None), (1, 64), (2, 64), (3, 22)])
def test_a_gpu_that_has_room_for_fewer_than_are_tried(
    monkeypatch: pytest.MonkeyPatch, wide: Plan, fits: int, parts: int | None
) -> None:
    def measured(config: object, device: torch.device, n: int, *, recompute: bool = False) -> memory.Trial:
        if n > fits and not recompute:
            raise torch.OutOfMemoryError
        return memory.Trial(1.0, n * free // 4)

    free = arithmetic(wide.config, 40)
    leave(monkeypatch, free, beside(wide))
    monkeypatch.setattr(memory, "trial", measured)
    monkeypatch.setattr(memory, "memory_now", lambda device: 0)
    execution = fit(wide, CPU, ALONE)
    assert execution.recompute == (parts is None)
    assert execution.accumulate == (parts or 22)


def test_a_gpu_that_has_no_room_for_a_trial(monkeypatch: pytest.MonkeyPatch, wide: Plan) -> None:
    def full(*_: object, **__: object) -> memory.Trial:
        raise torch.OutOfMemoryError

    leave(monkeypatch, arithmetic(wide.config, 40))
    monkeypatch.setattr(memory, "trial", full)
    with pytest.raises(InputError, match="GiB of memory"):
        fit(wide, CPU, ALONE)


def test_parts_that_the_user_asks_for_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    made = planned((9, 32, 32, 3), preset="tiny", batch_size=64, accumulate=16)
    leave(monkeypatch, arithmetic(made.config, 5), beside(made))
    peaks(monkeypatch, 1, 1, 1)
    assert fit(made, CPU, ALONE).accumulate == 16
    assert fit(made, CPU, World(0, 16)).accumulate == 4, "no part is empty"


def test_trials_measure_what_images_take(nursery: Nursery) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of memory is not known here")
    child = nursery.call(measure)
    assert child.wait(240) == 0, child.stderr


def measure() -> None:
    """A child that keeps freed memory, as the program does: the images that fit are few enough, and not too few."""
    keep_freed_memory()
    plan = planned((9, 32, 32, 3), preset="small", batch_size=64, precision="fp32")
    free = arithmetic(plan.config, 14)
    images = memory._fitting(plan.config, CPU, free, 64, recompute=False)
    assert 4 <= images <= 14, images
    before = memory.memory_now(CPU)
    assert trial(plan.config, CPU, images).peak - before < free


def test_a_container_has_no_more_than_its_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = available_memory(CPU)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert available_memory(CPU) == pytest.approx(machine, rel=0.2)
    (tmp_path / "memory.current").write_text(f"{350 * MIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {50 * MIB}\nactive_file 7\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(CPU) > 300 * MIB
    (tmp_path / "memory.max").write_text(f"{500 * MIB}\n")
    assert available_memory(CPU) == 200 * MIB
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert available_memory(CPU) == 50 * MIB


def test_a_limit_on_address_space_is_heeded(nursery: Nursery) -> None:
    child = nursery.call(limited)
    assert child.wait() == 0, child.stderr


def limited() -> None:
    """A child that may have 300 MiB more than it has."""
    with Path("/proc/self/statm").open() as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 300 * MIB, resource.RLIM_INFINITY))
    free = available_memory(CPU)
    assert 250 * MIB < free <= 300 * MIB, free


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you ..."
        ),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_that_runs_out_after_all_is_no_defect(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(cli.group, "main", fail)
    assert cli.run(["train"]) == 3
    assert capsys.readouterr().err.startswith("error: there is not enough memory for this; use a smaller --batch-size")


def test_recomputing_keeps_less(wide: Plan) -> None:
    whole, less = (activation_bytes(wide.config.unet, "fp32", recompute=again) for again in (False, True))
    assert less < whole / 3
    assert np.isclose(activation_bytes(wide.config.unet, "bf16"), whole / 2)
