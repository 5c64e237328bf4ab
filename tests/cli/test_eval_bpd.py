"""``ddpm eval-bpd`` as a process."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ddpm_cli
from helpers.models import random_unet, tiny, write_model
from helpers.nursery import Nursery, wait_until
from helpers.process import Ddpm

CPU = ("--device", "cpu")


@pytest.fixture
def images(tmp_path: Path) -> np.ndarray:
    """Five grey 8x8 images, also in images.npy."""
    pixels = np.random.Generator(np.random.Philox(3)).integers(0, 256, (5, 8, 8, 1), np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    return pixels


def test_json_has_the_parts_and_they_add_up(ddpm: Ddpm, tiny_run: Path, images: np.ndarray) -> None:
    done = ddpm("eval-bpd", "images.npy", "-m", tiny_run, "--json", *CPU)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    parts = {"bits_per_dim", "stderr", "prior", "rate", "decoder", "rmse"}
    assert set(data) == parts | {"images", "evaluations", "terms", "model"}
    assert data["evaluations"] == 5 * 20
    assert data["images"] == 5
    assert data["model"] == str(tiny_run)
    assert len(data["terms"]) == 20
    assert data["bits_per_dim"] == pytest.approx(data["prior"] + data["rate"] + data["decoder"], rel=1e-12)
    assert data["rate"] == pytest.approx(sum(data["terms"][1:]), rel=1e-12)
    assert data["decoder"] == pytest.approx(data["terms"][0], rel=1e-12)
    expected = ddpm_cli.load(str(tiny_run), device="cpu", precision="fp32").bits_per_dim(images)
    assert data["bits_per_dim"] == pytest.approx(expected.bits_per_dim, rel=1e-6)
    assert data["stderr"] == pytest.approx(expected.stderr, rel=1e-5)


def test_the_table_says_the_same(ddpm: Ddpm, tiny_run: Path, images: np.ndarray) -> None:
    data = json.loads(ddpm("eval-bpd", "images.npy", "-m", tiny_run, "--json", *CPU).stdout)
    done = ddpm("eval-bpd", "images.npy", "-m", tiny_run, *CPU)
    first = done.lines[0].split()
    assert first[:2] == ["bits/dim", f"{data['bits_per_dim']:.4f}"]
    assert first[3] == f"{data['stderr']:.4f}"
    rows = {line.split()[0]: line.split()[1:] for line in done.lines[7:]}
    assert rows["20"][0] == f"{data['terms'][19]:.6f}"


def test_batch_size_does_not_matter_and_the_seed_does(ddpm: Ddpm, tiny_run: Path, images: np.ndarray) -> None:
    def total(*options: str) -> float:
        done = ddpm("eval-bpd", "images.npy", "-m", tiny_run, "--json", *CPU, *options)
        return float(json.loads(done.stdout)["bits_per_dim"])

    assert total("--batch-size", "7") == pytest.approx(total("--batch-size", "64"), rel=1e-6)
    assert total("--seed", "1") != pytest.approx(total("--seed", "2"), rel=1e-6)


def test_limit_measures_the_first_images(ddpm: Ddpm, tiny_run: Path, images: np.ndarray) -> None:
    done = ddpm("eval-bpd", "images.npy", "-m", tiny_run, "--limit", "2", "--json", *CPU)
    data = json.loads(done.stdout)
    assert data["images"] == 2
    per_image = ddpm_cli.load(str(tiny_run), device="cpu", precision="fp32").bits_per_dim(images).per_image
    assert data["bits_per_dim"] == pytest.approx(per_image[:2].mean(), rel=1e-6)
    one = json.loads(ddpm("eval-bpd", "images.npy", "-m", tiny_run, "--limit", "1", "--json", *CPU).stdout)
    assert one["stderr"] is None


def test_images_are_brought_to_the_models_size_if_that_is_asked_for(ddpm: Ddpm, tiny_run: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "large.npy", np.full((2, 20, 30, 3), 99, np.uint8))
    np.save(tmp_path / "small.npy", np.full((2, 8, 8, 1), 99, np.uint8))
    large, small = (
        json.loads(ddpm("eval-bpd", f"{name}.npy", "-m", tiny_run, "--json", "--resize", *CPU).stdout)
        for name in ("large", "small")
    )
    assert large["bits_per_dim"] == small["bits_per_dim"]


@pytest.mark.parametrize(
    ("shape", "what"),
    [((20, 30, 3), "20x30, RGB"), ((8, 16, 1), "8x16, grey"), ((8, 8, 3), "8x8, RGB")],
)
def test_images_that_do_not_fit_are_refused_with_both_sizes(
    ddpm: Ddpm, tiny_run: Path, tmp_path: Path, shape: tuple[int, int, int], what: str
) -> None:
    np.save(tmp_path / "other.npy", np.full((2, *shape), 99, np.uint8))
    done = ddpm("eval-bpd", "other.npy", "-m", tiny_run, *CPU)
    assert done.returncode == 3
    assert f"the images are {what}, and the model's 8x8, grey; --resize scales" in done.stderr


# --- estimates and files ----------------------------------------------------------------------------------------------


def test_an_estimate_says_what_it_is(ddpm: Ddpm, tiny_run: Path, images: np.ndarray) -> None:
    command = ("eval-bpd", "images.npy", "-m", tiny_run, *CPU)
    data = json.loads(ddpm(*command, "--terms", "7", "--json").stdout)
    assert data["evaluations"] == 5 * 7
    expected = ddpm_cli.load(str(tiny_run), device="cpu", precision="fp32").bits_per_dim(images, terms=7)
    assert data["bits_per_dim"] == pytest.approx(expected.bits_per_dim, rel=1e-6)
    assert "(5 images, 7 terms of each)" in ddpm(*command, "--terms", "7").lines[0]
    assert json.loads(ddpm(*command, "--terms", "all", "--json").stdout)["evaluations"] == 100


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ("21", "terms is 21; this model has 20 terms"),
        ("0.5", "'0.5'"),
        ("0", "'0' is neither all nor"),
        ("-3", "'-3' is neither all nor"),
        ("none", "'none' is neither all nor"),
        ("\u00b2", "is neither all nor"),
    ],
)
def test_how_many_terms_there_cannot_be(
    ddpm: Ddpm, tiny_run: Path, images: np.ndarray, terms: str, message: str
) -> None:
    done = ddpm("eval-bpd", "images.npy", "-m", tiny_run, f"--terms={terms}")
    assert done.returncode == 2
    assert message in done.stderr


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_files_say_what_the_result_says(ddpm: Ddpm, tiny_run: Path, tmp_path: Path, images: np.ndarray) -> None:
    (tmp_path / "photos").mkdir()
    for number, pixels in enumerate(images):
        Image.fromarray(pixels[:, :, 0]).save(tmp_path / "photos" / f"image,{number}\x1b[31m.png")
    files = ("--per-image", "images.csv", "--per-t", "t.csv", "--rd", "rd.csv", "--plot", "rd.png")
    done = ddpm("eval-bpd", "photos", "-m", tiny_run, *files, "--json", *CPU)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    exact = ddpm_cli.load(str(tiny_run), device="cpu", precision="fp32").bits_per_dim(images)

    ranked = rows_of(tmp_path / "images.csv")
    assert [int(row["rank"]) for row in ranked] == [1, 2, 3, 4, 5]
    bits = [float(row["bits_per_dim"]) for row in ranked]
    assert bits == sorted(bits, reverse=True)
    assert np.mean(bits) == pytest.approx(data["bits_per_dim"])
    for row in ranked:
        assert row["name"] == f"image,{row['image']}\\x1b[31m.png"
        assert float(row["bits_per_dim"]) == pytest.approx(exact.per_image[int(row["image"])], rel=1e-5)

    by_t = rows_of(tmp_path / "t.csv")
    assert [int(row["t"]) for row in by_t] == list(range(1, 21))
    assert [float(row["bits_per_dim"]) for row in by_t] == data["terms"]
    assert all(float(row["mean_rmse"]) <= float(row["rmse"]) for row in by_t)

    rd = rows_of(tmp_path / "rd.csv")
    assert [int(row["reverse_steps"]) for row in rd] == list(range(20, 0, -1))
    assert [int(row["t"]) for row in rd] == list(range(1, 21))
    rates = [float(row["rate_bits_per_dim"]) for row in rd]
    assert rates[0] == pytest.approx(data["prior"] + data["rate"])
    assert rates[-1] == pytest.approx(data["prior"])
    assert [row["rmse"] for row in rd] == [row["rmse"] for row in by_t]

    with Image.open(tmp_path / "rd.png") as picture:
        assert picture.size == (1920, 480)
        colours = {colour for _, colour in picture.convert("RGB").getcolors(2**20)}
    assert len(colours) > 20  # lines and letters, and not an empty sheet


def test_a_term_that_was_never_computed_has_no_error(
    ddpm: Ddpm, tiny_run: Path, tmp_path: Path, images: np.ndarray
) -> None:
    done = ddpm("eval-bpd", "images.npy", "-m", tiny_run, "--terms", "1", "--per-t", "t.csv", "--plot", "p.png", *CPU)
    assert done.returncode == 0, done.stderr
    unknown = [row for row in rows_of(tmp_path / "t.csv") if row["rmse"] == ""]
    assert len(unknown) >= 15
    assert all(float(row["bits_per_dim"]) == 0 for row in unknown)


def test_files_are_refused_before_the_work(ddpm: Ddpm, tiny_run: Path, tmp_path: Path, images: np.ndarray) -> None:
    (tmp_path / "there.csv").write_text("mine")
    command = ("eval-bpd", "images.npy", "-m", tiny_run, *CPU)
    taken = ddpm(*command, "--rd", "there.csv")
    assert taken.returncode == 2
    assert "there.csv exists already" in taken.stderr
    assert (tmp_path / "there.csv").read_text() == "mine"
    assert ddpm(*command, "--rd", "there.csv", "--force").returncode == 0
    assert ddpm(*command, "--per-t", "no/where.csv").returncode == 7
    twice = ddpm(*command, "--per-t", "a.csv", "--resume", "a.csv")
    assert twice.returncode == 2
    assert "a.csv is named twice" in twice.stderr


# --- stopping and sharing ---------------------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Enough images for a few seconds of work."""
    np.save(tmp_path / "many.npy", np.random.default_rng(4).integers(0, 256, (3000, 8, 8, 1), np.uint8))
    return tmp_path / "many.npy"


@pytest.mark.parametrize("terms", ["all", "6"])
def test_a_measurement_that_was_stopped_goes_on(
    ddpm: Ddpm, nursery: Nursery, ddpm_env: dict[str, str], tiny_run: Path, many: Path, terms: str
) -> None:
    command = ["eval-bpd", str(many), "-m", str(tiny_run), "--terms", terms, "--batch-size", "16", "--json", *CPU]
    whole = ddpm(*command)
    child = nursery.ddpm(*command, "--resume", "state", env=ddpm_env, cwd=many.parent)
    wait_until((many.parent / "state").exists, "the work begins")
    time.sleep(0.5)
    child.kill(signal.SIGINT)
    assert child.wait() == 130
    assert child.stdout == ""
    again = ddpm(*command, "--resume", "state")
    assert again.returncode == 0, again.stderr
    assert "resuming after" in again.stderr
    assert again.stdout == whole.stdout
    finished = ddpm(*command, "--resume", "state")
    assert finished.stdout == whole.stdout


def test_a_file_of_another_measurement_or_of_none(
    ddpm: Ddpm, tiny_run: Path, tmp_path: Path, images: np.ndarray
) -> None:
    np.save(tmp_path / "others.npy", images[::-1])
    command = ("eval-bpd", "images.npy", "-m", tiny_run, "--resume", "state", *CPU)
    assert ddpm(*command).returncode == 0
    whole = (tmp_path / "state").read_bytes()
    shutil.copytree(tiny_run / "checkpoints" / "step-00000007", tmp_path / "other heads")
    (tmp_path / "other heads" / "MANIFEST.json").unlink()
    config = tmp_path / "other heads" / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"attention_head_dim": 4}))
    for change, what in {
        ("--seed", "1"): "--seed (0 there, 1 now)",
        ("--terms", "3"): "--terms (all there, 3 now)",
        ("--limit", "4"): "the number of images",
        ("--no-clip",): "diffusion",
        ("-m", "builtin:digits"): "the model",
        ("-m", "other heads"): "network",
    }.items():
        done = ddpm(*command, *change)
        assert done.returncode == 2
        assert "state belongs to another measurement, of which these differ: " in done.stderr
        assert what in done.stderr
    other = ddpm("eval-bpd", "others.npy", "-m", tiny_run, "--resume", "state", *CPU)
    assert other.returncode == 2
    assert "these differ: the images;" in other.stderr
    method = whole.rindex(b"PK\x01\x02") + 10
    for damage in (
        b"",
        b"nothing of the kind",
        whole[:-100],
        whole[: len(whole) // 2],
        whole[:method] + b"\x63" + whole[method + 1 :],
    ):
        (tmp_path / "state").write_bytes(damage)
        done = ddpm(*command)
        assert done.returncode == 3, done.stderr
        assert "state is damaged" in done.stderr
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "/dev/null", "."):
        done = ddpm(*command[:-4], "--resume", name, *CPU)
        assert done.returncode == 2, done.stderr
        assert "is no file" in done.stderr


@pytest.mark.parametrize("terms", ["all", "6"])
def test_several_processes_find_what_one_finds(
    ddpm: Ddpm, nursery: Nursery, ddpm_env: dict[str, str], tiny_run: Path, many: Path, terms: str
) -> None:
    command = ["eval-bpd", str(many), "-m", str(tiny_run), "--terms", terms, "--per-t", "t.csv", "--json", *CPU]
    first, *others = nursery.ranks(3, *command, env=ddpm_env, cwd=many.parent)
    assert [child.wait() for child in (first, *others)] == [0, 0, 0], first.stderr
    shared = (many.parent / "t.csv").read_bytes()
    alone = ddpm(*command, "--force")
    assert first.stdout.encode() == alone.stdout
    assert all(child.stdout == "" for child in others)
    assert shared == (many.parent / "t.csv").read_bytes()


def test_what_several_processes_had_done_is_gone_on_from_by_one(
    ddpm: Ddpm, nursery: Nursery, ddpm_env: dict[str, str], tiny_run: Path, many: Path
) -> None:
    command = ["eval-bpd", str(many), "-m", str(tiny_run), "--batch-size", "16", "--json", *CPU]
    children = nursery.ranks(2, *command, "--resume", "state", env=ddpm_env, cwd=many.parent)
    wait_until(lambda: len([*many.parent.glob("state*")]) == 2, "the work begins")
    time.sleep(0.5)
    for child in children:
        child.kill(signal.SIGTERM)
    assert [child.wait() for child in children] == [143, 143]
    assert {path.name for path in many.parent.glob("state*")} == {"state", "state.rank1"}
    again = ddpm(*command, "--resume", "state")
    assert again.returncode == 0, again.stderr
    assert again.stdout == ddpm(*command).stdout
    assert {path.name for path in many.parent.glob("state*")} == {"state"}


def test_as_torchrun_starts_it(
    ddpm: Ddpm, ddpm_env: dict[str, str], tiny_run: Path, tmp_path: Path, images: np.ndarray
) -> None:
    command = ["eval-bpd", "images.npy", "-m", str(tiny_run), "--json", *CPU]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = ddpm_env | {"OMP_NUM_THREADS": "1"}
    for _ in range(2):
        done = subprocess.run(
            [*launch, "-m", "ddpm_cli", *command], env=env, cwd=tmp_path, capture_output=True, timeout=120
        )
        assert done.returncode == 0, done.stderr.decode()
        assert done.stdout == ddpm(*command).stdout


def test_a_process_whose_peer_has_ended_says_so(
    nursery: Nursery, ddpm_env: dict[str, str], tiny_run: Path, many: Path
) -> None:
    command = ["eval-bpd", str(many), "-m", str(tiny_run), "--batch-size", "16", "--resume", "state", *CPU]
    first, second = nursery.ranks(2, *command, env=ddpm_env, cwd=many.parent)
    wait_until(lambda: len([*many.parent.glob("state*")]) == 2, "the work begins")
    second.kill()
    assert first.wait(60) == 8
    assert "error: another process that shared the work has ended" in first.stderr


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE"])
def test_an_environment_that_is_not_torchruns(ddpm: Ddpm, tiny_run: Path, images: np.ndarray, name: str) -> None:
    done = ddpm("eval-bpd", "images.npy", "-m", tiny_run, env={name: "two"})
    assert done.returncode == 2
    assert f"{name} is 'two' in the environment" in done.stderr


def test_files_of_others_are_left_alone(ddpm: Ddpm, tiny_run: Path, tmp_path: Path, images: np.ndarray) -> None:
    for name in ("bpd.2026", "bpda.rank1", "bpd.ranking", "bpd.rank1.old"):
        (tmp_path / name).write_text("mine")
    for _ in range(2):
        assert ddpm("eval-bpd", "images.npy", "-m", tiny_run, "--resume", "bpd", *CPU).returncode == 0
    for name in ("bpd.2026", "bpda.rank1", "bpd.ranking", "bpd.rank1.old"):
        assert (tmp_path / name).read_text() == "mine"


def test_outputs_that_are_not_finite_are_an_error(ddpm: Ddpm, tmp_path: Path, images: np.ndarray) -> None:
    unet = random_unet(tiny(), 1)
    for parameter in unet.parameters():
        parameter.data.fill_(3e38)
    write_model(tmp_path / "m", unet)
    done = ddpm("eval-bpd", "images.npy", "-m", "m", *CPU)
    assert done.returncode == 3, done.stderr
    assert re.search(r"the term of image \d at t = \d+ is not finite", done.stderr)


def test_weights_that_are_not_finite(ddpm: Ddpm, tmp_path: Path, images: np.ndarray) -> None:
    unet = random_unet(tiny(), 1)
    unet.conv_in.weight.data[0, 0, 0, 0] = float("nan")
    write_model(tmp_path / "m", unet)
    done = ddpm("eval-bpd", "images.npy", "-m", "m", *CPU)
    assert done.returncode == 3
    assert done.stdout == b""
    assert "holds numbers that are not finite" in done.stderr


@pytest.mark.parametrize(
    ("source", "code"), [("nowhere", 3), ("empty", 3), ("text.npy", 3), ("builtin:cats", 3), ("one.png", 3)]
)
def test_sources_that_cannot_be_used(ddpm: Ddpm, tiny_run: Path, tmp_path: Path, source: str, code: int) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npy").write_text("not an array")
    (tmp_path / "one.png").write_bytes(b"x")
    done = ddpm("eval-bpd", source, "-m", tiny_run)
    assert done.returncode == code
    assert source in done.stderr
    assert "Traceback" not in done.stderr
