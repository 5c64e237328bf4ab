"""The images of a set that are nearest to some others, exactly, and whether samples are suspiciously near to them.

Distances are Euclidean in pixel space. They are kept as whole numbers, the sums of squared differences of uint8
pixels, so that equal distances are equal and 0 means the same image. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..core import rng
from ..core.pixels import Pixels
from ..data import Images, Stage
from ..errors import ArgumentError

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

# Pixels less 128 are within -128..127, so a sum of 1024 products is at most 2^24: float32 holds it and everything on
# the way to it exactly, in whichever order a matrix product adds.
EXACT = 1024
BLOCK_ROWS = (2048, 1024)  # of queries and of images that are compared at a time
BLOCK_BYTES = 2**25  # of either
LEAVE_ONE_OUT = 2000  # images at most whose nearest other image is looked for
SUSPICIOUS = 3.0  # standard deviations

_FAR = np.iinfo(np.int64).max


@dataclass(frozen=True, eq=False)
class Nearest:
    """The k nearest images of each of n queries.

    Args:
        indices: int64 (n, k), their numbers, the nearest first; of equally near ones the first in the set comes first.
        squared: int64 (n, k), the sums of squared differences of pixels.
        dimensions: pixels times channels of an image.
    """

    indices: Int64
    squared: Int64
    dimensions: int

    @property
    def rmse(self) -> Float64:
        """Root of the mean squared difference, (n, k), on the scale 0..255."""
        return np.sqrt(self.squared / self.dimensions)


@dataclass(frozen=True, eq=False)
class Queries:
    """Images of which the nearest are looked for.

    Args:
        numbers: int64 (n,), which of ``images``.
        are_members: they belong to the set that is searched, where each must find another than itself.
    """

    images: Images
    numbers: Int64
    are_members: bool = False

    @classmethod
    def all_of(cls, images: Images) -> Queries:
        """All images of a set."""
        return cls(images, np.arange(len(images)))

    @classmethod
    def leave_one_out(cls, images: Images, seed: int, limit: int = LEAVE_ONE_OUT) -> Queries:
        """Images of the very set that is searched, ``limit`` at most, chosen at random, in ascending order."""
        chosen = rng.permutation(len(images), seed, "leave-one-out")[:limit]
        return cls(images, np.sort(chosen), are_members=True)

    def __len__(self) -> int:
        return len(self.numbers)

    def part(self, start: int, end: int) -> Queries:
        """Those from ``start`` to before ``end``."""
        return replace(self, numbers=self.numbers[start:end])


def nearest(queries: Queries, images: Images, k: int, *, block: tuple[int, int] = BLOCK_ROWS) -> Stage[Nearest]:
    """The k images nearest to each query: all pairs compared, in bounded memory. The amounts are pairs.

    Args:
        block: how many queries and images are compared at a time, at most; the result does not depend on it.

    Raises:
        ArgumentError: images of other shapes, or a k that is larger than the set.
    """
    if queries.images.shape[1:] != images.shape[1:]:
        raise ArgumentError(f"the images are {images.shape[1:]}, those to compare them with {queries.images.shape[1:]}")
    others = len(images) - queries.are_members
    if not 1 <= k <= others:
        raise ArgumentError(f"k is {k}; it must be from 1 to {others:,}, the number of images to choose from")
    return Stage("comparing images", len(queries) * len(images), _nearest(queries, images, k, block))


def _nearest(queries: Queries, images: Images, k: int, block: tuple[int, int]) -> Generator[int, None, Nearest]:
    dimensions = math.prod(images.shape[1:])
    fitting = max(1, BLOCK_BYTES // dimensions)
    rows, columns = min(block[0], fitting), min(block[1], fitting)
    found_indices = np.empty((len(queries), k), np.int64)
    found_squared = np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), rows):
        part = queries.part(start, start + rows)
        x = part.images.take(part.numbers)
        indices, squared = np.full((len(x), k), -1), np.full((len(x), k), _FAR)
        for first in range(0, len(images), columns):
            y = images.take(np.arange(first, min(first + columns, len(images))))
            distances = squared_distances(x, y)
            if part.are_members:
                own = part.numbers - first
                inside = np.flatnonzero((own >= 0) & (own < len(y)))
                distances[inside, own[inside]] = _FAR // len(y) - 1  # farther than any, and still a part of a key
            indices, squared = _merged(indices, squared, distances, first)
            yield len(x) * len(y)
        found_indices[start : start + rows], found_squared[start : start + rows] = indices, squared
    return Nearest(found_indices, found_squared, dimensions)


def _merged(indices: Int64, squared: Int64, distances: Int64, first: int) -> tuple[Int64, Int64]:
    """The nearest so far (n, k), ascending, and those of the next images, whose distances (n, b) begin at ``first``."""
    b = distances.shape[1]
    k = min(indices.shape[1], b)
    # One number for a distance and a column, so that the order among equal distances does not depend on the blocks.
    keys = distances * b + np.arange(b)
    if k < b:
        keys = np.partition(keys, k - 1, axis=1)[:, :k]
    keys.sort(axis=1)
    new_squared, columns = np.divmod(keys, b)
    all_indices = np.concatenate([indices, columns + first], axis=1)
    all_squared = np.concatenate([squared, new_squared], axis=1)
    order = np.argsort(all_squared, axis=1, kind="stable")[:, : indices.shape[1]]
    return np.take_along_axis(all_indices, order, axis=1), np.take_along_axis(all_squared, order, axis=1)


def squared_distances(x: Pixels, y: Pixels) -> Int64:
    """Sums of squared differences of all pairs of images (n, H, W, C) and (m, H, W, C), uint8: int64 (n, m), exact.

    (x - y)^2 = x^2 + y^2 - 2 x y, by matrix products in float32 of so few dimensions each that none is rounded.
    """
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    total = np.zeros((len(x), len(y)), np.int64)
    for start in range(0, x.shape[1], EXACT):
        a, b = (values[:, start : start + EXACT].astype(np.float32) - np.float32(128) for values in (x, y))
        norm_a, norm_b = (np.einsum("ij,ij->i", values, values).astype(np.int64) for values in (a, b))
        total += norm_a[:, None] + norm_b - 2 * (a @ b.T).astype(np.int64)
    return total


@dataclass(frozen=True)
class Comparison:
    """The data-copying test of Meehan, Chaudhuri and Dasgupta (2020, arXiv 2004.05675), with one cell: all of space.

    Of each sample and each held-out image the distance to the nearest training image is taken; a model that copies
    makes samples whose distances are the smaller ones.

    Args:
        samples: how many samples.
        held_out: how many images that were not trained on.
        u: the Mann-Whitney U statistic: pairs whose sample is the farther one; a tie counts half.
        z: u less its mean if both were distributed alike, in standard deviations that consider the ties; negative where
            samples are the nearer ones, and 0 where all distances are equal.
    """

    samples: int
    held_out: int
    u: float
    z: float

    @property
    def nearer(self) -> float:
        """P(a sample is nearer to the training images than a held-out image is), a tie counting half."""
        return 1 - self.u / (self.samples * self.held_out)

    @property
    def is_conclusive(self) -> bool:
        """Whether there are enough images for a z that is suspicious, if the samples were nearer in all pairs."""
        m, n = self.samples, self.held_out
        return math.sqrt(3 * m * n / (m + n + 1)) >= SUSPICIOUS

    @property
    def is_suspicious(self) -> bool:
        """Whether samples are nearer to the training images by more than chance explains."""
        return self.z <= -SUSPICIOUS

    @property
    def is_far(self) -> bool:
        """Whether samples are farther from the training images by more than chance explains: the model underfits."""
        return self.z >= SUSPICIOUS


def compare(samples: Int64, held_out: Int64) -> Comparison:
    """Compare the distances of samples (m,) and of held-out images (n,) to their nearest training images.

    U by midranks, and its variance m n / 12 (N + 1 - sum(t^3 - t) / (N (N - 1))), with N = m + n and t the sizes of the
    groups of equal distances.
    """
    m, n = len(samples), len(held_out)
    _, group, sizes = np.unique(np.concatenate([samples, held_out]), return_inverse=True, return_counts=True)
    counts = sizes.astype(np.float64)
    midranks = np.cumsum(counts) - (counts - 1) / 2
    u = float(midranks[group[:m]].sum()) - m * (m + 1) / 2
    ties = float((counts**3 - counts).sum()) / ((m + n) * (m + n - 1))
    variance = m * n / 12 * (m + n + 1 - ties)
    all_equal = len(sizes) == 1
    return Comparison(m, n, u, 0.0 if all_equal else (u - m * n / 2) / math.sqrt(variance))
