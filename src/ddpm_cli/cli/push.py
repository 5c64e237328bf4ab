"""``ddpm push``: a model to the Hub."""

from __future__ import annotations

from pathlib import Path

import click

from ..ui.results import put_text
from .options import Command, NameType, PathType, verbosity_options

EPILOG = """\b
Examples:
  ddpm push ddpm-out me/digits --dry-run     what would be published, and the page that goes with it
  ddpm push ddpm-out me/digits --private
  ddpm eval-bpd ./images --json > bpd.json && ddpm push ddpm-out me/digits --bpd bpd.json
"""


@click.command("push", cls=Command, epilog=EPILOG)
@click.argument("model", metavar="MODEL", type=NameType())
@click.argument("repo", metavar="REPO")
@click.option("--private", is_flag=True, help="Only you see the repository; one that is there and public is refused.")
@click.option("--bpd", type=PathType(), metavar="FILE", help="What ddpm eval-bpd --json printed, for the model's page.")
@click.option("--dry-run", is_flag=True, help="Say what would be published, print the page, and stop.")
@verbosity_options
def command(model: str, repo: str, private: bool, bpd: Path | None, dry_run: bool, verbosity: int) -> None:
    """Publish MODEL as REPO, user/repo: weights, configurations, a page about it and a picture, in one commit.

    Of a run that is its newest checkpoint without the state of training. Nothing else of the run folder, and no path,
    leaves this machine. HF_TOKEN must hold a token that may write.
    """
    from ..jobs.push import publish
    from ..ui.console import open_screen

    screen = open_screen(verbosity)
    put_text(publish(model, repo, screen, private=private, bpd=bpd, dry_run=dry_run))
