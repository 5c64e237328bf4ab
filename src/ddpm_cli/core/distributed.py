"""Several processes that torchrun started: which one this is, what all of them know, and how they stop together.

What stands in the memory of the host goes over gloo, what stands on a GPU over nccl.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import secrets
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from textwrap import shorten
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, PeerError

if TYPE_CHECKING:
    import torch
    from torch.distributed.distributed_c10d import ProcessGroup, Store

PEER_TIMEOUT = 3600.0  # seconds to wait for a process that hangs; one that ends is noticed at once
TURNS = 3
_POLL_SECONDS = 1e-4, 0.02  # at first, and at most
_BEAT_SECONDS = 5.0  # between two signs of life
_NOTICE_SECONDS = 30.0  # of waiting, before the first word about it
_FOR_EVER = timedelta(days=30)  # what is waited for here is watched by `_Watch`


@dataclass(frozen=True)
class World:
    """Processes that share work.

    Args:
        rank: the number of this one; 0 writes the results.
        size: how many there are.
        local_rank: the number of this one among those of its machine.
        hosts: PyTorch's group for what stands in the memory of the hosts; None for its default one.
        watch: tells where the others are; None for a process alone.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    hosts: ProcessGroup | None = None
    watch: _Watch | None = None

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

    def all_reduce(self, array: npt.NDArray[np.generic], *, patient: bool = True) -> npt.NDArray[np.generic]:
        """The sum of the arrays of this shape and type that all processes hand in. Can be interrupted while it waits.

        Args:
            patient: wait longer than the limit as long as those that are missing compute.

        Raises:
            PeerError: another process has ended, or was waited for too long.
        """
        if self.size == 1:
            return array
        import torch
        import torch.distributed

        total = torch.from_numpy(np.array(array))
        pause, longest = _POLL_SECONDS
        with self.meeting():
            work = torch.distributed.all_reduce(total, group=self.hosts, async_op=True)
            assert work is not None
            while not work.is_completed():
                if self.watch is not None and self.watch.is_over(patient=patient):
                    _leave_without_waiting()
                    raise self.watch.given_up()
                time.sleep(pause)
                pause = min(1.1 * pause, longest)
            work.wait()
        result: npt.NDArray[np.generic] = total.numpy()
        return result

    def any(self, *flags: bool, patient: bool = False) -> tuple[bool, ...]:
        """Of each flag, whether any process has it set. ``patient`` as for `all_reduce`: not so between steps."""
        if self.size == 1:
            return flags
        return tuple(count > 0 for count in self.all_reduce(np.array(flags, np.int64), patient=patient).tolist())

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

        with self.meeting():
            for tensor in tensors:
                torch.distributed.broadcast(tensor, 0)

    def all_reduce_(self, tensor: torch.Tensor) -> None:
        """Replace a tensor by the sum over all processes; the host does not wait for a GPU to do it."""
        if self.size == 1:
            return
        import torch.distributed

        with self.meeting():
            torch.distributed.all_reduce(tensor)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A block of code that all processes get through, or none. It may take one of them long, as packing does.

        Raises:
            PeerError: another process did not, and says itself why.
        """
        try:
            yield
        except BaseException as error:
            if not (isinstance(error, PeerError) and error.lost):
                with contextlib.suppress(PeerError):
                    self.any(True, patient=True)
            raise
        if self.any(False, patient=True)[0]:
            raise failed_elsewhere()

    @contextlib.contextmanager
    def meeting(self) -> Iterator[None]:
        """Within, all processes do something together: a point that each of them gets to."""
        if self.watch is not None:
            self.watch.meetings += 1
        with self.peer_errors():
            yield

    @contextlib.contextmanager
    def peer_errors(self) -> Iterator[None]:
        """Within, this process may wait for others, and what the libraries raise because one has ended, or has not
        come in time, is a `PeerError`.
        """
        if self.watch is not None:
            self.watch.since = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not _is_of_a_peer(error):
                raise
            if self.watch is not None and "timed out" in str(error).lower():
                raise self.watch.given_up() from error
            silent = self.watch.silent() if self.watch is not None else []
            raise PeerError(
                f"another process that shared the work has ended or cannot be reached, so this one stops "
                f"({_in_short(error)}{f'; no sign of {_ranks(silent)}' if silent else ''})",
                lost=True,
            ) from error
        finally:
            if self.watch is not None:
                self.watch.since = None


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
def init_world(device: str, timeout: float = PEER_TIMEOUT) -> Iterator[World]:
    """The processes that torchrun started, for as long as the block lasts; this one alone without torchrun.

    Args:
        device: that this one computes on.
        timeout: seconds to wait for others that hang, before this one gives up.

    Raises:
        ArgumentError: RANK, LOCAL_RANK or WORLD_SIZE is no number.
        PeerError: not all processes came in time.
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
    limit = timedelta(seconds=timeout)
    with world.peer_errors():
        store: Store = next(rendezvous("env://", world.rank, size, timeout=limit))[0]
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            store = PrefixStore(_life(store, world, timeout), store)
        torch.distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo", store=store, rank=world.rank, world_size=size, timeout=limit
        )
        hosts = torch.distributed.new_group(backend="gloo", timeout=_FOR_EVER)
    watch = _Watch(store, world.rank, size, timeout)
    watch.start()
    try:
        yield World(world.rank, size, world.local_rank, hosts, watch)
    finally:
        watch.closed.set()
    # Not after an error: it would wait for what other processes were to take part in.
    torch.distributed.destroy_process_group()


class _Watch(threading.Thread):
    """Signs of life of all processes: each tells the others in their store where it is, every few seconds.

    A process that is stopped, or hangs, tells nothing new. So those that wait know for whom, at no cost for those that
    compute.

    Args:
        store: what PyTorch's processes tell each other first.
        timeout: seconds of waiting after which to give up.
    """

    def __init__(self, store: Store, rank: int, size: int, timeout: float) -> None:
        super().__init__(name="ddpm-watch", daemon=True)
        self.store = store.clone()  # type: ignore[attr-defined]  # a connection of its own: others wait while one is in use
        self.rank, self.size, self.timeout = rank, size, timeout
        self.beat = min(_BEAT_SECONDS, timeout / 10)
        self.closed = threading.Event()
        self.meetings = 0  # that this process has come to
        self.since: float | None = None  # when this process began to wait for others
        self._asked = time.monotonic()  # when the store last answered
        now = time.monotonic()
        self._seen = {other: _Sign(0, 0, 0.0, now, now) for other in range(size) if other != rank}

    def run(self) -> None:
        """Tell and ask, until closed or the store has ended."""
        notice = first = min(_NOTICE_SECONDS, self.timeout / 3)
        for count in range(1, sys.maxsize):
            try:
                self.store.set(f"watch/{self.rank}", f"{self.meetings} {count} {time.process_time():.3f}")
                self._look()
            except RuntimeError:  # whoever kept it has ended, as the group tells its members
                return
            waited = self.waited()
            if waited < first:
                notice = first
            elif waited >= notice and (missing := self.missing()):
                notice = 2 * waited
                # One of those who wait speaks for all of them.
                if self.rank == min(set(range(self.size)).difference(missing)):
                    print(f"rank {self.rank}: waiting for {_ranks(missing)} since {_spell(waited)}", file=sys.stderr)
            if self.closed.wait(self.beat):
                return

    def waited(self) -> float:
        """Seconds that this process has waited for others."""
        since = self.since
        return 0.0 if since is None else time.monotonic() - since

    def missing(self) -> list[int]:
        """Ranks that have not come to the meeting that this one is at, or give no sign of life."""
        late = {rank for rank, sign in self._seen.items() if sign.meetings < self.meetings}
        return sorted(late.union(self.silent()))

    def silent(self) -> list[int]:
        """Ranks that have given no sign of life for some time."""
        if time.monotonic() - self._asked > 4 * self.beat:
            return [0]  # which keeps the store, unless torchrun does
        return [rank for rank, sign in self._seen.items() if self._asked - sign.told > 4 * self.beat]

    def is_over(self, *, patient: bool) -> bool:
        """Whether this process has waited long enough: for ``patient`` ones, since the last missing one computed."""
        if self.waited() < self.timeout:
            return False
        late = [self._seen[rank].worked for rank in self.missing() if rank in self._seen]
        return not patient or time.monotonic() - max(late, default=0.0) > self.timeout

    def given_up(self) -> PeerError:
        """The error of a process that has waited too long."""
        who = _ranks(self.missing()) if self.missing() else "another process"
        return PeerError(
            f"gave up after waiting {_spell(self.timeout)} for {who}, which has stopped or hangs; look at its machine, "
            "then run the same command again, or wait longer with `peer_timeout`",
            lost=True,
        )

    def _look(self) -> None:
        for rank, old in self._seen.items():
            key = f"watch/{rank}"
            if not self.store.check([key]):
                continue
            meetings, count, used = self.store.get(key).decode().split()
            if int(count) == old.count:
                continue
            now = time.monotonic()
            works = float(used) - old.used > 0.01 * (now - old.told)
            self._seen[rank] = _Sign(int(meetings), int(count), float(used), now, now if works else old.worked)
        self._asked = time.monotonic()


@dataclass(frozen=True)
class _Sign:
    """The last that a process has told: its meetings, how often it has told, its processor time in seconds; and when
    this one heard it, and last heard that it computes.
    """

    meetings: int
    count: int
    used: float
    told: float
    worked: float


def _leave_without_waiting() -> None:
    """At its end, PyTorch waits for what the processes do together, which is for ever where one of them hangs."""

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(PeerError.exit_code)

    atexit.register(leave)


def _ranks(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"


def _spell(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _life(store: Store, world: World, timeout: float) -> str:
    """A name for what the processes leave in torchrun's store, that all of them know and none before them had.

    The store outlives processes that torchrun starts again. What those before them left there, the addresses that they
    listened at, is not to be taken for that of their successors. So rank 0 makes up a name, and says who has answered
    to it; whoever is not among them has read the name of a former life, and waits for another.
    """
    me, deadline = secrets.token_hex(8), time.monotonic() + timeout
    if world.rank == 0:
        store.set("life", me)
        answers = [f"{me}/{rank}" for rank in range(1, world.size)]
        while not store.check(answers):
            if time.monotonic() > deadline:
                late = [rank for rank in range(1, world.size) if not store.check([f"{me}/{rank}"])]
                raise PeerError(f"{_ranks(late)} of {world.size} did not come within {_spell(timeout)}", lost=True)
            time.sleep(_POLL_SECONDS[1])
        store.set(f"{me}/known", " ".join(store.get(answer).decode() for answer in answers))
        return me
    while time.monotonic() < deadline:
        if store.check(["life"]):
            name: str = store.get("life").decode()
            store.set(f"{name}/{world.rank}", me)
            if store.check([f"{name}/known"]) and me in store.get(f"{name}/known").decode().split():
                return name
        time.sleep(_POLL_SECONDS[1])
    raise PeerError(f"rank 0 of {world.size} did not come within {_spell(timeout)}", lost=True)


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
