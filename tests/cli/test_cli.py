"""What holds for every command: help, errors, exit codes, streams."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from ddpm_cli.cli import COMMANDS, group, run
from ddpm_cli.cli.options import DurationType, in_options
from ddpm_cli.core.pixels import encode_png, to_image
from helpers.nursery import Nursery
from helpers.process import Ddpm

# Shows the help of each command and then which modules that has loaded.
LOADED = """
import sys
from ddpm_cli.cli import run
for words in ([], *([command] for command in sys.argv[1:])):
    assert run([*words, "--help"]) == 0
print(sorted(sys.modules), file=sys.stderr)
"""


def test_every_command_has_help_with_examples_before_options() -> None:
    for command in COMMANDS:
        done = CliRunner().invoke(group, [command, "-h"], prog_name="ddpm")
        assert done.exit_code == 0
        assert done.stderr == ""
        assert done.stdout.startswith(f"Usage: ddpm {command} ")
        assert 0 < done.stdout.index("Examples:\n") < done.stdout.index(f"  ddpm {command} ")
        assert done.stdout.index(f"  ddpm {command} ") < done.stdout.index("ptions:\n")
        assert CliRunner().invoke(group, [command, "--help"], prog_name="ddpm").stdout == done.stdout


def test_group_help_lists_every_command() -> None:
    done = CliRunner().invoke(group, ["--help"])
    assert done.exit_code == 0
    for command, summary in COMMANDS.items():
        assert f"{command} " in done.stdout
        assert summary in done.stdout


def test_version(ddpm: Ddpm) -> None:
    import ddpm_cli

    assert ddpm("--version").lines == [f"ddpm, version {ddpm_cli.__version__}"]


def test_help_imports_neither_torch_nor_numpy_nor_rich(ddpm_env: dict[str, str]) -> None:
    # The table of samplers stands beside the samplers themselves, which work with numpy.
    sampling = {"sample", "denoise", "interpolate", "progressive", "inpaint"}
    for commands, heavy in ((COMMANDS, set[str]()), (set(COMMANDS) - sampling, {"numpy"})):
        done = subprocess.run([sys.executable, "-c", LOADED, *commands], env=ddpm_env, capture_output=True, text=True)
        assert "'ddpm_cli.cli'" in done.stderr
        for name in {"torch", "rich", "huggingface_hub", "PIL"} | heavy:
            assert f"'{name}'" not in done.stderr


def test_no_command_at_all_shows_help_and_is_a_usage_error(ddpm: Ddpm) -> None:
    done = ddpm()
    assert done.returncode == 2
    assert "Usage: ddpm" in done.stderr + done.stdout.decode()


def test_lengths_of_time() -> None:
    lengths = {"90": 90, "1.5": 1.5, "90s": 90, "4m": 240, "1.5h": 5400, "3h50m": 13_800, "1D2h3m4.5s": 93_784.5}
    for text, seconds in lengths.items():
        assert DurationType()(text) == seconds


def test_torchrun_cannot_start_several_of_what_is_one_process(ddpm: Ddpm) -> None:
    done = ddpm("noise", "x.png", env={"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"})
    assert done.returncode == 2
    assert "ddpm noise is one process; torchrun can start train, sample, eval-bpd" in done.stderr


WRONG: list[tuple[list[str], list[str]]] = [
    (["frobnicate"], ["frobnicate"]),
    (["trian"], ["trian", "train"]),
    (["sample", "--sed", "1"], ["No such option", "--seed"]),
    (["sample", "-n", "0"], ["-n", "0"]),
    (["sample", "--grid", "4by4"], ["4by4"]),
    (["train", "x", "--max-time", "soon"], ["soon", "90s"]),
    (["train", "x", "--max-time", "50m3h"], ["50m3h", "3h50m"]),
    (["train", "x", "--max-time", "0h0m"], ["0h0m", "3h50m"]),
    (["train", "x", "--from", ""], ["--from"]),
    (["train", "x", "--size", "\uff18"], ["--size"]),
    (["pack", "x", "-o", "-"], ["-o", "./-"]),
    (["noise", "x.png", "--t", "a,b"], ["a,b", "0,250,500"]),
]


def test_usage_errors_exit_2_and_say_what(capsys: pytest.CaptureFixture[str]) -> None:
    for args, words in WRONG:
        assert run(args) == 2, args
        out, err = capsys.readouterr()
        assert out == ""
        for word in words:
            assert word in err
        assert "Traceback" not in err


def test_errors_name_options_as_the_command_has_them() -> None:
    sample, interpolate = (group.get_command(click.Context(group), name) for name in ("sample", "interpolate"))
    assert sample is not None
    assert interpolate is not None
    assert in_options("`eta` is 2; use `sampler=ddim`", sample) == "--eta is 2; use --sampler ddim"
    assert in_options("`steps` is 0", interpolate) == "--chain-steps is 0"
    assert in_options("`nothing` of ours, and `two words`", sample) == "`nothing` of ours, and `two words`"
    noise = group.get_command(click.Context(group), "noise")
    assert noise is not None
    assert in_options("`images` is empty", noise).startswith("IMG")


def test_traceback_only_on_request(ddpm: Ddpm) -> None:
    missing = "no\x1b[31msuch"
    plain = ddpm("noise", missing)
    assert plain.returncode == 3
    assert plain.stderr == "error: there is no file no\\x1b[31msuch\n"
    assert "Traceback" in ddpm("noise", missing, env={"DDPM_DEBUG": "1"}).stderr


def test_options_come_from_the_environment(ddpm: Ddpm) -> None:
    done = ddpm("noise", "x.png", env={"DDPM_NOISE_TIMESTEPS": "10", "DDPM_NOISE_T": "11"})
    assert done.returncode == 2
    assert "--t is 11; it must be from 0 to 10" in done.stderr


@pytest.mark.parametrize("device", ["cuda:99", "tpu", ""])
def test_a_device_that_is_missing_is_an_error(capsys: pytest.CaptureFixture[str], device: str) -> None:
    assert run(["train", "builtin:digits", "--device", device, "--dry-run"]) == 2
    assert "--device" in capsys.readouterr().err


def test_shell_completion(ddpm: Ddpm) -> None:
    for shell in ("bash", "zsh", "fish"):
        done = ddpm(env={"_DDPM_COMPLETE": f"{shell}_source"})
        assert done.returncode == 0
        assert b"_DDPM_COMPLETE" in done.stdout


def test_both_ways_to_start_the_program(ddpm_env: dict[str, str], tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("ddpm")
    for command in ([sys.executable, "-m", "ddpm_cli"], [str(script)]):
        done = subprocess.run([*command, "--version"], env=ddpm_env, cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout.startswith("ddpm, version ")


def test_a_reader_that_leaves_is_no_error(ddpm_env: dict[str, str], tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    from ddpm_cli.core.rng import integers

    picture.write_bytes(encode_png(to_image(integers(0, 256, 3 * 400 * 400, 0, "p").reshape(400, 400, 3).astype("u1"))))
    for arguments in (["noise", str(picture), "-o", "-"], ["--help"], ["noise", "--help"], ["--version"]):
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [sys.executable, "-m", "ddpm_cli", *arguments],
            stdout=write,
            stderr=subprocess.PIPE,
            env=ddpm_env,
            text=True,
        )
        os.close(write)
        assert done.returncode == 141, arguments
        assert "Traceback" not in done.stderr
        assert "rror" not in done.stderr


def test_closed_standard_streams_do_not_crash(ddpm_env: dict[str, str]) -> None:
    for redirection in ("<&-", ">&-", "2>&-"):
        done = subprocess.run(f"{sys.executable} -m ddpm_cli --version {redirection}", shell=True, env=ddpm_env)
        assert done.returncode == 0, redirection


def test_a_full_disk_behind_stdout_is_a_disk_error(ddpm_env: dict[str, str], tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    picture.write_bytes(encode_png(to_image(np.zeros((8, 8), np.uint8))))
    for output in ("-", "other.png"):  # the image's bytes, and the path of the file
        done = subprocess.run(
            f"{sys.executable} -m ddpm_cli noise {picture} -o {output} -q > /dev/full",
            shell=True, env=ddpm_env, cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 7, done.stderr
        assert done.stderr == "error: cannot write stdout: no space left on the disk\n"


def test_a_full_disk_behind_a_help_text_is_a_disk_error(ddpm_env: dict[str, str]) -> None:
    for arguments in ("--help", "train --help", "--version"):
        done = subprocess.run(
            f"{sys.executable} -m ddpm_cli {arguments} > /dev/full",
            shell=True,
            env=ddpm_env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 7, arguments
        assert done.stderr == "error: cannot write stdout: no space left on the disk\n"


def as_nobody(arguments: list[str]) -> int:
    """The program without root's right to read everything."""
    import ddpm_cli.cli

    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    return ddpm_cli.cli.run(arguments)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_what_may_not_be_read_is_named(nursery: Nursery, tiny_run: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # a place that nobody can reach
        folder = Path(name)
        folder.chmod(0o755)
        secret = folder / "secret"
        shutil.copytree(tiny_run, secret)
        (secret / "p.png").write_bytes(encode_png(to_image(np.zeros((8, 8), np.uint8))))
        (folder / "p.png").write_bytes((secret / "p.png").read_bytes())
        (folder / "x.zip").write_bytes(b"")
        for path in (secret, folder / "p.png", folder / "x.zip"):
            path.chmod(0o700)
        commands = {
            "p.png: permission denied": ["noise", f"{secret}/p.png", "-o", "/tmp/never.png"],
            f"{folder}/p.png: permission denied": ["noise", f"{folder}/p.png", "-o", "/tmp/never.png"],
            "secret/checkpoints: permission denied": ["sample", "-m", str(secret), "-o", "/tmp/never.png"],
            "it cannot be opened: Permission denied": ["train", f"{folder}/x.zip", "--dry-run"],
        }
        for message, arguments in commands.items():
            child = nursery.call(as_nobody, arguments)
            assert child.wait() == (3 if "zip" in arguments[1] else 7), child.stderr
            assert message in child.stderr.splitlines()[-1]
            assert "unexpected" not in child.stderr


def test_names_of_images_and_models_are_completed_as_files(ddpm: Ddpm) -> None:
    for words in ("ddpm train ../a", "ddpm train x --from r", "ddpm sample -m r", "ddpm info r"):
        position = str(len(words.split()) - 1)
        env = {"_DDPM_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": position}
        assert ddpm(env=env).lines == [f"file,{words.split()[-1]}"]


def test_names_that_are_empty_or_too_long_or_no_files_are_refused(ddpm: Ddpm, tmp_path: Path) -> None:
    assert ddpm("train", "", "--dry-run").returncode == 2
    assert ddpm("sample", "-m", "", "-o", "x.png").returncode == 2
    for arguments in (["sample", "-o", ""], ["noise", "p.png", "-o", ""], ["noise", ""], ["sample", "--like", ""]):
        done = ddpm(*arguments)
        assert done.returncode == 2, arguments
        assert "the name is empty" in done.stderr
    assert ddpm("train", "builtin:digits", "-o", "").returncode == 2
    long = ddpm("train", "builtin:digits", "-o", "x" * 300)
    assert long.returncode == 7
    assert "too long" in long.stderr
    os.mkfifo(tmp_path / "pipe.png")
    pipe = ddpm("noise", "pipe.png", timeout=20)
    assert pipe.returncode == 3
    assert "neither a file nor a folder" in pipe.stderr


IMPORTING = """
import os, signal, sys, time
os.kill(os.getpid(), getattr(signal, sys.argv[1]))
time.sleep(0.2)
print("imported", flush=True)
"""
UNDER_WAY = """
import sys, time, click
from ddpm_cli import cli

@click.command()
def command():
    import slow
    time.sleep(20)

cli.group.main = command.main
sys.exit(cli.run([]))
"""


@pytest.mark.parametrize(("name", "code", "seconds"), [("SIGINT", 130, 20), ("SIGTERM", 143, 0), ("SIGHUP", 129, 20)])
def test_a_signal_waits_for_the_end_of_an_import(
    ddpm_env: dict[str, str], tmp_path: Path, seconds: int, name: str, code: int
) -> None:
    (tmp_path / "slow.py").write_text(IMPORTING)
    (tmp_path / "main.py").write_text(UNDER_WAY.replace("20", str(seconds)))
    command = [sys.executable, str(tmp_path / "main.py"), name]
    done = subprocess.run(command, env=ddpm_env, capture_output=True, text=True, timeout=15)
    assert (done.returncode, done.stdout, done.stderr) == (code, "imported\n", "error: interrupted\n")
