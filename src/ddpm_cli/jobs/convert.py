"""What ``ddpm convert`` does once its options are known: read another project's checkpoint, and save it as a model."""

from __future__ import annotations

from pathlib import Path

from .. import convert
from ..checkpoint import StoredModel, check_new, save_model
from ..models.facts import facts
from ..ui.console import Screen


def convert_model(source: Path, output: Path, options: convert.Options, screen: Screen, *, allow_pickle: bool) -> None:
    """Convert a checkpoint into a new folder of diffusers' layout."""
    check_new(output)
    model = convert.convert(source, options, allow_pickle=allow_pickle)
    save_model(output, model)
    screen.say(_describe(model))


def _describe(model: StoredModel) -> str:
    """What it was and what it is, for people."""
    about = facts(model.unet, model.diffusion, model.provenance)
    step = f", step {model.provenance.step}" if about.trained else ""
    return (
        f"{about.origin}{step}{f', {about.weights} weights' if about.weights else ''}\n"
        f"{about.line()}; {about.network}; attention {about.attention}"
    )
