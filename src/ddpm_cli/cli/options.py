"""The options that several commands share, and the types of their values. No torch."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from ..errors import ArgumentError, DdpmError

if TYPE_CHECKING:
    from ..diffusion.samplers import Setting

F = TypeVar("F", bound=Callable[..., Any])

SHARING = "train", "sample", "eval-bpd"  # commands whose work several processes can share


WORDS = "ddpm_cli.words"  # the key in a context's meta for the words of the command line


class Command(click.Command):
    """A command whose help shows its examples before its options, because most readers look for those.

    torchrun can start it in several processes only if it is one of `SHARING`.

    Args:
        groups: headings for its options in the help, each with the names of their parameters; the others come last.
    """

    def __init__(self, *args: Any, groups: Mapping[str, Sequence[str]] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.groups = groups or {}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[WORDS] = tuple(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        if os.environ.get("WORLD_SIZE", "1") not in ("", "1") and self.name not in SHARING:
            raise ArgumentError(f"ddpm {self.name} is one process; torchrun can start {', '.join(SHARING)}")
        try:
            return super().invoke(ctx)
        except DdpmError as error:
            error.args = (in_options(str(error), self), *error.args[1:])
            raise

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        self.format_epilog(ctx, formatter)
        self.format_options(ctx, formatter)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        grouped = {name for names in self.groups.values() for name in names}
        others = [param.name for param in options if param.name not in grouped]
        for heading, names in {**self.groups, "Other options" if grouped else "Options": others}.items():
            records = (param.get_help_record(ctx) for param in options if param.name in names)
            with formatter.section(heading):
                formatter.write_dl([record for record in records if record])


_FIELD = re.compile(r"`([a-z][a-z_0-9]*)(?:=([^`]*))?`")


def in_options(message: str, command: click.Command) -> str:
    """A message with its fields in backticks replaced by the command's options: `` `eta` `` becomes ``--eta``.

    `` `loss=vlb` `` becomes ``--loss vlb``, and `` `flip=false` `` ``--no-flip``. Other names stay as they are.
    """
    known = {parameter.name: parameter for parameter in command.params}

    def named(match: re.Match[str]) -> str:
        parameter, value = known.get(match[1]), match[2]
        if parameter is None:
            return match[0]
        if isinstance(parameter, click.Argument):
            name, others = parameter.make_metavar(click.Context(command)), []
        else:
            name, others = max(parameter.opts, key=len), parameter.secondary_opts
        if others and value in ("true", "false"):
            return others[0] if value == "false" else name
        return name if value in (None, "true") else f"{name} {value}"

    return _FIELD.sub(named, message)


class PathType(click.Path):
    """The name of a file or folder. An empty one is refused: pathlib would take it for the current folder."""

    def __init__(self, *, dash: bool = False) -> None:
        super().__init__(path_type=Path, allow_dash=dash, readable=False)  # the code that opens it reports errors

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the name is empty", param, ctx)
        if value == "-" and not self.allow_dash:
            self.fail("it cannot be stdin or stdout; ./- is a file or folder of that name", param, ctx)
        return super().convert(value, param, ctx)


class NameType(click.ParamType[str]):
    """The name of images or of a model. Most are files or folders, so shells complete file names."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value == "":
            self.fail("the name is empty", param, ctx)
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


class SizeType(click.ParamType[tuple[int, int]]):
    """``32`` or ``64x48`` (height x width) as (height, width)."""

    name = "N|HxW"
    advice = "is not a size; give a number such as 32, or height x width such as 64x48"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"([0-9]{1,9})(?:x([0-9]{1,9}))?", str(value).strip().lower())
        if not match or "0" in (match[1].lstrip("0") or "0", (match[2] or "1").lstrip("0") or "0"):
            self.fail(f"{value!r} {self.advice}", param, ctx)
        height = int(match[1])
        return height, int(match[2]) if match[2] else height


class GridType(SizeType):
    """``4x16`` as (rows, columns)."""

    name = "RxC"
    advice = "is not a grid; give rows x columns such as 4x16"


_NUMBER = r"[0-9]+(?:\.[0-9]+)?"


class DurationType(click.ParamType[float]):
    """``90``, ``90s``, ``4m``, ``1.5h``, ``3h50m`` or ``2d`` as seconds."""

    name = "TIME"
    _units = {"d": 86_400, "h": 3600, "m": 60, "s": 1}  # noqa: RUF012

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        text = str(value).strip().lower()
        if re.fullmatch(_NUMBER, text):
            text += "s"
        match = re.fullmatch("".join(f"(?:({_NUMBER}){unit})?" for unit in self._units), text)
        amounts = [float(amount or 0) for amount in match.groups()] if match else []
        seconds = sum(amount * unit for amount, unit in zip(amounts, self._units.values(), strict=False))
        if seconds == 0:
            self.fail(f"{value!r} is not a length of time; give seconds, or 90s, 4m, 1.5h, 3h50m, 2d", param, ctx)
        return seconds


class IntList(click.ParamType[tuple[int, ...]]):
    """``0,250,500`` as a tuple of whole numbers."""

    name = "T[,T...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers such as 500 or 0,250,500", param, ctx)


def model_option(command: F) -> F:
    """-m/--model."""
    return click.option(
        "-m",
        "--model",
        type=NameType(),
        metavar="MODEL",
        help="Model: a run folder, a checkpoint, a folder in diffusers' layout, user/repo[@revision] on the Hub, or "
        "builtin:digits.  "
        "[default: $DDPM_MODEL, else ./ddpm-out if it exists, else builtin:digits]",
    )(command)


def seed_option(command: F) -> F:
    """--seed."""
    return click.option(
        "--seed",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Random seed: the same seed gives the same result.",
    )(command)


def sampler_options(command: F) -> F:
    """The settings of `sampling.Sampling` except the seed; an option that is not given is None."""
    return _sampler_options(command, "--steps")


def chain_options(command: F) -> F:
    """The same for a command whose --steps means something else: --chain-steps."""
    return _sampler_options(command, "--chain-steps")


def spacing_options(command: F) -> F:
    """--spacing and --timesteps."""
    from ..diffusion.samplers import DEFAULT_SAMPLER, SAMPLERS  # with numpy, which other commands need not wait for
    from ..diffusion.spacing import SPACINGS

    usual = SAMPLERS[DEFAULT_SAMPLER].spacing
    others = (f"; {name}: {sampler.spacing}" for name, sampler in SAMPLERS.items() if sampler.spacing != usual)
    command = click.option(
        "--timesteps",
        type=IntList(),
        help="The steps themselves, in descending order, instead of their number: 1000,750,500,...",
    )(command)
    return click.option(
        "--spacing",
        type=click.Choice(list(SPACINGS)),
        help="How the steps are spaced over 1..T: evenly in t (uniform; trailing omits t = 1), in sqrt(t) (quad) or in "
        f"the log of the signal-to-noise ratio (logsnr).  [default: {usual}{''.join(others)}]",
    )(command)


def picture_options(default: str, about: str) -> Callable[[F], F]:
    """The options that commands that make images share, except --seed: -m, -o, and how images are made and shown."""

    def add(command: F) -> F:
        options = (
            model_option,
            click.option("-o", "--output", type=PathType(dash=True), default=default, show_default=True, help=about),
            click.option(
                "--scale",
                type=click.IntRange(1, 64),
                help="Enlarge each pixel of the sheet by this factor.  "
                "[default: tiles of at least 32 pixels, 48 with labels]",
            ),
            click.option(
                "--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Images per batch."
            ),
            machine_options,
            click.option("--preview", is_flag=True, help="Draw the images in the terminal as they are made."),
            force_option,
            verbosity_options,
        )
        for option in reversed(options):
            command = option(command)
        return command

    return add


def list_options(command: F) -> F:
    """--files-from and -0."""
    command = click.option(
        "-0",
        "--null",
        is_flag=True,
        help="Names in --files-from end with NUL instead of a newline, as from find -print0.",
    )(command)
    return click.option(
        "--files-from",
        type=PathType(dash=True),
        metavar="FILE",
        help="Read the names of images from FILE, one per line; - is stdin.",
    )(command)


def resize_option(command: F) -> F:
    """--resize, of clean images."""
    return click.option(
        "--resize", is_flag=True, help="Scale, crop and convert images to the model's size, as train does."
    )(command)


def _sampler_options(command: F, name: str) -> F:
    from ..diffusion.samplers import DEFAULT_SAMPLER, SAMPLERS, own_settings

    samplers = "; ".join(f"{name}: {sampler.about}" for name, sampler in SAMPLERS.items())
    steps = ", ".join(f"{name}: {sampler.steps or 'all T'}" for name, sampler in SAMPLERS.items())
    options = (
        click.option(
            "--sampler",
            type=click.Choice(list(SAMPLERS)),
            help=f"Sampler of the reverse chain.  {samplers}.  [default: {DEFAULT_SAMPLER}]",
        ),
        click.option(
            name,
            "steps",
            type=click.IntRange(1),
            help=f"Steps of the reverse chain; fewer are faster.  [default: {steps}]",
        ),
        spacing_options,
        *(_own_option(name, owners) for name, owners in own_settings().items()),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _own_option(name: str, owners: dict[str, Setting]) -> Callable[[F], F]:
    """The option of a setting that only some samplers have. `Sampling` checks its range, which may differ."""
    about = (f"{owner}: {s.help}  [default: {s.default:g}; {s.range}]" for owner, s in owners.items())
    kind = click.INT if all(setting.whole for setting in owners.values()) else click.FLOAT
    return click.option(f"--{name.replace('_', '-')}", name, type=kind, help="  ".join(about))


def machine_options(command: F) -> F:
    """--device and --precision."""
    command = click.option(
        "--precision",
        type=click.Choice(["auto", "fp32", "bf16"]),
        default="auto",
        show_default=True,
        help="Precision of convolutions and matrix products; auto is bf16 if the hardware supports it, else fp32.",
    )(command)
    return click.option(
        "--device",
        default="auto",
        show_default=True,
        metavar="DEVICE",
        help="Device: auto, cpu, cuda, cuda:N or mps.",
    )(command)


def peer_option(command: F) -> F:
    """--peer-timeout, of commands whose work several processes can share."""
    return click.option(
        "--peer-timeout",
        type=DurationType(),
        default="1h",
        show_default=True,
        help="Under torchrun: how long to wait for a process that hangs.",
    )(command)


def force_option(command: F) -> F:
    """--force."""
    return click.option("--force", is_flag=True, help="Overwrite the output if it exists.")(command)


def verbosity_options(command: F) -> F:
    """-q and -v, as one value ``verbosity``: -1, 0 or 1."""
    command = click.option("-v", "--verbose", "verbosity", flag_value=1, type=int, help="Print details.")(command)
    return click.option(
        "-q", "--quiet", "verbosity", flag_value=-1, type=int, default=0, help="Print only errors and results."
    )(command)
