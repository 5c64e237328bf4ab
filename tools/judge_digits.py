"""How good are samples of the bundled digits: readable, varied, and no copies?

    ddpm sample -m MODEL -n 1000 -o samples.npz
    python tools/judge_digits.py samples.npz

A classifier that was trained on half of the real digits says how sure it is of the samples, beside how sure it is of
the other half; the share of the rarest class says whether all ten digits are there; and the distances to the nearest
training image, beside those of the real digits to their nearest other, say whether the samples are copies.
"""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.neural_network import MLPClassifier

from ddpm_cli.config import BUILTIN_DIGITS
from ddpm_cli.data import builtin

Rows = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Verdict:
    """The numbers.

    Args:
        confidence: mean top probability of the samples; ``confidence_real`` that of real digits held out.
        rarest_class: share of the least frequent predicted class.
        distance: median Euclidean distance (pixels in [0, 1]) of a sample to its nearest training image;
            ``distance_real`` that of a real digit to its nearest other one.
        copies: share of samples nearer to a training image than 99 % of the real digits are to another.
    """

    confidence: float
    confidence_real: float
    rarest_class: float
    distance: float
    distance_real: float
    copies: float

    @property
    def confidence_ratio(self) -> float:
        """How sure the classifier is of samples, relative to real digits it never saw."""
        return self.confidence / self.confidence_real


@dataclass(frozen=True)
class Judge:
    """A classifier of digits, and the real digits that it has seen and not seen, as rows."""

    classifier: MLPClassifier
    real: Rows
    held_out: Rows


@functools.cache
def appoint() -> Judge:
    """The judge, trained in a few seconds, always the same."""
    with np.load(builtin(BUILTIN_DIGITS)) as file:
        real, labels = _rows(file["images"]), file["labels"]
    order = np.random.Generator(np.random.Philox(0)).permutation(len(real))
    seen, held_out = order[: len(order) // 2], order[len(order) // 2 :]
    classifier = MLPClassifier((128,), alpha=1e-3, max_iter=400, random_state=0).fit(real[seen], labels[seen])
    return Judge(classifier, real, real[held_out])


def frechet(samples: npt.NDArray[np.uint8]) -> float:
    """The Frechet distance of samples to real digits that the classifier has not seen; what FID is, with its features.

    |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)) of the means and covariances of the hidden layer's 128 activations.
    """
    made, real = (_features(rows) for rows in (_rows(samples), appoint().held_out))
    means = made.mean(0) - real.mean(0)
    one, other = np.cov(made.T), np.cov(real.T)
    roots = np.sqrt(np.maximum(np.linalg.eigvals(one @ other).real, 0))
    return float(means @ means + np.trace(one) + np.trace(other) - 2 * roots.sum())


def judge(samples: npt.NDArray[np.uint8]) -> Verdict:
    """Judge samples, uint8 (N, H, W, 1); those larger than 8x8 are averaged down."""
    classifier, real, held_out = appoint().classifier, appoint().real, appoint().held_out
    made = _rows(samples)
    probabilities = classifier.predict_proba(made)
    shares = np.bincount(probabilities.argmax(1), minlength=10) / len(made)
    among_real = _nearest(real, real, itself=True)
    to_real = _nearest(made, real, itself=False)
    return Verdict(
        confidence=float(probabilities.max(1).mean()),
        confidence_real=float(classifier.predict_proba(held_out).max(1).mean()),
        rarest_class=float(shares.min()),
        distance=float(np.median(to_real)),
        distance_real=float(np.median(among_real)),
        copies=float((to_real < np.quantile(among_real, 0.01)).mean()),
    )


def _rows(images: npt.NDArray[np.uint8]) -> Rows:
    """Images as rows of 64 numbers in [0, 1]."""
    factor = images.shape[1] // 8
    blocks = images.reshape(len(images), 8, factor, 8, factor) / 255
    return blocks.mean(axis=(2, 4)).reshape(len(images), 64)


def _features(rows: Rows) -> Rows:
    """The classifier's hidden layer, (n, 128)."""
    classifier = appoint().classifier
    hidden: Rows = np.maximum(rows @ classifier.coefs_[0] + classifier.intercepts_[0], 0)
    return hidden


def _nearest(rows: Rows, others: Rows, *, itself: bool) -> Rows:
    """The distance of each row to the nearest of the others, (n,); ``itself``: the two are the same rows."""
    squared = (rows**2).sum(1)[:, None] + (others**2).sum(1) - 2 * rows @ others.T
    if itself:
        np.fill_diagonal(squared, np.inf)
    return np.sqrt(np.maximum(squared, 0).min(1))


def main() -> None:
    """Print the verdict on a file of samples as JSON."""
    with np.load(Path(sys.argv[1])) as file:
        verdict = judge(file["images"])
    print(json.dumps({**asdict(verdict), "confidence_ratio": verdict.confidence_ratio}, indent=2))


if __name__ == "__main__":
    main()
