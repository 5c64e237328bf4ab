"""Several processes train as one does, and end together whatever happens to one of them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ddpm_cli.checkpoint.saver
import ddpm_cli.training.loop
from ddpm_cli.checkpoint import Snapshot, newest, read_snapshot
from ddpm_cli.cli import run as run_cli
from ddpm_cli.errors import InputError
from ddpm_cli.network.unet import build, init_weights, parameter_count
from ddpm_cli.training.batch import HostBatch
from ddpm_cli.training.presets import PRESETS
from helpers.nursery import Child, Nursery, wait_until
from helpers.process import Ddpm

SOON = 30  # seconds within which a process ends after another; a busy machine needs some for the save
STEPS = 6
FAULT_AT = 4


def command(*options: str, run: str = "run") -> list[str]:
    """A run of a tiny network, in which everything random plays a part."""
    words = ["train", "builtin:digits", "-o", run, "--preset", "tiny", "--batch-size", "10", "--warmup", "5"]
    words += ["--dropout", "0.2", "--flip", "--t-sampling", "importance", "--lr", "1e-3", "--sample-every", "0"]
    words += ["--precision", "fp32", "--device", "cpu"]
    return [*words, "--log-every", "1", "--steps", str(STEPS), *options]


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in metrics(run)]


def moved(snapshot: Snapshot) -> float:
    """How far the average of a run's weights is from its start."""
    start = build(snapshot.unet, "cpu")
    init_weights(start, 0)
    return sum(float((w - snapshot.ema[name]).square().sum()) for name, w in start.state_dict().items()) ** 0.5


def codes(children: list[Child]) -> list[int]:
    return [child.wait(SOON) for child in children]


def torchrun(env: dict[str, str], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Two processes of one thread each, as a user starts them."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    env = env | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(launch, env=env, cwd=folder, capture_output=True, text=True, timeout=300)


def step_saved(run: Path) -> int:
    folder = newest(run)
    assert folder is not None
    return read_snapshot(folder).step


@pytest.fixture(scope="module")
def alone(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process. Not to be changed."""
    folder = tmp_path_factory.mktemp("alone")
    child = nursery.ddpm(*command(), cwd=folder)
    assert child.wait() == 0, child.stderr
    return folder / "run"


# The same run, whoever computes it.


@pytest.mark.parametrize("count", [2, 3, 4])  # of which two divide no batch of 10
def test_losses_and_weights_are_those_of_one_process(
    nursery: Nursery, ddpm_env: dict[str, str], tmp_path: Path, alone: Path, count: int
) -> None:
    children = nursery.ranks(count, *command("--save-every", "2"), env=ddpm_env, cwd=tmp_path)
    assert codes(children) == [0] * count, children[0].stderr
    for ours, theirs in zip(metrics(tmp_path / "run"), metrics(alone), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
    first, second = (read_snapshot(newest(run) or run) for run in (tmp_path / "run", alone))
    off = sum(float((weight - second.ema[name]).square().sum()) for name, weight in first.ema.items()) ** 0.5
    assert off < 0.02 * moved(second), "relative to how far training has moved the weights"
    assert all(child.stdout == child.stderr == "" for child in children[1:]), "only rank 0 speaks"
    assert "ddpm sample" in children[0].stderr
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names - {".lock"} == {"config.json", "metrics.jsonl", "checkpoints"}


def test_a_batch_in_parts_and_recomputed_activations(
    nursery: Nursery, ddpm_env: dict[str, str], tmp_path: Path, alone: Path
) -> None:
    children = nursery.ranks(2, *command("--accumulate", "3"), env=ddpm_env, cwd=tmp_path, by=recomputing)
    assert codes(children) == [0, 0], children[0].stderr
    assert "over 3 micro-batches; activation checkpointing" in children[0].stderr
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(alone), rtol=1e-4)


def recomputing(arguments: list[str]) -> int:
    """A child: the program, on a machine where activations do not fit."""
    import ddpm_cli.jobs.train as training

    fit = training.fit
    training.fit = lambda *args: replace(fit(*args), recompute=True)
    return run_cli(arguments)


def test_a_machine_with_little_memory(nursery: Nursery, ddpm_env: dict[str, str], tmp_path: Path, alone: Path) -> None:
    child = nursery.call(cramped, str(tmp_path), command(), env=ddpm_env)
    assert child.wait(240) == 0, child.stderr
    assert re.search(r"over \d+ micro-batches", child.stderr)
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(alone), rtol=1e-4)


def cramped(folder: str, arguments: list[str]) -> int:
    """A child: the program, where a few images of the batch fit beside the weights."""
    import ddpm_cli.training.memory as fitting

    os.chdir(folder)
    config = PRESETS["tiny"].unet((8, 8), 1)
    held = fitting.BYTES_A_PARAMETER + fitting.STAGED_BYTES
    free = held * parameter_count(config) + 10 * fitting.prepared_bytes(config)
    fitting.available_memory = lambda device: free + 6 * fitting.activation_bytes(config, "fp32")
    return run_cli(arguments)


def test_a_run_goes_on_with_another_number_of_processes(
    nursery: Nursery, ddpm_env: dict[str, str], tmp_path: Path, alone: Path
) -> None:
    for steps, count in ((2, 3), (4, 1), (STEPS, 2)):
        children = (
            nursery.ranks(count, *command("--steps", str(steps)), env=ddpm_env, cwd=tmp_path)
            if count > 1
            else [nursery.ddpm(*command("--steps", str(steps)), env=ddpm_env, cwd=tmp_path)]
        )
        assert codes(children) == [0] * count, children[0].stderr
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(alone), rtol=1e-4)


def test_as_torchrun_starts_it(ddpm_env: dict[str, str], tmp_path: Path, alone: Path) -> None:
    done = torchrun(ddpm_env, tmp_path, "-m", "ddpm_cli", *command("--json"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == STEPS
    assert "Warning" not in done.stderr
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(alone), rtol=1e-4)


# What is refused.


def test_more_processes_than_images_in_a_batch(nursery: Nursery, ddpm_env: dict[str, str], tmp_path: Path) -> None:
    children = nursery.ranks(3, *command("--batch-size", "2"), env=ddpm_env, cwd=tmp_path)
    assert codes(children) == [2, 2, 2]
    assert "3 processes cannot share batches of 2; use --batch-size 3 or more, or fewer processes" in children[0].stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--lr", "0.5"], "train.lr is 0.5 there and 0.001 for rank 0"),
        (["--steps", "7"], "cadence.steps is 7 there and 6 for rank 0"),
        (["--size", "16"], "rank 0: the images are others; data.shape is "),
        (["--compile"], "compile is true there and false for rank 0"),
    ],
)
def test_processes_with_other_settings_or_images(
    nursery: Nursery, ddpm_env: dict[str, str], tmp_path: Path, options: list[str], said: str
) -> None:
    (tmp_path / "options").write_text(json.dumps(options))
    children = nursery.ranks(2, *command(), env=ddpm_env, cwd=tmp_path, by=otherwise)
    assert codes(children) == [2, 2]
    for child in children:
        assert "rank 1 of 2 was given other settings or images than rank 0" in child.stderr
        assert said in child.stderr
    assert not (tmp_path / "run").exists()


def otherwise(arguments: list[str]) -> int:
    """A child: the program, with other options for rank 1."""
    return run_cli(arguments + (json.loads(Path("options").read_text()) if os.environ["RANK"] == "1" else []))


def test_a_folder_that_rank_0_refuses_stops_all(nursery: Nursery, ddpm_env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").touch()
    children = nursery.ranks(2, *command(), env=ddpm_env, cwd=tmp_path)
    assert codes(children) == [2, 8]
    assert "is not empty and holds no run" in children[0].stderr
    assert (
        children[1].stderr == "error: another of the processes has failed, so this one stops; it has said why itself\n"
    )


# What goes wrong under way.


def faulty(arguments: list[str]) -> int:
    """A child: the program, in which something happens to one rank at one step. The environment says what to which."""
    fault, rank = os.environ["FAULT"].split("@")
    if os.environ["RANK"] != rank:
        return run_cli(arguments)
    batch_at = ddpm_cli.training.loop.batch_at

    def broken(images: Any, config: Any, schedule: Any, step: int, *rest: Any, **more: Any) -> HostBatch:
        batch = batch_at(images, config, schedule, step, *rest, **more)
        if step == FAULT_AT and fault == "nan":
            batch.eps[-1] = float("nan")
        elif step == FAULT_AT and fault == "unreadable":
            raise InputError("the pack was cut")
        elif step == FAULT_AT and fault == "unexpected":
            raise RuntimeError("out of something")
        elif step == FAULT_AT and fault == "killed":
            time.sleep(0.5)  # until the others wait for this one
            os.kill(os.getpid(), signal.SIGKILL)
        elif step == FAULT_AT and fault == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif step == FAULT_AT and fault in ("SIGTERM", "SIGINT"):
            os.kill(os.getpid(), getattr(signal, fault))
            time.sleep(0.2)
        return batch

    ddpm_cli.training.loop.batch_at = broken
    publishing = ddpm_cli.checkpoint.saver.publishing

    def dying(run: Path, snapshot: Any, **more: Any) -> Any:
        if fault == "dying" and snapshot.step == FAULT_AT:
            (run / "checkpoints" / ".tmp-step-00000004-1").mkdir()
            os.kill(os.getpid(), signal.SIGKILL)
        return publishing(run, snapshot, **more)

    ddpm_cli.checkpoint.saver.publishing = dying
    return run_cli(arguments)


@pytest.mark.parametrize(
    ("fault", "expected", "said"),
    [
        ("nan@1", [5, 5], "step 4: the loss or its gradient is not finite"),
        ("unreadable@1", [8, 3], "another of the processes has failed"),
        ("unreadable@0", [3, 8], "the pack was cut"),
        ("unexpected@0", [1, 8], "unexpected error: RuntimeError: out of something"),
        ("unexpected@1", [8, 1], "another of the processes has failed"),
        ("killed@1", [8, -9], "another process that shared the work has ended"),
        ("SIGTERM@1", [0, 143], "stopped at step 3 of 6, saved"),
        ("SIGINT@0", [130, 0], "stopped at step 3 of 6, saved"),
    ],
)
def test_what_happens_to_one_stops_all_and_is_saved(
    nursery: Nursery, ddpm_env: dict[str, str], tmp_path: Path, alone: Path, fault: str, expected: list[int], said: str
) -> None:
    children = nursery.ranks(2, *command(), env=ddpm_env | {"FAULT": fault}, cwd=tmp_path, by=faulty)
    assert codes(children) == expected, [child.stderr for child in children]
    assert said in children[0].stderr
    assert all("Traceback" not in child.stderr for child in children)
    assert step_saved(tmp_path / "run") == FAULT_AT - 1
    again = nursery.ranks(2, *command(), env=ddpm_env, cwd=tmp_path)
    assert codes(again) == [0, 0], again[0].stderr
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(alone), rtol=1e-4)


def test_rank_0_dying_while_it_saves(nursery: Nursery, ddpm_env: dict[str, str], tmp_path: Path, alone: Path) -> None:
    options = command("--save-every", "2")
    children = nursery.ranks(2, *options, env=ddpm_env | {"FAULT": "dying@0"}, cwd=tmp_path, by=faulty)
    assert codes(children) == [-9, 8]
    assert step_saved(tmp_path / "run") == 2
    again = nursery.ranks(2, *options, env=ddpm_env, cwd=tmp_path)
    assert codes(again) == [0, 0], again[0].stderr
    assert "resuming from step 2" in again[0].stderr
    assert not list((tmp_path / "run" / "checkpoints").glob(".tmp-*"))
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(alone), rtol=1e-4)


def test_another_rank_dying_while_rank_0_saves(nursery: Nursery, ddpm_env: dict[str, str], tmp_path: Path) -> None:
    children = nursery.ranks(2, *command("--save-every", "1", "--steps", "1000"), env=ddpm_env, cwd=tmp_path)
    wait_until(lambda: len(list((tmp_path / "run" / "checkpoints").glob("step-*"))) > 1, "checkpoints")
    wait_until(lambda: bool(list((tmp_path / "run" / "checkpoints").glob(".tmp-*"))), "one in the making")
    children[1].kill()
    assert codes(children) == [8, -9]
    assert not list((tmp_path / "run" / "checkpoints").glob(".tmp-*"))
    assert step_saved(tmp_path / "run") == metrics(tmp_path / "run")[-1]["step"]


def test_a_signal_that_comes_twice_under_torchrun(nursery: Nursery, ddpm_env: dict[str, str], tmp_path: Path) -> None:
    """As a scheduler sends it to every process, and torchrun once more to its own."""
    children = nursery.ranks(2, *command("--steps", "100000"), env=ddpm_env, cwd=tmp_path)
    wait_until(lambda: (tmp_path / "run" / "metrics.jsonl").exists(), "the first step")
    for _ in range(2):
        for child in children:
            child.kill(signal.SIGTERM)
    assert codes(children) == [143, 143]
    assert step_saved(tmp_path / "run") == metrics(tmp_path / "run")[-1]["step"]


def test_a_signal_that_comes_twice_under_torchrun_with_one_process(
    nursery: Nursery, ddpm_env: dict[str, str], tmp_path: Path
) -> None:
    env = ddpm_env | {"TORCHELASTIC_RUN_ID": "x", "LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}
    child = nursery.ddpm(*command("--steps", "100000"), env=env, cwd=tmp_path)
    wait_until(lambda: (tmp_path / "run" / "metrics.jsonl").exists(), "the first step")
    child.kill(signal.SIGTERM)
    child.kill(signal.SIGTERM)
    assert child.wait(SOON) == 143
    assert step_saved(tmp_path / "run") == metrics(tmp_path / "run")[-1]["step"]


def test_torchrun_ends_where_rank_0_was_stopped(ddpm_env: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "hanging.py"
    script.write_text(
        "import os, signal, sys\n"
        "import ddpm_cli.training.loop as t\n"
        "from ddpm_cli.cli import run\n"
        "real = t.batch_at\n"
        "def batch_at(images, config, schedule, step, *rest, **more):\n"
        "    if step == 4 and os.environ['RANK'] == '0':\n"
        "        os.kill(os.getpid(), signal.SIGSTOP)\n"
        "    return real(images, config, schedule, step, *rest, **more)\n"
        "t.batch_at = batch_at\n"
        "sys.exit(run(sys.argv[1:]))\n"
    )
    done = torchrun(ddpm_env, tmp_path, str(script), *command("--peer-timeout", "5s"))
    assert done.returncode == 1
    assert re.search(r"exitcode *: 8\b", done.stderr), done.stderr
    assert "rank 1: waiting for rank 0 " in done.stderr
    assert re.search(r"error: .* rank 0\b.*--peer-timeout", done.stderr), done.stderr


def test_the_others_give_up_on_a_process_that_was_stopped(
    nursery: Nursery, ddpm_env: dict[str, str], tmp_path: Path, alone: Path
) -> None:
    children = nursery.ranks(
        3, *command("--peer-timeout", "3s"), env=ddpm_env | {"FAULT": "stopped@1"}, cwd=tmp_path, by=faulty
    )
    assert [children[0].wait(SOON), children[2].wait(SOON)] == [8, 8]
    children[1].kill()
    assert children[1].wait(SOON) == -9
    spoken = children[0].stderr + children[2].stderr
    assert re.search(r"error: .* rank 1\b.*--peer-timeout", spoken), spoken
    assert "rank 0: waiting for rank 1 " in children[0].stderr
    assert step_saved(tmp_path / "run") in (FAULT_AT - 2, FAULT_AT - 1)
    again = nursery.ranks(2, *command(), env=ddpm_env, cwd=tmp_path)
    assert codes(again) == [0, 0], again[0].stderr
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(alone), rtol=1e-4)


def test_a_process_that_computes_for_long_is_waited_for(
    nursery: Nursery, ddpm_env: dict[str, str], tmp_path: Path
) -> None:
    children = nursery.ranks(2, *command("--peer-timeout", "2s"), env=ddpm_env, cwd=tmp_path, by=computing_at_first)
    assert codes(children) == [0, 0], children[1].stderr
    assert "rank 1: waiting for rank 0 " in children[1].stderr


def computing_at_first(arguments: list[str]) -> int:
    """A child: the program, whose rank 0 computes for five seconds before the first step, as packing does."""
    import ddpm_cli.jobs.train as training

    estimate = training.estimate

    def slow(*args: Any, **options: Any) -> Any:
        began = time.monotonic()
        while time.monotonic() - began < 5:
            sum(range(1000))
        return estimate(*args, **options)

    training.estimate = slow
    return run_cli(arguments)


def test_a_signal_to_a_process_that_waits_ends_it(nursery: Nursery, ddpm_env: dict[str, str], tmp_path: Path) -> None:
    """Rank 0 is busy for long before the first step; rank 1 waits for it."""
    children = nursery.ranks(2, *command(), env=ddpm_env, cwd=tmp_path, by=busy_at_first)
    wait_until(lambda: (tmp_path / "busy").exists(), "rank 0 is busy")
    time.sleep(1)
    began = time.monotonic()
    children[1].kill(signal.SIGTERM)
    assert children[1].wait(SOON) == 143
    assert time.monotonic() - began < 5
    assert children[0].wait(SOON) == 8


def busy_at_first(arguments: list[str]) -> int:
    """A child: the program, whose rank 0 takes ten seconds for its estimate."""
    import ddpm_cli.jobs.train as training

    estimate = training.estimate

    def slow(*args: Any, **options: Any) -> Any:
        Path("busy").touch()
        time.sleep(10)
        return estimate(*args, **options)

    training.estimate = slow
    return run_cli(arguments)


def test_torchrun_starts_all_again_when_one_has_died(ddpm_env: dict[str, str], tmp_path: Path, alone: Path) -> None:
    """Elastic: one process kills itself once, and the run ends as if nothing had happened."""
    script = tmp_path / "once.py"
    script.write_text(
        "import os, signal, sys, pathlib\n"
        "import ddpm_cli.training.loop as t\n"
        "from ddpm_cli.cli import run\n"
        "real = t.batch_at\n"
        "def batch_at(images, config, schedule, step, *rest, **more):\n"
        "    mark = pathlib.Path('died')\n"
        "    if step == 4 and os.environ['RANK'] == '1' and not mark.exists():\n"
        "        mark.touch()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(images, config, schedule, step, *rest, **more)\n"
        "t.batch_at = batch_at\n"
        "sys.exit(run(sys.argv[1:]))\n"
    )
    options = command("--save-every", "1")
    done = torchrun(ddpm_env, tmp_path, "--max-restarts", "3", str(script), *options)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "died").exists()
    assert "resuming from step" in done.stderr
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(alone), rtol=1e-4)


def test_a_process_by_itself_saves_what_it_has_when_images_cannot_be_read(
    nursery: Nursery, ddpm: Ddpm, ddpm_env: dict[str, str], tmp_path: Path
) -> None:
    child = nursery.ranks(1, *command(), env=ddpm_env | {"FAULT": "unreadable@0"}, cwd=tmp_path, by=faulty)[0]
    assert child.wait() == 3
    assert step_saved(tmp_path / "run") == FAULT_AT - 1
    assert ddpm(*command()).returncode == 0
