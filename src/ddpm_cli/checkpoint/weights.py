"""safetensors files, read with suspicion and written so that they are on the disk when they are said to be."""

from __future__ import annotations

import json
import os
import re
import reprlib
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import DiskError, InputError
from ..files import disk_errors, printable, sync

MAX_HEADER_BYTES = 2**20
FLOAT_DTYPES = ("F32", "F16", "BF16")

# diffusers before 0.15 called the attention's four matrices by these names; the public google/ddpm-* files still do.
LEGACY_NAMES = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}

Shapes = Mapping[str, tuple[int, ...]]
Tensors = dict[str, torch.Tensor]


def read(path: Path, expected: Shapes) -> Tensors:
    """The tensors of a file as float32 on the CPU: exactly those expected, by name and shape, under today's names.

    Names, dtypes, shapes and sizes are checked in the header before anything is allocated.

    Raises:
        InputError: the file is missing, cut, altered, or holds other tensors or numbers that are not finite; the
            message names the first such.
    """
    where = printable(path)
    names = {_modern(name): name for name in _check_header(path, expected)}
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(names[name]).float() for name in expected}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{where}: not a valid safetensors file ({printable(str(error))})") from error
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{where}: tensor {name} holds numbers that are not finite; its training had diverged")
    return tensors


def write(path: Path, tensors: Tensors) -> None:
    """Write tensors to a new file and flush it to the disk.

    Raises:
        DiskError: the disk is full, or refuses otherwise.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with disk_errors(path):
        path.touch(exist_ok=False)
        mode = path.stat().st_mode  # as the umask has it, which the library does not ask for
        try:
            save_file(contiguous, path)
        except SafetensorError as error:  # how the library reports any refusal of the disk
            if number := re.search(r"os error (\d+)", str(error)):
                raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
            raise DiskError(f"cannot write {printable(path)}: {printable(str(error))}") from error
        path.chmod(mode)
        sync(path)


def _check_header(path: Path, expected: Shapes) -> list[str]:
    where = printable(path)
    header = _read_header(path)
    header.pop("__metadata__", None)
    found = {_modern(name): entry for name, entry in header.items()}
    if len(found) != len(header):
        raise InputError(f"{where}: a tensor is there under its old and its new name")
    for name in expected:
        if name not in found:
            raise InputError(f"{where}: tensor {name} is missing ({len(expected)} are needed, {len(found)} are there)")
    for name, entry in found.items():
        if name not in expected:
            raise InputError(f"{where}: tensor {printable(name)[:100]} does not belong to this network")
        dtype, shape = (entry.get("dtype"), entry.get("shape")) if isinstance(entry, dict) else (None, None)
        if dtype not in FLOAT_DTYPES:
            raise InputError(f"{where}: tensor {name} has dtype {printable(str(dtype))[:20]}, none of F32, F16, BF16")
        if shape != list(expected[name]):
            raise InputError(
                f"{where}: tensor {name} has shape {reprlib.repr(shape)}, the network's is {list(expected[name])}"
            )
    return list(header)


def _read_header(path: Path) -> dict[str, Any]:
    where = printable(path)
    try:
        if not path.is_file():  # a pipe would be waited for
            raise InputError(f"{where} is missing")
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


def _modern(name: str) -> str:
    if ".attentions." in name:
        for old, new in LEGACY_NAMES.items():
            name = name.replace(old, new)
    return name
