"""Randomness as a pure function of what it is for: no state to save, nothing to restore.

Every draw names a seed, a purpose and indices (step, image, ...). The same names give the same numbers on every
machine, whatever else was drawn before: numpy's counter-based Philox keyed with them. No torch, no global generator.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

# So many that all orders of few numbers, the hardest case, are equally likely as far as tests with n up to 7 can tell.
_ROUNDS = 20


def generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """A fresh generator for one purpose; equal arguments give equal streams, different ones independent streams."""
    return np.random.Generator(np.random.Philox(key=int.from_bytes(_digest(seed, purpose, *index), "little")))


def _digest(seed: int, purpose: str, *index: int) -> bytes:
    """The 16 bytes that Philox is keyed with."""
    name = ",".join([str(seed), purpose, *map(str, index)])
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def normal(shape: tuple[int, ...], seed: int, purpose: str, *index: int) -> Float32:
    """Standard normal float32 numbers of the given shape."""
    return generator(seed, purpose, *index).standard_normal(shape, dtype=np.float32)


def normal_batch(shape: tuple[int, ...], seed: int, purpose: str, indices: list[tuple[int, ...]]) -> Float32:
    """Standard normal noise ``(B, *shape)``, row b drawn for ``indices[b]``: independent of how rows are batched."""
    noise = np.empty((len(indices), *shape), dtype=np.float32)
    philox = np.random.Philox(key=0)
    drawing, fresh = np.random.Generator(philox), philox.state
    for row, index in zip(noise, indices, strict=True):
        # As `generator` has it, whose making takes longer than the noise of a small image.
        fresh["state"]["key"] = np.frombuffer(_digest(seed, purpose, *index), "<u8")
        philox.state = fresh
        drawing.standard_normal(out=row, dtype=np.float32)
    return noise


def integers(low: int, high: int, size: int, seed: int, purpose: str, *index: int) -> Int64:
    """Uniform integers in [low, high), shape (size,)."""
    return generator(seed, purpose, *index).integers(low, high, size)


def permutation(n: int, seed: int, purpose: str, *index: int) -> Int64:
    """A random order of 0..n-1."""
    return generator(seed, purpose, *index).permutation(n)


def permuted(places: Int64, n: int, seed: int, purpose: str, *index: int) -> Int64:
    """What stands at some places of a random order of 0..n-1, in time and memory that do not depend on n.

    A Feistel network on pairs of numbers, whose round functions are hashes keyed with the name, permutes a x b >= n
    numbers. One that leads beyond n is followed until it comes back (Black and Rogaway 2002, "cycle walking").

    Args:
        places: int64, each from 0 to n-1.
        n: at most 2^62.
    """
    return _walked(places, n, _keys(seed, purpose, *index)[:, None])


def permuted_each(places: Int64, n: int, seed: int, purpose: str, index: Int64) -> Int64:
    """As `permuted`, each place in the order of an index of its own: ``places`` and ``index`` are int64 (B,)."""
    if n == 1:
        return np.zeros_like(places)
    found, which = np.unique(index, return_inverse=True)
    keys = [_keys(seed, purpose, number) for number in found.tolist()]
    return _walked(places, n, np.stack(keys, 1)[:, which]) if keys else places.copy()


def _keys(seed: int, purpose: str, *index: int) -> UInt64:
    return generator(seed, purpose, *index).bit_generator.random_raw(_ROUNDS)


def _walked(places: Int64, n: int, keys: UInt64) -> Int64:
    """Permute numbers below n; keys are (rounds, B), or (rounds, 1) where all have the same."""
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    # Moving one of a numbers on by one is an even permutation if a is odd: with two odd factors, all orders were even.
    b += a % 2 and b % 2
    order = _network(places.astype(np.uint64), a, b, keys)
    while (beyond := np.flatnonzero(order >= n)).size:
        order[beyond] = _network(order[beyond], a, b, keys if keys.shape[1] == 1 else keys[:, beyond])
    return order.astype(np.int64)


def _network(numbers: UInt64, a: int, b: int, keys: UInt64) -> UInt64:
    """Permute 0..ab-1: each round moves one half of the pair by a hash of the other half."""
    left, right = np.divmod(numbers, np.uint64(b))
    for left_key, right_key in zip(keys[::2], keys[1::2], strict=True):
        left = (left + _hash(right, left_key) % np.uint64(a)) % np.uint64(a)
        right = (right + _hash(left, right_key) % np.uint64(b)) % np.uint64(b)
    return left * np.uint64(b) + right


def _hash(numbers: UInt64, key: UInt64) -> UInt64:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014), keyed."""
    x = (numbers ^ key) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def torch_seed(seed: int, purpose: str, *index: int) -> int:
    """A 63-bit seed for a generator of torch's own (dropout masks on the device)."""
    return int(generator(seed, purpose, *index).integers(0, 2**63 - 1))
