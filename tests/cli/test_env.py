"""``ddpm env``: this machine, and what was chosen for it."""

from __future__ import annotations

import json

import torch

from helpers.process import Ddpm


def test_what_was_chosen_and_why(ddpm: Ddpm, ddpm_env: dict[str, str]) -> None:
    env = ddpm_env | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    done = ddpm("env", "--json", env=env)
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert found["versions"]["torch"] == torch.__version__
    assert found["computing"] == found["threads"]["count"] == 1
    assert found["threads"]["count_reason"] == "OMP_NUM_THREADS=1"
    assert found["threads"]["wait"] == "OMP_WAIT_POLICY=passive"
    assert found["cache"] == ddpm_env.get("DDPM_CACHE", found["cache"])
    table = ddpm("env", env=env).stdout
    assert all(word in table for word in (torch.__version__, found["device"], "OMP_WAIT_POLICY=passive"))


def test_nonsense_and_more_threads_than_cores_are_said_and_survived(ddpm: Ddpm, ddpm_env: dict[str, str]) -> None:
    for value, said in (("many", "'many' is ignored"), ("200", "more than")):
        env = ddpm_env | {"OMP_NUM_THREADS": value}
        done = ddpm("env", env=env)
        assert done.returncode == 0
        assert said in done.stdout
        assert said in ddpm("info", "builtin:digits", "-v", env=env).stderr
