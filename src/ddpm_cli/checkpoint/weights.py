"""State dicts: what a file must hold, and safetensors files, read with suspicion and written down to the disk."""

from __future__ import annotations

import json
import reprlib
import struct
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from ..core.files import Written, printable, require_file, write_new
from ..errors import InputError

MAX_HEADER_BYTES = 2**20
FLOAT_DTYPES = ("F32", "F16", "BF16")

# diffusers before 0.15 called the attention's four matrices by these names; the public google/ddpm-* files still do.
LEGACY_NAMES = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}
# What diffusers' parts were called before its release 0.1.
LEGACY_PARTS = {
    "time_steps": "time_proj",
    "downsample_blocks": "down_blocks",
    "mid": "mid_block",
    "upsample_blocks": "up_blocks",
}
LEGACY_DOWNSAMPLING = ".downsamplers.0.op."

Shapes = Mapping[str, tuple[int, ...]]
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Entry:
    """What a file says of a tensor: its dtype as safetensors names it, and its shape, neither of them checked yet."""

    dtype: str
    shape: object


def read(path: Path, expected: Shapes) -> Tensors:
    """The tensors of a file as float32 on the CPU: exactly those expected, by name and shape, under today's names.

    Names, dtypes, shapes and sizes are checked in the header before anything is allocated.

    Raises:
        InputError: the file is missing, cut, altered, or holds other tensors or numbers that are not finite; the
            message names the first such.
    """
    return _load(path, check(printable(path), _read_entries(path), expected))


def read_any(path: Path) -> Tensors:
    """All tensors of a file as float32 on the CPU, whatever their names and shapes.

    Raises:
        InputError: as for `read`.
    """
    entries = _read_entries(path)
    for name, entry in entries.items():
        _check_dtype(printable(path), name, entry, FLOAT_DTYPES)
    return _load(path, {name: name for name in entries})


def check(
    where: str, found: Mapping[str, Entry], expected: Shapes, dtypes: tuple[str, ...] = FLOAT_DTYPES
) -> dict[str, str]:
    """Compare what a file has with what a network needs; today's name of each tensor and its name in the file.

    Args:
        where: the file, for messages.

    Raises:
        InputError: a tensor is missing, one too many, or of another dtype or shape; the message names it.
    """
    names = _todays_names(where, found)
    for name in expected:
        if name not in names:
            raise InputError(f"{where}: tensor {name} is missing ({len(expected)} are needed, {len(names)} are there)")
    for name, old in names.items():
        entry = found[old]
        if name not in expected:
            raise InputError(f"{where}: tensor {printable(name)[:100]} does not belong to this network")
        _check_dtype(where, name, entry, dtypes)
        if entry.shape != list(expected[name]):
            raise InputError(
                f"{where}: tensor {name} has shape {reprlib.repr(entry.shape)}, the network's is {list(expected[name])}"
            )
    return {name: names[name] for name in expected}


def check_finite(where: str, tensors: Tensors) -> None:
    """Refuse tensors with NaN or infinity in them."""
    for name, tensor in tensors.items():
        # The sum is quick to have, and not finite if a number is not. Large numbers may make it so, too.
        if not tensor.sum().isfinite() and not tensor.isfinite().all():
            raise InputError(
                f"{where}: tensor {printable(name)[:100]} holds numbers that are not finite; its training had diverged"
            )


def write(path: Path, tensors: Tensors) -> Generator[None, None, Written]:
    """Write float32 tensors to a new safetensors file and flush it to the disk.

    The format is a header and the numbers, row by row. It is written here rather than by the library so that it is
    hashed on the way. NumPy brings the numbers into order, in this thread alone, where PyTorch would take the threads
    that training uses meanwhile.

    Yields:
        after each tensor.

    Raises:
        DiskError: the disk is full, or refuses otherwise.
    """
    return write_new(path, _parts(tensors))


def _parts(tensors: Tensors) -> Iterator[bytes | memoryview]:
    entries, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + 4 * tensor.numel()
        entries[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    yield struct.pack("<Q", len(header)) + header
    for tensor in tensors.values():
        yield np.ascontiguousarray(tensor.detach().cpu().numpy(), "<f4").reshape(-1).view(np.uint8).data


def _load(path: Path, names: Mapping[str, str]) -> Tensors:
    """The tensors of a checked file: ``names`` says for each new name the one in the file."""
    where = printable(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(old).float() for name, old in names.items()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{where}: not a valid safetensors file ({printable(str(error))})") from error
    check_finite(where, tensors)
    return tensors


def _check_dtype(where: str, name: str, entry: Entry, dtypes: tuple[str, ...]) -> None:
    if entry.dtype not in dtypes:
        raise InputError(
            f"{where}: tensor {printable(name)[:100]} has dtype {printable(entry.dtype)[:20]}, none of "
            f"{', '.join(dtypes)}"
        )


def _read_entries(path: Path) -> dict[str, Entry]:
    header = _read_header(path)
    header.pop("__metadata__", None)
    entries = {name: entry if isinstance(entry, dict) else {} for name, entry in header.items()}
    return {name: Entry(str(entry.get("dtype")), entry.get("shape")) for name, entry in entries.items()}


def _read_header(path: Path) -> dict[str, Any]:
    where = printable(path)
    try:
        require_file(path)
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            if length > MAX_HEADER_BYTES:
                raise InputError(f"{where}: not a safetensors file with a network's weights (header of {length} bytes)")
            header = json.loads(file.read(length), object_pairs_hook=_without_repeats)
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error.strerror}") from error
    except (ValueError, struct.error, RecursionError) as error:
        raise InputError(f"{where}: not a safetensors file, or cut ({printable(str(error))[:100]})") from error
    if not isinstance(header, dict):
        raise InputError(f"{where}: not a safetensors file (its header is no table of tensors)")
    return header


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice in the header")
    return result


def _todays_names(where: str, names: Iterable[str]) -> dict[str, str]:
    """For each of today's names the name in the file."""
    result: dict[str, str] = {}
    present = set(names)
    for name in names:
        new = _modern(name)
        # Early releases wrote this convolution twice, under both names.
        if LEGACY_DOWNSAMPLING in name and name.replace(LEGACY_DOWNSAMPLING, ".downsamplers.0.conv.") in present:
            continue
        if new in result:
            raise InputError(f"{where}: a tensor is there under its old and its new name")
        result[new] = name
    return result


def _modern(name: str) -> str:
    first, dot, rest = name.partition(".")
    name = f"{LEGACY_PARTS.get(first, first)}{dot}{rest}"
    name = name.replace(LEGACY_DOWNSAMPLING, ".downsamplers.0.conv.")
    if ".attentions." in name:
        for old, new in LEGACY_NAMES.items():
            name = name.replace(old, new)
    return name
