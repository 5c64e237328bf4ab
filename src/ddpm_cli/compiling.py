"""Compiling the network of a run, where that is faster: what it cost and what it brought are measured and said."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from .batches import HostBatch
from .data import cache_folder
from .errors import ArgumentError, PeerError
from .train import Training

REHEARSALS = 3


@dataclass(frozen=True)
class Compiled:
    """What compiling a network came to.

    Args:
        seconds: that it took.
        before: seconds of the forward and backward passes of a step as they were, and ``after`` compiled.
    """

    seconds: float
    before: float
    after: float

    @property
    def kept(self) -> bool:
        """Whether it is faster, and so used."""
        return self.after < self.before

    @property
    def steps_to_earn(self) -> int:
        """After how many steps it has saved the time that it took; only where it is faster."""
        return round(self.seconds / (self.before - self.after))


def keep_compiled() -> None:
    """Have PyTorch keep what it compiles in the cache folder, unless TORCHINDUCTOR_CACHE_DIR names another.

    To be called before any network is made: PyTorch settles the folder when it imports its compiler, which Adam does.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))


def compile_if_faster(training: Training, batch: HostBatch) -> Compiled:
    """Compile the network of a training, rehearse its next step both ways, and keep the faster. No weight changes.

    Raises:
        ArgumentError: PyTorch cannot compile it here, for want of a C++ compiler for example.
        PeerError: another process has ended.
    """
    training.rehearse(batch)
    before = min(training.rehearse(batch) for _ in range(REHEARSALS))
    began = time.perf_counter()
    training.unet.compile(dynamic=False)
    try:
        training.rehearse(batch)
    except PeerError:
        raise
    except Exception as error:  # whatever the compiler's many parts raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ArgumentError(
            f"--compile: PyTorch cannot compile this network here ({lines[0][:200]}); install a C++ compiler (g++), or "
            "leave out --compile"
        ) from error
    seconds = time.perf_counter() - began
    after = min(training.rehearse(batch) for _ in range(REHEARSALS))
    world = training.execution.world
    # All processes go by the slowest of each.
    seconds, before, after = (max(world.floats(value)) for value in (seconds, before, after))
    result = Compiled(seconds, before, after)
    if not result.kept:
        training.unet._compiled_call_impl = None  # there is no public way back
    return result
