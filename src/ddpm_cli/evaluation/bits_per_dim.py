"""The variational bound of a data set in bits/dim (Eq. 5, section 4.3): every term as the paper's code, or an estimate.

An estimate computes K of an image's T terms and weights each by the inverse of its chance to be among them, so that its
expectation is the sum of all T, whatever the chances are. They follow the terms' sizes, learned on the images before.

What is measured is split into blocks of images whose sums do not depend on each other. So the result is the same
whichever process computed which block, and whether it was stopped in between.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ..core import rng
from ..core.distributed import ALONE, World
from ..core.pixels import to_float
from ..data import Images
from ..diffusion import bound
from ..diffusion.process import Denoiser, Diffusion, Reverse, p_theta, q_sample
from ..errors import ArgumentError, InputError

MAX_BLOCKS = 128  # of which sums are kept
BLOCK_TERMS = 4096  # at least, so that a batch that is cut at a block's end is the exception
FIRST_ROUND = 8  # images, before anything is known of the terms; each round learns from those before it
BINS = 32  # of t, geometric, within which terms are taken to be of one size
UNIFORM = 0.1  # share of the chances that no experience takes away

_PRIOR_BYTES = 2**22

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Protocol:
    """What is measured, and how; with the model and the images it decides every number.

    Args:
        n: images, the first so many.
        T: steps of the chain.
        terms: how many of an image's T terms are computed; None for all.
        seed: names the noise, and which terms these are.
    """

    n: int
    T: int
    terms: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        terms = self.terms
        if terms is not None and not (type(terms) is int and 1 <= terms <= self.T):
            raise ArgumentError(f"terms is {terms!r}; this model has {self.T} terms, so it must be a number up to that")

    @property
    def per_image(self) -> int:
        """Network evaluations of an image."""
        return self.T if self.terms is None else self.terms

    def rounds(self) -> list[list[range]]:
        """The images in blocks, by round. The chances of a round's terms come from the rounds before it."""
        size = max(math.ceil(self.n / MAX_BLOCKS), math.ceil(BLOCK_TERMS / self.per_image))
        if self.terms is None:
            return [_blocks(range(self.n), size)]
        ends = [0]
        while ends[-1] < self.n:
            ends.append(min(self.n, max(2 * ends[-1], FIRST_ROUND)))
        return [_blocks(range(*ends[i : i + 2]), size) for i in range(len(ends) - 1)]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Terms to be computed, (B,) each: of image number ``image`` that of ``t``, to be counted ``weight`` times."""

    image: Ints
    t: Ints
    weight: Floats

    def part(self, start: int, end: int) -> Pairs:
        """Those from ``start`` to before ``end``."""
        return Pairs(self.image[start:end], self.t[start:end], self.weight[start:end])


@dataclass(frozen=True, eq=False)
class Bound:
    """The bound of n images, bits/dim: its parts as means over the images.

    Args:
        bits_per_dim: L = prior + rate + decoder, mean over images; ``stderr`` is its standard error over the images.
        prior: L_T.
        rate: sum of L_{t-1} over t = 2..T.
        decoder: L_0.
        per_image: (n,) L of each image, or its estimate.
        terms: (T,) mean of the term of t = 1..T: L_0, then L_{t-1}.
        rmse: (T,) root of the mean squared error of x_0_hat at t = 1..T, over all images, on the scale 0..255; NaN
            where an estimate has none.
        mean_rmse: (T,) mean over the images of the root of each one's; never larger.
        evaluations: of the network.
    """

    bits_per_dim: float
    stderr: float | None
    prior: float
    rate: float
    decoder: float
    per_image: Floats
    terms: Floats
    rmse: Floats
    mean_rmse: Floats
    evaluations: int

    @property
    def rates(self) -> Floats:
        """(T,) bits/dim received when x_t is known, t = 1..T: L_T and all L_{s-1} with s > t (section 4.3)."""
        after = np.cumsum(self.terms[::-1])[::-1] - self.terms
        return self.prior + np.maximum(after, 0.0)


class PartialBound:
    """The sums that a bound is made of, as far as they are known.

    Args:
        done: (blocks,) terms that have been added, in their order.
        per_image: (n,) sums of each image's terms, without L_T.
        sums: (blocks, 5, T) of each block's images: weights, terms, their squares, squared errors and their roots.
        settled: whether these belong together. Not so while they change, where an interrupt may come in between.
    """

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self.rounds = protocol.rounds()
        self.blocks = [block for blocks in self.rounds for block in blocks]
        self.done = np.zeros(len(self.blocks), np.int64)
        self.per_image = np.zeros(protocol.n)
        self.sums = np.zeros((len(self.blocks), 5, protocol.T))
        self.settled = True

    @property
    def missing(self) -> int:
        """Terms that are still to be computed."""
        return self.protocol.n * self.protocol.per_image - int(self.done.sum())

    def add(self, block: int, pairs: Pairs, bits: Floats, mse: Floats) -> None:
        """Add terms of a block, in their order, and the squared errors of their x_0_hat.

        Raises:
            InputError: a term is not finite.
        """
        bad = np.flatnonzero(~np.isfinite(bits + mse))
        if len(bad):
            image, t = pairs.image[bad[0]], pairs.t[bad[0]]
            raise InputError(f"the term of image {image} at t = {t} is not finite; the model's training had diverged")
        values = pairs.weight * np.stack([np.ones_like(bits), bits, bits**2, mse, np.sqrt(mse)])
        self.settled = False
        np.add.at(self.per_image, pairs.image, pairs.weight * bits)
        np.add.at(self.sums[block], (slice(None), pairs.t - 1), values)  # type: ignore[arg-type]
        self.done[block] += len(pairs.t)
        self.settled = True

    def chances(self, round_: int) -> Floats:
        """(T,) with which chance a round computes the term of t = 1..T; they add up to K."""
        T, terms = self.protocol.T, self.protocol.terms
        if terms is None or terms == T:
            return np.ones(T)
        before = sum(len(blocks) for blocks in self.rounds[:round_])
        size = 1 / np.arange(1, T + 1) if before == 0 else _sizes(self.sums[:before].sum(0))
        if not size.any():  # nothing costs anything so far
            size = np.ones(T)
        return _capped((1 - UNIFORM) * size / size.sum() + UNIFORM / T, terms)

    def take(self, other: PartialBound) -> None:
        """Take over the blocks of which another tally of the same protocol knows more."""
        for index in np.flatnonzero(other.done > self.done):
            block = self.blocks[index]
            self.done[index], self.sums[index] = other.done[index], other.sums[index]
            self.per_image[block.start : block.stop] = other.per_image[block.start : block.stop]

    def share(self, blocks: range, world: World) -> None:
        """Make known to all processes what each has added to its blocks of a round.

        Raises:
            DdpmError: another process has ended.
        """
        if world.size == 1:
            return
        images = slice(self.blocks[blocks[0]].start, self.blocks[blocks[-1]].stop)
        part = slice(blocks[0], blocks[-1] + 1)
        mine = np.array([world.owns(place) for place in range(len(blocks))])
        own_images = np.repeat(mine, [len(self.blocks[block]) for block in blocks])
        done = world.all_reduce(self.done[part] * mine)
        sums = world.all_reduce(self.sums[part] * mine[:, None, None])
        per_image = world.all_reduce(self.per_image[images] * own_images)
        self.settled = False
        self.done[part], self.sums[part], self.per_image[images] = done, sums, per_image
        self.settled = True

    def bound(self, prior_bits: Floats) -> Bound:
        """The bound, given L_T of each image in bits/dim, (n,)."""
        n = self.protocol.n
        weights, terms, _, mse, rmse = self.sums.sum(0)
        per_image, means = prior_bits + self.per_image, terms / n
        counted = np.where(weights > 0, weights, np.nan)  # an estimate may have skipped a t in all images
        return Bound(
            bits_per_dim=float(per_image.mean()),
            stderr=float(per_image.std(ddof=1) / math.sqrt(n)) if n > 1 else None,
            prior=float(prior_bits.mean()),
            rate=float(means[1:].sum()),
            decoder=float(means[0]),
            per_image=per_image,
            terms=means,
            rmse=127.5 * np.sqrt(mse / counted),
            mean_rmse=127.5 * rmse / counted,
            evaluations=int(self.done.sum()),
        )


@torch.inference_mode()
def measure(
    denoiser: Denoiser,
    d: Diffusion,
    images: Images,
    tally: PartialBound,
    *,
    batch_size: int,
    device: torch.device,
    world: World = ALONE,
) -> Iterator[int]:
    """Add to a tally what is missing in it.

    Args:
        world: processes that measure the same; each does its share, and in the end all know everything.

    Yields:
        how many terms were computed; 0 before others are waited for.

    Raises:
        InputError: a term is not finite.
        DdpmError: another process has ended.
    """
    protocol, first = tally.protocol, 0
    for number, blocks in enumerate(tally.rounds):
        chances = tally.chances(number)
        indices = range(first, first + len(blocks))
        for place, index in enumerate(indices):
            if not world.owns(place):
                continue
            pairs = _pairs(protocol, blocks[place], chances)
            for start in range(int(tally.done[index]), len(pairs.t), batch_size):
                part = pairs.part(start, start + batch_size)
                tally.add(index, part, *_terms(denoiser, d, images, part, protocol.seed, device))
                yield len(part.t)
        if world.size > 1:
            yield 0
            tally.share(indices, world)
        first += len(blocks)


@torch.inference_mode()
def prior(d: Diffusion, images: Images, n: int, batch_size: int | None = None) -> Floats:
    """L_T of the first n images, bits/dim, (n,); so many at a time, by default as many as fit into a few megabytes."""
    parts = []
    batch_size = batch_size or max(1, _PRIOR_BYTES // math.prod(images.shape[1:]))
    for start in range(0, n, batch_size):
        x_0 = to_float(torch.from_numpy(images.take(np.arange(start, min(start + batch_size, n)))))
        parts.append(bound.bits_per_dim(bound.prior_kl(d, x_0).double(), x_0[0].numel()).numpy())
    return np.concatenate(parts)


def _blocks(images: range, size: int) -> list[range]:
    return [images[start : start + size] for start in range(0, len(images), size)]


def _pairs(protocol: Protocol, block: range, chances: Floats) -> Pairs:
    """The terms that a block consists of, image by image with t ascending."""
    if (chances == 1).all():
        image = np.repeat(np.arange(block.start, block.stop), protocol.T)
        return Pairs(image, np.tile(np.arange(1, protocol.T + 1), len(block)), np.ones(len(image)))
    t = np.concatenate([_drawn(chances, protocol.seed, image) for image in block])
    return Pairs(np.repeat(np.arange(block.start, block.stop), protocol.per_image), t, 1 / chances[t - 1])


def _drawn(chances: Floats, seed: int, image: int) -> Ints:
    """K of t = 1..T for an image, each with its chance: evenly spaced points, shifted at random, on the chances' sum.

    So every stretch of t whose chances add up to 1 has one: the sample is stratified (systematic sampling).
    """
    edges = np.cumsum(chances)
    points = np.arange(round(edges[-1])) + rng.uniform(1, seed, "terms", image)
    return np.minimum(np.searchsorted(edges, points, side="right"), len(chances) - 1) + 1


def _sizes(sums: Floats) -> Floats:
    """(T,) how large terms are at t: the root of their mean square in the bin of t."""
    weights, _, squares, *_ = sums
    T = len(weights)
    edges = np.unique(np.rint(np.geomspace(1, T + 1, BINS + 1)).astype(int))
    totals, counts = (np.add.reduceat(values, edges[:-1] - 1) for values in (squares, weights))
    known = counts > 0
    root = np.sqrt(np.interp(edges[:-1], edges[:-1][known], totals[known] / counts[known]))
    return np.repeat(np.maximum(root, root.max() * 1e-9), np.diff(edges))


def _capped(shares: Floats, total: int) -> Floats:
    """Chances in proportion to shares that add up to ``total``, each at most 1."""
    chances = np.minimum(total * shares, 1.0)
    while (missing := total - chances.sum()) > 1e-9:
        free = chances < 1
        chances[free] = np.minimum(chances[free] * (1 + missing / chances[free].sum()), 1.0)
    return chances


def _terms(
    denoiser: Denoiser, d: Diffusion, images: Images, pairs: Pairs, seed: int, device: torch.device
) -> tuple[Floats, Floats]:
    """The terms in bits/dim, and the mean squared errors of x_0_hat on the scale [-1, 1], (B,) each.

    The noise of a pair belongs to it alone, whatever else is computed.
    """
    _, height, width, channels = images.shape
    noise = rng.normal_batch((channels, height, width), seed, "bound", list(zip(pairs.image, pairs.t, strict=True)))
    x_0 = to_float(torch.from_numpy(images.take(pairs.image)).to(device)).permute(0, 3, 1, 2)
    eps, t = torch.from_numpy(noise).to(device), pairs.t
    p = p_theta(d, denoiser, q_sample(d.schedule, x_0, t, eps), t)
    mse = (x_0 - p.x_0_hat).square().flatten(1).mean(1)
    nats = bound.reverse_kl(d, x_0, p, t).cpu().double()  # on the host: not every device has float64
    first = np.flatnonzero(t == 1)
    if len(first):
        sigma2 = torch.as_tensor(p.sigma2)[first].cpu().double()
        nats[first] = bound.decoder_nll(x_0[first].cpu().double(), Reverse(p.x_0_hat[first].cpu().double(), sigma2))
    return bound.bits_per_dim(nats, x_0[0].numel()).numpy(), mse.cpu().double().numpy()
