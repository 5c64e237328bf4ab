"""``ddpm pack``, and packs as IMAGES of other commands."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_cli import data
from ddpm_cli.errors import ArgumentError, InputError
from helpers.process import Ddpm


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "ddpm-cache"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """30 images of 30x30 in colour, one of which is damaged."""
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(5)
    for index in range(30):
        Image.fromarray(rng.integers(0, 256, (30, 30, 3), dtype=np.uint8)).save(tmp_path / f"images/{index:02}.png")
    (tmp_path / "images" / "07.png").write_bytes(b"damaged")
    return tmp_path / "images"


def test_a_pack_is_made_and_opened_without_its_source(ddpm: Ddpm, images: Path, tmp_path: Path) -> None:
    expected = data.open_images(images, (30, 30))
    done = ddpm("pack", images, "-o", "packed", "--size", "30", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said == {
        "path": "packed",
        "images": 29,
        "shape": [29, 30, 30, 3],
        "digest": expected.digest,
        "bytes": sum(path.stat().st_size for path in (tmp_path / "packed").iterdir()),
    }
    assert "29 images of 30x30" in done.stderr
    assert "1 skipped" in done.stderr
    shutil.rmtree(images)
    shutil.move(tmp_path / "packed", tmp_path / "moved")
    shutil.rmtree(tmp_path / "ddpm-cache")
    opened = data.open_images(tmp_path / "moved")
    assert (opened.shape, opened.digest) == (expected.shape, expected.digest)
    assert [*opened.names()] == [f"{index:02}.png" for index in range(30) if index != 7]
    assert opened.skipped[0].count == 1
    assert not (tmp_path / "ddpm-cache").exists()  # nothing was looked at or packed
    plan = ddpm("train", "moved", "--dry-run")
    assert plan.returncode == 0, plan.stderr
    assert "moved: 29 images of 30x30 (RGB, packed)" in plan.stderr


def test_the_path_is_on_stdout_and_quiet_is_quiet(ddpm: Ddpm) -> None:
    done = ddpm("pack", "builtin:digits", "-o", "packed", "-q")
    assert (done.returncode, done.lines, done.stderr) == (0, ["packed"], "")
    assert ddpm("pack", "builtin:digits", "-o", "packed", "--force", "-v").lines == ["packed"]


@pytest.mark.parametrize(("size", "channels"), [((16, 16), None), (None, 1), ((30, 31), 3)])
def test_another_size_or_other_channels_than_the_packs_are_refused(
    ddpm: Ddpm, images: Path, tmp_path: Path, size: tuple[int, int] | None, channels: int | None
) -> None:
    assert ddpm("pack", images, "-o", "packed", "--size", "30").returncode == 0
    with pytest.raises(
        InputError, match=r"packed is a pack of 30x30 in RGB, not of .* leave `size` and `channels` out"
    ):
        data.open_images(tmp_path / "packed", size, channels)
    options = ["--size", f"{size[0]}x{size[1]}"] if size else []
    options += ["--channels", str(channels)] if channels else []
    for command in (["train", "packed", "--dry-run"], ["pack", "packed", "-o", "other"]):
        done = ddpm(*command, *options)
        assert done.returncode == 3
        assert "leave --size and --channels out" in done.stderr
    assert not (tmp_path / "other").exists()


def test_a_pack_can_be_copied_to_another_disk(ddpm: Ddpm, images: Path, tmp_path: Path) -> None:
    first = json.loads(ddpm("pack", images, "-o", "packed", "--json").stdout)
    second = json.loads(ddpm("pack", "packed", "-o", "copy", "--json").stdout)
    assert second["digest"] == first["digest"]
    one, other = data.open_images(tmp_path / "packed"), data.open_images(tmp_path / "copy")
    assert [*one.names()] == [*other.names()]
    done = ddpm("pack", "packed", "-o", "packed", "--force")
    assert done.returncode == 2
    assert "is the folder of the images" in done.stderr
    assert data.open_images(tmp_path / "packed").digest == first["digest"]


@pytest.mark.parametrize("file", ["images-00000.u8", "names.jsonl", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "grown", "gone", "empty"])
def test_a_damaged_pack_is_refused_with_advice(
    ddpm: Ddpm, images: Path, tmp_path: Path, file: str, damage: str
) -> None:
    ddpm("pack", images, "-o", "packed")
    target = tmp_path / "packed" / file
    content = target.read_bytes()
    target.unlink()
    if damage != "gone":
        target.write_bytes({"cut": content[:-1], "grown": content + b"}", "empty": b""}[damage])
    with pytest.raises(InputError, match=r"packed is a damaged pack: .*; copy it again, or make it again"):
        data.open_images(tmp_path / "packed")
    if (file, damage) == ("images-00000.u8", "gone"):
        done = ddpm("train", "packed", "--dry-run")
        assert done.returncode == 3
        assert "images-00000.u8 cannot be read (No such file or directory); copy it again" in done.stderr


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [29, 24, 24]},
        {"shape": [0, 24, 24, 3]},
        {"shape": [28, 24, 24, 3]},
        {"shape": [-29, -24, 24, 3]},
        {"shape": [29, 24, 24, 2]},
        {"shape": "none"},
        {"shape": [10**30, 24, 24, 3]},
        {"holes": [7, 7]},
        {"holes": [-1]},
        {"holes": [30]},
        {"holes": None},
        {"shape": [2**40, 1, 1, 1], "shard_images": 1, "holes": [], "names_bytes": 2**43},
        {"shape": [2**40, 24, 24, 3], "shard_images": 2**40},
        {"names_bytes": 89},
        {"shard_images": 0},
        {"shard_images": 1},
        {"schema": 1},
        {"schema": 99},
        {"skipped": [1]},
        {"notes": [["a"]]},
    ],
    ids=str,
)
def test_a_manifest_that_makes_no_sense_is_refused(ddpm: Ddpm, images: Path, tmp_path: Path, change: dict) -> None:
    ddpm("pack", images, "-o", "packed")
    manifest = tmp_path / "packed" / "manifest.json"
    whole = json.loads(manifest.read_bytes())
    assert (whole["shape"], whole["holes"]) == ([29, 24, 24, 3], [7])
    manifest.write_text(json.dumps(whole | change))
    with pytest.raises(InputError, match="damaged pack"):
        data.open_images(tmp_path / "packed")


def test_a_manifest_that_is_nested_too_deeply_is_refused(ddpm: Ddpm, images: Path, tmp_path: Path) -> None:
    ddpm("pack", images, "-o", "packed")
    (tmp_path / "packed" / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="damaged pack"):
        data.open_images(tmp_path / "packed")


def test_a_pack_that_is_not_finished_is_refused_and_goes_on(ddpm: Ddpm, images: Path, tmp_path: Path) -> None:
    source = data.find_source(images)
    survey = data.scan(source).result()
    stage = data.pack(source, survey, (24, 24), 3, 1, folder=tmp_path / "packed")
    next(stage)
    busy = ddpm("pack", images, "-o", "packed", "--force")
    assert busy.returncode == 6
    assert "another process is packing into packed" in busy.stderr
    del stage
    done = ddpm("train", "packed", "--dry-run")
    assert done.returncode == 3
    assert "is a pack that is not finished; run the same ddpm pack again" in done.stderr
    other = ddpm("pack", images, "-o", "packed", "--size", "16")
    assert other.returncode == 2
    assert "holds the begun pack of other images" in other.stderr
    assert ddpm("pack", images, "-o", "packed").returncode == 0
    assert data.open_images(tmp_path / "packed").digest == data.open_images(images).digest


@pytest.mark.parametrize("after", [0, 1])
def test_a_pack_that_was_killed_goes_on(ddpm: Ddpm, images: Path, tmp_path: Path, after: int) -> None:
    code = f"""
import os, pathlib, signal
from ddpm_cli import data
from ddpm_cli.data import workers
from ddpm_cli.data.sources import folder
folder.CHUNK_IMAGES = 8
source = data.find_source({str(images)!r})
survey = data.scan(source).result()
if not {after}:
    workers.ShardWriter = lambda shards: os.kill(os.getpid(), signal.SIGKILL)
for _ in data.pack(source, survey, (24, 24), 3, 1, folder=pathlib.Path({str(tmp_path / "packed")!r})):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    env = os.environ | {"PYTHONPATH": str(Path(data.__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == -signal.SIGKILL
    done = ddpm("train", "packed", "--dry-run")
    assert done.returncode == 3
    assert "not finished" in done.stderr
    assert ddpm("pack", images, "-o", "packed").returncode == 0
    assert data.open_images(tmp_path / "packed").digest == data.open_images(images).digest
    names = {path.name for path in (tmp_path / "packed").iterdir()}
    assert names == {".lock", "images-00000.u8", "manifest.json", "names.jsonl"}


@pytest.mark.parametrize("size", [24, 16])
def test_force_goes_on_with_a_begun_pack_of_the_same_only(ddpm: Ddpm, images: Path, tmp_path: Path, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ddpm_cli.data.sources.folder.CHUNK_IMAGES", 8)
        source = data.find_source(images)
        survey = data.scan(source).result()
        stage = data.pack(source, survey, (24, 24), 3, 1, folder=tmp_path / "packed")
        assert next(stage) == 8
        del stage
    journal = tmp_path / "packed" / "pack-journal.jsonl"
    before = journal.read_bytes()
    data.discard_pack(tmp_path / "packed", source, (size, size), 3)
    assert (journal.exists() and journal.read_bytes() == before) == (size == 24)
    done = ddpm("pack", images, "-o", "packed", "--size", str(size), "--force")
    assert done.returncode == 0, done.stderr
    assert data.open_images(tmp_path / "packed").digest == data.open_images(images, (size, size)).digest


def test_what_a_kill_at_the_very_end_leaves_is_removed_by_the_same_command(
    ddpm: Ddpm, images: Path, tmp_path: Path
) -> None:
    code = f"""
import os, pathlib, signal
from ddpm_cli import data
from ddpm_cli.data.packs import journal
journal.Journal.remove = lambda self: os.kill(os.getpid(), signal.SIGKILL)
source = data.find_source({str(images)!r})
survey = data.scan(source).result()
data.pack(source, survey, (24, 24), 3, 1, folder=pathlib.Path({str(tmp_path / "packed")!r})).result()
"""
    env = os.environ | {"PYTHONPATH": str(Path(data.__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == -signal.SIGKILL
    assert (tmp_path / "packed" / "pack-journal.jsonl").exists()
    assert (tmp_path / "packed" / "manifest.json").exists()
    other = ddpm("pack", images, "-o", "packed", "--size", "16")
    assert other.returncode == 2
    assert "holds a pack already" in other.stderr
    done = ddpm("pack", images, "-o", "packed")
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "packed").iterdir()}
    assert names == {".lock", "images-00000.u8", "manifest.json", "names.jsonl"}


@pytest.mark.parametrize("content", [b"", b'{"made_from": "', b"\0" * 100])
def test_a_journal_whose_first_line_is_torn_locks_nobody_out(
    ddpm: Ddpm, images: Path, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "pack-journal.jsonl").write_bytes(content)
    done = ddpm("pack", images, "-o", "packed")
    assert done.returncode == 0, done.stderr
    assert data.open_images(tmp_path / "packed").digest == data.open_images(images).digest


def test_a_copy_of_other_pixels_than_the_digest_names_is_refused(ddpm: Ddpm, images: Path, tmp_path: Path) -> None:
    assert ddpm("pack", images, "-o", "packed").returncode == 0
    with (tmp_path / "packed" / "images-00000.u8").open("r+b") as file:
        file.seek(5000)
        file.write(b"damage")
    (tmp_path / "copy").mkdir()
    done = ddpm("pack", "packed", "-o", "copy")
    assert done.returncode == 3
    assert "packed is a damaged pack: its pixels are not those that its digest names; copy it again" in done.stderr
    assert [*(tmp_path / "copy").iterdir()] == []  # the user's own folder stays


def test_nothing_is_overwritten_unasked(ddpm: Ddpm, images: Path, tmp_path: Path) -> None:
    ddpm("pack", "builtin:digits", "-o", "packed")
    (tmp_path / "packed" / "README").write_text("mine")
    again = ddpm("pack", images, "-o", "packed")
    assert again.returncode == 2
    assert "packed exists already; name another folder, or use --force" in again.stderr
    assert ddpm("pack", "missing", "-o", "packed", "--force").returncode == 3
    assert data.open_images(tmp_path / "packed").shape == (1797, 8, 8, 1)
    (tmp_path / "packed" / "README").unlink()
    assert ddpm("pack", images, "-o", "packed", "--force").returncode == 0
    assert data.open_images(tmp_path / "packed").shape == (29, 24, 24, 3)
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    for name, reason in (("file", "is a file"), ("full", "holds other files than those of a pack")):
        for force in ([], ["--force"]):
            done = ddpm("pack", images, "-o", name, *force)
            assert done.returncode == 2
            assert reason in done.stderr
    assert (tmp_path / "full" / "thesis.tex").read_text() == "x"
    source = data.find_source("builtin:digits")
    survey = data.scan(source).result()
    with pytest.raises(ArgumentError, match="holds a pack already"):
        data.pack(source, survey, (8, 8), 1, folder=tmp_path / "packed")


def test_other_folders_beside_a_pack_are_left_alone(ddpm: Ddpm, images: Path, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "x").touch()
    for path in (tmp_path / "old" / "x", tmp_path / "old"):
        os.utime(path, (1, 1))
    assert ddpm("pack", images, "-o", "packed").returncode == 0
    assert (tmp_path / "old" / "x").exists()


def test_a_folder_that_cannot_be_made_is_a_disk_error(ddpm: Ddpm, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = ddpm("pack", "builtin:digits", "-o", "file/packed")
    assert done.returncode == 7
    assert "a part of the path is a file" in done.stderr


def test_images_that_have_changed_are_said_to_have(ddpm: Ddpm, images: Path) -> None:
    first = ddpm("train", images, "--dry-run")
    assert "has changed" not in first.stderr
    for index in (3, 4):
        (images / f"{index:02}.png").unlink()
    second = ddpm("train", images, "--dry-run")
    assert f"{images} has changed since it was packed (29 images then)" in second.stderr
    assert ": 27 images of 30x30" in second.stderr
    third = ddpm("train", images, "--dry-run")
    assert "has changed" not in third.stderr
