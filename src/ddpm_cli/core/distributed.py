"""Several processes that torchrun started: which one this is, what all of them know, and how they stop together.

What stands in the memory of the host goes over gloo, what stands on a GPU over nccl.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from textwrap import shorten
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, PeerError

if TYPE_CHECKING:
    import torch
    from torch.distributed.distributed_c10d import ProcessGroup, Store

PATIENCE = timedelta(days=30)  # with processes that are slower; one that ends is noticed at once
GPU_PATIENCE = timedelta(minutes=60)  # within a step, before which all have met: there somebody has failed
TURNS = 3
_POLL_SECONDS = 1e-4, 0.02  # at first, and at most


@dataclass(frozen=True)
class World:
    """Processes that share work.

    Args:
        rank: the number of this one; 0 writes the results.
        size: how many there are.
        local_rank: the number of this one among those of its machine.
        hosts: PyTorch's group for what stands in the memory of the hosts; None for its default one.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    hosts: ProcessGroup | None = None

    @property
    def turn(self) -> int:
        """When it is this process's turn at a disk that others may share: 0 for rank 0, which leaves there what one of
        each other machine finds or makes for its own (1), before all others come (2, the last of `TURNS`).
        """
        return 0 if self.rank == 0 else 1 if self.local_rank == 0 else 2

    def owns(self, place: int) -> bool:
        """Whether the piece of work at this place in a list is this process's."""
        return place % self.size == self.rank

    def shard(self, n: int) -> range:
        """Which of n things that stand in a row are this process's: neighbours, as many as others have, or one more."""
        return range(self.rank * n // self.size, (self.rank + 1) * n // self.size)

    def all_reduce(self, array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """The sum of the arrays of this shape and type that all processes hand in. Can be interrupted while it waits.

        Raises:
            PeerError: another process has ended.
        """
        if self.size == 1:
            return array
        import torch
        import torch.distributed

        total = torch.from_numpy(np.array(array))
        pause, longest = _POLL_SECONDS
        with self.peer_errors():
            work = torch.distributed.all_reduce(total, group=self.hosts, async_op=True)
            assert work is not None
            while not work.is_completed():
                time.sleep(pause)
                pause = min(1.1 * pause, longest)
            work.wait()
        result: npt.NDArray[np.generic] = total.numpy()
        return result

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Of each flag, whether any process has it set."""
        if self.size == 1:
            return flags
        return tuple(count > 0 for count in self.all_reduce(np.array(flags, np.int64)).tolist())

    def all_gather(self, data: bytes) -> list[bytes]:
        """What each process hands in, by rank."""
        if self.size == 1:
            return [data]
        sizes = np.zeros(self.size, np.int64)
        sizes[self.rank] = len(data)
        ends = np.cumsum(self.all_reduce(sizes))
        pieces = np.zeros(ends[-1], np.uint8)
        pieces[ends[self.rank] - len(data) : ends[self.rank]] = np.frombuffer(data, np.uint8)
        whole = self.all_reduce(pieces).tobytes()
        return [whole[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def all_max(self, value: float) -> float:
        """The largest of the numbers that the processes hand in."""
        values = np.zeros(self.size)
        values[self.rank] = value
        return float(np.max(self.all_reduce(values)))

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give all processes, in place, what rank 0 has in these tensors."""
        if self.size == 1:
            return
        import torch.distributed

        with self.peer_errors():
            for tensor in tensors:
                torch.distributed.broadcast(tensor, 0)

    def all_reduce_(self, tensor: torch.Tensor) -> None:
        """Replace a tensor by the sum over all processes; the host does not wait for a GPU to do it."""
        if self.size == 1:
            return
        import torch.distributed

        with self.peer_errors():
            torch.distributed.all_reduce(tensor)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A block of code that all processes get through, or none.

        Raises:
            PeerError: another process did not, and says itself why.
        """
        try:
            yield
        except BaseException as error:
            if not (isinstance(error, PeerError) and error.lost):
                with contextlib.suppress(PeerError):
                    self.any(True)
            raise
        if self.any(False)[0]:
            raise failed_elsewhere()

    @contextlib.contextmanager
    def peer_errors(self) -> Iterator[None]:
        """Within, what the libraries raise because another process has ended is a `PeerError`."""
        try:
            yield
        except RuntimeError as error:
            if self.size > 1 and _is_of_a_peer(error):
                raise PeerError(
                    f"another process that shared the work has ended or cannot be reached, so this one cannot go on "
                    f"({_in_short(error)})",
                    lost=True,
                ) from error
            raise


ALONE = World()


def rank() -> int:
    """The number of this process as torchrun gave it; 0 without torchrun.

    Raises:
        ArgumentError: RANK is no number.
    """
    return _number("RANK", 0)


def processes_here() -> int:
    """How many processes torchrun started on this machine; 1 without torchrun.

    Raises:
        ArgumentError: LOCAL_WORLD_SIZE is no number.
    """
    return max(_number("LOCAL_WORLD_SIZE", 1), 1)


def local_device(name: str) -> str:
    """``--device`` for this process: of several on a machine, each has a GPU of its own.

    Raises:
        ArgumentError: all of them are to use the same one.
    """
    import torch

    if name.startswith("cuda:") and processes_here() > 1:
        raise ArgumentError(f"`device` is {name}: each of several processes needs a GPU of its own; use cuda")
    if name in ("auto", "cuda") and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        return f"cuda:{_number('LOCAL_RANK', 0)}"
    return name


def failed_elsewhere() -> PeerError:
    """The error of a process that stops because `World.any` has told it of another's."""
    return PeerError("another of the processes has failed, so this one stops; it has said why itself")


def under_torchrun() -> bool:
    """Whether torchrun started this process, if only this one."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextlib.contextmanager
def init_world(device: str) -> Iterator[World]:
    """The processes that torchrun started, for as long as the block lasts; this one alone without torchrun.

    Args:
        device: that this one computes on.

    Raises:
        ArgumentError: RANK, LOCAL_RANK or WORLD_SIZE is no number.
    """
    size = _number("WORLD_SIZE", 1)
    if size < 2:
        yield ALONE
        return
    import torch
    import torch.distributed
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    on_gpu = device.startswith("cuda")
    if device == "mps":
        raise ArgumentError("`device` is mps: processes cannot share work on Apple's GPUs; use cpu, or one process")
    world = World(rank(), size, _number("LOCAL_RANK", 0))
    if on_gpu:
        torch.cuda.set_device(device)
    store: Store = next(rendezvous("env://", world.rank, size, timeout=PATIENCE))[0]
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store = PrefixStore(_life(store, world), store)
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=store,
        rank=world.rank,
        world_size=size,
        timeout=GPU_PATIENCE if on_gpu else PATIENCE,
    )
    if on_gpu:
        world = replace(world, hosts=torch.distributed.new_group(backend="gloo", timeout=PATIENCE))
    yield world
    # Not after an error: it would wait for what other processes were to take part in.
    torch.distributed.destroy_process_group()


def _life(store: Store, world: World) -> str:
    """A name for what the processes leave in torchrun's store, that all of them know and none before them had.

    The store outlives processes that torchrun starts again. What those before them left there, the addresses that they
    listened at, is not to be taken for that of their successors. So rank 0 makes up a name, and says who has answered
    to it; whoever is not among them has read the name of a former life, and waits for another.
    """
    me = secrets.token_hex(8)
    if world.rank == 0:
        store.set("life", me)
        answers = [f"{me}/{rank}" for rank in range(1, world.size)]
        while not store.check(answers):
            time.sleep(_POLL_SECONDS[1])
        store.set(f"{me}/known", " ".join(store.get(answer).decode() for answer in answers))
        return me
    while True:
        if store.check(["life"]):
            name: str = store.get("life").decode()
            store.set(f"{name}/{world.rank}", me)
            if store.check([f"{name}/known"]) and me in store.get(f"{name}/known").decode().split():
                return name
        time.sleep(_POLL_SECONDS[1])


def _in_short(error: RuntimeError) -> str:
    """What gloo or nccl says in its first sentence, without its place in a source file."""
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return shorten(re.sub(r"^\[[^\]]*\] ", "", first).split(". ")[0], 200, placeholder=" ...")


def _is_of_a_peer(error: RuntimeError) -> bool:
    import torch.distributed

    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower()


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise ArgumentError(f"{name} is {text!r} in the environment; it must be a whole number, as torchrun sets it")
    return int(text)
