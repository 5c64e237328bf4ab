"""What a run folder says of its run, in config.json: all that decides the weights, and where it came from."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from .. import __version__
from ..checkpoint import read_json
from ..config import DiffusionConfig, TrainConfig, UNetConfig
from ..core.distributed import World
from ..core.files import disk_errors, printable
from ..core.records import from_json
from ..errors import ArgumentError, DiskError, InputError

SCHEMA = 1
CONFIG = "config.json"


@dataclass(frozen=True)
class Origin:
    """Where a run came from; decides nothing, but lets ``ddpm train -o RUN`` resume by itself.

    Args:
        command: the words after ``ddpm train`` that began it.
        images: the absolute path of the images, or their ``builtin:`` name.
        preset: that its network and defaults are from.
    """

    command: tuple[str, ...] = ()
    images: str | None = None
    preset: str | None = None


@dataclass(frozen=True)
class RunConfig:
    """All that decides the weights of a run; two runs of equal configurations and steps have equal weights.

    Args:
        digest: of the packed pixels; ``shape`` is theirs, (N, H, W, C).
        start: the model that training begins from, as the user named it; None for random weights.
        origin: does not count when configurations are compared.
    """

    unet: UNetConfig
    diffusion: DiffusionConfig
    train: TrainConfig
    digest: str
    shape: tuple[int, int, int, int]
    start: str | None = None
    origin: Origin = field(default=Origin(), compare=False)

    def to_json(self) -> dict[str, Any]:
        """The part of config.json that says what the run is."""
        return {
            "schema": SCHEMA,
            "version": __version__,
            "unet": self.unet.to_json(),
            "diffusion": self.diffusion.to_json(),
            "train": self.train.to_json(),
            "data": {"digest": self.digest, "shape": list(self.shape)},
            "from": self.start,
            "origin": asdict(self.origin),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any], where: str) -> RunConfig:
        """Read what `to_json` wrote.

        Raises:
            InputError: names the field and its value, or the newer release that wrote it.
        """
        return _read(data, where).config


@dataclass(frozen=True)
class Cadence:
    """How long a run lasts and how often it writes; nothing here decides the weights.

    Args:
        steps: the step to stop at.
        log_every: steps between lines of metrics.jsonl; so ``save_every`` and ``sample_every``. 0 is never.
        keep: how many checkpoints stay.
        max_time: seconds after which to save and stop; None is never.
    """

    steps: int
    log_every: int
    save_every: int
    sample_every: int
    keep: int = 3
    max_time: float | None = None


@dataclass(frozen=True)
class Computed:
    """How a run was computed last. It decides only how sums are rounded; a resume keeps it where it can.

    Args:
        processes: that shared each batch.
        accumulate: micro-batches of a process's share of a batch.
        recompute: whether activations were recomputed (activation checkpointing).
        compile: whether the network was to be compiled.
        threads: of a CPU; None for a GPU, or where an earlier release did not say.
    """

    processes: int = 1
    accumulate: int = 1
    recompute: bool = False
    compile: bool = False
    threads: int | None = None


@dataclass(frozen=True)
class RunRecord:
    """A run that has begun, as its folder says.

    Args:
        cadence: of its last command; None where an earlier release did not say.
        has_checkpoints: whether there is something to resume from.
    """

    config: RunConfig
    cadence: Cadence | None
    computed: Computed
    has_checkpoints: bool

    @property
    def command(self) -> str:
        """The command that began it, for people; empty if it is not known."""
        return shlex.join(["ddpm", "train", *self.config.origin.command]) if self.config.origin.command else ""


@dataclass(frozen=True)
class _Data:
    digest: str
    shape: tuple[int, int, int, int]


@dataclass(frozen=True)
class _File:
    """config.json, field by field; ``start`` stands there as ``from``."""

    schema: int
    version: str
    unet: UNetConfig
    diffusion: DiffusionConfig
    train: TrainConfig
    data: _Data
    start: str | None = None
    origin: Origin = Origin()
    cadence: Cadence | None = None
    execution: Computed = Computed()

    @property
    def config(self) -> RunConfig:
        """The configuration that is in it."""
        data = self.data
        return RunConfig(self.unet, self.diffusion, self.train, data.digest, data.shape, self.start, self.origin)


def read_record(folder: Path) -> RunRecord | None:
    """What a run folder says of its run; None where none has begun.

    Raises:
        ArgumentError: the folder holds something that is no run.
        InputError: its config.json is damaged, was edited to something impossible, or is of a newer release.
        DiskError: the folder that it would lie in does not exist.
    """
    with disk_errors(folder):
        folder.exists()  # refuses a name that is too long for the disk
    if not folder.absolute().parent.is_dir():
        raise DiskError(
            f"cannot write {printable(folder)}: there is no folder {printable(folder.parent)}; make it first"
        )
    if folder.exists() and not folder.is_dir():
        raise ArgumentError(f"{printable(folder)} is a file; name a folder")
    if not (folder / CONFIG).exists():
        # A trainer that was killed early leaves a lock, or a config.json that is not yet one.
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        strangers = [name for name in names if not name.startswith((".lock", ".tmp-"))]
        if strangers not in ([], ["checkpoints"]):
            raise ArgumentError(
                f"{printable(folder)} is not empty and holds no run ({printable(sorted(strangers)[0])} is in it); "
                "name another folder"
            )
        return None
    file = _read(read_json(folder / CONFIG), printable(folder / CONFIG))
    return RunRecord(file.config, file.cadence, file.execution, _has_checkpoints(folder))


def record_to_json(record: RunRecord | None) -> bytes:
    """A record for other processes, which may not see the folder."""
    if record is None:
        return b""
    file = record.config.to_json() | {"execution": asdict(record.computed), "has_checkpoints": record.has_checkpoints}
    return json.dumps(file | {"cadence": asdict(record.cadence) if record.cadence else None}).encode()


def record_from_json(text: bytes) -> RunRecord | None:
    """What `record_to_json` made."""
    if not text:
        return None
    data = json.loads(text)
    has_checkpoints = data.pop("has_checkpoints")
    file = _read(data, "rank 0")
    return RunRecord(file.config, file.cadence, file.execution, has_checkpoints)


def check_same_run(folder: Path, config: RunConfig) -> None:
    """Refuse a folder whose run has checkpoints and another configuration than ``config``.

    Raises:
        ArgumentError: names what differs, and both values of each. Also as `read_record`.
    """
    record = read_record(folder)
    if record is None or not record.has_checkpoints or record.config == config:
        return
    differing = _differing(record.config.to_json(), config.to_json())
    if all(name.startswith("data.") for name, *_ in differing):
        raise ArgumentError(other_images(folder))
    refuse(folder, record, in_words(differing, "{name} was {a} and is now {b}"))


def refuse(folder: Path, record: RunRecord, differences: str) -> NoReturn:
    """Say that a command does not agree with the run in a folder.

    Raises:
        ArgumentError: always.
    """
    began = f". It began with: {record.command}" if record.command else ""
    raise ArgumentError(
        f"{printable(folder)} holds a run with other settings: {differences}{began}. Leave out what differs to resume "
        "it, or name another folder for a new run"
    )


def other_images(folder: Path) -> str:
    """What to say where a run was trained on other images than those given."""
    return (
        f"{printable(folder)} holds a run with other images. Give those, as they were, to resume it, or start another "
        f"run in a new folder with `start={shlex.quote(printable(folder))}`"
    )


def check_same(mine: dict[str, Any], world: World) -> None:
    """Refuse processes that were given different settings or images, or that are different themselves.

    Args:
        mine: what this one was given, as JSON.

    Raises:
        ArgumentError: names the first that differs from rank 0, the settings, and both values of each.
        PeerError: another process has ended.
    """
    first, *others = (json.loads(text) for text in world.all_gather(json.dumps(mine).encode()))
    for rank, other in enumerate(others, start=1):
        if differing := _differing(first, other):
            text = in_words(differing, "{name} is {b} there and {a} for rank 0")
            raise ArgumentError(
                f"rank {rank} of {world.size} was given other settings or images than rank 0: {text}. "
                "Start all processes with the same command, version and images"
            )


def in_words(differing: Iterable[tuple[str, str, str]], sentence: str) -> str:
    """The first few differences, each in a sentence of its ``{name}`` and both values, ``{a}`` and ``{b}``."""
    rows = list(differing)
    images = ["the images are others"] if any(name == "data.digest" for name, *_ in rows) else []
    others = [sentence.format(name=name, a=a, b=b) for name, a, b in rows if name != "data.digest"]
    return "; ".join((images + others)[:6])


def _read(data: Mapping[str, Any], where: str) -> _File:
    schema, version = data.get("schema"), data.get("version")
    if isinstance(schema, int) and schema > SCHEMA:
        raise InputError(f"{where} was written by a newer ddpm ({printable(str(version))[:40]}); upgrade to resume it")
    try:
        return from_json(_File, {"start" if name == "from" else name: value for name, value in data.items()}, where)
    except InputError as error:
        text = str(error)
        file = "" if text.startswith(where) else f"{where}: "
        by = f" (written by ddpm {printable(str(version))[:40]}; this is {__version__})"
        raise InputError(f"{file}{text}{by if version != __version__ else ''}") from error


def _has_checkpoints(folder: Path) -> bool:
    return any((folder / "checkpoints").glob("step-*"))


def _differing(there: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Settings that differ: the name and both values of each, the network's last."""
    a, b = (_flatten({name: value for name, value in each.items() if name != "origin"}) for each in (there, now))
    names = sorted({*a, *b} - {"version"}, key=lambda name: (name.startswith("unet."), name))
    return [(name, _short(a.get(name)), _short(b.get(name))) for name in names if a.get(name) != b.get(name)]


def _flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:12] + "..."
