"""What ``ddpm push`` does once its options are known: gather what is to be published, show it, publish it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from .. import hub
from ..checkpoint import StoredModel, save_model
from ..errors import ArgumentError
from ..models.card import ReportedBound, RunFacts, card, files
from ..models.model import ready
from ..training.run import preview
from ..ui.console import Screen, size
from .models import find_model


def publish(spec: str, repo: str, screen: Screen, *, private: bool, bpd: Path | None, dry_run: bool) -> str:
    """Publish a model; returns ``user/repo@commit``, or the page where that is all that is asked for."""
    name = hub.require(repo)
    if name.revision is not None:
        raise ArgumentError(f"{name}: a model is published on the main branch; leave out @{name.revision}")
    if not dry_run:
        hub.require_token()
    measured = ReportedBound.read(bpd) if bpd else None
    page = None if dry_run else hub.page_of(name)
    if private and page and not page.private:
        raise ArgumentError(
            f"{name} exists and is public, so --private cannot hide what is pushed; make it private on its page, or "
            "name another repository"
        )
    stored = find_model(spec, screen)
    run = _run_of(stored)
    text = card(name.repo, stored, RunFacts.read(run) if run else None, measured, page.licence if page else {})
    with tempfile.TemporaryDirectory(prefix="ddpm-push-") as folder:
        save_model(Path(folder) / "model", stored)
        content = files(Path(folder) / "model", text, _picture(stored, run, screen))
        for path, part in content.items():
            screen.say(f"  {path:<44} {size(len(part) if isinstance(part, bytes) else part.stat().st_size)}")
        if dry_run:
            screen.say(f"nothing was published; without --dry-run this becomes {name.repo}, which keeps its licence")
            return text
        commit = hub.push(name, content, private=private, message=f"Publish {name.repo} with ddpm")
    screen.say(f"ddpm sample -m {name.repo} -n 64 -o grid.png")
    return commit


def _run_of(stored: StoredModel) -> Path | None:
    """The run folder that a checkpoint lies in."""
    folder = stored.folder
    if folder is None or folder.parent.name != "checkpoints":
        return None
    return folder.parent.parent


def _picture(stored: StoredModel, run: Path | None, screen: Screen) -> bytes:
    """The preview of the checkpoint, or one that is made now."""
    if run and (made := run / "samples" / f"step-{stored.provenance.step or 0:08d}.png").is_file():
        return made.read_bytes()
    screen.say("making a picture of 16 samples")
    model = ready(stored, device="auto", precision="auto")
    return preview(model.denoiser, model.diffusion, model.unet_config, model.device)
