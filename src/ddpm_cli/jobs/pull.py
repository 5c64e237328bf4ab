"""What ``ddpm pull`` does once its options are known: fetch a model, check it, and keep a copy where one is wanted."""

from __future__ import annotations

from pathlib import Path

from .. import hub
from ..checkpoint import check_new, save_model
from ..models.model import read_pulled
from ..ui.console import Screen, shown


def pull(repo: str, revision: str | None, output: Path | None, screen: Screen, *, allow_pickle: bool) -> Path:
    """Fetch a model; returns the folder that it is in, ``output`` or one of the Hub's cache."""
    if output is not None:
        check_new(output)
    name = hub.require(repo, revision)
    pulled = shown(hub.fetch(name, pickles=allow_pickle), screen)
    stored = read_pulled(pulled, str(name))
    screen.say(f"{stored.identity}: complete and checked; use it as -m {name}")
    if output is not None:
        save_model(output, stored)
    return output or pulled.folder
