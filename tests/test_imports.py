"""Each module imports alone, and those that answer at once do so without torch.

The other rules of the house are contracts of import-linter and rules of ruff, in pyproject.toml.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ddpm_cli

PACKAGE = Path(ddpm_cli.__file__).parent

# Packages and modules that leave torch out when they are imported: help, noise, the look at images, the screen.
LIGHT = {
    "",
    "cli",
    "config",
    "core",
    "data",
    "diffusion.samplers",
    "diffusion.schedule",
    "diffusion.spacing",
    "errors",
    "evaluation.neighbors",
    "jobs.images",
    "jobs.inputs",
    "jobs.neighbors",
    "jobs.noise",
    "sampling.settings",
    "training.presets",
    "ui",
}

# Runs in a process of its own: for each module one fork, in which it is the first of ours to be imported, with
# warnings as errors. Loading torch once beforehand, where it is allowed, makes that affordable.
IMPORT_ALONE = """
import os, sys, traceback, warnings
import numpy, PIL.Image
torch_allowed = sys.argv[1] == "with torch"
if torch_allowed:
    import torch
warnings.simplefilter("error")
for module in sys.argv[2:]:
    with warnings.catch_warnings(action="ignore"):
        child = os.fork()
    if child == 0:
        try:
            __import__(module)
            assert torch_allowed or "torch" not in sys.modules, "imports torch"
        except BaseException:
            print(f"importing {module} alone:", file=sys.stderr)
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    os.waitpid(child, 0)
"""


def modules() -> set[str]:
    """The names of all modules and packages, without ``ddpm_cli.``."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found.add(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found - {"__main__"}


@pytest.mark.parametrize("torch", ["with torch", "without torch"])
def test_each_module_can_be_imported_alone_and_light_ones_leave_torch_out(torch: str) -> None:
    known = modules()
    assert known >= LIGHT
    light = {name for name in known if any(name == part or name.startswith(f"{part}.") for part in LIGHT if part)}
    light.add("")
    names = [f"ddpm_cli.{m}".rstrip(".") for m in sorted(light if torch == "without torch" else known - light)]
    env = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-W", "error", "-c", IMPORT_ALONE, torch, *names]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    if done.returncode or done.stderr:
        pytest.fail(done.stderr, pytrace=False)
