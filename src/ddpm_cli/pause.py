"""What a measurement had computed when it was stopped: a file that the same measurement goes on from."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import distributed
from .data import Images
from .errors import ArgumentError, InputError
from .evaluate import Protocol, Tally
from .files import printable, write_file
from .model import Model

SCHEMA = 1


@dataclass(frozen=True)
class Measured:
    """What is measured: model and images by their digests, and all that the numbers depend on."""

    model: str
    images: str
    diffusion: dict[str, Any]
    precision: str
    protocol: Protocol

    @classmethod
    def of(cls, model: Model, images: Images, protocol: Protocol) -> Measured:
        """A measurement to be."""
        digest = hashlib.sha256()
        for name, tensor in model.denoiser.unet.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy())
        diffusion = model.diffusion_config.to_json() | {"clip": model.diffusion.clip}
        return cls(digest.hexdigest(), images.digest, diffusion, model.denoiser.precision, protocol)

    def to_json(self) -> dict[str, Any]:
        """The fields by name, with the file's schema version."""
        return {"schema": SCHEMA, **asdict(self)}


def save(path: Path, what: Measured, tally: Tally) -> None:
    """Write down what this process knows; of several, each in a file of its own beside the first one's.

    Raises:
        DiskError: the disk refuses.
    """
    file = io.BytesIO()
    header = np.frombuffer(json.dumps(what.to_json()).encode(), np.uint8)
    np.savez(file, header=header, done=tally.done, per_image=tally.per_image, sums=tally.sums)
    write_file(_of_rank(path, distributed.rank()), file.getvalue())


def load(path: Path, what: Measured) -> Tally:
    """What is known already, of however many processes; nothing if there is no file.

    Raises:
        InputError: a file is no such file, or damaged.
        ArgumentError: it is of another measurement; the message names what differs.
    """
    tally = Tally(what.protocol)
    for part in [path, *sorted(path.parent.glob(f"{path.name}.*"))]:
        if (part == path or part.suffix[1:].isdigit()) and part.exists():
            tally.take(_read(part, what))
    return tally


def forget_parts(path: Path) -> None:
    """Remove the files of other processes, once the first one's says everything."""
    for part in path.parent.glob(f"{path.name}.*"):
        if part.suffix[1:].isdigit():
            with contextlib.suppress(OSError):
                part.unlink()


def _of_rank(path: Path, rank: int) -> Path:
    return path if rank == 0 else path.with_name(f"{path.name}.{rank}")


def _read(path: Path, what: Measured) -> Tally:
    where, tally = printable(path), Tally(what.protocol)
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes())
            there = {**header, **header.pop("protocol")}
            _compare(where, there, {**what.to_json(), **what.to_json()["protocol"]})
            for name in ("done", "per_image", "sums"):
                mine, array = getattr(tally, name), file[name]
                if array.shape != mine.shape or array.dtype != mine.dtype:
                    raise ValueError(f"{name} is {array.dtype} {array.shape}")
                mine[...] = array
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, ArgumentError):
            raise
        raise InputError(
            f"{where} is not what eval-bpd --resume writes, or damaged ({printable(str(error))[:100]}); "
            "delete it, or name another file"
        ) from error
    return tally


def _compare(where: str, there: dict[str, Any], now: dict[str, Any]) -> None:
    names = {"n": "the number of images", "model": "the model", "images": "the images", "terms": "--terms"}
    differing = [names.get(key, key) for key in now if key != "protocol" and there.get(key) != now[key]]
    if differing:
        raise ArgumentError(
            f"{where} belongs to another measurement, of which these differ: {', '.join(differing)}; name another file "
            "with --resume, or delete it"
        )
