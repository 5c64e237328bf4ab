"""Chains that several processes make together: each its batches, and rank 0 gets to know what it writes of all."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch

from ..core.distributed import World
from ..models.model import Model
from ..sampling.settings import Sampling
from .output import Batch, BatchStep, chains


def shared_chains(
    model: Model, sampling: Sampling, batches: Sequence[Batch], shown: Collection[int], world: World
) -> Iterator[BatchStep]:
    """The steps of this process's own batches; on rank 0, after each round, those of the others' at the t of ``shown``.

    Batches stay what they are with one process, so that the images are the same to the last bit.

    Raises:
        PeerError: another process has ended.
    """
    for first in range(0, len(batches), world.size):
        round_ = batches[first : first + world.size]
        own: dict[int, torch.Tensor] = {}
        for step in chains(model, sampling, round_[world.rank : world.rank + 1]):
            if step.t in shown:
                own[step.t] = step.x_t
            yield step
        if world.size == 1:
            continue
        sent = b"" if world.rank == 0 else b"".join(x_t.cpu().contiguous().numpy().tobytes() for x_t in own.values())
        others = world.all_gather(sent)[1 : len(round_)]
        if world.rank == 0:
            for batch, data in zip(round_[1:], others, strict=True):
                yield from _received(data, batch, list(own), model.shape)


def steps_seen(batches: int, chain: int, shown: int, world: World) -> int:
    """How many steps `shared_chains` gives rank 0 for so many batches, of chains of so many steps."""
    own = math.ceil(batches / world.size)
    return own * chain + (batches - own) * shown


def _received(data: bytes, batch: Batch, times: list[int], shape: tuple[int, int, int]) -> Iterator[BatchStep]:
    x = torch.from_numpy(np.frombuffer(data, np.float32).reshape(len(times), len(batch.places), *shape).copy())
    for t, x_t in zip(times, x, strict=True):
        yield BatchStep(batch.places, t, x_t, None)
