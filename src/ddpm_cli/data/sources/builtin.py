"""Data sets that come with the program."""

from __future__ import annotations

from pathlib import Path

from ...config import BUILTIN_DIGITS
from ...core.files import printable
from ...errors import InputError


def builtin(name: str) -> Path:
    """The file of a data set that comes with the program."""
    if name != BUILTIN_DIGITS:
        raise InputError(f"there is no data set {printable(name)}; there is {BUILTIN_DIGITS}")
    return Path(__file__).parents[2] / "builtin" / "digits.npz"
