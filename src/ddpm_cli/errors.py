"""The errors a user can meet; each carries the exit code that the command line ends with.

A message says what is wrong, with which value, and what to do about it. It names fields in backticks, as in "`eta` is
2; it must be from 0 to 1" or "use `loss=vlb`"; the command line shows them as its options.
"""

from __future__ import annotations


class DdpmError(Exception):
    """Base of every error that is the user's to mend. Exit code 1 is kept for the unexpected."""

    exit_code = 1


class ArgumentError(DdpmError, ValueError):
    """An option or argument has a value that makes no sense (exit code 2)."""

    exit_code = 2


class InputError(DdpmError):
    """Images, a checkpoint or a configuration that cannot be used (exit code 3)."""

    exit_code = 3


class HubError(DdpmError):
    """The Hub or the network did not deliver (exit code 4)."""

    exit_code = 4


class DivergedError(DdpmError):
    """The loss or a gradient stopped being finite (exit code 5)."""

    exit_code = 5


class LockedError(DdpmError):
    """Another process is training in this run folder (exit code 6)."""

    exit_code = 6


class DiskError(DdpmError):
    """A file cannot be written: full disk, missing folder, no permission (exit code 7)."""

    exit_code = 7


class PeerError(DdpmError):
    """Another of the processes that share the work has failed (exit code 8).

    Args:
        lost: whether it has ended without a word, or cannot be reached.
    """

    exit_code = 8

    def __init__(self, message: str, *, lost: bool = False) -> None:
        super().__init__(message)
        self.lost = lost
