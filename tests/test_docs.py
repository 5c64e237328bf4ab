"""The documentation against the program: help texts, options, examples, names, codes and links are the real ones."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import click
import numpy as np
import pytest
from PIL import Image

import ddpm_cli
from ddpm_cli import errors
from ddpm_cli.cli import COMMANDS, group
from ddpm_cli.network.unet import flops, parameter_count
from ddpm_cli.training.presets import PRESETS
from helpers.process import Ddpm

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^```(\{?[\w-]*\}?)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
OPERATORS = "|&;<>()"


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced code blocks of a page in one of some languages."""
    return [body for language, body in FENCE.findall(page.read_text("utf-8")) if language in languages]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text("utf-8"))


def command_page(command: str) -> Path:
    return DOCS / "commands" / f"{command}.md"


def click_command(command: str) -> click.Command:
    found = group.get_command(click.Context(group, info_name="ddpm"), command)
    assert found is not None
    return found


def option_names(command: str) -> set[str]:
    """Every spelling of every option, --no-... and help included."""
    own = click_command(command).params  # get_params would keep a help option without -h
    names = {
        name for option in own if isinstance(option, click.Option) for name in (*option.opts, *option.secondary_opts)
    }
    return names | {"-h", "--help"}


@pytest.fixture
def in_a_users_folder(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder is one with a trained run in ``ddpm-out`` and some images in ``held-out``."""
    shutil.copytree(tiny_run, tmp_path / "ddpm-out")
    (tmp_path / "held-out").mkdir()
    rng = np.random.Generator(np.random.Philox(3))
    for index in range(3):
        pixels = rng.integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "held-out" / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DDPM_MODEL", raising=False)
    return tmp_path


# The pages of the commands.


def load_tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_command_has_a_page_with_its_real_help() -> None:
    for command in COMMANDS:
        text = command_page(command).read_text("utf-8")
        inserted = re.search(rf'insert_help\("{command}"\)\n\]\]\] -->\n(.*?)<!-- \[\[\[end\]\]\] -->', text, re.DOTALL)
        assert inserted is not None
        help_text = load_tool("insert_help").help_text(command)
        assert inserted[1] == f"```console\n$ ddpm {command} --help\n{help_text}\n```\n", "run 'make help-docs'"


def test_every_option_is_named_in_the_page_of_its_command() -> None:
    for command in COMMANDS:
        words = set(re.findall(r"(?<![\w-])--?[a-zA-Z0-9][\w-]*", command_page(command).read_text("utf-8")))
        assert option_names(command) - words == set()


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = {line for toc in blocks(DOCS / "index.md", "{toctree}") for line in toc.splitlines()}
    assert {page.relative_to(DOCS).with_suffix("").as_posix() for page in DOCS.rglob("*.md")} - listed == {"index"}


def test_options_named_in_prose_exist() -> None:
    for page in PAGES:
        ours = set().union(*(option_names(command) for command in COMMANDS)) | {"--version", "--...-every"}
        # Those of other programs are used in an example on the same page, or in a file for clusters.
        files = [path.read_text("utf-8") for path in (DOCS / "clusters").iterdir() if path.suffix != ".md"]
        theirs = set(OPTION.findall("\n".join([*blocks(page, "console", "dockerfile"), *files])))
        assert set(OPTION.findall(prose(page))) - ours - theirs == set()


def test_the_table_of_presets_is_that_of_the_program() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", prose(command_page("train")), re.MULTILINE)
    shown = {name: [cell.strip().replace(",", "") for cell in cells.split("|")][:-1] for name, cells in rows}
    assert list(shown) == list(PRESETS)
    for name, preset in PRESETS.items():
        channels, batch, lr, ema, steps = shown[name]
        assert tuple(map(int, channels.split())) == preset.channels
        numbers = preset.train.batch_size, preset.train.lr, preset.train.ema, preset.steps
        assert tuple(map(float, (batch, lr, ema, steps))) == numbers


def test_the_counts_on_the_page_about_scaling_are_those_of_the_program() -> None:
    text = (DOCS / "scaling.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\d+)x\d+ \| ([\d,]+) \| ([\d.]+) GFLOP \|", text, re.MULTILINE)
    assert [name for name, *_ in rows] == ["cifar10", "256"]
    for name, side, parameters, gflops in rows:
        size = (int(side), int(side))
        config = PRESETS[name].unet(size, 3)
        assert parameter_count(config) == int(parameters.replace(",", ""))
        assert flops(config, size) / 1e9 == pytest.approx(float(gflops), rel=1e-3)


# Examples for the shell.


def simple_commands(line: str) -> Iterator[list[str]]:
    """The commands of a line that call ddpm, as lists of words; what they are redirected to is left out."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=OPERATORS)
    lexer.whitespace_split = True
    words: list[str] = []
    redirected = False
    for token in [*lexer, ";"]:
        if set(token) <= set("<>"):
            redirected = True
        elif set(token) <= set(OPERATORS):
            while words and re.match(r"\w+=", words[0]):
                del words[0]
            if words[:1] == ["ddpm"] and words[1:]:
                yield words[1:]
            words = []
        elif redirected:
            redirected = False
        else:
            words.append(token)


def shell_examples(page: Path) -> list[list[str]]:
    """The arguments of every call of ddpm in a page's shell blocks, those in the help texts included."""
    lines = [line.strip().removeprefix("$ ") for block in blocks(page, "console", "sh") for line in block.splitlines()]
    # What follows an example after some spaces is its explanation.
    calls = [re.split(r"\s{2,}", line)[0] for line in lines if re.match(r"(\w+=\S+ |\S[^|]* \| )*ddpm ", line)]
    return [words for line in calls for words in simple_commands(line)]


def parse(words: list[str]) -> None:
    """Parse a command line as the program does, without running it."""
    with contextlib.suppress(click.exceptions.Exit):  # --help and --version
        context = group.make_context("ddpm", list(words))
        name, command, rest = group.resolve_command(context, list(words))
        assert command is not None
        command.make_context(name, rest, parent=context)


def test_shell_examples_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith("DDPM_")]:
        monkeypatch.delenv(variable)
    for page in PAGES:
        for words in shell_examples(page):
            try:
                parse(words)
            except click.ClickException as error:
                pytest.fail(f"{page_id(page)}: ddpm {shlex.join(words)}: {error.format_message()}")


def test_there_are_shell_examples_and_the_parser_tells_good_from_bad() -> None:
    for name in ("README.md", "docs/tutorial.md", *(f"docs/commands/{command}.md" for command in COMMANDS)):
        assert len(shell_examples(ROOT / name)) >= 5, name
    assert list(simple_commands("cat a.png | ddpm noise - --t 0,1 > b.png; X=1 ddpm sample -n 4 # more")) == [
        ["noise", "-", "--t", "0,1"],
        ["sample", "-n", "4"],
    ]
    for words in (["sampel"], ["sample", "--nosuch"], ["sample", "-n", "0"], ["noise", "a.png", "--t", "x"]):
        with pytest.raises(click.ClickException):
            parse(words)


def test_calls_in_prose_name_commands_and_options_that_exist() -> None:
    for page in PAGES:
        for call in re.findall(r"`ddpm ([^`]+)`", prose(page)):
            words = call.replace("\\|", "|").split(" | ")[0].split()
            if words[0].startswith("-"):
                continue
            assert words[0] in COMMANDS, call
            used = {word for word in words[1:] if re.match(r"--?[a-zA-Z]", word)}
            assert used - option_names(words[0]) == set(), call


# Python.


@pytest.mark.parametrize(
    ("page", "number"), [("python.md", 0), ("python.md", 1), ("tutorial.md", 0), ("tutorial.md", 1)]
)
def test_python_examples_run(in_a_users_folder: Path, page: str, number: int) -> None:
    examples = blocks(DOCS / page, "python")
    assert len(examples) == 2, "parametrize over all of them"
    exec(compile(examples[number], f"{page}[{number}]", "exec"), {"__name__": "example"})


def test_the_method_in_one_sitting_runs(in_a_users_folder: Path) -> None:
    source = "\n".join(blocks(DOCS / "minimal.md", "python"))
    assert 50 < len(source.splitlines()) < 100
    exec(compile(source, "minimal.md", "exec"), {"__name__": "example"})
    with Image.open("digits.png") as image:
        image.verify()


def test_the_examples_of_the_theory_give_what_they_say(in_a_users_folder: Path) -> None:
    source = "\n".join(blocks(DOCS / "theory.md", "pycon"))
    example = doctest.DocTestParser().get_doctest(source, {}, "theory.md", None, 0)
    complaints: list[str] = []
    results = doctest.DocTestRunner(verbose=False).run(example, out=complaints.append)
    assert results.attempted > 40
    assert results.failed == 0, "".join(complaints)


def test_every_public_name_is_documented() -> None:
    directives = "\n".join(blocks(DOCS / "python.md", "{eval-rst}"))
    documented = set(re.findall(r"^\.\. auto\w+:: ddpm_cli\.(\w+)$", directives, re.MULTILINE))
    assert documented >= set(ddpm_cli.__all__)


def resolve(name: str) -> object:
    """What a dotted name stands for: a module, or something in one."""
    parts = name.split(".")
    found: object = importlib.import_module(parts[0])
    for index, part in enumerate(parts[1:], 2):
        if not hasattr(found, part):
            importlib.import_module(".".join(parts[:index]))
        found = getattr(found, part)
    return found


def test_names_that_the_text_links_to_exist() -> None:
    for page in PAGES:
        for role, name in re.findall(r"\{py:(\w+)\}`~?([\w.]+)`", prose(page)):
            found = resolve(name)
            assert role == "attr" or callable(found) or isinstance(found, ModuleType), name


def test_the_theory_has_every_equation_and_algorithm_with_its_functions() -> None:
    text = (DOCS / "theory.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| (Eq\. \d+|Algorithm \d) \| [^|]+ \| ([^|]+) \|$", text, re.MULTILINE))
    assert list(rows) == [*(f"Eq. {n}" for n in range(1, 17)), *(f"Algorithm {n}" for n in range(1, 5))]
    without_function = {"Eq. 3", "Eq. 6", "Eq. 9", "Eq. 10", "Eq. 16", "Algorithm 3", "Algorithm 4"}
    assert {name for name, where in rows.items() if "{py:" not in where} == without_function
    explained = prose(DOCS / "theory.md").split("## Notation")[1]
    for name in rows:
        number = name.split()[-1]
        kind = "Algorithms?" if name.startswith("A") else "Eq\\."
        assert re.search(rf"\*\*{kind} (\d+ and )?{number}\b", explained), f"{name} has no paragraph"


# Pictures.


def test_every_picture_of_the_gallery_is_there_and_made_by_a_command_of_the_page() -> None:
    gallery = load_tool("gallery")
    made = []
    for command in gallery.commands():
        for words in simple_commands(command):
            made += [after for word, after in pairwise(words) if word in ("-o", "--output", "--plot")]
    assert len(gallery.shown()) >= 11
    assert set(gallery.shown()) - set(made) == set()
    assert {path.name for path in gallery.PICTURES.iterdir()} == set(gallery.shown())
    for name in gallery.shown():
        with Image.open(gallery.PICTURES / name) as image:
            image.verify()
    assert sum(path.stat().st_size for path in gallery.PICTURES.iterdir()) < 400_000


def test_the_pictures_of_the_gallery_were_made_with_the_settings_that_the_page_says() -> None:
    gallery = load_tool("gallery")
    for command in gallery.commands():
        for words in simple_commands(command):
            picture = gallery.PICTURES / words[words.index("-o") + 1] if "-o" in words else None
            if picture is None or picture.suffix != ".png" or not picture.is_file() or words[0] == "neighbors":
                continue
            with Image.open(picture) as image:
                carried = json.loads(image.info[f"ddpm {words[0]}"])
            for option, key in (("-n", "n"), ("--rounds", "rounds"), ("--strength", "strength"), ("--t", "t")):
                if option in words:
                    given = json.loads(f"[{words[words.index(option) + 1]}]")
                    assert carried[key] in (given, given[0]), command


# Codes, variables, links.


def test_the_exit_codes_are_those_of_the_errors() -> None:
    text = (DOCS / "exit-codes.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d) \| [^|]+ \| ?`?(\w*)`? ?\|", text, re.MULTILINE)
    ours = {
        error.__name__: error.exit_code
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.DdpmError)
    }
    assert {name: int(code) for code, name in rows if name} == ours
    assert [int(code) for code, _ in rows] == [*range(9)]


def test_the_example_of_an_exit_code_ends_with_it(ddpm: Ddpm, tmp_path: Path) -> None:
    text = (DOCS / "exit-codes.md").read_text("utf-8")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "photo.png")
    (tmp_path / "notes.txt").write_text("no image")
    for code in (0, 2, 3, 7):
        example = re.search(rf"^\| {code} \|.*\| `ddpm ([^`]+)` \|$", text, re.MULTILINE)
        assert example is not None
        assert ddpm(*example[1].split()).returncode == code


def test_options_come_from_the_variables_that_the_text_says(monkeypatch: pytest.MonkeyPatch) -> None:
    context = click.Context(group, info_name="ddpm", auto_envvar_prefix="DDPM")
    variables = {"DDPM_DEBUG"}
    for command in COMMANDS:
        inner = click.Context(click_command(command), info_name=command, parent=context)
        for option in inner.command.params:
            if not isinstance(option, click.Option) or {"-q", "-v"} & set(option.opts):
                continue
            name = max(option.opts, key=len).lstrip("-")
            if name == "model":  # for all commands, and not an option that was given; see test_sample
                variables.add("DDPM_MODEL")
                continue
            variable = f"DDPM_{command}_{name}".upper().replace("-", "_")
            monkeypatch.setenv(variable, "from the environment")
            assert option.resolve_envvar_value(inner) == "from the environment", variable
            variables.add(variable)
    assert set(re.findall(r"`(DDPM_[A-Z_]+)=", (DOCS / "formats.md").read_text("utf-8"))) <= variables


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_internal_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
            if target.startswith(("https://", "http://")):
                continue
            file, _, anchor = target.partition("#")
            there = page if not file else page.parent / file
            assert there.is_file(), f"{page_id(page)}: {target}"
            assert not anchor or anchor in anchors(there), f"{page_id(page)}: {target}"
