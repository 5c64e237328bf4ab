"""How many threads compute, and how those that wait for work do it: chosen before PyTorch is loaded.

OpenMP's idle threads spin for milliseconds before they sleep. On a machine that has other work to do, they burn the
cores that the others need, and two programs slow each other down many times. A short spin leaves the cores to
them; benchmarks/busy.py measures it, and what it costs on an idle machine. The OpenMP runtime reads these settings
once, when PyTorch loads it, so they are environment variables that are set before.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

# Iterations that a thread of GNU's runtime (PyTorch for Linux) spins before it sleeps; 300,000 by default.
# benchmarks/busy.py measures what this choice gains and costs.
SPIN = "2000"
# Milliseconds for the runtimes of LLVM and Intel (PyTorch for macOS), which take no less but 0; 200 by default.
BLOCK_TIME = "1"

COUNT_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@dataclass(frozen=True)
class Threads:
    """What was chosen, and why, in words.

    Args:
        cores: that this process may run on.
        quota: of processor time, in cores, by the control groups; None for no limit.
        count: threads that were asked for; None leaves it to PyTorch, which takes one a core.
        wait: how threads wait.
        count_reason, wait_reason: why.
        settings: the environment variables that say so, but for those that were set before.
    """

    cores: int
    quota: float | None
    count: int | None
    count_reason: str
    wait: str
    wait_reason: str
    settings: Mapping[str, str]


@functools.cache
def prepare() -> Threads:
    """Choose, once for this process, and set the environment variables for the OpenMP runtime and what it starts.

    What the user set stays. Where PyTorch is loaded already, nothing is changed.
    """
    chosen = choose(os.environ, available_cores(), cpu_quota())
    if "torch" not in sys.modules:
        _apply(os.environ, chosen)
    return chosen


def choose(environ: Mapping[str, str], cores: int, quota: float | None) -> Threads:
    """The choice for an environment, a number of cores and a quota of processor time; changes nothing."""
    settings: dict[str, str] = {}
    count, why_count = _asked(environ, cores)
    if count is None and quota is not None and quota < cores:
        count = max(1, int(quota + 0.5))
        settings["OMP_NUM_THREADS"] = str(count)
        why_count += f"the control group allows {quota:g} of {cores} cores"
    elif count is None:
        why_count += f"one for each of {cores} cores"
    if given := [name for name in WAIT_VARIABLES if environ.get(name)]:
        wait = ", ".join(f"{name}={environ[name]}" for name in given)
        why_wait = "set in the environment"
    else:
        settings |= {"GOMP_SPINCOUNT": SPIN, "KMP_BLOCKTIME": BLOCK_TIME}
        wait = f"short spin (GOMP_SPINCOUNT={SPIN})"
        why_wait = "waiting threads leave the cores to other programs"
    return Threads(cores, quota, count, why_count, wait, why_wait, settings)


def set_by_user() -> bool:
    """Whether the user, or torchrun, has said how many threads there are to be."""
    return prepare().count is not None and "OMP_NUM_THREADS" not in prepare().settings


def available_cores() -> int:
    """How many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """The processor time that the control groups allow this process, in cores; None for no limit.

    Both versions of control groups are read, each group and all that it is in; the smallest limit counts.
    """
    try:
        lines = groups.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    found = []
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers == "":
            base = root
        elif "cpu" in controllers.split(","):
            base = next((root / name for name in (controllers, "cpu") if (root / name).is_dir()), root)
        else:
            continue
        # In a container the path may be the host's, of which nothing is to be seen but the root.
        inside = Path(path.lstrip("/"))
        found += [quota for folder in (inside, *inside.parents) if (quota := _quota_of(base / folder)) is not None]
    return min(found, default=None)


def _apply(environ: MutableMapping[str, str], chosen: Threads) -> None:
    for name, value in chosen.settings.items():
        environ[name] = value


def _asked(environ: Mapping[str, str], cores: int) -> tuple[int | None, str]:
    """How many threads the user asked for, and words about it; nonsense is no number, and said to be none."""
    ignored = ""
    for name in COUNT_VARIABLES:
        text = environ.get(name, "")
        first = text.split(",")[0].strip()  # of one number for each level of nesting
        if first.isascii() and first.isdecimal() and 0 < int(first) <= 2**16:
            more = f", more than the {cores} cores here" if int(first) > cores else ""
            return int(first), f"{ignored}{name}={text}{more}"
        if text:
            ignored += f"{name}={text!r} is ignored, since it is no number of threads; "
    return None, ignored


def _quota_of(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()[:2]
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        return float(quota) / float(period) if float(quota) > 0 else None  # -1 and "max" are no limit
    except (OSError, ValueError, ZeroDivisionError):
        return None
