"""What ``ddpm eval-bpd`` does once its options are known: measure, and render the result."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..evaluate import Bound, gather, prior
from ..ui.console import Screen, as_json, plural
from .images import open_images
from .models import open_model


@dataclass(frozen=True)
class Measurement:
    """The bound of some images under a model."""

    model: str
    images: int
    bound: Bound

    def to_json(self) -> str:
        """One JSON object; everything in bits/dim. ``terms`` are the means for t = 1..T."""
        b = self.bound
        data: dict[str, Any] = {
            "bits_per_dim": b.bits_per_dim,
            "stderr": b.stderr,
            "prior": b.prior,
            "rate": b.rate,
            "decoder": b.decoder,
            "images": self.images,
            "terms": b.terms.tolist(),
            "model": self.model,
        }
        return as_json(data)

    def to_table(self) -> str:
        """A table for people: the parts of the bound, and some of its terms."""
        b = self.bound
        spread = "" if b.stderr is None else f" ± {b.stderr:.4f}"
        lines = [
            f"bits/dim  {b.bits_per_dim:.4f}{spread}  ({plural(self.images, 'image')})",
            f"  prior   {b.prior:.6f}  L_T",
            f"  rate    {b.rate:.4f}  L_1 + ... + L_(T-1)",
            f"  decoder {b.decoder:.4f}  L_0",
            "",
            "       t   L_(t-1) bits/dim   rmse of x_0_hat (0..255)",
        ]
        T = len(b.terms)
        shown = sorted({round(t) for t in np.geomspace(1, T, 12)})
        lines += [f"  {t:>6}   {b.terms[t - 1]:>16.6f}   {b.rmse[t - 1]:>10.2f}" for t in shown]
        return "\n".join(lines)


def measure(
    source: str,
    spec: str | None,
    screen: Screen,
    *,
    limit: int | None,
    batch_size: int,
    seed: int,
    device: str,
    precision: str,
) -> Measurement:
    """The bound of the first ``limit`` images of a source, each term of each image once."""
    model = open_model(spec, screen, device=device, precision=precision)
    channels, height, width = model.shape
    images = open_images(source, screen, size=(height, width), channels=channels, limit=0)
    n, T = min(limit or len(images), len(images)), model.diffusion.schedule.T
    parts = model.bound_terms(images, n, seed=seed, batch_size=batch_size)
    shown = screen.progress(parts, math.ceil(n * T / batch_size), plural(n, "image"))
    return Measurement(model.source, n, gather(shown, prior(model.diffusion, images, n), T))
