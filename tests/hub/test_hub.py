"""Models of the Hub, pulled from one on the loopback interface and pushed to it, as processes.

Each process reads the Hub's address from its environment, as a user's does.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import re
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import torch
import yaml

from ddpm_cli.checkpoint import read_model
from ddpm_cli.checkpoint.layout import WEIGHTS
from ddpm_cli.config import UNetConfig
from ddpm_cli.errors import InputError
from ddpm_cli.hub import cache
from ddpm_cli.hub.client import RepoName, parse
from ddpm_cli.models.card import ReportedBound
from ddpm_cli.network.unet import build
from helpers.hub import environment, hub_files
from helpers.hub_server import (
    Answer,
    HubServer,
    Repository,
    as_json,
    refusal,
    run_by_xet,
    run_slowly,
    run_without_sockets,
    serving,
    sha256,
)
from helpers.models import GOOGLE_256, GOOGLE_CIFAR10, random_unet, tiny, write_model
from helpers.nursery import Child, Nursery, wait_until
from helpers.process import Ddpm, Finished

NESTED = f"unet/{WEIGHTS}"
COMMIT = r"[0-9a-f]{40}"
CPU = ("--device", "cpu", "--precision", "fp32")


@pytest.fixture
def server() -> Iterator[HubServer]:
    with serving() as hub:
        yield hub


class Call(Protocol):
    def __call__(self, *args: str | Path, env: dict[str, str] | None = None, timeout: float = 120) -> Finished: ...


@pytest.fixture
def call(ddpm: Ddpm, server: HubServer) -> Call:
    """``ddpm`` as a process that knows the server."""

    def run(*args: str | Path, env: dict[str, str] | None = None, timeout: float = 120) -> Finished:
        return ddpm(*args, env=environment(server) | (env or {}), timeout=timeout)

    return run


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def repository(server: HubServer, tmp_path: Path) -> Repository:
    """u/m, a small model of the nested layout."""
    return server.put("u/m", content(write_model(tmp_path / "m", random_unet(tiny(), 1))))


# --- names ------------------------------------------------------------------------------------------------------------


def test_names_of_repositories() -> None:
    assert parse("google/ddpm-cifar10-32") == RepoName("google/ddpm-cifar10-32")
    assert parse("u/m@v1.0") == RepoName("u/m", "v1.0")
    assert parse("u/m@refs/pr/1") == RepoName("u/m", "refs/pr/1")
    for spec in (
        "m",
        "u/m/x",
        "/u/m",
        "../m",
        "u/..",
        "u/m@",
        "u/m@../../x",
        "u/m@/x",
        "~/m",
        "u/m\n",
        "u/.m",
        "u m/x",
        "é/m",
    ):
        assert parse(spec) is None, spec


# --- pulling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("repo", "config"),
    [
        ("google/ddpm-cifar10-32", GOOGLE_CIFAR10),
        pytest.param("google/ddpm-cat-256", GOOGLE_256, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_the_papers_networks_are_pulled_and_compute_what_diffusers_computes(
    call: Call, server: HubServer, repo: str, config: dict[str, Any]
) -> None:
    from diffusers import UNet2DModel

    server.put(repo, hub_files(config, random_unet(UNetConfig.from_json(config), 3)))
    done = call("pull", repo)
    assert done.returncode == 0, done.stderr
    folder = Path(done.lines[0])
    stored = read_model(folder, repo)
    ours = build(stored.unet, "cpu").eval()
    ours.load_state_dict(stored.weights)
    side = config["sample_size"]
    x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        theirs = UNet2DModel.from_pretrained(str(folder)).eval()(x, 10).sample
        torch.testing.assert_close(ours(x, torch.tensor([10])), theirs, rtol=0, atol=1e-5)
    assert {path.name for path in folder.rglob("*")} == {"config.json", "scheduler_config.json", WEIGHTS}


def test_only_what_is_needed_is_fetched_and_only_once(
    call: Call, server: HubServer, repository: Repository, tmp_path: Path
) -> None:
    repository.files.update({"README.md": b"x", "unet/diffusion_pytorch_model.bin": b"x", "samples/1.png": b"x"})
    assert call("pull", "u/m").returncode == 0
    fetched = [path.split("/", 5)[5] for method, path in server.requests if method == "GET" and "/resolve/" in path]
    documents = ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json", "ddpm.json"]
    assert fetched == [*documents, NESTED]
    server.requests.clear()
    done = call("sample", "-m", "u/m", "-n", "2", "-o", "a.npy", *CPU)
    assert done.returncode == 0, done.stderr
    assert [method for method, _ in server.requests] == ["GET", "POST"]  # which commit, and what is in it
    assert call("sample", "-m", str(tmp_path / "m"), "-n", "2", "-o", "b.npy", *CPU).returncode == 0
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))


def test_a_folder_here_wins_over_a_repository(call: Call, server: HubServer, tmp_path: Path) -> None:
    write_model(tmp_path / "u" / "m", random_unet(tiny(), 2))
    assert call("sample", "-m", "u/m", "-n", "1", "-o", "a.png", *CPU).returncode == 0
    assert server.requests == []


def test_a_revision_is_what_is_asked_for(call: Call, server: HubServer, repository: Repository, tmp_path: Path) -> None:
    commit = repository.commit
    for spec in (("u/m", "--revision", commit), (f"u/m@{commit[:7]}",), ("u/m", "--revision", "main")):
        done = call("pull", *spec)
        assert done.returncode == 0, done.stderr
        assert done.lines[0].endswith(f"/snapshots/{commit}")
    missing = call("pull", "u/m@v2")
    assert missing.returncode == 4
    assert "no such revision" in missing.stderr
    for wrong in ("nonsense", "u/m@../x", "../../etc/passwd", "u/m/n", ""):
        refused = call("pull", wrong)
        assert refused.returncode == 2
        assert f"'{wrong}' is no repository" in refused.stderr
    assert "is no revision" in call("pull", "u/m", "--revision", "../x").stderr
    assert "names a revision already" in call("pull", "u/m@main", "--revision", "v1").stderr


def test_a_pull_into_a_folder(call: Call, server: HubServer, repository: Repository, tmp_path: Path) -> None:
    done = call("pull", "u/m", "-o", "mine")
    assert done.lines == ["mine"]
    ours, theirs = (read_model(tmp_path / name, name) for name in ("mine", "m"))
    assert (ours.unet, ours.diffusion) == (theirs.unet, theirs.diffusion)
    assert all(torch.equal(tensor, theirs.weights[name]) for name, tensor in ours.weights.items())
    assert ours.provenance.origin == f"u/m@{repository.commit}"
    again = call("pull", "u/m", "-o", "mine")
    assert again.returncode == 2
    assert "exists already" in again.stderr


def test_offline_what_was_fetched_is_used_and_no_socket_opened(
    call: Call, server: HubServer, repository: Repository, nursery: Nursery, ddpm_env: dict[str, str], tmp_path: Path
) -> None:
    offline = ddpm_env | environment(server) | {"HF_HUB_OFFLINE": "1"}
    command = ["sample", "-m", "u/m", "-n", "1", "-o", str(tmp_path / "a.png"), *CPU]
    before = nursery.call(run_without_sockets, command, env=offline)
    assert before.wait() == 4
    assert before.stderr == "error: u/m is not in the cache, and HF_HUB_OFFLINE forbids to fetch it\n"
    assert call("pull", "u/m").returncode == 0
    server.requests.clear()
    after = nursery.call(run_without_sockets, command, env=offline)
    assert after.wait() == 0, after.stderr
    assert server.requests == []


def test_without_a_network_what_was_fetched_is_used_with_a_warning(
    call: Call, server: HubServer, repository: Repository
) -> None:
    assert call("pull", "u/m").returncode == 0
    gone = {"HF_ENDPOINT": f"http://127.0.0.1:{closed_port()}"}
    done = call("sample", "-m", "u/m", "-n", "1", "-o", "a.png", *CPU, env=gone)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"warning: .* cannot be reached .* using what was fetched before, u/m@{COMMIT}", done.stderr)
    other = call("pull", "u/other", env=gone)
    assert other.returncode == 4
    assert "cannot be reached for u/other" in other.stderr


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def test_an_altered_file_of_the_cache_is_refused(
    call: Call, server: HubServer, repository: Repository, tmp_path: Path
) -> None:
    weights = Path(call("pull", "u/m").lines[0]) / NESTED
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.resolve().write_bytes(data)
    offline = call("sample", "-m", "u/m", "-n", "1", "-o", "a.png", *CPU, env={"HF_HUB_OFFLINE": "1"})
    assert offline.returncode == 3
    assert "was altered" in offline.stderr
    assert not (tmp_path / "a.png").exists()
    assert call("sample", "-m", "u/m", "-n", "1", "-o", "a.png", *CPU).returncode == 0  # fetched anew
    assert weights.read_bytes() == repository.files[NESTED]


def test_a_cache_in_which_a_name_leads_elsewhere(
    call: Call, server: HubServer, repository: Repository, tmp_path: Path
) -> None:
    notes = Path(call("pull", "u/m").lines[0]) / "ddpm.json"
    os.mkfifo(tmp_path / "pipe")
    notes.unlink()
    notes.symlink_to(tmp_path / "pipe")
    assert call("info", "u/m", env={"HF_HUB_OFFLINE": "1"}, timeout=20).returncode == 0  # without the notes
    assert call("info", "u/m").returncode == 0
    assert notes.is_file()  # fetched anew
    assert (tmp_path / "pipe").is_fifo()  # which is not ours to remove


def test_a_cache_that_holds_all_is_not_written(call: Call, server: HubServer, repository: Repository) -> None:
    folder = Path(call("pull", "u/m").lines[0])
    ref = folder.parents[1] / "refs" / "main"

    def state() -> dict[Path, tuple[int, int]]:
        entries = (ref.parents[1], *ref.parents[1].rglob("*"))
        return {path: (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in entries}

    before = state()
    assert call("pull", "u/m").returncode == 0
    assert state() == before
    ref.unlink()
    ref.parent.rmdir()
    ref.parent.write_bytes(b"")  # where none can be written, as in a cache that is read-only
    assert call("info", "u/m").returncode == 0


def test_a_cache_without_links_says_that_nothing_was_compared(
    call: Call, server: HubServer, repository: Repository
) -> None:
    weights = Path(call("pull", "u/m").lines[0]) / NESTED
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content)
    assert "all agree with the digests that the Hub lists" in call("info", "u/m").stdout.decode()
    said = call("info", "u/m", env={"HF_HUB_OFFLINE": "1"}).stdout.decode()
    assert f"not compared, as the cache has no digest of them: {NESTED}" in said
    weights.write_bytes(content[:-1] + b"?")
    assert call("info", "u/m").returncode == 0  # fetched anew
    assert weights.read_bytes() == content


def test_a_cache_that_cannot_be_made(call: Call, server: HubServer, repository: Repository) -> None:
    done = call("pull", "u/m", env={"HF_HOME": "/proc/hf"})
    assert done.returncode == 7
    assert "cannot write /proc/hf/hub" in done.stderr


def test_altered_notes_of_the_cache_are_refused(call: Call, server: HubServer, repository: Repository) -> None:
    notes = Path(call("pull", "u/m").lines[0]) / "ddpm.json"
    notes.resolve().write_bytes(notes.read_bytes().replace(b"null", b"9999", 1))
    done = call("info", "u/m", env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 3
    assert "ddpm.json was altered" in done.stderr


def test_contents_in_a_store_that_repositories_share(
    call: Call, server: HubServer, repository: Repository, tmp_path: Path
) -> None:
    """What the client makes of files that came by Xet: a second link, to a name that is no digest of the content."""
    weights = Path(call("pull", "u/m").lines[0]) / NESTED
    content, shared = weights.resolve(), tmp_path / "hf-home" / "hub" / "blobs" / "ab" / ("ab" * 32)
    shared.parent.mkdir(parents=True)
    content.rename(shared)
    content.symlink_to(os.path.relpath(shared, content.parent))
    sample = ("sample", "-m", "u/m", "-n", "1", "-o", "a.png", "--force", *CPU)
    assert call(*sample, env={"HF_HUB_OFFLINE": "1"}).returncode == 0
    shared.write_bytes(b"damaged")
    assert call(*sample, env={"HF_HUB_OFFLINE": "1"}).returncode == 3
    assert call(*sample).returncode == 0  # fetched anew
    assert shared.read_bytes() == b"damaged"  # others may have links to it
    assert weights.read_bytes() == repository.files[NESTED]


def test_offline_half_a_model_is_none(call: Call, server: HubServer, repository: Repository) -> None:
    folder = Path(call("pull", "u/m").lines[0])
    (folder / NESTED).unlink()
    done = call("info", "u/m", env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 4
    assert "u/m is not in the cache" in done.stderr


def test_a_cache_whose_note_of_the_branch_is_damaged(call: Call, server: HubServer, repository: Repository) -> None:
    folder = Path(call("pull", "u/m").lines[0])
    (folder.parents[1] / "refs" / "main").write_bytes(b"\xff\xfe\0")
    done = call("info", "u/m", env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 4, done.stderr
    assert call("info", "u/m").returncode == 0
    assert call("info", "u/m", env={"HF_HUB_OFFLINE": "1"}).returncode == 0


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"HF_ENDPOINT": ""}, "HF_ENDPOINT is ''; it must be an address, https://..."),
        ({"HF_ENDPOINT": "http://[x"}, "no use: Invalid IPv6 URL"),
        ({"HF_ENDPOINT": "http://x:99999999"}, "no use: Port out of range"),
        ({"HF_HUB_DOWNLOAD_TIMEOUT": "soon"}, "an HF_... variable of the environment has a value that is of no use"),
        ({"HF_ENDPOINT": "hub.example"}, "HF_ENDPOINT is 'hub.example'"),
        ({"HF_ENDPOINT": "http://me:secret@127.0.0.1:9"}, "http://127.0.0.1:9 cannot be reached for u/m"),
        ({"HF_TOKEN": "hf_\u00e9"}, "has characters that no token has"),
        ({"ALL_PROXY": "nonsense://x"}, "the proxy that the environment names is of no use"),
    ],
)
def test_an_environment_that_is_of_no_use(call: Call, env: dict[str, str], message: str) -> None:
    done = call("pull", "u/m", env=env)
    assert done.returncode == 4
    assert message in done.stderr
    assert "secret" not in done.stderr


# --- what goes wrong on the way ---------------------------------------------------------------------------------------

HTML = Answer(200, b"<html>Log in to the hotel's network</html>", {"Content-Type": "text/html"})
ABSURD = {"Retry-After": "1000000000", "ratelimit": '"api";r=0;t=100000'}
ABOUT, FILE = r"/api/models/u/m$", rf"/resolve/{COMMIT}/{NESTED}$"
ALWAYS = 100


@pytest.mark.parametrize(
    ("method", "path", "fault", "code", "message"),
    [
        ("GET", ABOUT, {"answer": refusal(401, "RepoNotFound")}, 4, "has no model u/m, or it is private"),
        ("GET", ABOUT, {"answer": Answer(401, b"{}")}, 4, r"does not accept the token .*\(401\)"),
        ("GET", ABOUT, {"answer": refusal(403, "GatedRepo")}, 4, "u/m is gated: ask for access on http"),
        ("GET", ABOUT, {"answer": Answer(403, b"{}")}, 4, r"forbids access to u/m \(403\)"),
        ("GET", ABOUT, {"answer": refusal(404, "RepoNotFound")}, 4, "has no model u/m"),
        ("GET", ABOUT, {"answer": Answer(418, b"{}")}, 4, r"refuses the request for u/m \(418\)"),
        ("HEAD", FILE, {"answer": Answer(403)}, 4, r"forbids access to u/m \(403\)"),
        ("HEAD", FILE, {"answer": refusal(404, "EntryNotFound")}, 4, "a file that was listed is not there"),
        ("GET", ABOUT, {"answer": HTML}, 4, "answered in a way that is not the Hub's .*login page"),
        ("HEAD", FILE, {"answer": HTML}, 4, "answered in a way that is not the Hub's"),
        ("GET", FILE, {"answer": HTML}, 4, "answered in a way that is not the Hub's"),
        ("GET", ABOUT, {"answer": as_json({"id": "u/m", "sha": "../../x"})}, 4, "names a commit of u/m that is none"),
        ("HEAD", FILE, {"headers": {"ETag": "../../../../x", "X-Linked-Etag": "../../x"}}, 4, "an ETag that is none"),
        ("HEAD", FILE, {"headers": {"ETag": "..", "X-Linked-Etag": ".."}}, 4, "an ETag that is none"),
        ("HEAD", FILE, {"headers": {"X-Repo-Commit": "0" * 40}}, 4, "sends a file of commit 0{40} where"),
        ("HEAD", FILE, {"headers": {"X-Repo-Commit": "../../x"}}, 4, "sends a file of commit ../../x where"),
        ("GET", FILE, {"flip": 100}, 4, "arrived damaged twice"),
        ("POST", "paths-info", {"answer": as_json([])}, 3, "holds no model that is read here"),
        (
            "POST",
            "paths-info",
            {"answer": as_json([{"type": "file", "path": "config.json", "size": 3, "oid": "../x"}])},
            4,
            "with a digest or size that is none",
        ),
    ],
)
def test_what_the_hub_answers_becomes_one_sentence(
    call: Call,
    server: HubServer,
    repository: Repository,
    tmp_path: Path,
    method: str,
    path: str,
    fault: dict[str, Any],
    code: int,
    message: str,
) -> None:
    server.fail(method, path, times=ALWAYS, **fault)
    done = call("pull", "u/m")
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.splitlines()
    assert re.search(message, line), line
    assert {path.name for path in tmp_path.iterdir()} <= {"m", "hf-home", "ddpm-cache"}
    server.faults.clear()
    well = call("pull", "u/m")
    assert well.returncode == 0, well.stderr
    assert (Path(well.lines[0]) / NESTED).read_bytes() == repository.files[NESTED]


@pytest.mark.parametrize(
    ("method", "path", "fault"),
    [
        ("GET", ABOUT, {"answer": Answer(503, b"{}")}),
        ("GET", ABOUT, {"answer": Answer(429, b"{}", ABSURD)}),
        ("HEAD", FILE, {"answer": Answer(500)}),
        ("GET", FILE, {"answer": Answer(503)}),
        ("GET", FILE, {"cut": 1000}),
        ("GET", FILE, {"flip": 5000}),
    ],
)
def test_trouble_that_passes_is_waited_for(
    call: Call, server: HubServer, repository: Repository, method: str, path: str, fault: dict[str, Any]
) -> None:
    server.fail(method, path, **fault)
    done = call("pull", "u/m")
    assert done.returncode == 0, done.stderr
    assert (Path(done.lines[0]) / NESTED).read_bytes() == repository.files[NESTED]


def test_trouble_that_does_not_pass_ends(
    server: HubServer, repository: Repository, nursery: Nursery, ddpm_env: dict[str, str], tmp_path: Path
) -> None:
    # All at once, since each of them waits: a Hub that is busy, that asks for 30 years, and that is silent.
    faults = {
        "busy": ("GET", ABOUT, {"answer": Answer(500, b"{}")}, r"has trouble of its own \(500\)"),
        "slow down": ("GET", ABOUT, {"answer": Answer(429, b"{}", ABSURD)}, r"asks to slow down \(429\)"),
        "silence": ("GET", ABOUT, {"delay": 30}, "cannot be reached for u/m: no answer in time"),
        "silent content": ("GET", FILE, {"delay": 90}, "cannot be reached for u/m: no answer in time"),
    }
    with contextlib.ExitStack() as stack:
        children = {}
        for name, (method, path, fault, _) in faults.items():
            hub = stack.enter_context(serving())
            hub.put("u/m", repository.files)
            hub.fail(method, path, times=ALWAYS, **fault)
            env = ddpm_env | environment(hub) | {"HF_HOME": str(tmp_path / name)}
            children[name] = nursery.ddpm("pull", "u/m", env=env, cwd=tmp_path)
        for name, child in children.items():
            assert child.wait(60) == 4, (name, child.stderr)
            line = child.stderr.splitlines()[-1]
            assert re.search(faults[name][3], line), line


@pytest.mark.parametrize(
    ("method", "fault"), [("GET", {"delay": 90}), ("HEAD", {"answer": Answer(429, headers=ABSURD)})]
)
def test_an_interrupt_does_not_wait_for_a_hub_that_does_not_answer(
    server: HubServer,
    repository: Repository,
    nursery: Nursery,
    ddpm_env: dict[str, str],
    tmp_path: Path,
    method: str,
    fault: dict[str, Any],
) -> None:
    server.fail(method, FILE, times=ALWAYS, **fault)
    env = ddpm_env | environment(server) | {"HF_HUB_DOWNLOAD_TIMEOUT": "60"}
    child = nursery.ddpm("pull", "u/m", env=env, cwd=tmp_path)
    wait_until(lambda: any(path.endswith(NESTED) for _, path in server.requests), "a request for the weights")
    time.sleep(0.5)
    child.kill(signal.SIGINT)
    assert child.wait(20) == 130


def test_a_name_that_cannot_be_resolved(call: Call, repository: Repository) -> None:
    done = call("pull", "u/m", env={"HF_ENDPOINT": "http://no.such.host.invalid"})
    assert done.returncode == 4
    assert "http://no.such.host.invalid cannot be reached for u/m" in done.stderr


def test_pulls_at_once_and_kills_leave_a_whole_cache(
    server: HubServer, repository: Repository, nursery: Nursery, ddpm_env: dict[str, str], tmp_path: Path
) -> None:
    env = ddpm_env | environment(server)
    for kill in range(4):
        server.fail("GET", FILE, delay=0.3)
        children = [nursery.ddpm("pull", "u/m", env=env, cwd=tmp_path) for _ in range(4)]
        wait_until(lambda: any("resolve" in path for _, path in server.requests), "a request for a file")
        children[kill].kill()
        assert [child.wait() for i, child in enumerate(children) if i != kill] == [0, 0, 0]
        (folder,) = (tmp_path / "hf-home" / "hub" / "models--u--m" / "snapshots").iterdir()
        assert (folder / NESTED).read_bytes() == repository.files[NESTED]
        (folder / NESTED).resolve().unlink()
        (folder / NESTED).unlink()
        server.requests.clear()


def pull_slowly(
    server: HubServer, repository: Repository, nursery: Nursery, ddpm_env: dict[str, str], tmp_path: Path
) -> Child:
    """A pull of several megabytes that has begun, and will take about ten seconds."""
    wide = replace(tiny(), block_out_channels=(64, 128))
    repository.files.update(content(write_model(tmp_path / "wide", random_unet(wide, 1))))
    assert len(repository.files[NESTED]) > 2_000_000
    server.fail("GET", FILE, trickle=0.002)
    child = nursery.ddpm("pull", "u/m", env=ddpm_env | environment(server), cwd=tmp_path)
    digest = sha256(repository.files[NESTED])

    def parts() -> int:
        return sum(path.stat().st_size for path in (tmp_path / "hf-home").rglob(f"{digest}.*.incomplete"))

    wait_until(lambda: parts() >= 2**16, "a part of the weights")
    return child


def test_a_file_that_comes_by_xet(
    server: HubServer, repository: Repository, nursery: Nursery, ddpm_env: dict[str, str], tmp_path: Path
) -> None:
    xet = {"X-Xet-Hash": "ab" * 32, "X-Xet-Refresh-Route": f"{server.url}/x"}
    server.fail("HEAD", FILE, times=ALWAYS, headers=xet)
    env = ddpm_env | environment(server) | {"HF_HUB_DISABLE_XET": "0"}
    env["SOURCE"] = f"{server.url}/u/m/resolve/{repository.commit}/{NESTED}"
    child = nursery.call(run_by_xet, ["pull", "u/m"], env=env)
    assert child.wait() == 0, child.stderr
    assert (Path(child.stdout.strip()) / NESTED).read_bytes() == repository.files[NESTED]


def test_pulls_of_a_pickle_at_once_leave_a_whole_cache(
    server: HubServer, repository: Repository, nursery: Nursery, ddpm_env: dict[str, str], call: Call, tmp_path: Path
) -> None:
    weights = read_model(tmp_path / "m", "m").weights
    torch.save(weights, tmp_path / "weights.bin")
    del repository.files[NESTED]
    repository.files["unet/diffusion_pytorch_model.bin"] = (tmp_path / "weights.bin").read_bytes()
    env, children = ddpm_env | environment(server), []
    for _ in range(3):
        children.append(nursery.call(run_slowly, ["pull", "--allow-pickle", "u/m"], env=env))
        time.sleep(0.4)
    assert [child.wait() for child in children] == [0, 0, 0], [child.stderr for child in children]
    done = call("sample", "-m", "u/m", "-n", "1", "-o", "a.png", *CPU, env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr


def test_pulls_at_once_mend_a_damaged_cache(
    server: HubServer, repository: Repository, nursery: Nursery, ddpm_env: dict[str, str], call: Call, tmp_path: Path
) -> None:
    weights = Path(call("pull", "u/m").lines[0]) / NESTED
    weights.resolve().write_bytes(b"damaged")
    env = ddpm_env | environment(server)
    slow = nursery.call(run_slowly, ["pull", "u/m"], env=env)
    time.sleep(0.5)
    quick = nursery.ddpm("pull", "u/m", env=env, cwd=tmp_path)
    assert (quick.wait(), slow.wait()) == (0, 0), quick.stderr + slow.stderr
    assert weights.read_bytes() == repository.files[NESTED]


def test_a_pull_that_is_killed_while_the_weights_come(
    server: HubServer, repository: Repository, nursery: Nursery, ddpm_env: dict[str, str], call: Call, tmp_path: Path
) -> None:
    child = pull_slowly(server, repository, nursery, ddpm_env, tmp_path)
    child.kill()
    assert call("info", "u/m", env={"HF_HUB_OFFLINE": "1"}).returncode == 4
    done = call("pull", "u/m")
    assert done.returncode == 0, done.stderr
    assert (Path(done.lines[0]) / NESTED).read_bytes() == repository.files[NESTED]


def test_a_pull_that_is_interrupted_leaves_no_part(
    server: HubServer, repository: Repository, nursery: Nursery, ddpm_env: dict[str, str], tmp_path: Path
) -> None:
    child = pull_slowly(server, repository, nursery, ddpm_env, tmp_path)
    child.kill(signal.SIGINT)
    assert child.wait() == 130
    assert child.stderr.splitlines()[-1] == "error: interrupted"
    assert not [*(tmp_path / "hf-home").rglob("*.incomplete")]


def test_a_file_that_does_not_end_where_it_should(call: Call, server: HubServer, repository: Repository) -> None:
    size = len(repository.files[NESTED])
    endless = Answer(200, bytes(5 * size), {"ETag": '"' + "0" * 64 + '"', "Content-Length": ""})
    server.fail("GET", FILE, times=ALWAYS, answer=endless)
    done = call("pull", "u/m")
    assert done.returncode == 4
    assert f"{NESTED} is longer than the Hub lists" in done.stderr


# --- content that is not what it should be ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("unet/config.json", {"_class_name": "UNet2DConditionModel"}, "_class_name is 'UNet2DConditionModel'"),
        ("unet/config.json", {"_class_name": "os.system\x1b[31m"}, r"_class_name is 'os\.system\\\\x1b\[31m'"),
        ("unet/config.json", {"block_out_channels": [10**9, 10**9]}, "block_out_channels"),
        ("unet/config.json", {"block_out_channels": [8192, 8192]}, "tensor .* has shape"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**12}, "timesteps is"),
        ("scheduler/scheduler_config.json", {"beta_end": 0.9, "num_train_timesteps": 1000}, "alpha_bar_T"),
        ("ddpm.json", {"schema": 9}, "not of schema 1"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(
    call: Call, server: HubServer, repository: Repository, file: str, change: dict[str, Any], message: str
) -> None:
    repository.files[file] = json.dumps(json.loads(repository.files[file]) | change).encode()
    done = call("sample", "-m", "u/m", "-n", "1", "-o", "a.png", *CPU)
    assert done.returncode == 3, done.stderr
    assert re.search(message, done.stderr.splitlines()[-1]), done.stderr
    assert "\x1b" not in done.stderr


def test_weights_that_are_far_too_large_are_not_even_fetched(
    call: Call, server: HubServer, repository: Repository
) -> None:
    repository.files[NESTED] += bytes(3 * 2**20)
    done = call("pull", "u/m")
    assert done.returncode == 3
    assert "its network has at most" in done.stderr
    assert not any(method == "GET" and path.endswith(WEIGHTS) for method, path in server.requests)


def test_a_pipeline_file_may_name_what_it_likes(call: Call, server: HubServer, repository: Repository) -> None:
    repository.files["model_index.json"] = json.dumps({"_class_name": "os", "unet": ["subprocess", "Popen"]}).encode()
    assert call("pull", "u/m").returncode == 0  # nothing of it is used


def test_without_weights(call: Call, server: HubServer, repository: Repository) -> None:
    del repository.files[NESTED]
    done = call("pull", "u/m")
    assert done.returncode == 3
    assert f"{NESTED} is not in it" in done.stderr


# --- pushing ----------------------------------------------------------------------------------------------------------

TOKEN = {"HF_TOKEN": "hf_secret"}


def test_what_is_pushed_and_pulled_again_makes_the_same_images(
    call: Call, server: HubServer, tiny_run: Path, tmp_path: Path
) -> None:
    server.token = "hf_secret"
    done = call("push", tiny_run, "me/digits", "--private", env=TOKEN)
    assert done.returncode == 0, done.stderr
    pushed = server.repositories["me/digits"]
    assert done.lines == [f"me/digits@{pushed.commit}"]
    assert pushed.private
    assert [commit["summary"] for commit in server.commits] == ["Publish me/digits with ddpm"]
    documents = {"model_index.json", "ddpm.json", "unet/config.json", "scheduler/scheduler_config.json"}
    assert set(pushed.files) == {*documents, NESTED, "README.md", "samples.png"}
    for spec, output in (("me/digits", "theirs.npy"), (str(tiny_run), "ours.npy")):
        assert call("sample", "-m", spec, "-n", "3", "-o", output, *CPU, env=TOKEN).returncode == 0
    np.testing.assert_array_equal(np.load(tmp_path / "theirs.npy"), np.load(tmp_path / "ours.npy"))
    info = json.loads(call("info", "me/digits", "--json", env=TOKEN).stdout)
    assert (info["step"], info["average"]) == (7, True)
    assert info["origin"] == f"me/digits@{pushed.commit}"


def test_a_dry_run_shows_the_page_and_publishes_nothing(
    call: Call, server: HubServer, tiny_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "bpd.json").write_text(json.dumps({"bits_per_dim": 3.25, "stderr": 0.01, "images": 100}))
    done = call("push", tiny_run, "me/digits", "--dry-run", "--bpd", "bpd.json")
    assert done.returncode == 0, done.stderr
    assert server.requests == []
    page = done.stdout.decode()
    for text in ("# digits\n", "8x8, grey", "7 steps", "3.2500 ± 0.0100", "ddpm sample -m me/digits", "DDPMPipeline"):
        assert text in page
    front = yaml.safe_load(page.split("---\n")[1])
    assert "license" not in front  # which is its owner's to choose
    (result,) = front["model-index"][0]["results"]  # where the Hub looks for metrics
    assert (result["dataset"]["name"], result["metrics"][0]["value"]) == ("100 images", 3.25)
    assert re.search(r"unet/diffusion_pytorch_model.safetensors +\d+ KiB", done.stderr)


def test_nothing_of_this_machine_is_published(call: Call, server: HubServer, tiny_run: Path, tmp_path: Path) -> None:
    train = ("--size", "8", "--batch-size", "4", "--steps", "4", "--sample-every", "4", *CPU, "-q")
    np.save(tmp_path / "secret.npy", np.zeros((5, 8, 8, 1), np.uint8))
    done = call("train", "secret.npy", "-o", "private-run", "--from", tiny_run, *train)
    assert done.returncode == 0, done.stderr
    assert call("push", "private-run", "me/m", env=TOKEN).returncode == 0
    pushed = server.repositories["me/m"].files
    assert pushed["samples.png"] == (tmp_path / "private-run" / "samples" / "step-00000004.png").read_bytes()
    for text in (b"secret", b"private-run", str(tmp_path).encode(), str(tiny_run).encode(), b"hf_"):
        assert not any(text in data for data in pushed.values()), text
    page = pushed["README.md"].decode()
    assert "| trained on | 5 images |" in page
    assert "| started from | a local model, step 7 |" in page


@pytest.mark.parametrize(
    ("arguments", "env", "code", "message"),
    [
        (("me/m",), {}, 4, "needs a token: set HF_TOKEN"),
        (("me/m@v1",), TOKEN, 2, "on the main branch"),
        (("m",), TOKEN, 2, "is no repository"),
        (("me/m", "--bpd", "wrong.json"), TOKEN, 3, "is not what ddpm eval-bpd --json prints"),
    ],
)
def test_what_cannot_be_pushed(
    call: Call, tiny_run: Path, tmp_path: Path, arguments: tuple[str, ...], env: dict[str, str], code: int, message: str
) -> None:
    (tmp_path / "wrong.json").write_text("{}")
    done = call("push", tiny_run, *arguments, env=env)
    assert done.returncode == code
    assert message in done.stderr
    assert "making a picture" not in done.stderr


def test_what_is_to_be_private_is_not_pushed_where_all_can_see_it(
    call: Call, server: HubServer, tiny_run: Path
) -> None:
    assert call("push", tiny_run, "me/m", env=TOKEN).returncode == 0
    commits = len(server.commits)
    done = call("push", tiny_run, "me/m", "--private", env=TOKEN)
    assert done.returncode == 2
    assert "me/m exists and is public" in done.stderr
    assert len(server.commits) == commits
    server.repositories["me/m"].private = True
    assert call("push", tiny_run, "me/m", "--private", env=TOKEN).returncode == 0


def test_bits_per_dim_that_cannot_be_are_refused(tmp_path: Path) -> None:
    right = {"bits_per_dim": 3.0, "stderr": 0.1, "images": 3}
    path = tmp_path / "bpd.json"
    path.write_text(json.dumps(right))
    assert ReportedBound.read(path) == ReportedBound(3.0, 0.1, 3)
    wrong: list[tuple[str, object]] = [("bits_per_dim", value) for value in (math.inf, "3", 10**400)]
    wrong += [("stderr", True), ("stderr", -0.1), ("images", -3), ("images", 3.5), ("images", True)]
    for field, value in wrong:
        path.write_text(json.dumps(right | {field: value}))
        with pytest.raises(InputError):
            ReportedBound.read(path)


def test_a_licence_that_was_chosen_stays(call: Call, server: HubServer, tiny_run: Path) -> None:
    assert call("push", tiny_run, "me/m", env=TOKEN).returncode == 0
    files = server.repositories["me/m"].files
    chosen = 'license: ["mit", "cc-by-4.0"]\nlicense_name: "ours \U0001f389"\n'
    files["README.md"] = files["README.md"].replace(b"\ntags:", b"\n" + chosen.encode() + b"tags:", 1)
    assert call("push", tiny_run, "me/m", env=TOKEN).returncode == 0
    page = files["README.md"].decode()
    front = yaml.safe_load(page.split("---\n")[1])
    assert (front["license"], front["license_name"]) == (["mit", "cc-by-4.0"], "ours \U0001f389")
    assert "Not stated yet" not in page


def test_what_others_wrote_is_no_markup_on_the_page(call: Call, tiny_run: Path, tmp_path: Path) -> None:
    model = tmp_path / "copy"
    write_model(model, random_unet(tiny(), 1))
    notes = json.loads((model / "ddpm.json").read_text())
    (model / "ddpm.json").write_text(json.dumps(notes | {"origin": "a|b <script> [x](http://y) `c`\n# d"}))
    page = call("push", model, "me/m", "--dry-run").stdout.decode()
    (row,) = (line for line in page.splitlines() if line.startswith("| origin"))
    assert row == r"| origin | a\|b \<script\> \[x\](http://y) \`c\`\\n# d |"


def test_offline_nothing_is_pushed(call: Call, server: HubServer, tiny_run: Path) -> None:
    done = call("push", tiny_run, "me/m", env={**TOKEN, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 4
    assert done.stderr == "error: HF_HUB_OFFLINE is set, so nothing can be published\n"
    assert server.requests == []


def test_a_hub_that_refuses_a_commit(call: Call, server: HubServer, tiny_run: Path) -> None:
    server.fail("POST", "/commit/", times=ALWAYS, answer=Answer(403, b"{}"))
    done = call("push", tiny_run, "me/m", env=TOKEN)
    assert done.returncode == 4
    assert "forbids access to me/m" in done.stderr


# --- fine-tuning ------------------------------------------------------------------------------------------------------


def test_fine_tuning_says_from_which_commit(
    call: Call, server: HubServer, repository: Repository, tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", np.zeros((5, 16, 16, 1), np.uint8))
    commit = repository.commit
    command = ("train", "images.npy", "--from", "u/m", "--size", "16", "--batch-size", "2", *CPU, "-q")
    assert call(*command, "--steps", "2").returncode == 0
    repository.files["unet/config.json"] += b"\n"  # another commit
    assert repository.commit != commit
    done = call(*command, "--steps", "3")
    assert done.returncode == 0, done.stderr
    stored = read_model(tmp_path / "ddpm-out" / "checkpoints" / "step-00000003", "run")
    assert stored.provenance.start == f"u/m@{commit}"
    assert stored.unet.size == (16, 16)
    assert json.loads((tmp_path / "ddpm-out" / "config.json").read_text())["from"] == "u/m"


# --- pickles ----------------------------------------------------------------------------------------------------------


def test_weights_that_are_only_a_pickle_are_read_when_asked_and_kept(
    call: Call, server: HubServer, repository: Repository, tmp_path: Path
) -> None:
    weights = read_model(tmp_path / "m", "m").weights
    torch.save(weights, tmp_path / "weights.bin")
    del repository.files[NESTED]
    repository.files["unet/diffusion_pytorch_model.bin"] = (tmp_path / "weights.bin").read_bytes()
    for command in (("pull", "u/m"), ("sample", "-m", "u/m", "-n", "1", "-o", "a.png")):
        refused = call(*command)
        assert refused.returncode == 3
        assert "ddpm pull --allow-pickle u/m" in refused.stderr
    assert not any(path.endswith(".bin") for _, path in server.requests)
    done = call("pull", "--allow-pickle", "u/m")
    assert done.returncode == 0, done.stderr
    assert "but for the weights, which were made here of a pickle" in call("info", "u/m").stdout.decode()
    kept = read_model(folder := Path(done.lines[0]), "u/m")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in kept.weights.items())
    server.requests.clear()
    for env in ({}, {"HF_HUB_OFFLINE": "1"}):
        assert call("sample", "-m", "u/m", "-n", "1", "-o", "a.png", "--force", *CPU, env=env).returncode == 0
    assert not any("/resolve/" in path for _, path in server.requests)
    whole = (folder / NESTED).read_bytes()
    (folder / NESTED).resolve().write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    for env in ({}, {"HF_HUB_OFFLINE": "1"}):
        altered = call("sample", "-m", "u/m", "-n", "1", "-o", "a.png", "--force", *CPU, env=env)
        assert altered.returncode == 3
        assert f"{NESTED} was altered" in altered.stderr


def test_a_hostile_pickle_is_refused_even_when_asked_for(
    call: Call, server: HubServer, repository: Repository, tmp_path: Path
) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (tmp_path / "sentinel",)

    del repository.files[NESTED]
    repository.files["unet/diffusion_pytorch_model.bin"] = pickle.dumps(Payload(), protocol=2)
    done = call("pull", "--allow-pickle", "u/m")
    assert done.returncode == 3
    assert not (tmp_path / "sentinel").exists()
    assert "which no weights are made of" in done.stderr


def test_weights_of_a_pickle_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(cache.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(Path, "symlink_to", refuse)
    name = RepoName("u/m")
    place = cache.place_of(name, "0" * 40, NESTED)
    for folder in (place.parent, cache.contents_of(name)):
        folder.mkdir(parents=True)

    def write(path: Path) -> None:
        path.write_bytes(b"weights")

    cache.keep(name, place, write)
    assert content(tmp_path) == {str(place.relative_to(tmp_path)): b"weights"}
