"""How many threads compute and how they wait: what the user set, the cores, and quotas of processor time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ddpm_cli.core.threads import SPIN, choose, cpu_quota

SHOW = "import ddpm_cli, os, torch; print(torch.get_num_threads(), os.environ.get('GOMP_SPINCOUNT'))"


def shown(env: dict[str, str]) -> list[str]:
    done = subprocess.run([sys.executable, "-c", SHOW], env=env, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_threads_follow_a_quota_below_the_cores() -> None:
    for quota, count in ((0.5, 1), (0.05, 1), (1.0, 1), (1.5, 2), (3.2, 3)):
        chosen = choose({}, 8, quota)
        assert chosen.count == count
        assert chosen.settings["OMP_NUM_THREADS"] == str(count)
    for no_limit in (None, 8.0, 64.0):
        chosen = choose({}, 8, no_limit)
        assert chosen.count is None
        assert "OMP_NUM_THREADS" not in chosen.settings


def test_what_the_user_set_wins() -> None:
    assert choose({"OMP_NUM_THREADS": "3"}, 8, 1.0).count == 3
    assert choose({"MKL_NUM_THREADS": "3"}, 8, 1.0).count == 3
    assert choose({"OMP_NUM_THREADS": "4,2"}, 8, None).count == 4
    many = choose({"OMP_NUM_THREADS": "64"}, 2, None)
    assert many.count == 64
    assert "2 cores" in many.count_reason
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        chosen = choose({name: "1"}, 8, None)
        assert chosen.settings == {}
        assert chosen.wait == f"{name}=1"


def test_nonsense_in_the_environment_is_named_and_ignored() -> None:
    for text in ("many", "-1", "0", "1e3", "2.5", "99999999999999999999", "\u0663"):
        chosen = choose({"OMP_NUM_THREADS": text}, 8, 2.0)
        assert chosen.count == 2
        assert repr(text) in chosen.count_reason


def test_quotas_of_both_versions_of_control_groups(tmp_path: Path) -> None:
    groups, root = tmp_path / "cgroup", tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    assert cpu_quota(groups, root) is None
    groups.write_text("0::/a/b\n")
    assert cpu_quota(groups, root) is None
    (root / "a" / "b" / "cpu.max").write_text("max 100000\n")
    assert cpu_quota(groups, root) is None
    (root / "a" / "cpu.max").write_text("150000 100000\n")
    assert cpu_quota(groups, root) == 1.5  # of the group above
    (root / "a" / "b" / "cpu.max").write_text("50000 100000\n")
    assert cpu_quota(groups, root) == 0.5
    groups.write_text("0::/of/the/host\n")
    (root / "cpu.max").write_text("200000 100000\n")
    assert cpu_quota(groups, root) == 2
    old = tmp_path / "old"
    (old / "cpu,cpuacct" / "docker").mkdir(parents=True)
    groups.write_text("5:memory:/docker\n4:cpu,cpuacct:/docker\n")
    (old / "cpu,cpuacct" / "docker" / "cpu.cfs_quota_us").write_text("-1\n")
    (old / "cpu,cpuacct" / "docker" / "cpu.cfs_period_us").write_text("100000\n")
    assert cpu_quota(groups, old) is None
    (old / "cpu,cpuacct" / "docker" / "cpu.cfs_quota_us").write_text("75000\n")
    assert cpu_quota(groups, old) == 0.75
    for nonsense in ("", "x y", "1", "1 0", "nan"):
        (root / "cpu.max").write_text(nonsense)
        groups.write_text("0::/\n")
        assert cpu_quota(groups, root) is None
    groups.write_bytes(b"\xff\xfe:\n")
    assert cpu_quota(groups, root) is None


def test_pytorch_is_loaded_with_what_was_chosen(ddpm_env: dict[str, str]) -> None:
    unset = {name: value for name, value in ddpm_env.items() if not name.startswith(("OMP_", "MKL_", "GOMP_", "KMP_"))}
    assert shown(unset)[1] == SPIN
    assert shown(unset | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}) == ["1", "None"]
    assert shown(unset | {"OMP_NUM_THREADS": "many"})[1] == SPIN


def test_where_pytorch_is_loaded_already_nothing_changes(
    ddpm_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unset = {name: value for name, value in ddpm_env.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    code = "import torch, ddpm_cli, os; print('GOMP_SPINCOUNT' in os.environ)"
    done = subprocess.run([sys.executable, "-c", code], env=unset, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
