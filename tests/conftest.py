"""What more than one test file uses: the program run as a process, and the rule for tests that need a GPU."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

# Read when torch is first imported, here and in every process that a test starts. One thread: the networks of the
# tests are tiny, results do not depend on the number of cores, and threads that wait for each other on a busy machine
# take ten times as long.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

# ruff: noqa: E402
import hypothesis
import pytest

from helpers.nursery import Nursery
from helpers.process import Ddpm, Finished, clean_environment

# Children inherit what is ignored, as a shell has it for what runs in its background; the tests send them signals.
for number in (signal.SIGHUP, signal.SIGINT):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGHUP else signal.default_int_handler)

# A busy machine is no reason to fail; a failure prints what reproduces it.
hypothesis.settings.register_profile("ddpm", deadline=None, print_blob=True)
hypothesis.settings.load_profile("ddpm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked ``gpu`` where there is none; torch is imported only if there is such a test."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


@pytest.fixture
def seed() -> int:
    """Another one each time; a failure shows it."""
    number = random.SystemRandom().randrange(10**9)
    print(f"seed = {number}")
    return number


@pytest.fixture
def ddpm_env(tmp_path: Path) -> dict[str, str]:
    """See `clean_environment`."""
    return clean_environment(tmp_path)


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """The server that forks the program's processes; see nursery.py."""
    folder = tmp_path_factory.mktemp("nursery")
    with Nursery(folder, clean_environment(folder)) as server:
        yield server


@pytest.fixture
def ddpm(nursery: Nursery, tmp_path: Path, ddpm_env: dict[str, str]) -> Ddpm:
    """``ddpm("sample", "-n", "4")`` runs the program as a process and returns what came of it."""

    def run(
        *args: str | Path,
        stdin: bytes = b"",
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 120,
    ) -> Finished:
        child = nursery.ddpm(*args, env=ddpm_env | (env or {}), cwd=cwd or tmp_path, stdin=stdin)
        code = child.wait(timeout)
        return Finished(code, child.out.read_bytes(), child.stderr)

    return run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with one checkpoint of a network of random weights: 8x8 grey, T = 20, step 7. Not to be changed."""
    import torch

    from ddpm_cli.checkpoint import Snapshot, publish
    from ddpm_cli.config import DiffusionConfig, UNetConfig
    from ddpm_cli.network.unet import build, init_weights

    config = UNetConfig(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=None,
        norm_num_groups=4,
    )
    unet = build(config, "cpu")
    generator = torch.Generator().manual_seed(1)
    init_weights(unet, 1)
    torch.nn.init.normal_(unet.conv_out.weight, std=0.2, generator=generator)  # or it would predict 0
    weights = unet.state_dict()
    moments = {
        f"{name}.{moment}": torch.zeros_like(w) for name, w in weights.items() for moment in ("exp_avg", "exp_avg_sq")
    }
    snapshot = Snapshot(
        step=7,
        unet=config,
        diffusion=DiffusionConfig(timesteps=20, beta_end=0.3),
        ema=weights,
        weights=weights,
        optimizer=moments,
        loss_sum=0.0,
        loss_count=0,
    )
    run = tmp_path_factory.mktemp("models") / "tiny"
    (run / "checkpoints").mkdir(parents=True)
    publish(run, snapshot, keep=1)
    return run
