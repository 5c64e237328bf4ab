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
@click.option("--verify", is_flag=True, help="Compare its outputs with those published for google/ddpm-*.")
@click.option(
    "--json", "as_json", envvar="DDPM_INFO_JSON", is_flag=True, help="One JSON object on stdout instead of a table."
)
@verbosity_options
def command(model: str | None, verify: bool, as_json: bool, verbosity: int) -> None:
    """Say what MODEL is: network, diffusion, training, where it came from, and whether its files are whole.

    MODEL is what -m takes elsewhere: a run folder, a checkpoint, a folder of diffusers' layout, user/repo[@revision]
    of a Hub, or builtin:digits. With --verify, outputs that differ from the published ones end in exit code 3.
    """
    from ..errors import ArgumentError, InputError
    from ..jobs.models import find_model
    from ..models.info import examine
    from ..models.model import default_spec
    from ..ui.console import aligned, open_screen
    from ..ui.console import as_json as to_json

    screen = open_screen(verbosity)
    info = examine(find_model(default_spec() if model is None else model, screen), outputs=verify)
    for warning in info.warnings:
        screen.warn(warning)
    put_text(to_json(info.to_json()) if as_json else "\n".join(aligned(info.to_rows())))
    if verify and info.verification is None:
        raise ArgumentError(f"no outputs were published for {info.stored.source}; --verify knows google/ddpm-*")
    if info.verification and not info.verification.passed:
        raise InputError(f"{info.stored.source} is not the network that was published: its outputs differ")
