"""Results, on stdout: paths one per line, text, or the bytes of an image."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from ..core.files import disk_errors
from ..errors import ArgumentError

STDIO = Path("-")  # stdin where something is read, stdout where it is written


def write_stdout(data: bytes) -> None:
    """Bytes to stdout, unless that is a terminal.

    Raises:
        ArgumentError: stdout is a terminal, which binary data would garble.
    """
    refuse_terminal()
    _write(data)


def refuse_terminal() -> None:
    """Refuse ``-o -`` where stdout is a terminal; called before the work."""
    if sys.stdout.isatty():
        raise ArgumentError("-o - writes image bytes, which a terminal cannot show; pipe them, or name a file")


def put(path: Path) -> None:
    """A path as a result on stdout."""
    put_text(str(path).encode("utf-8", "surrogateescape"))


def put_results(results: Iterable[Path | bytes]) -> None:
    """Paths as results on stdout as they come, or the bytes that are meant for it."""
    for result in results:
        write_stdout(result) if isinstance(result, bytes) else put(result)


def put_text(text: str | bytes) -> None:
    """Text as a result on stdout, with a newline at its end."""
    _write((text.encode() if isinstance(text, str) else text) + b"\n")


def _write(data: bytes) -> None:
    with disk_errors(Path("stdout")):
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
