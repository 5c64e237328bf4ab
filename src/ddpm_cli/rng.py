"""Randomness as a pure function of what it is for: no state to save, nothing to restore.

Every draw names a seed, a purpose and indices (step, image, ...). The same names give the same numbers on every
machine, whatever else was drawn before: numpy's counter-based Philox keyed with them. No torch, no global generator.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


def generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """A fresh generator for one purpose; equal arguments give equal streams, different ones independent streams."""
    name = ",".join([str(seed), purpose, *map(str, index)])
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))


def normal(shape: tuple[int, ...], seed: int, purpose: str, *index: int) -> Float32:
    """Standard normal float32 numbers of the given shape."""
    return generator(seed, purpose, *index).standard_normal(shape, dtype=np.float32)


def normal_batch(shape: tuple[int, ...], seed: int, purpose: str, indices: list[tuple[int, ...]]) -> Float32:
    """Standard normal noise ``(B, *shape)``, row b drawn for ``indices[b]``: independent of how rows are batched."""
    noise = np.empty((len(indices), *shape), dtype=np.float32)
    for row, index in zip(noise, indices, strict=True):
        generator(seed, purpose, *index).standard_normal(out=row, dtype=np.float32)
    return noise


def integers(low: int, high: int, size: int, seed: int, purpose: str, *index: int) -> Int64:
    """Uniform integers in [low, high), shape (size,)."""
    return generator(seed, purpose, *index).integers(low, high, size)


def permutation(n: int, seed: int, purpose: str, *index: int) -> Int64:
    """A random order of 0..n-1."""
    return generator(seed, purpose, *index).permutation(n)


def torch_seed(seed: int, purpose: str, *index: int) -> int:
    """A 63-bit seed for a generator of torch's own (dropout masks on the device)."""
    return int(generator(seed, purpose, *index).integers(0, 2**63 - 1))
