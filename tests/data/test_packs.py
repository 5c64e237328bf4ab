"""Packs: kept and found again, repaired, written by many processes, on full disks and in little memory."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ddpm_cli
from ddpm_cli import data
from ddpm_cli.data.packs.manifest import MANIFEST, NAMES
from ddpm_cli.data.workers import Task, count_workers
from ddpm_cli.errors import DdpmError, DiskError, InputError

PIXELS = "images-00000.u8"

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(ddpm_cli.__file__).parents[1]))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """200 images of 16x12 of all kinds, 3 of them damaged: the first, the last and one amid."""
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(21)
    for index in range(200):
        image = Image.fromarray(rng.integers(0, 256, (16, 12, 3 + index % 2), dtype=np.uint8))
        image.save(tmp_path / "images" / f"{index:03}.png")
    for index in (0, 77, 199):
        (tmp_path / "images" / f"{index:03}.png").write_bytes(b"damaged")
    return tmp_path / "images"


def packs(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "packs").iterdir())


def whole(cache: Path) -> list[str]:
    """The packs that are no longer being made."""
    return [name for name in packs(cache) if (cache / "packs" / name / MANIFEST).exists()]


def run_python(code: str, *arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


# Kept and found again


@pytest.mark.parametrize("kind", ["folder", "tar", "npy"])
def test_the_second_start_reads_no_image(folder: Path, tmp_path: Path, kind: str) -> None:
    path = folder
    if kind == "tar":
        path = Path(shutil.make_archive(str(tmp_path / "x"), "gztar", folder))
    elif kind == "npy":
        path = tmp_path / "x.npy"
        np.save(path, np.random.default_rng(1).integers(0, 256, (50, 8, 8), dtype=np.uint8))
    first = data.open_images(path)
    for file in [path] if path.is_file() else list(path.iterdir()):  # nothing is left of it but its name, size and time
        info = file.stat()
        if kind == "npy":
            content = bytearray(file.read_bytes())
            content[128:] = bytes(len(content) - 128)
            file.write_bytes(content)
        else:
            file.write_bytes(bytes(info.st_size))
        os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))
    source = data.find_source(path)
    survey = data.scan(source)
    assert (survey.total, list(survey)) == (0, [])
    stage = data.pack(source, survey.result(), first.shape[1:3], first.shape[3])
    assert (stage.total, list(stage)) == (0, [])
    second = data.open_images(path)
    assert second.digest == first.digest
    np.testing.assert_array_equal(second.take(range(len(first))), first.take(range(len(first))))
    assert list(second.names()) == list(first.names())
    assert (second.skipped, second.notes) == (first.skipped, first.notes)


def test_a_survey_comes_back_as_it_was(folder: Path) -> None:
    source = data.find_source(folder)
    survey = data.scan(source).result()
    assert (survey.images, survey.colour, survey.transparent, survey.skipped[0].count) == (197, 197, 98, 3)
    assert data.scan(source).result() == survey


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "touched", "grown"])
def test_a_folder_that_changed_is_packed_again(folder: Path, cache: Path, change: str) -> None:
    data.open_images(folder, channels=3)
    before = packs(cache)
    file = folder / "101.png"
    if change == "added":
        shutil.copy(file, folder / "new.png")
    elif change == "removed":
        file.unlink()
    elif change == "renamed":
        file.rename(folder / "101a.png")
    elif change == "touched":
        os.utime(file, (1, 1))
    else:
        file.write_bytes(file.read_bytes() + b"\0")
    source = data.find_source(folder)
    assert data.scan(source).total == source.count
    images = data.open_images(folder, channels=3)
    assert len(images) == 197 + {"added": 1, "removed": -1}.get(change, 0)
    assert set(packs(cache)) > set(before)  # a run may have begun on what was made from its earlier state
    assert len(packs(cache)) == 2
    assert len(list((cache / "surveys").iterdir())) == 1


def test_each_size_and_number_of_channels_has_its_pack(folder: Path, cache: Path) -> None:
    shapes = [data.open_images(folder, size, channels).shape for size in ((8, 8), (8, 16)) for channels in (1, 3)]
    assert shapes == [(197, 8, 8, 1), (197, 8, 8, 3), (197, 8, 16, 1), (197, 8, 16, 3)]
    assert len(packs(cache)) == 4
    assert len(list((cache / "surveys").iterdir())) == 1


@pytest.mark.parametrize("file", [PIXELS, NAMES, MANIFEST])
@pytest.mark.parametrize("damage", ["cut", "grown", "gone", "empty"])
def test_a_pack_that_was_damaged_is_made_again(folder: Path, cache: Path, file: str, damage: str) -> None:
    first = data.open_images(folder)
    target = cache / "packs" / packs(cache)[0] / file
    content = target.read_bytes()
    if damage == "gone":
        target.unlink()
    else:
        target.write_bytes({"cut": content[:-1], "grown": content + b"}", "empty": b""}[damage])
    second = data.open_images(folder)
    assert second.digest == first.digest
    assert list(second.names()) == list(first.names())
    assert target.read_bytes() == content
    assert len(packs(cache)) == 1


def test_a_pack_that_is_cut_while_it_is_open_is_an_error_and_no_crash(folder: Path, cache: Path) -> None:
    images = data.open_images(folder)
    os.truncate(cache / "packs" / packs(cache)[0] / PIXELS, 1000)
    with pytest.raises(InputError, match="was cut while it was read"):
        images.take([150])


def test_an_open_pack_outlives_its_file(folder: Path, cache: Path) -> None:
    images = data.open_images(folder)
    expected = images.take(range(197))
    shutil.rmtree(cache)
    np.testing.assert_array_equal(images.take(range(197)), expected)


@pytest.mark.parametrize("survey", ["", "[]", "null", '{"images": 3}', "{"])
def test_a_damaged_survey_is_made_again(folder: Path, cache: Path, survey: str) -> None:
    first = data.scan(data.find_source(folder)).result()
    (file,) = (cache / "surveys").iterdir()
    file.write_text(survey)
    assert data.scan(data.find_source(folder)).result() == first


def test_what_dead_packers_left_is_removed_once_it_is_old(folder: Path, cache: Path) -> None:
    for name, age in (("old", 2 * 86400), ("young", 3600)):
        left = cache / "packs" / f".tmp-{name}"
        left.mkdir(parents=True)
        (left / PIXELS).write_bytes(b"0")
        for path in (left / PIXELS, left):
            os.utime(path, (time.time() - age,) * 2)
    data.open_images(folder)
    assert packs(cache)[0] == ".tmp-young"
    assert len(packs(cache)) == 2


def test_packs_that_nobody_has_opened_for_months_make_room(folder: Path, cache: Path) -> None:
    def age(days: int) -> None:
        for path in cache.rglob("*"):
            os.utime(path, (time.time() - days * 86400,) * 2)

    data.open_images(folder, (8, 8))
    age(100)
    data.open_images(folder, (8, 8))  # which is use
    data.open_images(folder, (8, 12))
    assert len(packs(cache)) == 2
    age(100)
    data.open_images(folder, (8, 8))
    data.open_images(folder, (12, 8))
    assert len(packs(cache)) == 2
    age(80)
    data.open_images(folder, (12, 12))
    assert len(packs(cache)) == 3


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"DDPM_CACHE": "/a/b", "XDG_CACHE_HOME": "/c"}, "/a/b"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/ddpm"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache/ddpm"),
        ({"HOME": "/h"}, "/h/.cache/ddpm"),
    ],
)
def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str) -> None:
    for name in ("DDPM_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    from ddpm_cli.data.packs.cache import cache_folder

    assert cache_folder() == Path(expected)


# Processes


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "npy"])
def test_any_number_of_processes_gives_the_same(folder: Path, tmp_path: Path, cache: Path, kind: str) -> None:
    path = folder
    if kind in ("zip", "tar"):
        path = Path(shutil.make_archive(str(tmp_path / "x"), kind, folder))
    elif kind == "npy":
        path = tmp_path / "x.npy"
        np.save(path, np.random.default_rng(1).integers(0, 256, (300, 9, 10, 4), dtype=np.uint8))
    results = []
    for workers in (1, 2):
        shutil.rmtree(cache, ignore_errors=True)
        source = data.find_source(path)
        scan = data.scan(source, workers)
        assert sum(scan) == scan.total
        pack = data.pack(source, scan.result(), (8, 12), 3, workers)
        assert sum(pack) == pack.total == source.extent
        images = pack.result()
        manifest = next((cache / "packs").iterdir()) / MANIFEST
        results.append((scan.result(), images.digest, [*images.names()], manifest.read_text()))
        in_memory = data.Images.from_array(images.take(range(len(images))))
        assert in_memory.digest == images.digest == json.loads(manifest.read_text())["digest"]
    assert results[0] == results[1]
    assert len(results[0][2]) == (300 if kind == "npy" else 197)


@pytest.mark.parametrize("workers", [1, 2])
def test_damaged_images_leave_no_gap(folder: Path, workers: int) -> None:
    source = data.find_source(folder)
    images = data.pack(source, data.scan(source).result(), (16, 12), 4, workers).result()
    names = sorted(path.name for path in folder.iterdir() if path.read_bytes() != b"damaged")
    assert [*images.names()] == names
    expected = [np.asarray(Image.open(folder / name).convert("RGBA")) for name in names]
    np.testing.assert_array_equal(images.take(range(197)), expected)


def test_the_number_of_processes_suits_the_work() -> None:
    cores = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 32)
    look, pack = Task("folder", "x"), Task("folder", "x", "y")
    for task in (look, pack):
        assert count_workers(task, 400, 1_200_000) == count_workers(task, 1, 30_000_000) == 1  # done in no time
        assert count_workers(task, 1_000_000, 10**10) == count_workers(task, None, 10**11) == cores
    assert count_workers(pack, 10_000, 30_000_000) == min(cores, 4)
    assert count_workers(pack, 300, 10**9) == cores  # few, but large
    assert count_workers(look, 300, 10**8) == 1


def test_only_numpy_and_pil_are_imported() -> None:
    code = "import sys, ddpm_cli.data.workers; print({'torch', 'click', 'rich', 'multiprocessing'} & set(sys.modules))"
    done = run_python(code)
    assert (done.stdout, done.stderr) == ("set()\n", "")


CAREFREE = """
import sys
from ddpm_cli import data
source = data.find_source(sys.argv[-1])
survey = data.scan(source, 1).result()
print(data.pack(source, survey, (8, 8), 3, 2).result().shape)
"""


@pytest.mark.parametrize("how", ["script", "-c", "stdin", "no stdin and stderr", "python path changed"])
def test_any_program_may_use_several_processes(folder: Path, tmp_path: Path, how: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(CAREFREE)
    env = dict(os.environ)
    command, text = [sys.executable, script, folder], ""
    if how == "-c":
        command[1:2] = ["-c", CAREFREE]
    elif how == "stdin":
        command[1], text = "-", CAREFREE
    elif how == "python path changed":
        command[1:2] = ["-c", f"import sys; sys.path.insert(0, {env.pop('PYTHONPATH')!r})\n{CAREFREE}"]
    elif how == "no stdin and stderr":
        command = ["sh", "-c", 'exec "$@" <&- 2>&-', "sh", *command]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False, env=env)
    assert (done.stdout, done.stderr, done.returncode) == ("(197, 8, 8, 3)\n", "", 0)


def test_a_cache_that_vanishes_meanwhile_is_an_error(folder: Path, cache: Path) -> None:
    source = data.find_source(folder)
    stage = data.pack(source, data.scan(source).result(), (8, 8), 3, 2)
    next(stage)
    shutil.rmtree(cache)
    with pytest.raises(DiskError, match="cannot write"):
        stage.result()


def test_a_process_that_dies_is_an_error_that_says_where(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddpm_cli.data.workers._START", "import os, sys; sys.stdin.buffer.readline(); os.abort()")
    source = data.find_source(folder)
    with pytest.raises(DdpmError, match="ended by signal 6"):
        data.scan(source, 2).result()


@pytest.fixture
def slow_folder(tmp_path: Path) -> Path:
    """40 names of one large image, which take seconds to pack."""
    (tmp_path / "slow").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(pixels).save(tmp_path / "slow" / "0.png", compress_level=1)
    for index in range(1, 40):
        os.link(tmp_path / "slow" / "0.png", tmp_path / "slow" / f"{index}.png")
    return tmp_path / "slow"


SLOW = """
import sys
from ddpm_cli import data
source = data.find_source(sys.argv[1])
survey = data.scan(source, 1).result()
for _ in data.pack(source, survey, (8, 8), 3, 2):
    print("packing", flush=True)
"""


@pytest.fixture
def packer(slow_folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A program in the middle of packing."""
    process = subprocess.Popen([sys.executable, "-c", SLOW, slow_folder], stdout=-1, stderr=-1, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "packing\n"
    yield process
    process.kill()
    process.communicate()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def wait_until_dead(pids: list[int], seconds: float) -> None:
    end = time.monotonic() + seconds
    while any(map(is_alive, pids)):
        assert time.monotonic() < end, "processes were left behind"
        time.sleep(0.02)


@LINUX
@pytest.mark.parametrize("to_all", [False, True])
def test_an_interrupt_leaves_no_processes_and_no_pack(packer: subprocess.Popen[str], cache: Path, to_all: bool) -> None:
    workers = children(packer.pid)
    assert len(workers) == 2
    if to_all:
        for pid in workers:
            os.kill(pid, signal.SIGINT)
        assert packer.stdout is not None
        for _ in range(4):  # the parent decides, and has not
            assert packer.stdout.readline() == "packing\n"
    os.kill(packer.pid, signal.SIGINT)
    _, stderr = packer.communicate(timeout=20)
    assert packer.returncode == -signal.SIGINT
    assert stderr.count("Traceback") == 1  # the parent's own
    assert whole(cache) == []
    wait_until_dead(workers, 1)


@LINUX
def test_a_packer_that_is_killed_leaves_no_processes_and_does_no_harm(
    packer: subprocess.Popen[str], cache: Path, slow_folder: Path
) -> None:
    workers = children(packer.pid)
    packer.kill()
    packer.wait()
    wait_until_dead(workers, 10)
    assert (len(packs(cache)), whole(cache)) == (1, [])
    for index in range(3, 40):
        (slow_folder / f"{index}.png").unlink()
    assert len(data.open_images(slow_folder, (8, 8), 3)) == 3
    assert packs(cache) == whole(cache)  # what was begun is of no use once the source is another


def test_a_stage_that_is_left_can_be_taken_up_again(folder: Path, cache: Path) -> None:
    source = data.find_source(folder)
    survey = data.scan(source).result()
    stage = data.pack(source, survey, (8, 8), 3, 2)
    done = next(stage)
    del stage
    assert whole(cache) == []
    again = data.pack(source, survey, (8, 8), 3, 2)
    assert next(again) == done
    assert len(again.result()) == 197


def test_a_stage_goes_on_where_it_was_left(folder: Path) -> None:
    source = data.find_source(folder)
    stage = data.scan(source, 1)
    for _ in stage:
        break
    assert stage.result().images == 197
    assert stage.result() is stage.result()
    assert list(stage) == []


def test_a_stage_that_failed_has_no_result(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(b"damaged")
    stage = data.scan(data.find_source(folder))
    with pytest.raises(InputError, match="no images in"):
        stage.result()
    with pytest.raises(RuntimeError, match="ended with an error"):
        stage.result()


def test_packers_at_once_do_each_other_no_harm(folder: Path, cache: Path) -> None:
    code = "import sys; from ddpm_cli import data; print(data.open_images(sys.argv[1], (24, 24)).digest)"
    command = [sys.executable, "-c", code, str(folder)]
    packers = [subprocess.Popen(command, stdout=-1, stderr=-1, text=True) for _ in range(4)]
    results = {packer.communicate(timeout=60) for packer in packers}
    assert len(results) == 1
    assert data.open_images(folder, (24, 24)).digest == next(iter(results))[0].strip()
    assert len(packs(cache)) == 1


# Full disks


def test_a_disk_that_is_too_small_is_noticed_before(folder: Path, cache: Path) -> None:
    source = data.find_source(folder)
    survey = data.scan(source).result()
    with pytest.raises(
        DiskError, match=r"needs 151,296.1 MiB in .*, where [\d,.]+ MiB are free.*DDPM_CACHE"
    ) as failure:
        data.pack(source, survey, (16384, 16384), 3).result()
    assert failure.value.exit_code == 7
    assert packs(cache) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_that_may_not_grow_is_an_error(folder: Path, cache: Path, workers: int) -> None:
    code = """
        import resource, sys
        from ddpm_cli import data
        source = data.find_source(sys.argv[1])
        survey = data.scan(source).result()
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        data.pack(source, survey, (16, 12), 3, int(sys.argv[2])).result()
    """
    done = run_python(code, folder, workers)
    assert "DiskError: cannot write" in done.stderr
    assert "would be larger than the limit" in done.stderr
    assert whole(cache) == []
    assert data.open_images(folder, (16, 12), 3).shape == (197, 16, 12, 3)


def test_a_cache_that_cannot_be_made_is_an_error(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "file" / "cache"))
    survey = data.scan(data.find_source(folder)).result()  # a look alone needs no cache
    assert survey.images == 197
    with pytest.raises(DiskError, match="a part of the path is a file"):
        data.open_images(folder)


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """Permissions mean nothing to root."""
    if os.geteuid() != 0:
        yield
        return
    Image.init()  # what is imported later may not be readable
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_that_may_not_be_read(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        (Path(name) / "closed").mkdir(0)
        with without_privileges(), pytest.raises(InputError, match="closed cannot be read"):
            data.find_source(Path(name) / "closed")


def test_what_may_not_be_read_is_skipped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as name:  # which everybody may enter, unlike tmp_path
        root = Path(name)
        shutil.copytree(folder, root / "images")
        (root / "images" / "closed").mkdir(0)
        (root / "images" / "050.png").chmod(0)
        (root / "cache").mkdir()
        for path in (root, root / "cache"):
            path.chmod(0o777)
        monkeypatch.setenv("DDPM_CACHE", str(root / "cache"))
        with without_privileges():
            images = data.open_images(root / "images")
        (root / "images" / "050.png").chmod(0o644)
        with without_privileges():
            assert len(data.open_images(root / "images")) == 197  # chmod changes neither size nor time
        (root / "images" / "closed").chmod(0o700)
    assert len(images) == 196
    said = {str(skip) for skip in images.skipped}
    assert "1 skipped, folder that cannot be read: closed/ (Permission denied)" in said
    assert "1 skipped, cannot be opened: 050.png (Permission denied)" in said


@pytest.mark.parametrize("workers", [1, 2])
def test_what_cannot_be_opened_for_another_reason_is_no_hole(folder: Path, cache: Path, workers: int) -> None:
    """Too many open files, a network disk that does not answer: the next start may find it readable."""
    source = data.find_source(folder)
    survey = data.scan(source).result()
    content = (folder / "101.png").read_bytes()
    (folder / "101.png").unlink()
    (folder / "101.png").symlink_to("101.png")
    for stage in (
        data.scan(replace(source, fingerprint="another"), workers),
        data.pack(source, survey, (8, 8), 3, workers),
    ):
        with pytest.raises(InputError, match=r"101.png cannot be opened: Too many levels .*; try again, or remove it"):
            stage.result()
    assert whole(cache) == []
    (folder / "101.png").unlink()
    (folder / "101.png").write_bytes(content)
    assert len(data.pack(source, survey, (8, 8), 3, workers).result()) == 197


# Memory

MEASURE = """
    import os, sys
    from pathlib import Path
    import numpy, PIL.Image
    def peak(pid="self"):
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) // 1024
    from ddpm_cli import data
    from ddpm_cli.data import workers
    children = [0]
    end = workers._Process.end
    def measured_end(self, *, now):
        children.append(peak(self.popen.pid))
        end(self, now=now)
    workers._Process.end = measured_end
    Path("/proc/self/clear_refs").write_text("5")  # or the peak would be at least that of what started this process
    bare = peak()
    images = data.open_images(sys.argv[1])
    rng = numpy.random.default_rng(0)
    for _ in range(200):
        images.take(rng.integers(0, len(images), 128))
    print(len(images), peak() - bare, max(children))
"""


@LINUX
@pytest.mark.parametrize(("n", "more"), [(10_000, 15), pytest.param(100_000, 25, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path, n: int, more: int) -> None:
    peaks = []
    rng = np.random.default_rng(3)
    originals = [tmp_path / f"{index}.png" for index in range(20)]
    for path in originals:
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    for count in (1_000, n):
        folder = tmp_path / str(count)
        folder.mkdir()
        for index in range(count):
            os.link(originals[index % 20], folder / f"{index:06}.png")
        packed, above, child = map(int, run_python(MEASURE, folder).stdout.split())
        shutil.rmtree(folder)  # pytest would keep it
        assert packed == count
        peaks.append(above)
        assert child < 150
    assert peaks[0] < 60
    assert peaks[1] - peaks[0] < more


@LINUX
def test_memory_does_not_grow_with_the_bytes_of_the_pack(tmp_path: Path) -> None:
    array = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, (25_000, 64, 64, 3))
    array[::100] = 7
    array.flush()
    del array
    code = MEASURE.replace("range(200)", "range(800)")
    done = run_python(code, tmp_path / "x.npy")
    count, above, child = map(int, done.stdout.split())
    assert count == 25_000
    assert above < 60
    assert child < 150


@LINUX
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_the_program_leaves_no_pack_behind_when_it_is_told_to_end(
    slow_folder: Path, cache: Path, tmp_path: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "ddpm_cli", "train", slow_folder, "--size", "64", "-o", tmp_path / "run"]
    process = subprocess.Popen(command, stdout=-1, stderr=-1, text=True)
    end = time.monotonic() + 60
    while not (cache / "packs").is_dir() or not packs(cache):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert stderr.splitlines()[-1] == "error: interrupted"
    assert whole(cache) == []
