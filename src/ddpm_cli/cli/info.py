"""``ddpm info``: what a model is."""

from __future__ import annotations

import click

from ..ui.results import put_text
from .options import Command, NameType, verbosity_options

EPILOG = """\b
Examples:
  ddpm info                                  the model that ddpm sample would use
  ddpm info ddpm-out
  ddpm info google/ddpm-cifar10-32 --verify
  ddpm info builtin:digits --json
"""


@click.command("info", cls=Command, epilog=EPILOG)
@click.argument("model", metavar="[MODEL]", type=NameType(), required=False, envvar="DDPM_MODEL")
@click.option("--verify", is_flag=True, help="Compare the network's outputs with those published for google/ddpm-*.")
@click.option(
    "--json",
    "as_json",
    envvar="DDPM_INFO_JSON",
    is_flag=True,
    help="Print one JSON object on stdout instead of a table.",
)
@verbosity_options
def command(model: str | None, verify: bool, as_json: bool, verbosity: int) -> None:
    """Describe MODEL: its network, diffusion, training and origin, and whether its files are intact.

    MODEL is what -m takes elsewhere: a run folder, a checkpoint, a folder in diffusers' layout, user/repo[@revision]
    on the Hub, or builtin:digits. With --verify, outputs that differ from the published ones end in exit code 3.
    """
    from ..jobs.info import info
    from ..ui.console import open_screen

    for text in info(model, open_screen(verbosity), verify=verify, json=as_json):
        put_text(text)
