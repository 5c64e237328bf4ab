"""Files of torch.save are read as plain tables of tensors; hostile ones run nothing, and cost no memory or time."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import resource
import struct
import time
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ddpm_cli.checkpoint import pickles
from ddpm_cli.checkpoint.layout import shapes
from ddpm_cli.core.files import printable
from ddpm_cli.errors import InputError
from helpers.models import random_unet, tiny
from helpers.nursery import Nursery
from helpers.pickles import Payload, old_names

both_formats = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])


def saved(content: object, *, zipped: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def with_program(program: bytes, *, compression: int = zipfile.ZIP_STORED, more: bytes = b"") -> bytes:
    """A file of torch.save whose pickle is replaced by another one."""
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved({"a": torch.ones(4)}))) as old,
        zipfile.ZipFile(stream, "w", compression) as new,
    ):
        for member in old.infolist():
            new.writestr(member.filename, program if member.filename.endswith("data.pkl") else old.read(member))
        if more:
            new.writestr("archive/more", more)
    return stream.getvalue()


def sample_content() -> dict[str, Any]:
    return {
        "model": OrderedDict(weight=torch.arange(6.0).reshape(2, 3), half=torch.ones(2, dtype=torch.bfloat16)),
        "parameter": nn.Parameter(torch.full((2,), 3.0)),
        "transposed": torch.arange(6).reshape(2, 3).T,
        "state": {0: {"step": torch.tensor(3), "betas": (0.9, 0.999)}, 1: None},
        "step": 7,
        "name": "a",
        "flag": True,
        "shape": torch.Size([1, 2]),
        "empty": [],
    }


# What is read.


@both_formats
def test_what_is_read_is_plain(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(saved(sample_content(), zipped=zipped))
    content = pickles.read(path)

    def check(value: object) -> None:
        assert type(value) in (dict, list, torch.Tensor, int, float, str, bool, type(None))
        for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(child)

    check(content)
    assert isinstance(content, dict)
    assert content["step"] == 7
    assert content["shape"] == [1, 2]
    assert content["state"][1] is None
    assert content["state"][0]["betas"] == [0.9, 0.999]
    assert content["transposed"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert content["model"]["weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert not content["parameter"].requires_grad


@both_formats
def test_tensors_that_share_their_memory_are_read(tmp_path: Path, zipped: bool) -> None:
    weight = torch.ones(1000)
    path = tmp_path / "x.pt"
    path.write_bytes(saved({"a": weight, "again": weight, "half": weight[:500]}, zipped=zipped))
    content = pickles.read(path)
    assert isinstance(content, dict)
    assert [len(tensor) for tensor in content.values()] == [1000, 1000, 500]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_weights_become_float32_of_their_own(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(saved({"a": torch.tensor([0.5, -2.0], dtype=dtype)}))
    tensors = pickles.state_dict(pickles.read(path))
    assert tensors is not None
    weights = pickles.to_weights("x", tensors)
    path.write_bytes(bytes(path.stat().st_size))  # the file may change afterwards
    assert weights["a"].dtype == torch.float32
    assert weights["a"].tolist() == [0.5, -2.0]


def test_weights_that_are_not_finite_or_no_floats_are_refused() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(InputError, match="not finite"):
            pickles.to_weights("x", {"a": torch.tensor([1.0, value])})
    for dtype in (torch.int64, torch.bool, torch.complex64, torch.uint8):
        with pytest.raises(InputError, match=r"tensor a\\x1b has dtype \w+, none of F32, F16, BF16, F64"):
            pickles.to_weights("x", {"a\x1b": torch.ones(2, dtype=dtype)})


def test_what_is_no_state_dict() -> None:
    contents: list[pickles.Plain] = [{}, {"a": 1}, {0: torch.ones(1)}, [torch.ones(1)], torch.ones(1), None]
    for content in contents:
        assert pickles.state_dict(content) is None


# A network's weights.


@both_formats
@pytest.mark.parametrize("names", ["todays", "old", "op only"])
def test_a_networks_weights_are_read_under_any_of_their_names(tmp_path: Path, zipped: bool, names: str) -> None:
    unet = random_unet(tiny(), 1)
    state = dict(unet.state_dict())
    if names == "old":
        state = old_names(state)
        assert any(name.startswith("mid.") for name in state)
        assert any(".op." in name for name in state)
    elif names == "op only":
        state = {name.replace("downsamplers.0.conv", "downsamplers.0.op"): tensor for name, tensor in state.items()}
    path = tmp_path / "x.bin"
    path.write_bytes(saved(state, zipped=zipped))
    weights = pickles.read_state_dict(path, shapes(unet.config))
    assert list(weights) == list(unet.state_dict())
    assert all(torch.equal(weights[name], tensor) for name, tensor in unet.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv_in.weight": None}, "tensor conv_in.weight is missing"),
        ({"more\x1b[31m": torch.ones(1)}, r"more\\x1b\[31m does not belong to this network"),
        ({"conv_in.weight": torch.ones(8, 1, 3, 4)}, r"conv_in.weight has shape \[8, 1, 3, 4\], the network's is"),
        ({"conv_in.bias": torch.ones(8, dtype=torch.int8)}, "conv_in.bias has dtype int8, none of F32"),
        ({"conv_in.bias": torch.full((8,), torch.nan)}, "conv_in.bias holds numbers that are not finite"),
        ({"conv_in.bias": [1.0] * 8}, "no table of tensors"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_weights_than_a_networks_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    unet = random_unet(tiny(), 1)
    state = {name: value for name, value in {**unet.state_dict(), **change}.items() if value is not None}
    path = tmp_path / "x.bin"
    path.write_bytes(saved(state))
    with pytest.raises(InputError, match=message):
        pickles.read_state_dict(path, shapes(unet.config))


# Hostile files.


def global_opcode(module: str, name: str) -> bytes:
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"X\x02\x00\x00\x00ls\x85R."


class Strided:
    """A tensor of ones of a size that its storage does not have, as its pickle claims."""

    def __init__(self, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.args = (torch.ones(1).untyped_storage(), 0, size, stride, False, OrderedDict())

    def __reduce__(self) -> tuple[object, ...]:
        storage = torch.storage.TypedStorage(wrap_storage=self.args[0], dtype=torch.float32, _internal=True)
        return torch._utils._rebuild_tensor_v2, (storage, *self.args[1:])


def nested(depth: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


def doubling(times: int) -> list[Any]:
    value: list[Any] = [1]
    for _ in range(times):
        value = [value, value]
    return value


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def hostile_files(sentinel: Path) -> dict[str, bytes]:
    """Files that must be refused, by what is wrong with each."""
    whole = saved({"a": torch.ones(100)})
    old = saved({"a": torch.ones(100)}, zipped=False)
    return {
        "a payload": pickle.dumps(Payload(sentinel), 2),
        "a payload, latest protocol": pickle.dumps(Payload(sentinel)),
        "a payload, protocol 0": pickle.dumps(Payload(sentinel), 0),
        "a payload, saved": saved(Payload(sentinel)),
        "a payload, saved as of old": saved(Payload(sentinel), zipped=False),
        "a payload beside weights": saved({"a": torch.ones(2), "b": Payload(sentinel)}),
        "os.system": with_program(global_opcode("os", "system")),
        "posix.system": with_program(global_opcode("posix", "system")),
        "builtins.eval": with_program(global_opcode("builtins", "eval")),
        "torch.load": with_program(global_opcode("torch", "load")),
        "a global with escape codes": with_program(global_opcode("\x1b[31mos", "sys\x07tem")),
        "a global of 900 kB": with_program(global_opcode("x" * 900_000, "y")),
        "a vast tensor": saved(Strided((10**6, 10**6), (0, 0))),
        "a vast tensor, as of old": saved(Strided((10**6, 10**6), (0, 0)), zipped=False),
        "a tensor of 2^62": saved(Strided((2**31, 2**31), (0, 0))),
        "a tensor beyond its storage": saved(Strided((10,), (1,))),
        "a network of vast tensors": saved({"conv_in.weight": Strided((2**20, 2**20, 3, 3), (0, 0, 0, 0))}),
        "many views of one tensor": saved(views(5000)),
        "cut in half": whole[: len(whole) // 2],
        "cut at the end": whole[:-1],
        "cut in half, as of old": old[: len(old) // 2],
        "cut at the end, as of old": old[:-1],
        "two bytes": b"\x80\x02",
        "empty": b"",
        "a git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 99\n",
        "a web page": b"\n<!DOCTYPE html><html><body>Not found</body></html>",
        "text": b"hello",
        "zeros": bytes(1000),
        "no magic number": pickle.dumps({"a": [1.0] * 100}),
        "a zip of nothing": b"PK\x03\x04" + bytes(1000),
        "a zip of something else": zip_of({"a.txt": b"hello"}),
        "compressed": with_program(b"\x80\x02}.", compression=zipfile.ZIP_DEFLATED),
        "a bomb": with_program(b"N0" * 10**6 + b"N.", compression=zipfile.ZIP_DEFLATED, more=bytes(2**24)),
        "a long program": with_program(b"\x80\x02" + b"N0" * 10**6 + b"N."),
        "deep": saved(nested(100)),
        "very deep": with_program(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."),
        "doubling": saved(doubling(60)),
        "endless": saved(endless()),
        "200,000 values": saved([None] * 200_000),
        "100 megabytes claimed": with_program(b"\x80\x02cbuiltins\nbytearray\n" + long_int(10**11) + b"\x85R."),
        "a set": saved({1, 2}),
        "a complex number": saved({"a": 1j}),
        "a dtype": saved({"a": torch.float32}),
        "a device": saved({"a": torch.device("cpu")}),
        "a tuple as key": saved({(1, 2): torch.ones(1)}),
        "a sparse tensor": saved({"a": torch.eye(3).to_sparse()}),
        "a meta tensor": saved({"a": torch.ones(3, device="meta")}),
        "a module": saved(nn.Linear(2, 2)),
    }


@dataclass(frozen=True)
class Hostile:
    """The hostile files, and what their payloads would make."""

    files: dict[str, bytes]
    sentinel: Path


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Hostile:
    sentinel = tmp_path_factory.mktemp("hostile") / "executed"
    return Hostile(hostile_files(sentinel), sentinel)


def views(count: int) -> dict[str, Any]:
    """Tensors that all are one memory, a megabyte each."""
    memory = torch.zeros(2**18)
    return {f"view {i}": memory for i in range(count)}


def long_int(number: int) -> bytes:
    data = pickle.encode_long(number)
    return b"\x8a" + struct.pack("<B", len(data)) + data


def zip_of(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def refusals(folder: str) -> None:
    """In a process of its own with little memory: try all hostile files, and print what came of each."""
    files = sorted(Path(folder).glob("*.pt"))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 2**20,) * 2)
    outcomes = []
    for path in files:
        began, message = time.process_time(), "ACCEPTED"  # not of a busy machine
        try:
            pickles.read(path)
        except InputError as error:
            message = str(error)
        except BaseException as error:
            message = f"UNEXPECTED {type(error).__name__}: {error}"[:300]
        outcomes.append((path.stem, time.process_time() - began, message))
    print(json.dumps(outcomes))


def test_hostile_files_run_nothing_and_cost_neither_memory_nor_time(
    hostile: Hostile, tmp_path: Path, nursery: Nursery
) -> None:
    files = hostile.files
    pickle.loads(files["a payload"])  # it works
    hostile.sentinel.rmdir()
    for what, data in files.items():
        (tmp_path / f"{what}.pt").write_bytes(data)
    child = nursery.call(refusals, str(tmp_path))
    assert child.wait() == 0, child.stderr
    outcomes = json.loads(child.stdout)
    assert len(outcomes) == len(files)
    for what, seconds, message in outcomes:
        assert message.startswith(f"{tmp_path / what}.pt"), f"{what}: {message}"
        assert printable(message) == message, what
        assert len(message) < 400 + len(str(tmp_path)), f"{what}: a message of {len(message)} characters"
        assert seconds < 1, f"{what}: {seconds:.1f} s"
    assert not hostile.sentinel.exists()
    assert child.stderr == ""


def test_refusals_name_what_was_found(hostile: Hostile, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    for what, found in {
        "a payload": r"posix\.mkdir",
        "a payload, saved as of old": r"posix\.mkdir",
        "a global with escape codes": r"\\x1b\[31mos.sys\\x07tem",
        "a vast tensor": "4000000000000",
        "a git-lfs pointer": "git lfs pull",
        "200,000 values": "100000",
        "a tuple as key": "tuple",
        "a sparse tensor": "_rebuild_sparse_tensor",
    }.items():
        path.write_bytes(hostile.files[what])
        with pytest.raises(InputError, match=found):
            pickles.read(path)
    assert not hostile.sentinel.exists()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is missing"):
        pickles.read(tmp_path / "x\x1b.pt")
    with pytest.raises(InputError, match="is not a file"):
        pickles.read(tmp_path)
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(InputError, match="is not a file"):
        pickles.read(tmp_path / "pipe.pt")


@both_formats
def test_damage_anywhere_is_an_error_of_ours_or_none(tmp_path: Path, zipped: bool) -> None:
    data = saved(sample_content(), zipped=zipped)
    path = tmp_path / "x.pt"
    generator = torch.Generator().manual_seed(0)
    for place in torch.randint(len(data), (300,), generator=generator).tolist():
        path.write_bytes(data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :])
        with contextlib.suppress(InputError):
            pickles.read(path)
