"""Files are written whole or not at all, and each refusal of the disk is one clear sentence."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ddpm_cli
from ddpm_cli.core.files import check_output, disk_errors, printable, sync, write_file
from ddpm_cli.errors import ArgumentError, DiskError

# A child that runs one statement and says how it ended.
CHILD = """
import sys
from pathlib import Path
from ddpm_cli.core.files import check_output, write_file
try:
    {statement}
except Exception as error:
    print(type(error).__name__, error, sep=": ")
else:
    print("done")
"""


def child_command(statement: str) -> list[str]:
    return [sys.executable, "-c", CHILD.format(statement=statement)]


def child_env() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(ddpm_cli.__file__).parents[1])}


def outcome(command: list[str], **options: object) -> str:
    done = subprocess.run(command, env=child_env(), capture_output=True, text=True, timeout=60, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    return str(done.stdout).strip()


def without_privileges(command: list[str]) -> list[str]:
    """The command as a user whom permissions bind; root is one only without its capabilities."""
    if os.geteuid() != 0:
        return command
    drop = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"]
    if not shutil.which("setpriv") or subprocess.run([*drop, "true"], capture_output=True, timeout=60).returncode:
        pytest.skip("running as root, which no permission stops, and its capabilities cannot be dropped here")
    return [*drop, *command]


def on_small_disk(folder: Path, mount_options: str, prepare: str, command: list[str]) -> list[str]:
    """The command with a file system of its own on ``folder``, which nobody else sees and which goes with it."""
    mount = (
        f'mount -t tmpfs -o size=128k none "$0" && {prepare} && mount -o remount,bind,{mount_options} "$0" && exec "$@"'
    )
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    probe = [*unshare, "sh", "-c", mount, str(folder), "true"]
    if not shutil.which("unshare") or subprocess.run(probe, capture_output=True, timeout=60).returncode:
        pytest.skip("no file system can be mounted here")
    return [*unshare, "sh", "-c", mount, str(folder), *command]


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("size", [0, 1, 4096, 3_000_001])
def test_a_file_is_written_and_overwritten_and_nothing_else_remains(tmp_path: Path, size: int) -> None:
    path = tmp_path / "out.bin"
    for data in (os.urandom(size), os.urandom(size), b"short"):
        write_file(path, data)
        assert path.read_bytes() == data
        assert listing(tmp_path) == ["out.bin"]


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077, 0o000])
def test_the_umask_is_respected_and_left_alone(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_file(tmp_path / "out", b"x")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "out"
    contents = [bytes([i]) * (200_000 + i) for i in range(8)]
    write_file(path, contents[0])
    stop = threading.Event()

    def keep_writing() -> None:
        i = 0
        while not stop.is_set():
            write_file(path, contents[i := (i + 1) % 8])

    writer = threading.Thread(target=keep_writing)
    writer.start()
    seen = set()
    deadline = time.monotonic() + 20
    try:
        while len(seen) < 3 and time.monotonic() < deadline:
            seen.add(contents.index(path.read_bytes()))
    finally:
        stop.set()
        writer.join()
    assert len(seen) == 3


@pytest.mark.parametrize("seed", range(5))
def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"0" * 500_000)
    statement = """print('started', flush=True)
    for i in range(10**6):
        write_file(Path(sys.argv[1]), str(i % 10).encode() * 500_000)"""
    with subprocess.Popen([*child_command(statement), str(path)], env=child_env(), stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"started\n"
        time.sleep(random.Random(seed).uniform(0, 0.1))
        child.send_signal(signal.SIGKILL)
    data = path.read_bytes()
    assert len(data) == 500_000
    assert data.strip(data[:1]) == b""
    assert all(name == "out" or name.startswith(".tmp-") for name in listing(tmp_path))


def test_two_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "out"
    contents = [bytes([i]) * 100_000 for i in range(4)]
    threads = [
        threading.Thread(target=lambda data=data: [write_file(path, data) for _ in range(10)]) for data in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert listing(tmp_path) == ["out"]


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "folder" / "full").mkdir(parents=True)
    (tmp_path / "file").write_bytes(b"")
    for path, reason in [
        (tmp_path / "folder", "Is a directory"),
        (tmp_path / "missing" / "out", "No such file or directory"),
        (tmp_path / "file" / "out", "a part of the path is a file, not a folder"),
        (tmp_path / ("n" * 300), "the name is too long"),
    ]:
        with pytest.raises(DiskError) as caught:
            write_file(path, b"x")
        assert str(caught.value) == f"cannot write {path}: {reason}"
        assert caught.value.exit_code == 7
        assert isinstance(caught.value.__cause__, OSError)
        assert listing(tmp_path) == ["file", "folder"]


def test_an_interruption_while_writing_removes_the_temporary_file(tmp_path: Path) -> None:
    # What is no bytes stops the write itself, after the temporary file has been made.
    with pytest.raises(TypeError):
        write_file(tmp_path / "out", "text")  # type: ignore[arg-type]
    assert listing(tmp_path) == []


def test_a_full_disk_is_named_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "out"
    check = "sorted(str(p) for p in path.parent.iterdir()) == [sys.argv[1]] and path.read_bytes() == b'old\\n'"
    statement = f"""path = Path(sys.argv[1])
    try:
        write_file(path, bytes(10**6))
    finally:
        print("whole" if {check} else "damaged")"""
    command = on_small_disk(tmp_path, "rw", f"echo old > '{path}'", [*child_command(statement), str(path)])
    assert outcome(command).splitlines() == ["whole", f"DiskError: cannot write {path}: no space left on the disk"]


def test_a_read_only_disk_is_named_before_and_while_writing(tmp_path: Path) -> None:
    path = tmp_path / "out"
    expected = f"DiskError: cannot write {path}: the file system is read-only"
    for statement in ("check_output(Path(sys.argv[1]), force=False)", "write_file(Path(sys.argv[1]), b'x')"):
        command = on_small_disk(tmp_path, "ro", "true", [*child_command(statement), str(path)])
        assert outcome(command) == expected


def test_a_file_size_limit_is_named_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    command = [*child_command("write_file(Path(sys.argv[1]), bytes(10**6))"), str(path)]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))

    reason = "the file would be larger than the limit set for this process"
    assert outcome(command, preexec_fn=limit) == f"DiskError: cannot write {path}: {reason}"
    assert path.read_bytes() == b"old"
    assert listing(tmp_path) == ["out"]


def test_a_folder_without_permission_is_named_before_and_while_writing(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    for mode in (0o555, 0o000):  # may be searched but not written; neither
        folder.mkdir(mode=mode)
        folder.chmod(mode)
        path = folder / "out"
        for statement in ("check_output(Path(sys.argv[1]), force=False)", "write_file(Path(sys.argv[1]), b'x')"):
            command = without_privileges([*child_command(statement), str(path)])
            assert outcome(command) == f"DiskError: cannot write {path}: permission denied"
        folder.chmod(0o755)
        folder.rmdir()


def test_check_output_lets_pass_what_can_be_written(tmp_path: Path) -> None:
    check_output(tmp_path / "new.png", force=False)
    (tmp_path / "old.png").write_bytes(b"x")
    check_output(tmp_path / "old.png", force=True)
    (tmp_path / "link.png").symlink_to(tmp_path / "old.png")
    check_output(tmp_path / "link.png", force=True)
    assert listing(tmp_path) == ["link.png", "old.png"]


def test_check_output_does_not_overwrite_without_force(tmp_path: Path) -> None:
    path = tmp_path / "old.png"
    path.write_bytes(b"x")
    with pytest.raises(ArgumentError, match=r"old\.png exists already; .* `force` to overwrite it") as caught:
        check_output(path, force=False)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("force", [False, True])
def test_check_output_refuses_what_is_no_place_for_a_file(tmp_path: Path, force: bool) -> None:
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    refused = [
        (tmp_path, ArgumentError, "is a folder; give the name of a file in it"),
        (tmp_path / "pipe", ArgumentError, "not a file; name a file"),
        (Path(os.devnull), ArgumentError, "not a file; name a file"),
        (tmp_path / "missing" / "out.png", DiskError, f"there is no folder {tmp_path}/missing; make it first"),
        (tmp_path / "file" / "out.png", DiskError, f"there is no folder {tmp_path}/file; make it first"),
        (tmp_path / ("n" * 300), DiskError, "the name is too long"),
    ]
    for path, error, message in refused:
        with pytest.raises(error) as caught:
            check_output(path, force=force)
        assert message in str(caught.value)
        assert str(path) in str(caught.value)
    assert listing(tmp_path) == ["file", "pipe"]


def test_disk_errors_give_a_reason_and_let_other_errors_through() -> None:
    for number, reason in [(errno.ENOSPC, "no space left on the disk"), (errno.EIO, os.strerror(errno.EIO))]:
        with pytest.raises(DiskError, match=rf"^cannot write a/b: {reason}$"), disk_errors(Path("a/b")):
            raise OSError(number, os.strerror(number))
    with pytest.raises(DiskError, match=r"^cannot write a\\n\\x1b\[2Jb: odd$"), disk_errors(Path("a\n\x1b[2Jb")):
        raise OSError("odd")
    for other in (KeyError("k"), KeyboardInterrupt(), ArgumentError("x")):
        with pytest.raises(type(other)) as caught, disk_errors(Path("a")):
            raise other
        assert caught.value is other


def test_files_and_folders_can_be_synced(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    handle = os.open(tmp_path, os.O_RDONLY)  # the lowest that is free, and still so after each sync
    os.close(handle)
    sync(tmp_path / "file")
    sync(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "missing")
    again = os.open(tmp_path, os.O_RDONLY)
    os.close(again)
    assert again == handle


@given(st.text())
def test_printable_text_is_printable_and_stays_as_it_is(text: str) -> None:
    safe = printable(text)
    assert safe.isprintable()
    assert printable(safe) == safe
    assert all(c in safe for c in text if c.isprintable())
    if text.isprintable():
        assert safe == text


@given(st.binary(max_size=40))
def test_any_name_a_file_can_have_can_be_printed(name: bytes) -> None:
    printable(Path(os.fsdecode(name.replace(b"\0", b"")))).encode("utf-8", "strict")


def test_printable_escapes_what_moves_the_cursor_or_the_reading_direction() -> None:
    assert printable("a\x1b[31m\r\n\t\u202eb é 日 \udcff") == r"a\x1b[31m\r\n\t\u202eb é 日 \udcff"
