"""Randomness as a pure function of what it is for: no state to save, nothing to restore.

Every draw names a seed, a purpose and up to three indices (step, image, ...). The same names give the same numbers on
every machine and in every release, whatever else was drawn before. The random words are those of Philox (Salmon et al.
2011), keyed with the seed and the purpose, with the indices as its counter; numpy guarantees them. All else is made of
them here, by integer operations and by +, -, *, / and sqrt alone, which IEEE 754 defines to the last bit. numpy's own
distributions may change in any release, and its logarithms and sines differ between processors.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

_INDICES = 3
_WORDS = 2**64
_AT_ONCE = 2**13  # words, so that what is made of them stays in the processor's cache meanwhile


def words(count: int, seed: int, purpose: str, *index: int) -> UInt64:
    """The first ``count`` random words of a name, uint64 (count,): what all other draws of that name are made of.

    Args:
        count: from 0.
        seed: any integer.
        purpose: what the draw is for. Equal names give equal words, different ones independent words.
        index: at most three integers from 0 to 2^64 - 1.
    """
    return next(_streams(seed, purpose, [index])).random_raw(count)


def words_batch(count: int, seed: int, purpose: str, indices: Sequence[tuple[int, ...]]) -> UInt64:
    """uint64 (B, count), row b the `words` of ``indices[b]``, which are all of one length."""
    drawn = np.empty((len(indices), count), np.uint64)
    pieces = [slice(start, min(start + _AT_ONCE, count)) for start in range(0, count, _AT_ONCE)]
    for row, stream in zip(drawn, _streams(seed, purpose, indices), strict=True):
        for piece in pieces:
            row[piece] = stream.random_raw(piece.stop - piece.start)
    return drawn


def _streams(seed: int, purpose: str, indices: Sequence[tuple[int, ...]]) -> Iterator[np.random.Philox]:
    """Philox at the beginning of the stream of each index, one after the other."""
    name = hashlib.blake2b(f"{seed},{purpose}".encode(), digest_size=16).digest()
    philox = np.random.Philox(key=int.from_bytes(name, "little"))
    fresh = philox.state
    # The counter's first word counts blocks of four random words. Its top bits tell (0,) from (0, 0).
    length = len(indices[0]) if indices else 0
    counters = np.zeros((len(indices), 1 + _INDICES), np.uint64)
    counters[:, 0] = length << 62
    counters[:, 1 : 1 + length] = np.array(indices, np.uint64).reshape(len(indices), length)
    for counter in counters:
        fresh["state"]["counter"] = counter
        philox.state = fresh  # a tenth of what a new generator takes
        yield philox


def uniform(count: int, seed: int, purpose: str, *index: int) -> Float64:
    """Uniform numbers in [0, 1), float64 (count,), multiples of 2^-53."""
    return (words(count, seed, purpose, *index) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(shape: tuple[int, ...], seed: int, purpose: str, *index: int) -> Float32:
    """Standard normal float32 numbers of the given shape."""
    return normal_batch(shape, seed, purpose, [index]).reshape(shape)


def normal_batch(shape: tuple[int, ...], seed: int, purpose: str, indices: Sequence[tuple[int, ...]]) -> Float32:
    """Standard normal noise ``(B, *shape)``, row b drawn for ``indices[b]``: independent of how rows are batched.

    Args:
        shape: of a row.
        indices: all of one length.
    """
    size = math.prod(shape)
    drawn = words_batch(-(-size // 2), seed, purpose, indices)
    # Each word becomes two numbers, in place.
    noise = drawn.view(np.float32)
    flat, pairs = drawn.reshape(-1), noise.reshape(-1, 2)
    for start in range(0, len(flat), _AT_ONCE):
        _box_muller(flat[start : start + _AT_ONCE], pairs[start : start + _AT_ONCE])
    return np.ascontiguousarray(noise[:, :size]).reshape(len(indices), *shape)


# Of -2 ln(1 + f) / f for f in [-1/3, 1/3], sin(pi t / 2) / t and cos(pi t / 2) / (1 - t^2) for t^2 in [0, 1]: the
# coefficients, highest power first, of polynomials that differ from them by less than float32 can tell.
_LOG = (-0.27496618, 0.307885438, -0.281116247, 0.328290403, -0.400144666, 0.500158608, -0.666665435, 0.999998689, -2.0)
_SINE = (0.000151671702, -0.00467414362, 0.0796899199, -0.645963788, 1.57079637)
_COSINE = (2.3600689e-05, -0.0008935355, 0.0199686065, -0.233700499, 1.0)
_LOG_OF_2 = 1.38629436  # 2 ln 2
_TWO_THIRDS = 0x3F2AAAAB  # the bits of 2/3 as a float32


def _box_muller(drawn: UInt64, made: Float32) -> None:
    """Two normal numbers from each random word (Box and Muller 1958), in float32, into ``made`` (B, 2).

    The signed low half a gives the radius sqrt(-2 ln u) with u = |a + 1/2| / 2^31, and its sign; the signed high half
    gives the angle pi t / 2 with t in [-1, 1]. So no number is larger than 6.66.
    """
    low, high = drawn.view(np.int32).reshape(-1, 2).T[:: 1 if sys.byteorder == "little" else -1]
    x, power, square = (np.empty(len(drawn), np.float32) for _ in range(3))
    np.copyto(x, low, casting="unsafe")
    x += 0.5
    bits = x.view(np.int32)
    sign = bits & -(2**31)
    # u = m 2^k with m in [2/3, 4/3), of which -2 ln u = -2 ln m - 2 k ln 2.
    bits &= 2**31 - 1
    bits -= _TWO_THIRDS + (31 << 23)
    np.copyto(power, bits >> 23, casting="unsafe")
    bits &= 2**23 - 1
    bits += _TWO_THIRDS
    x -= 1
    radius = _polynomial(_LOG, x)
    radius *= x
    power *= _LOG_OF_2
    radius -= power
    np.sqrt(radius, out=radius)
    radius.view(np.int32)[:] |= sign

    np.copyto(x, high, casting="unsafe")
    x *= 2.0**-31
    np.multiply(x, x, out=square)
    sine = _polynomial(_SINE, square)
    sine *= x
    cosine = _polynomial(_COSINE, square)
    np.subtract(1, square, out=square)
    cosine *= square
    np.multiply(radius, cosine, out=made[:, 0])
    np.multiply(radius, sine, out=made[:, 1])


def _polynomial(coefficients: tuple[float, ...], x: Float32) -> Float32:
    """By Horner's rule; coefficients from the highest power down."""
    value = x * np.float32(coefficients[0])
    for coefficient in coefficients[1:-1]:
        value += np.float32(coefficient)
        value *= x
    value += np.float32(coefficients[-1])
    return value


def integers(low: int, high: int, size: int, seed: int, purpose: str, *index: int) -> Int64:
    """Uniform integers in [low, high), int64 (size,); high - low is at most 2^63."""
    span = high - low
    stream = next(_streams(seed, purpose, [index]))
    # Words of the last, incomplete run of span would make its beginning more likely than the rest: they are left out.
    last = np.uint64(_WORDS - _WORDS % span - 1)
    drawn = np.empty(0, np.uint64)
    while len(drawn) < size:
        more = stream.random_raw(size)
        drawn = np.concatenate([drawn, more[more <= last]])
    return (drawn[:size] % np.uint64(span)).astype(np.int64) + low


def permutation(n: int, seed: int, purpose: str, *index: int) -> Int64:
    """A random order of 0..n-1, int64 (n,); n is at most 2^32, and the memory taken meanwhile 16 bytes a number."""
    # Each number behind random bits of its own, sorted. Two have the same bits so rarely that it does not matter.
    below = np.uint64(max(n - 1, 0).bit_length())
    keys = words(n, seed, purpose, *index)
    keys >>= below
    keys <<= below
    keys |= np.arange(n, dtype=np.uint64)
    keys.sort()
    keys &= (np.uint64(1) << below) - np.uint64(1)
    return keys.view(np.int64)


def torch_seed(seed: int, purpose: str, *index: int) -> int:
    """A 63-bit seed for a generator of torch's own."""
    return int(words(1, seed, purpose, *index)[0] >> np.uint64(1))
