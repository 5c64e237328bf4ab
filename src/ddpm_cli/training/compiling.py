"""Compiling the network of a run, where that is faster: what it cost and what it brought are measured and said."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch

from ..data import cache_folder
from ..errors import ArgumentError, PeerError
from .batch import HostBatch
from .loop import Training

REHEARSALS = 3
ALLOWED = {"fp32": 1e-2, "bf16": 0.1}  # see `disagreement`


@dataclass(frozen=True)
class Compiled:
    """What compiling a network came to.

    Args:
        seconds: that it took.
        before: seconds of the forward and backward passes of a step as they were, and ``after`` compiled.
        error: of the gradients, from `disagreement`; ``allowed`` is what rounding may bring about.
    """

    seconds: float
    before: float
    after: float
    error: float
    allowed: float

    @property
    def right(self) -> bool:
        """Whether its gradients are those of the network as it was."""
        return self.error <= self.allowed

    @property
    def kept(self) -> bool:
        """Whether it is right and faster, and so used."""
        return self.right and self.after < self.before

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

    What PyTorch makes of a network is not always right: gradients are compared too.

    Raises:
        ArgumentError: PyTorch cannot compile it here, for want of a C++ compiler for example.
        PeerError: another process has ended.
    """
    expected = training.rehearse(batch).gradients
    before = min(training.rehearse(batch).seconds for _ in range(REHEARSALS))
    began = time.perf_counter()
    training.unet.compile(dynamic=False)
    try:
        gradients = training.rehearse(batch).gradients
    except PeerError:
        raise
    except Exception as error:  # whatever the compiler's many parts raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ArgumentError(
            f"`compile`: PyTorch cannot compile this network here ({lines[0][:200]}); it needs a C++ compiler (g++) on "
            "a CPU. Or leave out `compile`"
        ) from error
    seconds = time.perf_counter() - began
    after = min(training.rehearse(batch).seconds for _ in range(REHEARSALS))
    # All processes go by the slowest of each, and the worst.
    all_max = training.execution.world.all_max
    seconds, before, after = all_max(seconds), all_max(before), all_max(after)
    off = all_max(disagreement(gradients, expected))
    result = Compiled(seconds, before, after, off, ALLOWED[training.config.precision])
    if not result.kept:
        training.unet._compiled_call_impl = None  # there is no public way back
    return result


def disagreement(gradients: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """How far gradients are off: nine tenths of the parameters' are not farther, relative to their 2-norms.

    The others may be of gradients that are 0 but for rounding, as that of a key's bias is.
    """
    off = torch.stack(torch._foreach_norm(torch._foreach_sub(gradients, expected)))
    norms = torch.stack(torch._foreach_norm(expected))
    return float(torch.quantile((off / norms.clamp_min(torch.finfo(norms.dtype).tiny)).float().cpu(), 0.9))
