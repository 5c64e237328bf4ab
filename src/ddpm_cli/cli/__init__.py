"""The command line: a group that imports a command only when it is used, and the one place where errors end.

Nothing here or at the top of a command's module imports torch, so that help and ``ddpm noise`` are immediate.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import click

from .. import __version__
from ..core.signals import SIGNALS, Interrupted
from ..errors import DdpmError, DiskError, InputError

COMMANDS = {
    "train": "Train a model on your own images (Algorithm 1).",
    "sample": "Sample images from a model (Algorithm 2, and faster samplers).",
    "denoise": "Denoise an image, or make variations of it (SDEdit).",
    "interpolate": "Interpolate between two images (Figures 8 and 9).",
    "progressive": "Show progressive generation (Figures 6 and 7).",
    "inpaint": "Fill in part of an image (RePaint).",
    "pack": "Preprocess images once, for clusters and faster starts.",
    "noise": "Add noise to an image by the forward process (Eq. 2 and 4).",
    "eval-bpd": "Evaluate a model in bits/dim (the variational bound, Eq. 5).",
    "neighbors": "Show samples' nearest training images; test for memorisation.",
    "info": "Show what a model is and where it came from.",
    "pull": "Download a model from the Hub.",
    "push": "Publish a model on the Hub.",
    "convert": "Convert another project's checkpoint into a model.",
    "env": "Show versions, device and threads, and why they were chosen.",
}

_LATER = 0.05  # seconds

EPILOG = """\b
Examples:
  ddpm train ./images                 train on a folder, into ./ddpm-out
  ddpm sample -n 64 -o grid.png       64 new images on one sheet
  ddpm noise photo.png --t 500        what the network sees at t = 500
  ddpm eval-bpd ./images --limit 100  evaluate the model in bits/dim
"""


class ReaderLeft(Exception):  # noqa: N818
    """Whoever read our output has gone. Not an `OSError`, which click would end with its own exit code."""


@contextlib.contextmanager
def _reader_may_leave() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise ReaderLeft from error


class LazyGroup(click.Group):
    """Commands by name, each imported from the module of its name when it is first needed."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:  # --help and --version end in it
        with _reader_may_leave():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> object:
        with _reader_may_leave():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            hint = f"did you mean {near[0]}?" if near else f"ddpm --help lists the {len(COMMANDS)} commands"
            ctx.fail(f"No such command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"{__name__}.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        self.format_epilog(ctx, formatter)
        self.format_options(ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    epilog=EPILOG,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "auto_envvar_prefix": "DDPM",
        "max_content_width": 100,
    },
)
@click.version_option(__version__, prog_name="ddpm")
def group() -> None:
    """Denoising Diffusion Probabilistic Models (Ho, Jain and Abbeel 2020) on your own images.

    Every command has examples in its help: ddpm train --help. Results go to stdout, everything else to stderr.
    """


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code (see docs/exit-codes.md)."""
    _fill_closed_streams()
    sys.exit(run(args))


def run(args: Sequence[str] | None = None) -> int:
    """Run the command line; every error ends here, as one line on stderr and an exit code."""
    try:
        with _interruptible():
            code = group.main(args, prog_name="ddpm", standalone_mode=False)
            sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Interrupted as error:
        _say("error: interrupted")
        return 128 + error.number
    except (click.Abort, KeyboardInterrupt):
        _say("error: interrupted")
        return 130
    except (ReaderLeft, BrokenPipeError):
        _drop_stdout()
        return 141
    except DdpmError as error:
        _trace()
        _say(f"error: {error}")
        return error.exit_code
    except Exception as error:
        _trace()
        if isinstance(error, OSError) and (text := _of_the_disk(error)):
            _say(f"error: {text}")
            return DiskError.exit_code
        if _is_of_memory(error):
            _say(
                "error: there is not enough memory for this; use a smaller --batch-size, --size or --preset, or with "
                "train --accumulate, which computes a batch in parts"
            )
            return InputError.exit_code
        _say(f"unexpected error: {type(error).__name__}: {error}\nDDPM_DEBUG=1 shows where; please report it")
        return 1
    return code if isinstance(code, int) else 0


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Within, SIGINT, SIGTERM and SIGHUP end the program by way of every ``finally``, as only SIGINT does otherwise.

    One that comes while a module is imported waits for the end of that: a library's C code may abort at an exception,
    or lose it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # where no handler can be set
        return

    pending: int | None = None
    timers: list[threading.Timer] = []

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal pending
        if not _is_importing(frame):
            raise Interrupted(number)
        pending = number
        timers[:] = [threading.Timer(_LATER, signal.pthread_kill, (threading.main_thread().ident, number))]
        timers[0].daemon = True
        timers[0].start()

    heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heeded}
    try:
        yield
        if pending is not None:  # and the program has ended before it came again
            raise Interrupted(pending)
    finally:
        for timer in timers:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _is_of_memory(error: Exception) -> bool:
    """Whether memory has run out: Python's, that of PyTorch's allocator for the CPU, or a GPU's."""
    of_the_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return of_the_cpu or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _of_the_disk(error: OSError) -> str:
    """What a file or folder refused that nobody expected to refuse, for people; empty for other errors."""
    from ..core.files import is_of_the_disk, printable, reason

    if not is_of_the_disk(error):
        return ""
    if error.filename is None:  # then it was the help text or the like
        _drop_stdout()
        return f"cannot write stdout: {reason(error)}"
    return f"{printable(os.fsdecode(error.filename))}: {reason(error)}"


def _drop_stdout() -> None:
    """See to it that what is still buffered does not fail once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fill_closed_streams() -> None:
    """Put /dev/null where stdin, stdout or stderr was closed, lest a file that we open becomes one of them."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: PTH123, SIM115


def _trace() -> None:
    if os.environ.get("DDPM_DEBUG") == "1":
        traceback.print_exc()


def _say(text: str) -> None:
    from ..core.files import printable

    with contextlib.suppress(OSError, ValueError):
        print("\n".join(printable(line) for line in text.split("\n")), file=sys.stderr, flush=True)
