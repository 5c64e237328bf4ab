"""The program run as a process, in an environment of its own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import ddpm_cli


@dataclass(frozen=True)
class Finished:
    """A run of the program that has ended."""

    returncode: int
    stdout: bytes
    stderr: str

    @property
    def lines(self) -> list[str]:
        """The lines of stdout, as text."""
        return self.stdout.decode().splitlines()


class Ddpm(Protocol):
    """The `ddpm` fixture."""

    def __call__(
        self,
        *args: str | Path,
        stdin: bytes = b"",
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 120,
    ) -> Finished:
        """Run ``ddpm ARGS``; the environment is `ddpm_env` with ``env`` on top, the current folder ``tmp_path``."""


def clean_environment(folder: Path) -> dict[str, str]:
    """An environment for the program in which neither the user's settings nor a network play a part."""
    ours = ("DDPM_", "_DDPM_", "HF_", "TORCHINDUCTOR_", "COLUMNS", "LINES", "FORCE_COLOR", "PYTHONWARNINGS")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return env | {
        "DDPM_CACHE": str(folder / "ddpm-cache"),
        "HF_HOME": str(folder / "hf-home"),
        "HF_HUB_OFFLINE": "1",
        "NO_COLOR": "1",
        "TERM": "dumb",
        "COLUMNS": "100",
        # The same code as in this process, wherever the child runs.
        "PYTHONPATH": str(Path(ddpm_cli.__file__).parents[1]),
    }
