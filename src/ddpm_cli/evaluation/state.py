"""What a measurement had computed when it was interrupted: a file that the same measurement resumes from."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import zipfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config import DiffusionConfig
from ..core.files import printable, write_file
from ..data import Images
from ..errors import ArgumentError, InputError
from ..network.denoiser import NetworkDenoiser
from .bits_per_dim import PartialBound, Protocol

SCHEMA = 1

# What reading a damaged archive can bring about, besides a ValueError.
_DAMAGED = (
    KeyError,
    TypeError,
    AttributeError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class MeasurementKey:
    """What is measured: model and images by their digests, and all that the numbers depend on."""

    model: str
    network: dict[str, Any]
    images: str
    diffusion: dict[str, Any]
    precision: str
    protocol: Protocol

    @classmethod
    def of(
        cls, denoiser: NetworkDenoiser, diffusion: DiffusionConfig, images: Images, protocol: Protocol
    ) -> MeasurementKey:
        """The key of a measurement to be; ``diffusion`` says whether x_0_hat is clipped in it."""
        digest = hashlib.sha256()
        for name, tensor in denoiser.unet.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy())
        network = json.loads(json.dumps(denoiser.unet.config.to_json()))
        return cls(digest.hexdigest(), network, images.digest, diffusion.to_json(), denoiser.precision, protocol)

    def to_json(self) -> dict[str, Any]:
        """The fields by name, with the file's schema version."""
        return {"schema": SCHEMA, **asdict(self)}


def save(path: Path, what: MeasurementKey, tally: PartialBound, rank: int = 0) -> None:
    """Write down what this process knows; of several, each in a file of its own beside the first one's.

    Raises:
        DiskError: the disk refuses.
    """
    file = io.BytesIO()
    header = np.frombuffer(json.dumps(what.to_json()).encode(), np.uint8)
    np.savez(file, header=header, done=tally.done, per_image=tally.per_image, sums=tally.sums)
    write_file(_of_rank(path, rank), file.getvalue())


def load(path: Path, what: MeasurementKey) -> PartialBound:
    """What is known already, of however many processes; nothing if there is no file.

    Raises:
        InputError: what is there is no such file, or damaged.
        ArgumentError: it is of another measurement, the message names what differs; or it is a folder or a device.
    """
    if path.exists() and not path.is_file():
        raise ArgumentError(f"{printable(path)} is no file; `resume` takes the name of one, which need not exist yet")
    tally = PartialBound(what.protocol)
    for part in filter(Path.exists, [path, *_parts(path)]):
        tally.take(_read(part, what))
    return tally


def forget_parts(path: Path) -> None:
    """Remove the files of other processes, once the first one's says everything."""
    for part in _parts(path):
        with contextlib.suppress(OSError):
            part.unlink()


def _parts(path: Path) -> list[Path]:
    """The files of processes above 0."""
    names = re.compile(re.escape(path.name) + r"\.rank\d+")
    return sorted(part for part in path.parent.iterdir() if names.fullmatch(part.name)) if path.parent.is_dir() else []


def _of_rank(path: Path, rank: int) -> Path:
    return path if rank == 0 else path.with_name(f"{path.name}.rank{rank}")


def _read(path: Path, what: MeasurementKey) -> PartialBound:
    where, tally = printable(path), PartialBound(what.protocol)
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes())
            _compare(where, _flat(header), _flat(what.to_json()))
            for name in ("done", "per_image", "sums"):
                mine, array = getattr(tally, name), file[name]
                if array.shape != mine.shape or array.dtype != mine.dtype:
                    raise ValueError(f"{name} is {array.dtype} {array.shape}")
                mine[...] = array
        most = [len(block) * what.protocol.per_image for block in tally.blocks]
        if (tally.done < 0).any() or (tally.done > most).any():
            raise ValueError("more is done than there is to do")
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error.strerror or error}") from error
    except (*_DAMAGED, ValueError) as error:
        if isinstance(error, ArgumentError):
            raise
        raise InputError(
            f"{where} is damaged, or no file of a measurement; delete it, or name another with `resume`"
        ) from error
    return tally


def _flat(data: dict[str, Any]) -> dict[str, Any]:
    return {**{key: value for key, value in data.items() if key != "protocol"}, **data["protocol"]}


def _compare(where: str, there: dict[str, Any], now: dict[str, Any]) -> None:
    names = {
        "n": "the number of images",
        "T": "the number of steps",
        "model": "the model's weights",
        "network": "the network",
        "images": "the images",
        "diffusion": "the model's diffusion, or `no_clip`",
    }
    digests = ("model", "images")
    differing = []
    for key in now:
        if (before := there.get(key)) != now[key]:
            scalar = not isinstance(now[key], dict) and key not in digests
            values = f" ({_said(before)} there, {_said(now[key])} now)" if scalar else ""
            differing.append(names.get(key, f"`{key}`") + values)
    if differing:
        raise ArgumentError(
            f"{where} belongs to another measurement, of which these differ: {', '.join(differing)}; name another file "
            "with `resume`, or delete it"
        )


def _said(value: object) -> object:
    return "all" if value is None else value
