"""The checkpoints of a run: staged beside their place, flushed, published by one rename; found by verification."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import socket
from collections.abc import Collection, Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import filelock

from ..config import DiffusionConfig, UNetConfig
from ..core.files import Written, at_once, disk_errors, printable, require_file, sha256, sync, write_new
from ..core.records import from_json
from ..errors import ArgumentError, DiskError, InputError, LockedError
from . import weights
from .layout import DOCUMENTS, WEIGHTS, Provenance, StoredModel, describe, read_json, read_model
from .weights import Tensors

log = logging.getLogger(__name__)

SCHEMA = 1
NOTHING_KNOWN = Provenance()
MANIFEST = "MANIFEST.json"
MOMENTS = ("exp_avg", "exp_avg_sq")
MODEL_FILES = (*DOCUMENTS, f"unet/{WEIGHTS}")  # those that a model is read from; the others are for training
_MODEL, _OPTIMIZER, _STATE = "train/model.safetensors", "train/optimizer.safetensors", "train/state.json"
_STAGED = ".tmp-"
_RETIRED = ".trash-"


@dataclass(frozen=True, eq=False)
class Snapshot:
    """All that a run is at one step.

    Args:
        step: optimizer steps done.
        ema: state dict of the moving average; what samples are made from.
        weights: state dict of the network being trained.
        optimizer: Adam's moments, as ``<parameter>.exp_avg`` and ``<parameter>.exp_avg_sq``.
        loss_sum: of the losses since the last report, and ``loss_count`` how many.
    """

    step: int
    unet: UNetConfig
    diffusion: DiffusionConfig
    ema: Tensors
    weights: Tensors
    optimizer: Tensors
    loss_sum: float
    loss_count: int


@dataclass(frozen=True)
class _State:
    """The content of train/state.json."""

    step: int
    loss_sum: float
    loss_count: int


def publish(run: Path, snapshot: Snapshot, *, keep: int, past: Provenance = NOTHING_KNOWN) -> Path:
    """Do `publishing` at once."""
    return at_once(publishing(run, snapshot, keep=keep, past=past))


def publishing(
    run: Path, snapshot: Snapshot, *, keep: int, past: Provenance = NOTHING_KNOWN
) -> Generator[None, None, Path]:
    """Write ``checkpoints/step-XXXXXXXX``, whole or not at all, then retire all but the ``keep`` newest.

    Checkpoints of which a file is missing or has another size than its manifest says are neither counted nor retired.

    Args:
        past: what is known of the run besides its step.

    Yields:
        after each tensor. Whoever goes on may be another thread.

    Returns:
        the checkpoint's folder. If a valid one of this step is there already, nothing is written.

    Raises:
        DiskError: the disk is full or refuses otherwise. Earlier checkpoints are untouched.
    """
    final = _folder(run, snapshot.step)
    if final.exists():
        if _is_valid(final, hashed=None):
            return final
        _retire(final)
    with _staged(final) as staged:
        yield from _write(staged, snapshot, past)
    _prune(run, final, keep)
    return final


def save_model(folder: Path, model: StoredModel) -> None:
    """Write a model into a new folder of diffusers' layout, whole or not at all.

    Raises:
        ArgumentError: there is something of that name already.
        DiskError: the disk is full or refuses otherwise.
    """
    check_new(folder)
    with _staged(folder) as staged:
        at_once(_write_model(staged, model.unet, model.diffusion, model.weights, model.provenance))


def check_new(folder: Path) -> None:
    """Refuse a folder to be written that exists, or whose parent does not; called before the work that it is for.

    Raises:
        ArgumentError: there is something of that name already.
        DiskError: it could not be written.
    """
    with disk_errors(folder):
        if folder.exists() or folder.is_symlink():
            raise ArgumentError(f"{printable(folder)} exists already; name another folder")
        parent = folder.absolute().parent
        if parent.exists() and not parent.is_dir():
            raise DiskError(f"cannot write {printable(folder)}: {printable(folder.parent)} is a file, not a folder")
        if not parent.is_dir():
            raise DiskError(
                f"cannot write {printable(folder)}: there is no folder {printable(folder.parent)}; make it first"
            )


@contextlib.contextmanager
def _staged(final: Path) -> Iterator[Path]:
    """A folder to be filled, which then becomes ``final`` by one rename; nothing stays of it if anything fails."""
    staged = final.parent / f"{_STAGED}{final.name}-{os.getpid()}"
    with disk_errors(final):
        try:
            yield staged
            staged.rename(final)
            sync(final.parent)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise


def newest(run: Path, *, hashed: Collection[str] | None = None) -> Path | None:
    """The newest checkpoint that verifies, or None where there is none yet. Each newer one that does not is warned of.

    Args:
        hashed: as `verify` takes it.

    Raises:
        InputError: there are checkpoints, and not one is valid. A run is never started over in silence.
    """
    reasons = []
    candidates = _checkpoints(run)
    for folder in candidates:
        try:
            verify(folder, hashed=hashed)
        except InputError as error:
            if not folder.exists():  # retired meanwhile by a trainer that has published a newer one
                return newest(run, hashed=hashed)
            reasons.append(str(error))
        else:
            for reason in reasons:
                log.warning("skipping a damaged checkpoint: %s", reason)
            return folder
    if candidates:
        raise InputError(
            f"none of the {len(candidates)} checkpoints in {printable(run / 'checkpoints')} is whole "
            f"({reasons[0]}); restore one, or move the folder away to start over"
        )
    return None


def verify(folder: Path, *, hashed: Collection[str] | None = None) -> int:
    """Compare every file of a checkpoint with its manifest, by size, and by SHA-256, for which it is read.

    Args:
        hashed: compare the SHA-256 of these files only, such as `MODEL_FILES`; None for all.

    Returns:
        the checkpoint's step.

    Raises:
        InputError: a file is missing, cut or altered; the message names it.
    """
    manifest = read_json(folder / MANIFEST)
    files, step = manifest.get("files"), manifest.get("step")
    if manifest.get("schema") != SCHEMA or not isinstance(files, dict) or not isinstance(step, int):
        raise InputError(f"{printable(folder / MANIFEST)} is not a manifest of schema {SCHEMA}")
    if folder.name != f"step-{step:08d}" and folder.name.startswith("step-"):
        raise InputError(f"{printable(folder)} holds the checkpoint of step {step}")
    for name in (*DOCUMENTS, f"unet/{WEIGHTS}", _MODEL, _OPTIMIZER, _STATE):
        if name not in files:
            raise InputError(f"{printable(folder / MANIFEST)} does not list {name}")
    for name, entry in files.items():
        path = folder / name
        try:
            _verify_file(path, entry if isinstance(entry, dict) else {}, hashed is None or name in hashed)
        except OSError as error:
            raise InputError(f"{printable(path)} cannot be read: {error.strerror}") from error
    return step


def read_snapshot(folder: Path) -> Snapshot:
    """Read back all that `publish` wrote, from a checkpoint that verifies.

    Raises:
        InputError: a file is missing or does not fit the others.
    """
    model = read_model(folder, str(folder))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.weights.items()}
    moments = {f"{name}.{moment}": shape for name, shape in shapes.items() for moment in MOMENTS}
    state = from_json(_State, read_json(folder / _STATE), printable(folder / _STATE))
    return Snapshot(
        step=state.step,
        unet=model.unet,
        diffusion=model.diffusion,
        ema=model.weights,
        weights=weights.read(folder / _MODEL, shapes),
        optimizer=weights.read(folder / _OPTIMIZER, moments),
        loss_sum=state.loss_sum,
        loss_count=state.loss_count,
    )


@contextlib.contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Hold the run folder for this process; remove what killed trainers left behind.

    Raises:
        LockedError: another process holds it; the message names the process and its machine.
        DiskError: the folder cannot be written.
    """
    with disk_errors(run):
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(run / ".lock", timeout=0, fallback_to_soft=False)
        owner = run / ".lock-owner.json"
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise LockedError(
                f"{_owner(owner)} is training in {printable(run)}; wait for it, stop it, or use another folder"
            ) from error
    try:
        with disk_errors(owner):
            owner.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
            _remove_leftovers(run)
        yield
    finally:
        with contextlib.suppress(OSError):  # so that nobody is told a name of the past
            owner.unlink()
        lock.release()


def _remove_leftovers(run: Path) -> None:
    """Remove what was being written, or deleted, when a trainer was killed."""
    for folder in (run, run / "samples", run / "checkpoints"):
        for leftover in folder.glob(".t*"):
            if leftover.name.startswith((_STAGED, _RETIRED)):
                if leftover.is_dir():
                    shutil.rmtree(leftover, ignore_errors=True)
                else:
                    leftover.unlink(missing_ok=True)


def _write_model(
    staged: Path, unet: UNetConfig, diffusion: DiffusionConfig, tensors: Tensors, provenance: Provenance
) -> Generator[None, None, dict[str, Written]]:
    for folder in ("unet", "scheduler"):
        (staged / folder).mkdir(parents=True)
    documents = describe(unet, diffusion, provenance)
    files = {name: _write_json(staged / name, document) for name, document in documents.items()}
    files[f"unet/{WEIGHTS}"] = yield from weights.write(staged / "unet" / WEIGHTS, tensors)
    for folder in ("unet", "scheduler", "."):
        sync(staged / folder)
    return files


def _write(staged: Path, snapshot: Snapshot, past: Provenance) -> Generator[None, None, None]:
    provenance = replace(past, step=snapshot.step, average=True)
    files = yield from _write_model(staged, snapshot.unet, snapshot.diffusion, snapshot.ema, provenance)
    (staged / "train").mkdir()
    state = _State(snapshot.step, snapshot.loss_sum, snapshot.loss_count)
    files[_STATE] = _write_json(staged / _STATE, asdict(state))
    files[_MODEL] = yield from weights.write(staged / _MODEL, snapshot.weights)
    files[_OPTIMIZER] = yield from weights.write(staged / _OPTIMIZER, snapshot.optimizer)
    listed = {name: asdict(files[name]) for name in sorted(files)}
    _write_json(staged / MANIFEST, {"schema": SCHEMA, "step": snapshot.step, "files": listed})
    for name in ("train", "."):
        sync(staged / name)


def _write_json(path: Path, document: Mapping[str, Any]) -> Written:
    return at_once(write_new(path, [json.dumps(document, indent=2).encode() + b"\n"]))


def _prune(run: Path, published: Path, keep: int) -> None:
    """Retire all but the newest ``keep`` checkpoints that are as large as their manifests say."""
    folders = _checkpoints(run)
    if len(folders) > keep:
        valid = [folder for folder in folders if folder == published or _is_valid(folder, hashed=())]
        for folder in valid[max(keep, 1) :]:
            _retire(folder)


def _retire(folder: Path) -> None:
    # A rename first, so that a checkpoint that is being deleted is never taken for one that is whole.
    trash = folder.with_name(f"{_RETIRED}{folder.name}-{os.getpid()}")
    with contextlib.suppress(OSError):
        folder.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)


def _is_valid(folder: Path, *, hashed: Collection[str] | None) -> bool:
    try:
        verify(folder, hashed=hashed)
    except InputError:
        return False
    return True


def _checkpoints(run: Path) -> list[Path]:
    """Folders named like checkpoints, newest step first."""
    where = run / "checkpoints"
    named = (where / entry.name for entry in os.scandir(where)) if where.is_dir() else ()  # glob is silent if refused
    folders = [f for f in named if re.fullmatch(r"step-\d+", f.name) and f.is_dir()]
    return sorted(folders, key=lambda folder: int(folder.name[5:]), reverse=True)


def _folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def _verify_file(path: Path, expected: Mapping[str, Any], hashed: bool) -> None:
    require_file(path)
    size = path.stat().st_size
    if size != expected.get("size"):
        raise InputError(f"{printable(path)} has {size} bytes; its manifest says {expected.get('size')}")
    if hashed and sha256(path) != expected.get("sha256"):
        raise InputError(f"{printable(path)} was altered: its SHA-256 is not the manifest's")


def _owner(path: Path) -> str:
    try:
        owner = json.loads(path.read_text())
        return f"process {int(owner['pid'])} on {printable(str(owner['host']))}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
