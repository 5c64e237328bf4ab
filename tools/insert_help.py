"""For the cog blocks of the documentation: the real help text of a command, as a user sees it.

A page says ``from insert_help import insert_help; insert_help("sample")``; `make help-docs` fills it in, and
`make docs-fresh` fails when it is out of date.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

WIDTH = 100


def help_text(*command: str) -> str:
    """What ``ddpm COMMAND --help`` prints, run as a process in an environment that cannot colour or change it."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DDPM_", "_DDPM_"))}
    env |= {"COLUMNS": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb", "LC_ALL": "C.UTF-8"}
    env.pop("FORCE_COLOR", None)
    script = Path(sys.executable).with_name("ddpm")
    done = subprocess.run([script, *command, "--help"], env=env, capture_output=True, text=True, timeout=60)
    if done.returncode or not done.stdout.strip():
        raise SystemExit(f"ddpm {' '.join(command)} --help ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines())


def insert_help(*command: str) -> None:
    """Write the help text as a code block into the page that cog is working on."""
    import cog  # there only while cog runs

    cog.outl(f"```console\n$ ddpm {' '.join([*command, '--help'])}\n{help_text(*command)}\n```")
