"""``ddpm env``: what this machine offers, and what is chosen for it."""

from __future__ import annotations

import click

from ..ui.results import put_text
from .options import Command, verbosity_options

EPILOG = """\b
Examples:
  ddpm env                    versions, device, threads, cache
  ddpm env --json             the same as JSON, for a script
  OMP_NUM_THREADS=1 ddpm env  check that a setting takes effect
"""


@click.command("env", cls=Command, epilog=EPILOG)
@click.option(
    "--json",
    "as_json",
    envvar="DDPM_ENV_JSON",
    is_flag=True,
    help="Print one JSON object on stdout instead of a table.",
)
@verbosity_options
def command(as_json: bool, verbosity: int) -> None:
    """Show versions, the device and precision that auto selects, threads, the cache folder and optional packages.

    For threads and how they wait, it also shows the reason: an environment variable, the cores, or a CPU quota.
    """
    from ..jobs.env import look
    from ..ui.console import aligned
    from ..ui.console import as_json as to_json

    found = look()
    put_text(to_json(found.to_json()) if as_json else "\n".join(aligned(found.to_rows())))
