"""``ddpm env``: this machine, and what was chosen for it."""

from __future__ import annotations

import json
import subprocess
import sys

import torch

UNSET = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"), "")


def finished(environ: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: the choice is made once, when the program is loaded."""
    command = [sys.executable, "-m", "ddpm_cli", *words]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=True)


def test_what_was_chosen_and_why(ddpm_env: dict[str, str]) -> None:
    env = ddpm_env | UNSET | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    found = json.loads(finished(env, "env", "--json").stdout)
    assert found["versions"]["torch"] == torch.__version__
    assert found["computing"] == found["threads"]["count"] == 1
    assert found["threads"]["count_reason"] == "OMP_NUM_THREADS=1"
    assert found["threads"]["wait"] == "OMP_WAIT_POLICY=passive"
    assert found["cache"] == ddpm_env["DDPM_CACHE"]


def test_nonsense_and_more_threads_than_cores_are_said_and_survived(ddpm_env: dict[str, str]) -> None:
    for value, said in (("many", "'many' is ignored"), ("9999", "OMP_NUM_THREADS=9999, more than")):
        env = ddpm_env | UNSET | {"OMP_NUM_THREADS": value}
        assert said in finished(env, "env").stdout
        assert said in finished(env, "info", "builtin:digits", "-v").stderr
