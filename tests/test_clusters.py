"""The files for clusters, and every call of torchrun in the documentation: they parse as the programs parse them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest
from torch.distributed.run import get_args_parser

from ddpm_cli.cli import group

DOCS = Path(__file__).parents[1] / "docs"
CLUSTERS = DOCS / "clusters"
FILES = ("train.sbatch", "job.yaml", "sky.yaml")
# The whole command, with the lines that a backslash continues.
TORCHRUN = re.compile(r"^ *(?:\$ |exec )?(torchrun -(?:[^\\\n]|\\\n)*)$", re.MULTILINE)


def torchrun_calls(path: Path) -> list[list[str]]:
    """The arguments of each call, with 1 for whatever the shell puts in."""
    calls = []
    for call in TORCHRUN.findall(path.read_text("utf-8")):
        joined = re.sub(r"&$", "", call.replace("\\\n", " ").strip())
        filled = re.sub(r"\$\(\(.*?\)\)|\$\(.*?\)|\$\w+", "1", joined)
        calls.append(shlex.split(filled)[1:])
    return calls


def called_program(words: list[str]) -> list[str]:
    """Parse as torchrun does, and return the command line that it hands on."""
    options = get_args_parser().parse_args(words)
    assert options.module
    assert options.training_script == "ddpm_cli"
    arguments: list[str] = options.training_script_args
    return arguments


def parse(words: list[str]) -> None:
    """Parse a command line of ddpm as the program does, without running it."""
    context = group.make_context("ddpm", list(words))
    name, command, rest = group.resolve_command(context, list(words))
    assert command is not None
    command.make_context(name, rest, parent=context)


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith(("DDPM_", "PET_"))]:
        monkeypatch.delenv(variable)


def test_the_batch_script_is_correct_bash() -> None:
    checked = subprocess.run(["bash", "-n", CLUSTERS / "train.sbatch"], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("name", FILES)
def test_each_file_trains_under_torchrun(name: str) -> None:
    (words,) = torchrun_calls(CLUSTERS / name)
    arguments = called_program(words)
    assert arguments[0] == "train"
    assert "-o" in arguments
    parse(arguments)


@pytest.mark.parametrize("name", FILES)
def test_each_file_says_how_to_install(name: str) -> None:
    assert "pip install ddpm-cli\n" in (CLUSTERS / name).read_text("utf-8")


@pytest.mark.parametrize("name", FILES)
def test_each_file_is_shown_on_a_page_from_its_only_copy(name: str) -> None:
    include = f"```{{literalinclude}} {name}\n"
    assert sum(include in page.read_text("utf-8") for page in CLUSTERS.glob("*.md")) == 1


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.relative_to(DOCS).as_posix())
def test_calls_of_torchrun_on_the_pages_parse(page: Path) -> None:
    for words in torchrun_calls(page):
        parse(called_program(words))


def test_there_are_calls_of_torchrun_and_the_parsers_tell_good_from_bad(capfd: pytest.CaptureFixture[str]) -> None:
    assert len(torchrun_calls(DOCS / "distributed.md")) >= 7
    with pytest.raises(SystemExit):
        called_program(["--no-such-option", "-m", "ddpm_cli", "train"])
    with pytest.raises(SystemExit):
        called_program(["--max-restarts", "many", "-m", "ddpm_cli", "train"])
    with pytest.raises(click.ClickException):
        parse(["train", "1", "--no-such-option"])


def test_the_numbers_of_pods_are_the_same() -> None:
    text = (CLUSTERS / "job.yaml").read_text("utf-8")
    counts = re.findall(r"^  (?:completions|parallelism): (\d+)|--nnodes (\d+)", text, re.MULTILINE)
    assert len(counts) == 3
    assert len({count for pair in counts for count in pair if count}) == 1
