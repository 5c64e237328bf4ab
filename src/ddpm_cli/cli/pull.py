"""``ddpm pull``: a model from the Hub."""

from __future__ import annotations

from pathlib import Path

import click

from ..ui.results import put
from .options import Command, PathType, verbosity_options

EPILOG = """\b
Examples:
  ddpm pull google/ddpm-cifar10-32                   into the cache, for -m google/ddpm-cifar10-32
  ddpm pull google/ddpm-cat-256 -o cat               also into a folder
  ddpm pull someone/model --revision v1.0
  ddpm pull --allow-pickle someone/old-model         if its only weights are a pickle
"""


@click.command("pull", cls=Command, epilog=EPILOG)
@click.argument("repo", metavar="REPO")
@click.option("--revision", help="Branch, tag or commit to download.  [default: the main branch]")
@click.option(
    "-o", "--output", type=PathType(), help="Copy the model to this new folder.  [default: keep it in the cache only]"
)
@click.option("--allow-pickle", is_flag=True, help="Allow weights that are a pickle, and convert them to safetensors.")
@verbosity_options
def command(repo: str, revision: str | None, output: Path | None, allow_pickle: bool, verbosity: int) -> None:
    """Download a model from the Hub, check it, and print its folder.

    REPO is user/repo or user/repo@revision. Only the files that a model needs are downloaded, and each is compared with
    the digest that the Hub lists. HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE have their usual meaning.
    """
    from ..jobs.pull import pull
    from ..ui.console import open_screen

    put(pull(repo, revision, output, open_screen(verbosity), allow_pickle=allow_pickle))
