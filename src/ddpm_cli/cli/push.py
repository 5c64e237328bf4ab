"""``ddpm push``: a model to the Hub."""

from __future__ import annotations

from pathlib import Path

import click

from ..ui.results import put_text
from .options import Command, NameType, PathType, verbosity_options

EPILOG = """\b
Examples:
  ddpm push ddpm-out me/digits --dry-run     show the files and the model card
  ddpm push ddpm-out me/digits --private
  ddpm eval-bpd ./images --json > bpd.json && ddpm push ddpm-out me/digits --bpd bpd.json
"""


@click.command("push", cls=Command, epilog=EPILOG)
@click.argument("model", metavar="MODEL", type=NameType())
@click.argument("repo", metavar="REPO")
@click.option("--private", is_flag=True, help="Make a new repository private; refuse one that is public.")
@click.option(
    "--bpd",
    type=PathType(),
    metavar="FILE",
    help="Add bits/dim to the model card, from the output of ddpm eval-bpd --json.",
)
@click.option("--dry-run", is_flag=True, help="List the files, print the model card, and publish nothing.")
@verbosity_options
def command(model: str, repo: str, private: bool, bpd: Path | None, dry_run: bool, verbosity: int) -> None:
    """Publish MODEL on the Hub as REPO (user/repo): weights, configurations, a model card and samples, in one commit.

    MODEL is what -m takes elsewhere. For a run folder it is the newest checkpoint, without the training state. No path
    on this machine is published. HF_TOKEN must hold a token with write access.
    """
    from ..jobs.push import publish
    from ..ui.console import open_screen

    screen = open_screen(verbosity)
    put_text(publish(model, repo, screen, private=private, bpd=bpd, dry_run=dry_run))
