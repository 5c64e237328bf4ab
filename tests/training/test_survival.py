"""Whatever ends a run, and whenever: the newest checkpoint is whole, and the same command goes on as if nothing were.

Kills, signals, full disks and failing calls, at each moment of a save and at random moments of a run.
"""

from __future__ import annotations

import errno
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddpm_cli.checkpoint import newest, publish, read_snapshot, run_lock, verify
from ddpm_cli.cli import run as run_cli
from ddpm_cli.errors import DdpmError, DiskError, InputError, LockedError
from ddpm_cli.jobs.train import stopping
from ddpm_cli.network.unet import parameter_count
from helpers.checkpoints import FILES, differences, random_snapshot
from helpers.models import tiny
from helpers.nursery import Child, Nursery, wait_until
from helpers.process import clean_environment

OLD, NEW = 4, 8


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirteen grey images of 8x8, so that batches and epochs do not end together."""
    path = tmp_path_factory.mktemp("pictures") / "pictures.npy"
    np.save(path, np.random.default_rng(7).integers(0, 256, (13, 8, 8), dtype=np.uint8))
    return path


def answer(child: Child, timeout: float = 120) -> Any:
    """What a child prints as JSON."""
    assert child.wait(timeout) == 0, child.stderr
    return json.loads(child.stdout)


def leftovers(run: Path) -> list[str]:
    """What is neither a checkpoint nor a file of the run, at any depth."""
    return sorted(str(path.relative_to(run)) for path in run.rglob(".t*"))


def is_whole(checkpoint: Path) -> bool:
    try:
        verify(checkpoint)
    except InputError:
        return False
    return True


# A failure or a kill at each single call of a save.


class Interceptor:
    """Stands between the writer of checkpoints and the system, and does something instead of call number ``at``.

    Args:
        strike: called with the call's name; raises, or ends the process.
        persistent: whether every later call fails too.
        harmless: calls that do not count.
    """

    SYSTEM = ("open", "fsync", "mkdir", "rename", "replace", "chmod", "unlink", "rmdir")

    def __init__(
        self, at: int, strike: Callable[[str], None], *, persistent: bool = False, harmless: tuple[str, ...] = ()
    ) -> None:
        self.at, self.strike, self.persistent, self.harmless = at, strike, persistent, harmless
        self.calls: list[tuple[str, str]] = []
        self._saved: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> Interceptor:
        for name in self.SYSTEM:
            self._patch(os, name, self._counted(getattr(os, name), name))
        self._patch(io, "open", self._open)
        return self

    def __exit__(self, *_: object) -> None:
        for owner, name, original in self._saved:
            setattr(owner, name, original)

    def _patch(self, owner: Any, name: str, replacement: Any) -> None:
        self._saved.append((owner, name, getattr(owner, name)))
        setattr(owner, name, replacement)

    def _due(self, name: str, subject: object) -> bool:
        if name in self.harmless:
            return False
        path = str(Path(f"/proc/self/fd/{subject}").readlink() if isinstance(subject, int) else subject)
        self.calls.append((name, path))
        return len(self.calls) == self.at or (self.persistent and len(self.calls) > self.at)

    def _counted(self, function: Callable[..., Any], name: str, subject: object = None) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if self._due(name, args[0] if subject is None else subject):
                self.strike(name)
            return function(*args, **options)

        return call

    def _open(self, path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        original = next(saved for owner, name, saved in self._saved if owner is io)
        if self._due("open to read" if "r" in mode else "open to write", path):
            self.strike("open to read" if "r" in mode else "open to write")
        file = original(path, mode, *args, **options)
        if "r" not in mode:
            write, writes = file.write, count()

            def first_writes(data: Any) -> Any:  # of a file of tensors, of which all others are like the second
                return (self._counted(write, "write", path) if next(writes) < 2 else write)(data)

            file.write = first_writes
            file.flush = self._counted(file.flush, "flush", path)
        return file


def fail(name: str) -> None:
    code = errno.EIO if name == "open to read" else errno.ENOSPC
    raise OSError(code, os.strerror(code))


def die(_: str) -> None:
    os._exit(9)


def attempt(run: Path, at: int, how: str) -> tuple[str, int]:
    """Publish with call number ``at`` failing: what came of it, and how many calls there were."""
    snapshot = random_snapshot(NEW, NEW)
    if how == "killed":
        pid = os.fork()
        if pid == 0:
            with Interceptor(at, die, harmless=("open to read", "fsync")):  # they change nothing that a kill leaves
                publish(run, snapshot, keep=1)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return {0: "published", 9: "killed"}.get(code, f"code {code}"), 0
    with Interceptor(at, fail, persistent=how == "failing from then on") as interceptor:
        try:
            publish(run, snapshot, keep=1)
        except DiskError:
            return "refused", len(interceptor.calls)
        except BaseException as error:
            return f"{type(error).__name__}: {error}", len(interceptor.calls)
    return "published", len(interceptor.calls)


def sweep(folder: str, how: str, damaged: bool) -> None:
    """In a process of its own: publish with the first, second, ... call failing; print what was wrong after any."""
    template, run = Path(folder) / "template", Path(folder) / "run"
    (template / "checkpoints").mkdir(parents=True)
    publish(template, random_snapshot(OLD, OLD), keep=1)
    if damaged:
        os.truncate(publish(template, random_snapshot(1, NEW), keep=2) / "train" / "state.json", 5)
    expected = {OLD: random_snapshot(OLD, OLD), NEW: random_snapshot(NEW, NEW)}
    problems: list[str] = []
    outcomes: list[str] = []
    at = 0
    while not outcomes or outcomes[-1] != "untouched":
        at += 1
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(template, run)
        outcome, calls = attempt(run, at, how)
        where = f"call {at}: {outcome}"
        latest = newest(run)
        found = read_snapshot(latest) if latest else None
        if found is None or differences(found, expected[found.step]):
            problems.append(f"{where}: neither the old nor the new one is there")
        elif outcome == "published" and found.step != NEW:
            problems.append(f"{where}: but it is not the newest")
        if outcome not in ("published", "refused", "killed"):
            problems.append(where)
        if not damaged and not all(map(is_whole, (run / "checkpoints").glob("step-*"))):
            problems.append(f"{where}: a part of a checkpoint has the name of a whole one")
        if outcome == "refused" and how == "failing once" and leftovers(run):
            problems.append(f"{where}: left {leftovers(run)}")
        with run_lock(run):
            if leftovers(run):
                problems.append(f"{where}: {leftovers(run)} after the next start")
        if at % 5 == 0:
            publish(run, expected[NEW], keep=1)
            if differences(read_snapshot(run / "checkpoints" / f"step-{NEW:08d}"), expected[NEW]):
                problems.append(f"{where}: the next save did not get through")
        done = calls < at if how != "killed" else outcome == "published"
        outcomes.append("untouched" if done else outcome)
    print(json.dumps({"problems": problems, "outcomes": outcomes}))


@pytest.mark.parametrize(
    ("how", "damaged"),
    [("killed", False), ("killed", True), ("failing once", False), ("failing from then on", False)],
)
def test_a_save_may_be_struck_at_each_call(tmp_path: Path, nursery: Nursery, how: str, damaged: bool) -> None:
    result = answer(nursery.call(sweep, str(tmp_path), how, damaged))
    assert result["problems"] == []
    outcomes = result["outcomes"][:-1]
    assert len(outcomes) > 50
    assert set(outcomes) <= ({"killed"} if how == "killed" else {"refused", "published"})
    assert how == "killed" or outcomes.count("refused") > 40


# The order of writes: what a loss of power leaves.


def check_order(events: list[tuple[str, str]], run: Path) -> None:
    """A checkpoint gets its name once all that it holds is on the disk, and then the name gets there too.

    Args:
        events: (``write``, ``fsync`` or ``rename``, the path, for a rename the old one), in order.
    """
    final = run / "checkpoints" / f"step-{NEW:08d}"
    staged = Path(next(path for call, path in events if call == "rename" and Path(path).name.startswith(".tmp-")))
    assert staged.parent == final.parent
    published = events.index(("rename", str(staged)))
    last_write = {name: max(i for i, e in enumerate(events) if e == ("write", str(staged / name))) for name in FILES}
    assert max(last_write, key=lambda name: last_write[name]) == "MANIFEST.json"
    for name in FILES:
        assert ("fsync", str(staged / name)) in events[last_write[name] : published], name
    for folder in ("unet", "scheduler", "train", "."):
        last_entry = max(last_write[name] for name in FILES if folder == "." or name.startswith(folder))
        assert ("fsync", str(staged / folder)) in events[last_entry:published], folder
    assert ("fsync", str(final.parent)) in events[published:]
    retired = [i for i, (call, path) in enumerate(events) if call == "rename" and "step-0000000" in Path(path).name]
    assert all(events.index(("fsync", str(final.parent))) < i for i in retired if i != published)


def publish_old_and_new(folder: str) -> None:
    (Path(folder) / "checkpoints").mkdir(parents=True)
    for step in (OLD, NEW):
        publish(Path(folder), random_snapshot(step, step), keep=1)


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    publish(tmp_path, random_snapshot(OLD, OLD), keep=1)
    with Interceptor(0, fail) as interceptor:
        publish(tmp_path, random_snapshot(NEW, NEW), keep=1)
    kinds = {"open to write": "write"}
    check_order([(kinds.get(call, call), path) for call, path in interceptor.calls], tmp_path)


def test_the_system_sees_the_same_order(tmp_path: Path) -> None:
    calls = "write,pwrite64,fsync,fdatasync,rename,renameat,renameat2"
    strace = ["strace", "-f", "-y", "--seccomp-bpf", "-e", f"trace={calls}"]
    if not shutil.which("strace") or subprocess.run([*strace, "true"], capture_output=True, timeout=60).returncode:
        pytest.skip("strace is not here, or may not trace")
    log, run = tmp_path / "log", tmp_path / "run"
    code = "import sys; from training import test_survival; test_survival.publish_old_and_new(sys.argv[1])"
    env = clean_environment(tmp_path) | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [*strace, "-o", str(log), sys.executable, "-c", code, str(run)]
    subprocess.run(command, check=True, env=env, timeout=120)
    events = []
    for line in log.read_text(errors="replace").splitlines():
        call = re.match(r"\d+ +(p?write|fsync|fdatasync|rename)", line)
        paths = re.findall(r'[<"](/.*?)[">]', re.sub("AT_FDCWD<.*?>", "", line))
        if call and paths and str(run) in paths[0]:
            events.append(({"pwrite": "write", "fdatasync": "fsync"}.get(call[1], call[1]), paths[0]))
    start = events.index(("fsync", str(run / "checkpoints")))  # the first checkpoint is there
    check_order(events[start + 1 :], run)


# A disk that is full, and a limit to the size of files.


def train(pictures: Path | str, run: Path | str, start: Path | str, *options: str) -> list[str]:
    """A run of a tiny network, in which everything random plays a part."""
    words = ["train", pictures, "-o", run, "--from", start, "--batch-size", "4", "--warmup", "5", "--dropout", "0.2"]
    words += ["--flip", "--precision", "fp32", "--device", "cpu", "--sample-every", "0", "--log-every", "1", *options]
    return [str(word) for word in words]


def cli(arguments: list[str]) -> tuple[int, str]:
    """The program in this process: its exit code, and what it wrote to stderr."""
    stderr, sys.stderr = sys.stderr, io.StringIO()
    try:
        return run_cli(arguments), sys.stderr.getvalue()
    finally:
        sys.stderr = stderr


def on_a_full_disk(disk: str, pictures: str, start: str) -> None:
    """In a process of its own, with a small file system of its own: save with every amount of room left."""
    ballast, page = Path(disk) / "ballast", 4096

    def leave(pages: int) -> None:
        ballast.write_bytes(b"")
        free = os.statvfs(disk)
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - pages * page)

    run = Path(disk) / "run"
    (run / "checkpoints").mkdir(parents=True)
    old = publish(run, random_snapshot(OLD, OLD), keep=1)
    messages: list[str] = []
    while newest(run) == old:
        leave(len(messages))
        try:
            publish(run, random_snapshot(NEW, NEW), keep=1)
        except DiskError as error:
            messages.append(str(error))
            if differences(read_snapshot(old), random_snapshot(OLD, OLD)) or leftovers(run):
                raise
    assert not differences(read_snapshot(run / "checkpoints" / f"step-{NEW:08d}"), random_snapshot(NEW, NEW))

    ballast.unlink()
    shutil.rmtree(run)
    codes = [cli(train(pictures, run, start, "--steps", "4"))]
    leave(2)
    codes.append(cli(train(pictures, run, start, "--steps", "8")))
    # Room for the tensors and the lock's file, but not for the headers, the configurations and the manifest too
    leave(-(-4 * 4 * parameter_count(tiny()) // page) + 3)
    codes.append(cli(train(pictures, run, start, "--steps", "8")))
    latest = newest(run)
    left = leftovers(run)
    ballast.unlink()
    codes.append(cli(train(pictures, run, start, "--steps", "8")))
    codes.append(cli(train(pictures, Path(disk) / "uninterrupted", start, "--steps", "8")))
    final = [read_snapshot(folder / "checkpoints" / "step-00000008") for folder in (run, Path(disk) / "uninterrupted")]
    print(json.dumps([messages, codes, str(latest), left, differences(*final)]))


def test_a_full_disk_costs_only_the_checkpoint_that_did_not_fit(tmp_path: Path, pictures: Path, tiny_run: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    mounted = [*unshare, "sh", "-c", 'mount -t tmpfs -o size=32m none "$0" && exec "$@"', str(disk)]
    if not shutil.which("unshare") or subprocess.run([*mounted, "true"], capture_output=True, timeout=60).returncode:
        pytest.skip("no file system can be mounted here")
    code = "import sys; from training import test_survival; test_survival.on_a_full_disk(*sys.argv[1:])"
    env = clean_environment(tmp_path / "cache") | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [*mounted, sys.executable, "-c", code, str(disk), str(pictures), str(tiny_run)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    messages, codes, latest, left, different = json.loads(done.stdout)
    assert len(messages) > 10
    for message in messages:
        assert re.match(rf"cannot write {disk}/run/checkpoints/\S+: no space left on the disk$", message), message
    assert [code for code, _ in codes] == [0, 7, 7, 0, 0], codes
    assert re.search(r"a checkpoint needs [\d.]+ MiB in \S+, where [\d.]+ MiB are free; make room", codes[1][1])
    assert "no space left on the disk" in codes[2][1]
    assert all(len(text.splitlines()) < 20 for _, text in codes)
    assert latest == f"{disk}/run/checkpoints/step-00000004"
    assert left == []
    assert different == []


def with_small_files(folder: str, pictures: str, start: str) -> None:
    """In a process of its own: save while no file may be larger than so many bytes."""
    run, hard = Path(folder) / "saved", resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    (run / "checkpoints").mkdir(parents=True)
    old = publish(run, random_snapshot(OLD, OLD), keep=1)
    messages: list[str] = []
    for limit in (0, 1, 100, 200, 500, 1000, 1500, 3000, 6000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            publish(run, random_snapshot(NEW, NEW), keep=1)
        except DiskError as error:
            messages.append(str(error))
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert newest(run) == old
        assert leftovers(run) == []
    codes = [cli(train(pictures, Path(folder) / "run", start, "--steps", "4"))]
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    codes.append(cli(train(pictures, Path(folder) / "run", start, "--steps", "8")))
    print(json.dumps([messages, codes]))


def test_a_limit_to_the_size_of_files_costs_only_the_checkpoint_that_did_not_fit(
    tmp_path: Path, nursery: Nursery, pictures: Path, tiny_run: Path
) -> None:
    messages, codes = answer(nursery.call(with_small_files, str(tmp_path), str(pictures), str(tiny_run)))
    assert len(messages) == 9
    for message in messages:
        assert re.match(rf"cannot write {tmp_path}/saved/\S+: the file would be larger than the limit", message), (
            message
        )
    assert [code for code, _ in codes] == [0, 7], codes
    assert newest(tmp_path / "run") == tmp_path / "run" / "checkpoints" / "step-00000004"


# One trainer per run folder.


def hold(run: str, go: str, stop: str) -> int:
    """Wait for the file ``go``, take the lock, and keep it until the file ``stop`` is there."""
    wait_until(Path(go).exists, go)
    try:
        with run_lock(Path(run)):
            print("held", flush=True)
            wait_until(Path(stop).exists, stop)
    except LockedError as error:
        print(error)
        return error.exit_code
    return 0


def test_of_eight_trainers_at_once_exactly_one_wins(tmp_path: Path, nursery: Nursery) -> None:
    go, stop, run = tmp_path / "go", tmp_path / "stop", tmp_path / "run"
    for round_ in range(4):
        children = [nursery.call(hold, str(run), str(go), str(stop)) for _ in range(8)]
        go.touch()
        wait_until(lambda children=children: all(child.stdout for child in children), "all have tried")
        winners = [child for child in children if child.stdout == "held\n"]
        assert len(winners) == 1, f"round {round_}"
        for child in set(children) - set(winners):
            assert child.wait() == 6
            assert re.match(rf"(process {winners[0].pid} on |another process is training in )", child.stdout)
        stop.touch()
        assert winners[0].wait() == 0
        go.unlink()
        stop.unlink()


def test_a_second_trainer_is_told_who_holds_the_folder(
    tmp_path: Path, nursery: Nursery, pictures: Path, tiny_run: Path
) -> None:
    run, go = tmp_path / "run", tmp_path / "go"
    go.touch()
    holder = nursery.call(hold, str(run), str(go), str(tmp_path / "stop"))
    wait_until(lambda: holder.stdout == "held\n", "the lock is held")
    second = nursery.ddpm(*train(pictures, run, tiny_run, "--steps", "2"))
    assert second.wait() == 6
    assert f"process {holder.pid} on {socket.gethostname()} is training in {run}" in second.stderr
    assert "Traceback" not in second.stderr
    assert sorted(path.name for path in run.iterdir()) == [".lock", ".lock-owner.json", "checkpoints"]

    holder.kill(signal.SIGKILL)
    assert holder.wait() == -signal.SIGKILL
    third = nursery.ddpm(*train(pictures, run, tiny_run, "--steps", "2"))
    assert third.wait() == 0, third.stderr


def test_the_lock_goes_with_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(DdpmError, match="inside"), run_lock(tmp_path):
        raise DdpmError("inside")
    with run_lock(tmp_path), pytest.raises(LockedError, match=f"process {os.getpid()} on "), run_lock(tmp_path):
        pass


def test_what_killed_trainers_left_is_removed_only_under_the_lock(tmp_path: Path, nursery: Nursery) -> None:
    run, go, stop = tmp_path / "run", tmp_path / "go", tmp_path / "stop"
    go.touch()
    holder = nursery.call(hold, str(run), str(go), str(stop))
    wait_until(lambda: holder.stdout == "held\n", "the lock is held")
    staged = run / "checkpoints" / ".tmp-step-00000001-1"
    trash = run / "checkpoints" / ".trash-step-00000001-1"
    torn = run / ".tmp-1-abcdef01"
    (staged / "unet").mkdir(parents=True)
    trash.mkdir()
    torn.write_text("half a config.json")
    (run / "notes.txt").write_text("mine")
    with pytest.raises(LockedError), run_lock(run):
        pass
    assert staged.exists()
    assert trash.exists()
    stop.touch()
    assert holder.wait() == 0
    with run_lock(run):
        assert leftovers(run) == []
        assert (run / "notes.txt").exists()


# kill -9 at random moments of a run, which then goes on as if nothing had been.


def logged(run: Path) -> int:
    """How many whole lines metrics.jsonl has."""
    try:
        return (run / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def saving(run: Path) -> bool:
    return any((run / "checkpoints").glob(".tmp-*"))


def metrics(run: Path) -> list[dict[str, float]]:
    """What was logged, without what the clock decides."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in ("step", "loss", "lr", "grad_norm")} for line in lines]


def owns(child: Child, run: Path) -> bool:
    """Whether the child has taken the run folder."""
    try:
        return bool(json.loads((run / ".lock-owner.json").read_text())["pid"] == child.pid)
    except (OSError, ValueError):
        return False


def log_file(run: Path) -> int:
    """Which file metrics.jsonl is: a run that goes on begins by writing it anew. 0 if there is none."""
    try:
        return (run / "metrics.jsonl").stat().st_ino
    except FileNotFoundError:
        return 0


def kill_at_random(child: Child, run: Path, log: int, rng: random.Random) -> str:
    """Kill a run within its first steps; returns in what.

    Args:
        log: which file metrics.jsonl was before.
    """
    before = newest_step(run)
    moment = rng.choice(["beginning", "training", "training", "saving", "saving", "saving"])
    if moment == "beginning":
        wait_until(lambda: owns(child, run), f"the run has begun\n{child.stderr}")
        time.sleep(rng.uniform(0, 0.05))
    else:
        wait_until(lambda: log_file(run) not in (0, log), f"the log goes on\n{child.stderr}")
        steps = rng.randint(1, 14)  # a save is done by the time that the next is due, three steps later
        wait_until(lambda: logged(run) >= before + steps, f"step {before + steps}\n{child.stderr}")
        if moment == "saving":
            wait_until(lambda: saving(run), f"a save\n{child.stderr}")
        time.sleep(rng.choice([0, rng.uniform(0, 0.02)]))
    child.kill(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    return moment


def newest_step(run: Path) -> int:
    """The step of the newest checkpoint, 0 if there is none yet."""
    latest = newest(run)
    return verify(latest) if latest else 0


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.timeout(1800)
def test_kills_at_random_moments_change_nothing(
    tmp_path: Path, nursery: Nursery, pictures: Path, tiny_run: Path, kills: int, seed: int
) -> None:
    rng = random.Random(seed)
    steps = 10 * kills  # more than all lives together get to
    options = ["--steps", str(steps), "--save-every", "3", "--keep", "2"]
    run = tmp_path / "run"
    in_saves, lost, reached = 0, 0, 0
    for number in range(kills):
        log = log_file(run)
        child = nursery.ddpm(*train(pictures, run, tiny_run, *options))
        moment = kill_at_random(child, run, log, rng)
        where = f"kill {number}, seed {seed}, while {moment}"
        in_saves += saving(run)
        assert all(map(is_whole, (run / "checkpoints").glob("step-*"))), where
        step = newest_step(run)
        assert step >= reached, where
        reached = step
        lost += logged(run) > reached
    assert in_saves >= kills / 10, f"seed {seed}: hardly a kill fell into a save"
    assert lost >= kills / 10, f"seed {seed}: hardly a kill cost steps that had been done"
    assert kills <= reached < steps, f"seed {seed}"

    last = nursery.ddpm(*train(pictures, run, tiny_run, *options))
    assert last.wait(600) == 0, last.stderr
    assert f"from step {reached:,}" in last.stderr
    other = tmp_path / "uninterrupted"
    whole = nursery.ddpm(*train(pictures, other, tiny_run, "--steps", str(steps), "--save-every", "0"))
    assert whole.wait(600) == 0, whole.stderr
    assert newest_step(run) == newest_step(other) == steps
    assert differences(*(read_snapshot(newest(folder) or folder) for folder in (run, other))) == []
    assert [line["step"] for line in metrics(run)] == list(range(1, steps + 1))
    assert metrics(run) == metrics(other)
    assert leftovers(run) == []
    assert len(list((run / "checkpoints").iterdir())) == 2


# Signals: save and stop.


@pytest.fixture(scope="module")
def uninterrupted(nursery: Nursery, pictures: Path, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 60 steps that nothing disturbs."""
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    child = nursery.ddpm(*train(pictures, run, tiny_run, "--steps", "60", "--save-every", "0"))
    assert child.wait() == 0, child.stderr
    return run


SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
PHASES: dict[str, Callable[[Path], bool]] = {
    "the first step": lambda run: (run / "metrics.jsonl").exists(),
    "training": lambda run: logged(run) >= 8,
    "saving": saving,
    "sampling": lambda run: any((run / "samples").glob("*")),
}


@pytest.mark.parametrize(
    ("number", "phase"),
    [*((signal.SIGINT, phase) for phase in PHASES), (signal.SIGTERM, "training"), (signal.SIGHUP, "saving")],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_signal_saves_and_stops_and_the_same_command_goes_on(
    tmp_path: Path,
    nursery: Nursery,
    pictures: Path,
    tiny_run: Path,
    uninterrupted: Path,
    number: signal.Signals,
    phase: str,
) -> None:
    run = tmp_path / "run"
    options = ["--steps", "60", "--save-every", "5"]
    if phase == "sampling":
        options += ["--sample-every", "3"]
    command = train(pictures, run, tiny_run, *options)
    child = nursery.ddpm(*command)
    wait_until(lambda: PHASES[phase](run), f"{phase}\n{child.stderr}")
    child.kill(number)
    assert child.wait() == SIGNALS[number], child.stderr
    assert "Traceback" not in child.stderr
    step = newest_step(run)
    assert step < 60
    assert f"stopped at step {step} of 60, saved" in child.stderr
    assert leftovers(run) == []
    last = metrics(run)[-1]["step"] if logged(run) else 0
    assert last == step  # nothing that was done is lost

    again = nursery.ddpm(*command)
    assert again.wait() == 0, again.stderr
    ours, theirs = (read_snapshot(folder / "checkpoints" / "step-00000060") for folder in (run, uninterrupted))
    assert differences(ours, theirs) == []
    assert metrics(run) == metrics(uninterrupted)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("seed", range(2))
def test_a_signal_at_any_moment_leaves_a_run_that_goes_on(
    tmp_path: Path,
    nursery: Nursery,
    pictures: Path,
    tiny_run: Path,
    uninterrupted: Path,
    number: signal.Signals,
    seed: int,
) -> None:
    run = tmp_path / "run"
    command = train(pictures, run, tiny_run, "--steps", "60", "--save-every", "7")
    child = nursery.ddpm(*command)
    delay = random.Random(f"{number} {seed}").uniform(0, 1.5)
    time.sleep(delay)
    child.kill(number)
    code = child.wait()
    # Before the run begins there is nothing to save: SIGINT is an error, the others end the process as they always do.
    assert code in (0, SIGNALS[number], -number), f"after {delay} s: {child.stderr}"
    assert "Traceback" not in child.stderr
    if (run / "checkpoints").is_dir():
        assert all(map(is_whole, (run / "checkpoints").glob("step-*")))
    again = nursery.ddpm(*command)
    assert again.wait() == 0, again.stderr
    ours, theirs = (read_snapshot(folder / "checkpoints" / "step-00000060") for folder in (run, uninterrupted))
    assert differences(ours, theirs) == []


def test_interrupted_before_the_run_begins(tmp_path: Path, pictures: Path, tiny_run: Path) -> None:
    """A process of its own, while it imports torch."""
    arguments = train(pictures, tmp_path / "run", tiny_run)
    process = subprocess.Popen(
        [sys.executable, "-m", "ddpm_cli", *arguments], env=clean_environment(tmp_path), stderr=subprocess.PIPE
    )
    wait_until(lambda: b"libtorch" in Path(f"/proc/{process.pid}/maps").read_bytes(), "torch is being imported")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == b"error: interrupted"  # perhaps after a line about the images
    assert not (tmp_path / "run").exists()


def never_finish_a_step() -> None:
    """What a trainer does for as long as a step takes: it does not look."""
    with stopping() as interruption:
        while True:
            time.sleep(0.01)
            if interruption.event.is_set():
                print("asked", flush=True)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_second_signal_ends_it_at_once(nursery: Nursery, number: signal.Signals) -> None:
    child = nursery.call(never_finish_a_step)
    wait_until(lambda: catches(child, signal.SIGHUP), "it handles signals")  # the last of them
    child.kill(signal.SIGTERM)
    wait_until(lambda: "asked" in child.stdout, "the first signal is seen")
    began = time.monotonic()
    child.kill(number)
    assert child.wait() == SIGNALS[number]
    assert time.monotonic() - began < 1


def catches(child: Child, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{child.pid}/status").read_text()
    mask = int(re.findall(r"SigCgt:\s*(\w+)", status)[0], 16)
    return bool(mask >> (number - 1) & 1)


def ignoring(arguments: list[str], *numbers: int) -> int:
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)
    return run_cli(arguments)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name)
def test_what_nohup_or_a_script_ignores_stays_ignored(
    tmp_path: Path, nursery: Nursery, pictures: Path, tiny_run: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    arguments = train(pictures, run, tiny_run, "--steps", "40", "--save-every", "0")
    child = nursery.call(ignoring, arguments, number)
    wait_until(lambda: logged(run) >= 3, f"training\n{child.stderr}")
    child.kill(number)
    assert child.wait() == 0, child.stderr
    assert newest_step(run) == 40
