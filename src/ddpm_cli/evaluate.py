"""The variational bound of a data set in bits/dim, as the paper's code computes it (Eq. 5, section 4.3)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from . import rng
from .data import Images
from .denoiser import Denoiser
from .diffusion import bound
from .diffusion.process import Diffusion, Reverse, p_theta, q_sample
from .pixels import to_float

_PRIOR_BYTES = 2**22

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Terms:
    """Some terms of the bound: one pair of image and t an entry, (B,) each.

    Args:
        image: positions in the data set.
        t: 1..T. The term of t = 1 is L_0, of t >= 2 L_{t-1}.
        bits: the term, bits/dim.
        mse: mean squared error of x_0_hat, on the scale [-1, 1].
    """

    image: npt.NDArray[np.int64]
    t: npt.NDArray[np.int64]
    bits: Floats
    mse: Floats


@dataclass(frozen=True, eq=False)
class Bound:
    """The bound of n images, bits/dim: its parts as means over the images.

    Args:
        bits_per_dim: L = prior + rate + decoder, mean over images; ``stderr`` is its standard error over the images.
        prior: L_T.
        rate: sum of L_{t-1} over t = 2..T.
        decoder: L_0.
        per_image: (n,) L of each image.
        terms: (T,) mean of the term of t = 1..T.
        rmse: (T,) root of the mean squared error of x_0_hat at t = 1..T, on the scale 0..255.
    """

    bits_per_dim: float
    stderr: float | None
    prior: float
    rate: float
    decoder: float
    per_image: Floats
    terms: Floats
    rmse: Floats


@torch.inference_mode()
def terms(
    denoiser: Denoiser, d: Diffusion, images: Images, n: int, seed: int, batch_size: int, device: torch.device
) -> Iterator[Terms]:
    """Every term of the first n images: each pair (image, t) once, with its own noise, in batches of pairs.

    Pairs go image by image with t ascending, so that one image keeps the device as busy as many. The noise of an image
    is one stream over t, whatever the batch size.
    """
    T = d.schedule.T
    _, height, width, channels = images.shape
    stream = rng.generator(seed, "bound", 0)
    for start in range(0, n * T, batch_size):
        pairs = np.arange(start, min(start + batch_size, n * T))
        image, t = pairs // T, pairs % T + 1
        eps = np.empty((len(pairs), channels, height, width), np.float32)
        for row, i, step in zip(eps, image, t, strict=True):
            if step == 1:
                stream = rng.generator(seed, "bound", int(i))
            stream.standard_normal(out=row, dtype=np.float32)
        x_0 = to_float(torch.from_numpy(images.take(image)).to(device)).permute(0, 3, 1, 2)
        yield _terms(denoiser, d, x_0, image, t, torch.from_numpy(eps).to(device))


@torch.inference_mode()
def prior(d: Diffusion, images: Images, n: int, batch_size: int | None = None) -> Floats:
    """L_T of the first n images, bits/dim, (n,); so many at a time, by default as many as fit into a few megabytes."""
    parts = []
    batch_size = batch_size or max(1, _PRIOR_BYTES // math.prod(images.shape[1:]))
    for start in range(0, n, batch_size):
        x_0 = to_float(torch.from_numpy(images.take(np.arange(start, min(start + batch_size, n)))))
        parts.append(bound.bits_per_dim(bound.prior_kl(d, x_0).double(), x_0[0].numel()).numpy())
    return np.concatenate(parts)


def gather(parts: Iterable[Terms], prior_bits: Floats, T: int) -> Bound:
    """The bound of n images from L_T of each (n,) and all their other terms, in whichever portions these come.

    Only sums are kept, n + 2 T of them.
    """
    n = len(prior_bits)
    per_image, term_sums, mse_sums = prior_bits.copy(), np.zeros(T), np.zeros(T)
    for part in parts:
        np.add.at(per_image, part.image, part.bits)
        np.add.at(term_sums, part.t - 1, part.bits)
        np.add.at(mse_sums, part.t - 1, part.mse)
    means = term_sums / n
    return Bound(
        bits_per_dim=float(per_image.mean()),
        stderr=float(per_image.std(ddof=1) / math.sqrt(n)) if n > 1 else None,
        prior=float(prior_bits.mean()),
        rate=float(means[1:].sum()),
        decoder=float(means[0]),
        per_image=per_image,
        terms=means,
        rmse=127.5 * np.sqrt(mse_sums / n),
    )


def _terms(
    denoiser: Denoiser,
    d: Diffusion,
    x_0: torch.Tensor,
    image: npt.NDArray[np.int64],
    t: npt.NDArray[np.int64],
    eps: torch.Tensor,
) -> Terms:
    p = p_theta(d, denoiser, q_sample(d.schedule, x_0, t, eps), t)
    mse = (x_0 - p.x_0_hat).square().flatten(1).mean(1)
    nats = bound.reverse_kl(d, x_0, p, t).cpu().double()  # on the host: not every device has float64
    first = np.flatnonzero(t == 1)
    if len(first):
        sigma2 = torch.as_tensor(p.sigma2)[first].cpu().double()
        nats[first] = bound.decoder_nll(x_0[first].cpu().double(), Reverse(p.x_0_hat[first].cpu().double(), sigma2))
    return Terms(image, t, bound.bits_per_dim(nats, x_0[0].numel()).numpy(), mse.cpu().double().numpy())
