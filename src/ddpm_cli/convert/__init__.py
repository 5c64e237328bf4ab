"""Checkpoints of other projects, told apart by the names of their tensors, as models of diffusers' layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..checkpoint import StoredModel, is_model_folder, pickles, read_model, weights
from ..checkpoint.layout import check_match, weights_file
from ..core.files import printable, sha256
from ..errors import ArgumentError, InputError
from . import improved_diffusion, pesser, w86763777
from .format import Content, Options

__all__ = ["Options", "convert"]

FORMATS = (improved_diffusion.FORMAT, pesser.FORMAT, w86763777.FORMAT)
SAFE_SUFFIX = ".safetensors"


def convert(path: Path, options: Options, *, allow_pickle: bool = False) -> StoredModel:
    """Read a checkpoint of another project.

    What had to be assumed or left out is logged as a warning.

    Args:
        path: a file of torch.save or safetensors, or a folder of diffusers' layout.
        options: what the file does not say; see `Options`.
        allow_pickle: open the file even if it is a pickle.

    Raises:
        InputError: the file is no checkpoint of a known format, or its network cannot be expressed as ours.
        ArgumentError: an option was given that does not apply to this format.
    """
    pickled = _pickle_in(path)
    if pickled is not None and not allow_pickle:
        raise InputError(f"{printable(pickled)} is a pickle, which is only read when you allow it: `allow_pickle=true`")
    return _convert_folder(path, options) if path.is_dir() else _convert_file(path, options)


def _pickle_in(path: Path) -> Path | None:
    """The pickle that `convert` would have to open, or None if it needs none.

    Raises:
        InputError: there is nothing of this name, a folder without a model, or a file that is no pickle either.
    """
    if path.is_dir():
        if not is_model_folder(path):
            raise InputError(f"{printable(path)} is a folder without a model of diffusers; give the checkpoint itself")
        path = weights_file(path)
    elif not path.exists():
        raise InputError(f"there is no file {printable(path)}")
    if path.suffix == SAFE_SUFFIX:
        return None
    pickles.recognise(path)
    return path


def _convert_folder(folder: Path, options: Options) -> StoredModel:
    _check_options(options, "a folder of diffusers", frozenset())
    model = read_model(folder, str(folder), unpickle=True)
    if model.provenance.origin is not None:
        return model
    origin = _origin(weights_file(folder), "diffusers")
    return replace(model, provenance=replace(model.provenance, origin=origin))


def _convert_file(path: Path, options: Options) -> StoredModel:
    where = printable(path)
    content = Content(path, weights.read_any(path) if path.suffix == SAFE_SUFFIX else pickles.read(path))
    form = next((form for form in FORMATS if form.recognises(content)), None)
    if form is None:
        raise InputError(f"{where} is no checkpoint of {_known()}; {_account(content)}")
    _check_options(options, f"a checkpoint of {form.project}", form.options)
    found = form.convert(content, options)
    check_match(where, found.unet, found.diffusion)
    provenance = replace(found.provenance, origin=_origin(path, form.project))
    return StoredModel(found.unet, found.diffusion, found.weights, str(path), provenance)


def _origin(path: Path, project: str) -> str:
    return f"{printable(path.name)} of {project}, sha256 {sha256(path)[:16]}"


def _check_options(options: Options, what: str, known: frozenset[str]) -> None:
    for name in options.given:
        if name not in known:
            raise ArgumentError(f"`{name}` does not apply to {what}; leave it out")


def _known() -> str:
    return ", ".join(form.project for form in FORMATS)


def _account(content: Content) -> str:
    """What is there instead of a known format, for a message."""
    if "down_blocks.0.resnets.0.conv1.weight" in content.tensors:
        return "it has diffusers' names, and needs its config.json: give the folder with both"
    tree = content.tree
    keys = [printable(str(key))[:40] for key in list(tree)[:5]] if isinstance(tree, dict) else []
    return f"it has {', '.join(keys)}, ..." if keys else "it holds no table of tensors"
