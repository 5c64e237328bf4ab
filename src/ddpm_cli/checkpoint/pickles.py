"""Pickles of torch.save, from other projects: the one place where such files are opened, and only if a user says so.

A pickle is a program. PyTorch's restricted reader runs no code of it, and maps the tensors of a zip into memory instead
of reading them. What it leaves to do was measured with the 48 hostile files of the tests, each of which must be refused
within a second and 300 MiB:

- The program is read as text first, and refused if it names more than tensors are made of. One file needs that: with a
  name of 900 kB, PyTorch's reader spends more than 20 seconds. The list of names is a second lock besides.
- A zip that is compressed is refused. One file needs that, which holds nothing and would be taken.
- What comes out is walked, to a limit in number and depth. Eleven files need that: they nest, repeat or contain
  themselves, have keys that are no names, or tensors that claim, by strides of 0 or many views, far more than the file
  has.
"""

from __future__ import annotations

import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeAlias

import torch

from ..core.files import printable, require_file
from ..errors import InputError
from .weights import FLOAT_DTYPES, Entry, Shapes, Tensors, check, check_finite

Plain: TypeAlias = (
    "torch.Tensor | int | float | str | Sequence[Plain] | Mapping[str, Plain] | Mapping[int, Plain] | None"
)

MAX_ENTRIES = 100_000  # tensors and values; 40 times those of the largest published network with its optimizer
MAX_DEPTH = 20
MAX_PROGRAM_BYTES = 2**20  # of the pickle proper, without the tensors' content
CLAIMS_PER_BYTE = 4  # bytes of all tensors for each byte of the file: some files name the same tensors twice or thrice

# All that a state dict or an optimizer's needs to name.
SAFE_NAMES = re.compile(
    r"collections\.(OrderedDict|Counter)|torch\.Size|torch\._utils\._rebuild_(tensor|tensor_v2|parameter)|"
    r"torch\.(cuda\.)?[A-Z]\w{0,20}Storage"
)
# A file from before PyTorch 1.6 begins with these: a magic number, a version, the machine, the content, its storages.
BARE_PICKLES = 5

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}


@dataclass(frozen=True)
class _Found:
    """A value somewhere in what was read: the key it lies under, and how deep."""

    key: object
    value: object
    depth: int


def read(path: Path) -> Plain:
    """What a file of torch.save holds, as plain nested dicts and lists of tensors, numbers, strings and None.

    Nothing in the file is executed, and nothing is allocated that the file does not hold: tensors are views of it.

    Raises:
        InputError: the file is no such file, cut, or holds or claims anything else.
    """
    where = printable(path)
    try:
        zipped = _is_zip(path)
        size = path.stat().st_size
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)  # noqa: TID251
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error.strerror}") from error
    except Exception as error:  # a hostile pickle can bring about any
        raise InputError(f"{where} {_reason(error)}") from error
    _check(where, content, size)
    return _plain(content)


def recognise(path: Path) -> None:
    """Refuse what is no file of torch.save at all, or one that names more than tensors are made of; nothing is built.

    Raises:
        InputError: it is no such file, or cannot be read.
    """
    try:
        _is_zip(path)
    except OSError as error:
        raise InputError(f"{printable(path)} cannot be read: {error.strerror}") from error


def read_state_dict(path: Path, expected: Shapes) -> Tensors:
    """A network's weights from a file of torch.save: what `weights.read` does for safetensors files.

    Raises:
        InputError: as for `read`, or the file holds other tensors than those expected.
    """
    where = printable(path)
    content = state_dict(read(path))
    if content is None:
        raise InputError(f"{where} holds no table of tensors, as a file of weights does")
    found = {name: Entry(dtype_name(tensor), list(tensor.shape)) for name, tensor in content.items()}
    names = check(where, found, expected, (*FLOAT_DTYPES, "F64"))
    return to_weights(where, {name: content[old] for name, old in names.items()})


def state_dict(content: Plain) -> Tensors | None:
    """What was read, if it is a table of tensors by name; else None."""
    if not isinstance(content, dict) or not content:
        return None
    tensors = {
        name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    return tensors if len(tensors) == len(content) else None


def to_weights(where: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Copies of tensors as a network's weights, float32.

    Raises:
        InputError: a tensor is not of floating point, or not finite.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise InputError(
                f"{where}: tensor {printable(name)[:100]} has dtype {dtype_name(tensor)}, none of "
                f"{', '.join(_DTYPES.values())}"
            )
    result = {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}
    check_finite(where, result)
    return result


def dtype_name(tensor: torch.Tensor) -> str:
    """A tensor's dtype as safetensors names those of weights, and PyTorch all others."""
    return _DTYPES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))


def _is_zip(path: Path) -> bool:
    """Whether a file is of the format of PyTorch 1.6 and later, a zip; else it is bare pickles, as before.

    Raises:
        InputError: it is neither, or its pickles would do more than make tensors.
    """
    where = printable(path)
    require_file(path)
    with path.open("rb") as file:
        head = file.read(256)
        file.seek(0)
        if head.startswith(_ZIP):
            _check_zip(where, file)
            return True
        if head.startswith(_PICKLE):
            for _ in range(BARE_PICKLES):
                _check_program(where, file)
            return False
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{where} is a pointer of Git LFS, not the file itself; fetch it with: git lfs pull")
    if head.lstrip()[:1] == b"<":
        raise InputError(f"{where} is a web page, not the file that was meant; download it again")
    raise InputError(f"{where} is no file of torch.save" if head else f"{where} is empty")


def _check_zip(where: str, file: IO[bytes]) -> None:
    """Refuse an archive that torch.save would not write, before a byte of it is unpacked."""
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED:
                    raise InputError(f"{where} is a zip that was compressed, not one that torch.save wrote")
                if member.filename.endswith("data.pkl"):
                    with archive.open(member) as program:
                        _check_program(where, program)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, RuntimeError) as error:
        raise InputError(f"{where} is cut or damaged ({printable(str(error))[:100]})") from error


def _check_program(where: str, program: IO[bytes]) -> None:
    """Read a pickle as text up to its end, and refuse what it must not name."""
    start = program.tell()
    try:
        for code, argument, position in pickletools.genops(program):
            if (position or 0) - start > MAX_PROGRAM_BYTES:
                raise InputError(
                    f"{where} holds a pickle of more than {MAX_PROGRAM_BYTES} bytes without its tensors; no network "
                    "needs that"
                )
            name = str(argument).replace(" ", ".") if code.name in ("GLOBAL", "INST") else ""
            if name and (len(name) > 100 or not SAFE_NAMES.fullmatch(name)):
                raise InputError(
                    f"{where} names '{printable(name[:100])}', which no weights are made of; it is refused"
                )
    except (ValueError, EOFError, MemoryError, OverflowError) as error:
        raise InputError(
            f"{where} is cut, damaged, or no file of torch.save ({printable(str(error))[:100]})"
        ) from error


def _reason(error: Exception) -> str:
    """Why PyTorch refused a file, as the rest of a sentence."""
    first = str(error).rpartition("WeightsUnpickler error:")[2].strip().split("\n")[0]  # what stands before is advice
    return f"is cut, damaged, or no file of torch.save ({type(error).__name__}: {printable(first)[:100]})"


def _check(where: str, content: object, file_size: int) -> None:
    """Refuse what is not plain, and tensors that claim more than there is, before any of it is copied."""
    claimed = 0
    for number, found in enumerate(_all_in(content)):
        if number >= MAX_ENTRIES or found.depth > MAX_DEPTH:
            raise InputError(
                f"{where} holds more than {MAX_ENTRIES} values, or nests them more than {MAX_DEPTH} deep; "
                "it holds no network's weights"
            )
        name = printable(str(found.key))[:100]
        if type(found.key) not in (str, int):
            raise InputError(f"{where} has a key of type {type(found.key).__name__}; only strings and numbers are read")
        if isinstance(found.value, torch.Tensor):
            claimed += found.value.numel() * found.value.element_size()
        elif not isinstance(found.value, dict | list | tuple | str | int | float | None):
            kind = printable(type(found.value).__name__)
            raise InputError(f"{where}: {name} is of type {kind}; only tensors, numbers and strings are read")
    if claimed > CLAIMS_PER_BYTE * file_size:
        raise InputError(f"{where} has {file_size} bytes, and its tensors claim {claimed}")


def _all_in(content: object) -> Iterator[_Found]:
    """Every value within what was read, itself included; endless if it contains itself."""
    open_at: list[Iterator[tuple[object, object]]] = [iter([("content", content)])]  # a table or list at each depth
    while open_at:
        if (item := next(open_at[-1], None)) is None:
            open_at.pop()
            continue
        key, value = item
        yield _Found(key, value, len(open_at) - 1)
        if isinstance(value, dict):
            open_at.append(iter(value.items()))
        elif isinstance(value, list | tuple):
            open_at.append(iter(enumerate(value)))


def _plain(content: object) -> Plain:
    if isinstance(content, torch.Tensor):
        return content.detach()
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    assert isinstance(content, int | float | str | None), "checked before"
    return content
