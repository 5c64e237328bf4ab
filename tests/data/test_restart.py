"""Packing that is killed, meets a full disk or another packer: it goes on where it was, to the same bytes."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ddpm_cli
from ddpm_cli import data
from ddpm_cli.data.packs import cache as caches
from ddpm_cli.data.packs import shards as shard_files
from ddpm_cli.data.packs.manifest import JOURNAL, MANIFEST, NAMES
from ddpm_cli.errors import DiskError, InputError

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="unshares mounts, or looks into /proc")
SIZE, CHANNELS = (16, 12), 3
ROW = 16 * 12 * 3
DAMAGED = (0, 1, 6, 7, 77, 198, 199)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(ddpm_cli.__file__).parents[1]))
    return tmp_path / "cache"


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_files, "SHARD_BYTES", 7 * ROW + 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """200 images of 16x12, some damaged: the first, the last, at the edge of a shard of 7, and amid."""
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(21)
    for index in range(200):
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{index:03}.png")
    for index in DAMAGED:
        (tmp_path / "images" / f"{index:03}.png").write_bytes(b"damaged")
    return tmp_path / "images"


def pixels_of(folder: Path) -> tuple[list[str], np.ndarray]:
    names = sorted(path.name for path in folder.iterdir() if path.read_bytes() != b"damaged")
    return names, np.stack([np.asarray(Image.open(folder / name)) for name in names])


def pack(path: Path, workers: int | None = 1) -> data.Images:
    source = data.find_source(path)
    return data.pack(source, data.scan(source).result(), SIZE, CHANNELS, workers).result()


def the_pack(cache: Path) -> Path:
    (path,) = (cache / "packs").iterdir()
    return path


def files_of(pack: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in pack.iterdir() if path.name != ".lock"}


def open_files() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


# Shards


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "npy"])
def test_no_file_grows_beyond_its_bound_and_the_digest_is_that_of_the_pixels(
    folder: Path, tmp_path: Path, cache: Path, kind: str, workers: int
) -> None:
    names, pixels = pixels_of(folder)
    path = folder
    if kind in ("zip", "tar"):
        path = Path(shutil.make_archive(str(tmp_path / "x"), kind, folder))
    elif kind == "npy":
        path = tmp_path / "x.npy"
        np.save(path, pixels)
    images = pack(path, workers)
    if kind != "npy":  # an archive has an order of its own
        pixels = pixels[[names.index(Path(name).name) for name in images.names()]]
        names = [*images.names()]
    assert images.digest == data.Images.from_array(pixels).digest
    files = files_of(the_pack(cache))
    sizes = [len(files[name]) for name in sorted(files) if name.endswith(".u8")]
    positions = 193 if kind == "npy" else 200
    assert sizes == [7 * ROW] * (positions // 7) + [positions % 7 * ROW] * (positions % 7 > 0)
    assert set(files) == {f"images-{n:05}.u8" for n in range(len(sizes))} | {MANIFEST, NAMES}
    chosen = np.random.default_rng(0).permutation(np.arange(193).repeat(2))
    np.testing.assert_array_equal(images.take(chosen), pixels[chosen])
    assert [*images.names()] == ([f"x[{n}]" for n in range(193)] if kind == "npy" else names)


@pytest.mark.usefixtures("small_shards")
def test_holes_do_not_change_the_digest(folder: Path, cache: Path) -> None:
    with_holes = pack(folder)
    for index in DAMAGED:
        (folder / f"{index:03}.png").unlink()
    without = pack(folder)
    assert (with_holes.digest, [*with_holes.names()]) == (without.digest, [*without.names()])


def test_other_pixels_another_order_and_another_size_have_another_digest() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    others = [pixels, pixels[::-1], pixels[:5], pixels ^ 1, pixels.reshape(3, 8, 4, 3)]
    assert len({data.Images.from_array(np.ascontiguousarray(other)).digest for other in others}) == 5


@pytest.mark.usefixtures("small_shards")
def test_few_files_are_open_however_many_there_are(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_files, "_OPEN", 3)
    _, pixels = pixels_of(folder)
    before = open_files()
    images = pack(folder)
    assert open_files() == before + 3
    np.testing.assert_array_equal(images.take(range(193)), pixels)
    assert open_files() == before + 3
    shutil.rmtree(cache)
    np.testing.assert_array_equal(images.take(range(15)), pixels[:15])
    with pytest.raises(InputError, match=r"images-00028.u8 is gone"):
        images.take([192])
    del images
    assert open_files() == before


@pytest.mark.usefixtures("small_shards")
def test_all_files_stay_open_where_that_leaves_enough_for_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_files, "SHARD_BYTES", ROW)  # 200 files
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        for limit, expected in ((min(1024, hard), 200), (256, 64)):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            before = open_files()
            images = pack(folder)
            assert open_files() == before + expected
            np.testing.assert_array_equal(images.take([0, 192]), pixels_of(folder)[1][[0, 192]])
            del images
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("file", ["images-00000.u8", "images-00013.u8", "images-00028.u8"])
@pytest.mark.parametrize("damage", ["cut", "grown", "gone", "empty"])
def test_a_pack_with_a_damaged_file_is_made_again(folder: Path, cache: Path, file: str, damage: str) -> None:
    pack(folder)
    before = files_of(the_pack(cache))
    target = the_pack(cache) / file
    target.unlink()
    if damage != "gone":
        target.write_bytes({"cut": before[file][:-1], "grown": before[file] + b"0", "empty": b""}[damage])
    pack(folder)
    assert files_of(the_pack(cache)) == before


# Killed

KILLED = """
    import os, signal, sys
    from ddpm_cli import data
    from ddpm_cli.data.packs import journal, shards
    from ddpm_cli.data.sources import source
    shards.SHARD_BYTES, source.CHUNK_IMAGES, journal.FLUSH_SECONDS = {shard_bytes}, 8, {flush}
    import ddpm_cli.data.sources.folder, ddpm_cli.data.sources.archives, ddpm_cli.data.sources.arrays
    for module in (ddpm_cli.data.sources.folder, ddpm_cli.data.sources.archives, ddpm_cli.data.sources.arrays):
        module.CHUNK_IMAGES = 8
    found = data.find_source(sys.argv[1])
    survey = data.scan(found).result()
    stage = data.pack(found, survey, (16, 12), 3, int(sys.argv[2]))
    for number, amount in enumerate(stage):
        print(amount, flush=True)
        if number == int(sys.argv[3]):
            {end}
    print(stage.result().digest, flush=True)
"""


def run(path: Path, workers: int, after: int, *, end: str = "os.kill(os.getpid(), 9)", flush: float = 0) -> list[str]:
    code = textwrap.dedent(KILLED).format(shard_bytes=7 * ROW + 1, flush=flush, end=end)
    command = [sys.executable, "-c", code, str(path), str(workers), str(after)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == (0 if after < 0 else -signal.SIGKILL), done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", ["folder", "tar", "npy"])
def test_a_packing_that_is_killed_again_and_again_ends_as_if_it_had_not_been(
    folder: Path, tmp_path: Path, cache: Path, kind: str, workers: int
) -> None:
    path = folder
    if kind == "tar":
        path = Path(shutil.make_archive(str(tmp_path / "x"), kind, folder))
    elif kind == "npy":
        path = tmp_path / "x.npy"
        np.save(path, pixels_of(folder)[1])
    digest = run(path, workers, -1)[-1]
    expected = files_of(the_pack(cache))
    shutil.rmtree(cache / "packs")
    for after in (0, 7, 14, 20):
        run(path, workers, after)
        assert not (the_pack(cache) / MANIFEST).exists()
    assert run(path, workers, -1)[-1] == digest
    assert files_of(the_pack(cache)) == expected


def test_what_was_done_is_not_read_again(folder: Path, cache: Path) -> None:
    digest = run(folder, 1, -1)[-1]
    shutil.rmtree(cache / "packs")
    run(folder, 1, 12)
    for index in range(2, 96):  # 12 chunks of 8 are in the journal
        info = (folder / f"{index:03}.png").stat()
        (folder / f"{index:03}.png").write_bytes(bytes(info.st_size))
        os.utime(folder / f"{index:03}.png", ns=(info.st_atime_ns, info.st_mtime_ns))
    assert run(folder, 1, -1)[-1] == digest


@pytest.mark.parametrize(
    ("bytes_left", "tail"),
    [
        (0, b""),
        (1, b""),
        (30, b"\0" * 20),
        (150, b""),
        (400, b""),
        (400, b"\0" * 5000),
        (700, b'{"first": 8}\n'),
        (700, b"[]\n"),
    ],
)
def test_a_torn_journal_is_believed_as_far_as_it_is_whole(
    folder: Path, cache: Path, bytes_left: int, tail: bytes
) -> None:
    expected = pack(folder)
    files = files_of(the_pack(cache))
    shutil.rmtree(cache / "packs")
    run(folder, 1, 12)
    journal = the_pack(cache) / JOURNAL
    lines = journal.read_bytes()
    assert len(lines) > 700
    whole = lines[:bytes_left] if tail[:1] != b"{" else b"".join(lines.splitlines(keepends=True)[:5])
    journal.write_bytes(whole + tail)
    with_small_chunks = run(folder, 1, -1)
    assert with_small_chunks[-1] == expected.digest
    assert files_of(the_pack(cache))[NAMES] == files[NAMES]
    assert JOURNAL not in files_of(the_pack(cache))


def test_no_process_is_started_where_all_is_packed_and_only_the_end_is_missing(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(folder, 1, 24)  # the last chunk of 8
    assert (the_pack(cache) / JOURNAL).read_bytes().count(b"\n") == 1 + 25
    monkeypatch.setattr(shard_files, "SHARD_BYTES", 7 * ROW + 1)
    monkeypatch.setattr("ddpm_cli.data.sources.folder.CHUNK_IMAGES", 8)
    monkeypatch.setattr("ddpm_cli.data.workers._START", "raise SystemExit(1)")
    assert np.array_equal(pack(folder, workers=2).take(range(193)), pixels_of(folder)[1])


def test_an_interrupt_keeps_what_was_done_since_the_last_flush(folder: Path, cache: Path) -> None:
    end = "stage._work.close(); os.kill(os.getpid(), 9)"
    run(folder, 1, 12, end=end, flush=1e9)
    assert len((the_pack(cache) / JOURNAL).read_bytes().splitlines()) == 1 + 13
    shutil.rmtree(cache / "packs")
    run(folder, 1, 12, flush=1e9)
    assert len((the_pack(cache) / JOURNAL).read_bytes().splitlines()) == 1  # nothing was safe yet


def test_what_was_begun_of_another_state_goes_and_of_another_source_stays(
    folder: Path, tmp_path: Path, cache: Path
) -> None:
    shutil.copytree(folder, tmp_path / "other")
    run(folder, 1, 12)
    pack(tmp_path / "other")
    assert len(list((cache / "packs").iterdir())) == 2
    (folder / "100.png").unlink()
    assert len(pack(folder)) == 192
    assert all((path / MANIFEST).exists() for path in (cache / "packs").iterdir())


# Two at once


def test_a_packer_waits_for_another_and_opens_its_result(folder: Path, cache: Path) -> None:
    source = data.find_source(folder)
    first = data.pack(source, survey := data.scan(source).result(), SIZE, CHANNELS, 1)
    next(first)
    command = [sys.executable, "-c", textwrap.dedent(KILLED).format(shard_bytes=2**31, flush=0, end="pass")]
    second = subprocess.Popen([*command, str(folder), "1", "-1"], stdout=-1, text=True)
    assert second.stdout is not None
    assert [second.stdout.readline() for _ in range(3)] == ["0\n"] * 3
    expected = first.result().digest
    *amounts, digest = second.communicate(timeout=30)[0].split()
    assert set(amounts) <= {"0"}
    assert digest == expected
    assert data.pack(source, survey, SIZE, CHANNELS).total == 0


def test_a_packer_takes_over_from_one_that_dies(folder: Path, cache: Path) -> None:
    source = data.find_source(folder)
    first = data.pack(source, data.scan(source).result(), SIZE, CHANNELS, 1)
    next(first)
    command = [sys.executable, "-c", textwrap.dedent(KILLED).format(shard_bytes=2**31, flush=0, end="pass")]
    second = subprocess.Popen([*command, str(folder), "1", "-1"], stdout=-1, text=True)
    assert second.stdout is not None
    assert second.stdout.readline() == "0\n"
    del first
    *amounts, digest = second.communicate(timeout=30)[0].split()
    assert sum(map(int, amounts)) == 200
    assert digest == pack(folder).digest


def test_what_another_is_at_work_on_is_not_removed(folder: Path, cache: Path) -> None:
    source = data.find_source(folder)
    stage = data.pack(source, data.scan(source).result(), SIZE, CHANNELS, 1)
    next(stage)
    begun = the_pack(cache)
    for path in (begun, *begun.iterdir()):
        os.utime(path, (time.time() - 200_000,) * 2)
    caches.make_room(cache / "packs" / "other-0")
    assert len(stage.result()) == 193


@LINUX
def test_nobody_takes_over_before_the_processes_of_a_dead_packer_have_ended(folder: Path, cache: Path) -> None:
    """They may be at a large image, which they write as soon as it is decoded."""
    code = """
        import os, sys, time
        from ddpm_cli import data
        from ddpm_cli.data import workers
        slow = "import ddpm_cli.data.workers as w; fit = w.fit; "
        slow += "w.fit = lambda *a: (__import__('time').sleep(1.5), fit(*a))[1]; w.main()"
        workers._START = workers._START.replace("main()", slow)
        source = data.find_source(sys.argv[1])
        survey = data.scan(source, 1).result()
        print("start", flush=True)
        data.pack(source, survey, (16, 12), 3, 2).result()
    """
    packer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), str(folder)], stdout=-1, text=True)
    assert packer.stdout is not None
    assert packer.stdout.readline() == "start\n"
    children = Path(f"/proc/{packer.pid}/task/{packer.pid}/children")
    while len(workers := children.read_text().split()) < 2:
        time.sleep(0.01)
    while not (the_pack(cache) / shard_files.DIGESTS).exists():  # which a worker makes before it decodes
        time.sleep(0.01)
    packer.kill()
    packer.communicate()
    begun = the_pack(cache)
    assert caches.lock(begun, 0) is None
    while (held := caches.lock(begun, 0.1)) is None:
        assert any(map(is_alive, workers))
    with held:
        assert not any(map(is_alive, workers))


def is_alive(pid: str) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_a_lock_of_a_folder_that_was_removed_guards_nothing(tmp_path: Path) -> None:
    first = caches.lock(tmp_path / "pack", 0)
    assert first is not None
    assert caches.lock(tmp_path / "pack", 0) is None
    shutil.rmtree(tmp_path / "pack")
    with first:
        second = caches.lock(tmp_path / "pack", 0)
        assert second is not None
    with second:
        assert caches.lock(tmp_path / "pack", 0) is None


# Full disks


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small disk, as root")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_packing_that_met_a_full_disk_goes_on_and_asks_only_for_what_is_missing(
    folder: Path, cache: Path, workers: int
) -> None:
    code = """
        import os, sys
        from pathlib import Path
        from ddpm_cli import data
        from ddpm_cli.errors import DiskError
        source = data.find_source(sys.argv[1])
        cache = Path(os.environ["DDPM_CACHE"])
        survey = data.scan(source).result()
        def pack():
            return data.pack(source, survey, (64, 64), 3, int(sys.argv[2]))
        def fill(free):
            with (cache / "filler").open("wb", buffering=0) as file:
                try:
                    while True:  # others may be writing
                        file.write(bytes(4096))
                except OSError:
                    file.truncate(file.tell() - free)
        stage = pack()
        next(stage)
        fill(0)
        try:
            stage.result()
        except DiskError as error:
            print(error)
        del stage
        fill(4096 * 100)
        try:
            pack().result()
        except DiskError as error:
            print(error)
        need = 193 * 64 * 64 * 3
        fill(need - 64 * 64 * 64 * 3 + 4096 * 60)  # too little for all of them
        print(pack().result().digest)
    """
    cache.mkdir()
    mount = f'mount -t tmpfs -o size=4m none {cache} && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", mount, "sh", sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run([*command, folder, str(workers)], capture_output=True, text=True, timeout=60, check=False)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no private mounts here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    first, second, digest = done.stdout.splitlines()
    assert "no space left on the disk" in first
    assert "packing the images needs" in second
    source = data.find_source(folder)
    assert data.pack(source, data.scan(source).result(), (64, 64), 3).result().digest == digest


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small disk, as root")
def test_room_for_the_pixels_alone_is_not_enough(tmp_path: Path, cache: Path) -> None:
    """Of small images, the names and digests take more than the pixels."""
    np.save(tmp_path / "x.npy", np.zeros((20_000, 8, 8), np.uint8))
    code = """
        import os, sys
        from pathlib import Path
        from ddpm_cli import data
        from ddpm_cli.errors import DiskError
        cache = Path(os.environ["DDPM_CACHE"])
        source = data.find_source(sys.argv[1])
        survey = data.scan(source).result()
        info = os.statvfs(cache)
        (cache / "filler").write_bytes(bytes(info.f_bavail * info.f_frsize - 20_000 * 64 - 2**17))
        try:
            data.pack(source, survey, (8, 8), 1).result()
        except DiskError as error:
            print(error)
    """
    cache.mkdir()
    mount = f'mount -t tmpfs -o size=8m none {cache} && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", mount, "sh", sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run([*command, tmp_path / "x.npy"], capture_output=True, text=True, timeout=60, check=False)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no private mounts here: {done.stderr}")
    assert "packing the images needs 2.8 MiB" in done.stdout, done


def test_a_disk_that_is_too_small_leaves_nothing(folder: Path, cache: Path) -> None:
    source = data.find_source(folder)
    with pytest.raises(DiskError, match="packing the images needs"):
        data.pack(source, data.scan(source).result(), (16384, 16384), 3).result()
    assert list((cache / "packs").iterdir()) == []


# A source that changes


def test_the_pack_of_a_source_that_changed_is_found_by_its_digest(folder: Path, cache: Path) -> None:
    first = pack(folder)
    pixels = first.take(range(193))
    source = data.find_source(folder)
    assert data.former_pack(source, SIZE, CHANNELS) is None
    (folder / "100.png").unlink()
    source = data.find_source(folder)
    former = data.former_pack(source, SIZE, CHANNELS)
    assert former is not None
    assert len(former) == 193
    assert data.former_pack(source, (8, 8), CHANNELS) is None
    second = pack(folder)
    assert (len(second), data.former_pack(source, SIZE, CHANNELS)) == (192, None)
    found = data.former_pack(source, SIZE, CHANNELS, first.digest)
    assert found is not None
    np.testing.assert_array_equal(found.take(range(193)), pixels)
    assert data.former_pack(source, SIZE, CHANNELS, second.digest) is None
    assert data.former_pack(source, SIZE, CHANNELS, "images-blake2b-256:none") is None
    for path in cache.rglob("images-*"):
        if path.stat().st_size == 200 * ROW:
            os.truncate(path, 100)
    assert data.former_pack(source, SIZE, CHANNELS, first.digest) is None


# Disks that fail, and files that are cut


def failing(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Pack a folder, chunk by chunk of 8 images, after some code; prints the error that this ends with."""
    start = """
        import errno, os, sys
        from pathlib import Path
        from ddpm_cli import data
        from ddpm_cli.data.packs import journal
        from ddpm_cli.data.sources import folder
        from ddpm_cli.errors import DiskError
        folder.CHUNK_IMAGES, journal.FLUSH_CHUNKS = 8, 10
    """
    end = """
        source = data.find_source(sys.argv[1])
        survey = data.scan(source).result()
        try:
            data.pack(source, survey, (16, 12), 3, 1).result()
        except DiskError as error:
            print(error)
    """
    command = [sys.executable, "-c", "\n".join(map(textwrap.dedent, (start, code, end))), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done


@LINUX
def test_pixels_of_which_the_disk_said_once_that_they_are_lost_are_packed_again(folder: Path, cache: Path) -> None:
    code = """
        real, failed = os.fsync, []
        def fsync(handle):
            if os.readlink(f"/proc/self/fd/{handle}").endswith(".u8") and not failed:
                failed.append(handle)
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            real(handle)
        os.fsync = fsync
    """
    assert "cannot write" in failing(code, folder).stdout
    assert (the_pack(cache) / JOURNAL).read_bytes().count(b"\n") == 1  # none of the 10 chunks
    assert np.array_equal(pack(folder).take(range(193)), pixels_of(folder)[1])


@LINUX
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_chunks_of_which_only_the_line_could_not_be_written_are_kept(folder: Path, cache: Path, call: str) -> None:
    """An append that a full disk cut in the middle leaves half a line, behind which no other may come."""
    code = f"""
        import io
        real, failed = Path.open, []
        class Torn(io.FileIO):
            def writelines(self, lines):
                lines = b"".join(lines)
                if len(lines) > 700 and not failed:
                    failed.append(self)
                    self.write(lines[:700] if {call!r} == "write" else lines)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self.write(lines)
        def opened(path, mode="r", *arguments, **options):
            is_append = path.name == "pack-journal.jsonl" and mode == "ab"
            return Torn(path, mode) if is_append else real(path, mode, *arguments, **options)
        Path.open = opened
    """
    assert "no space left" in failing(code, folder).stdout
    lines = (the_pack(cache) / JOURNAL).read_bytes().splitlines(keepends=True)
    assert [json.loads(line)["first"] for line in lines[1:]] == [*range(0, 80, 8)]
    assert lines[-1].endswith(b"\n")
    assert np.array_equal(pack(folder).take(range(193)), pixels_of(folder)[1])


@pytest.mark.parametrize("file", ["images-00000.u8", "images-00005.u8", "images-00013.u8", shard_files.DIGESTS])
@pytest.mark.parametrize("damage", ["cut", "gone", "empty"])
@pytest.mark.parametrize("where", ["cache", "folder"])
def test_a_begun_pack_with_a_damaged_file_is_begun_anew(
    folder: Path, cache: Path, tmp_path: Path, file: str, damage: str, where: str
) -> None:
    run(folder, 1, 12)
    begun, target = the_pack(cache), None
    if where == "folder":
        target = tmp_path / "mine"
        begun = begun.rename(target)
    if damage == "gone":
        (begun / file).unlink()
    else:
        os.truncate(begun / file, (begun / file).stat().st_size - 1 if damage == "cut" else 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_files, "SHARD_BYTES", 7 * ROW + 1)
        patch.setattr("ddpm_cli.data.sources.folder.CHUNK_IMAGES", 8)
        source = data.find_source(folder)
        images = data.pack(source, data.scan(source).result(), SIZE, CHANNELS, 1, folder=target).result()
    assert images.digest == data.Images.from_array(pixels_of(folder)[1]).digest
    assert np.array_equal(images.take(range(193)), pixels_of(folder)[1])


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("file", ["images-00004.u8", shard_files.DIGESTS])
def test_a_file_that_is_cut_while_it_is_packed_is_an_error_and_not_black_images(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    monkeypatch.setattr("ddpm_cli.data.sources.folder.CHUNK_IMAGES", 8)
    source = data.find_source(folder)
    stage = data.pack(source, data.scan(source).result(), SIZE, CHANNELS, 1)
    assert sum(next(stage) for _ in range(25)) == 200  # all are written, and the end is not
    os.truncate(the_pack(cache) / file, 0)
    with pytest.raises(DiskError, match="was cut while the pack was made"):
        stage.result()
    assert np.array_equal(pack(folder).take(range(193)), pixels_of(folder)[1])


@LINUX
@pytest.mark.parametrize("workers", [1, 2])
def test_pixels_are_on_the_disk_before_the_journal_says_so_and_all_files_before_the_manifest(
    folder: Path, cache: Path, workers: int
) -> None:
    """What a power failure may leave, seen from the calls: a file counts as safe from its fsync to its next write."""
    code = """
        import json, os, sys
        from pathlib import Path
        from ddpm_cli import data
        from ddpm_cli.data.packs import journal, shards
        from ddpm_cli.data.sources import folder
        folder.CHUNK_IMAGES, journal.FLUSH_CHUNKS, shards.SHARD_BYTES = 8, 5, 7 * 16 * 12 * 3 + 1
        fsync, replace = os.fsync, Path.replace
        def recorded(handle):
            fsync(handle)
            here = Path(os.readlink(f"/proc/self/fd/{handle}"))
            lines = here.read_bytes().splitlines() if here.name == "pack-journal.jsonl" else []
            print(json.dumps(["fsync", here.name, len(lines) - 1]))
        def renamed(self, target):
            print(json.dumps(["rename", target.name, 0]))
            return replace(self, target)
        os.fsync, Path.replace = recorded, renamed
        source = data.find_source(sys.argv[1])
        survey = data.scan(source).result()
        data.pack(source, survey, (16, 12), 3, int(sys.argv[2])).result()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(folder), str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    calls = [json.loads(line) for line in done.stdout.splitlines()]
    calls = calls[next(n for n, call in enumerate(calls) if call[1] == JOURNAL) :]
    safe: set[str] = set()  # since the last time that the journal grew
    known, shards = 0, {f"images-{number:05}.u8" for number in range(29)}
    for call, name, lines in calls:
        if name == JOURNAL:
            assert lines == known or shard_files.DIGESTS in safe
            assert len(safe & shards) >= (lines - known) * 8 // 7  # of as many chunks, in order or not
            known, safe = lines, set()
        elif (call, name) == ("rename", MANIFEST):
            assert safe >= shards | {NAMES}
            assert known == 25
            break
        else:
            safe.add(name)
    else:
        pytest.fail("there is no manifest")
