"""Opening a model on the screen: progress while it is fetched, and what it is."""

from __future__ import annotations

from ..checkpoint import StoredModel
from ..core.allocator import keep_freed_memory
from ..models.model import Model, default_spec, find, ready
from ..ui.console import Screen, shown


def find_model(spec: str, screen: Screen) -> StoredModel:
    """The model that a user names, fetched if it is on the Hub."""
    return shown(find(spec), screen)


def open_model(spec: str | None, screen: Screen, *, device: str, precision: str) -> Model:
    """The model that a user names, or the one that is meant where none is named, ready on a device."""
    keep_freed_memory()
    stored = find_model(default_spec() if spec is None else spec, screen)
    model = ready(stored, device=device, precision=precision)
    screen.say(f"model {model.source}: {model.describe()}")
    return model
