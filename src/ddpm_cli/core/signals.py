"""The signals that ask the program to end, and the exception that carries one."""

from __future__ import annotations

import signal

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal that asks the program to end. No `KeyboardInterrupt`, which click would turn into something else."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
