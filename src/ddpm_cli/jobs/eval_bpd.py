"""What ``ddpm eval-bpd`` does once its options are known: measure, and render the result."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..core.distributed import World, init_world, local_device
from ..core.files import check_distinct, check_output, printable, write_csv, write_file
from ..core.pixels import encode_png
from ..data import Images
from ..evaluation import state
from ..evaluation.bits_per_dim import Bound, PartialBound, Protocol, prior
from ..models.model import Model
from ..ui.console import Screen, as_json, plural
from ..ui.plot import Curve, Panel, draw
from .images import load_images
from .models import open_model

SAVE_SECONDS = 30.0


@dataclass(frozen=True)
class MeasureOptions:
    """The options of ``ddpm eval-bpd``, but for how the result is shown."""

    model: str | None
    terms: int
    limit: int | None
    resize: bool
    no_clip: bool
    per_image: Path | None
    per_t: Path | None
    rd: Path | None
    plot: Path | None
    resume: Path | None
    batch_size: int
    force: bool
    seed: int
    device: str
    precision: str
    peer_timeout: float

    @property
    def outputs(self) -> list[Path]:
        """The files to be written."""
        return [path for path in (self.per_image, self.per_t, self.rd, self.plot) if path]


@dataclass(frozen=True)
class Measurement:
    """The bound of some images under a model."""

    model: str
    images: int
    terms: int | None
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
            "rmse": float(b.rmse[0]),
            "images": self.images,
            "evaluations": b.evaluations,
            "terms": b.terms.tolist(),
            "model": self.model,
        }
        return as_json(data)

    def to_table(self) -> str:
        """A table for people: the parts of the bound, and some of its terms."""
        b = self.bound
        spread = "" if b.stderr is None else f" ± {b.stderr:.4f}"
        how = "" if self.terms is None else f", {plural(self.terms, 'term')} of each"
        lines = [
            f"bits/dim  {b.bits_per_dim:.4f}{spread}  ({plural(self.images, 'image')}{how})",
            f"  prior   {b.prior:.6f}  L_T",
            f"  rate    {b.rate:.4f}  L_1 + ... + L_(T-1)",
            f"  decoder {b.decoder:.4f}  L_0",
            f"  rmse    {b.rmse[0]:.2f}  of x_0_hat at t = 1 (0..255)",
            "",
            "       t   L_(t-1) bits/dim   rmse of x_0_hat (0..255)",
        ]
        T = len(b.terms)
        shown = sorted({round(t) for t in np.geomspace(1, T, 12)})
        for t in shown:
            known = np.isfinite(b.rmse[t - 1])  # an estimate may have computed none of these terms
            values = (f"{b.terms[t - 1]:.6f}", f"{b.rmse[t - 1]:.2f}") if known else ("-", "-")
            lines.append(f"  {t:>6}   {values[0]:>16}   {values[1]:>10}")
        return "\n".join(lines)


def measure(source: str, options: MeasureOptions, screen: Screen) -> Measurement:
    """The bound of the first images of a source, and the files that are to be made of it."""
    _check_outputs(options)
    precision = "fp32" if options.precision == "auto" else options.precision
    device = local_device(options.device)
    model = open_model(options.model, screen, device=device, precision=precision)
    if options.no_clip:
        model = replace(model, diffusion=model.diffusion.unclipped)
    channels, *size = model.shape
    must_fit = "" if options.resize else "the model's"
    with init_world(str(model.device), options.peer_timeout) as world:
        images = load_images(
            source, screen, size=(size[0], size[1]), channels=channels, limit=0, must_fit=must_fit, world=world
        )
        n = min(options.limit or len(images), len(images))
        protocol = Protocol(n, model.diffusion.schedule.T, options.terms or None, options.seed)
        tally = _measured(model, images, protocol, options, screen, world)
    result = Measurement(model.source, n, protocol.terms, tally.bound(prior(model.diffusion, images, n)))
    if world.rank == 0:
        _write(result.bound, images, options)
    return result


def _check_outputs(options: MeasureOptions) -> None:
    check_distinct(path for path in (*options.outputs, options.resume) if path)
    for path in options.outputs:
        check_output(path, force=options.force)


def _measured(
    model: Model, images: Images, protocol: Protocol, options: MeasureOptions, screen: Screen, world: World
) -> PartialBound:
    """The tally, whole; what is done is kept in a file if the user wants that."""
    path = options.resume
    if path is None:
        tally = PartialBound(protocol)
        _follow(model.measure(images, tally, batch_size=options.batch_size, world=world), tally, screen, world)
        return tally
    what = state.MeasurementKey.of(
        model.denoiser, replace(model.diffusion_config, clip=model.diffusion.clip), images, protocol
    )
    tally = state.load(path, what)
    if done := int(tally.done.sum()):
        screen.say(f"resuming after {done:,} of {protocol.n * protocol.per_image:,} terms")
    state.save(path, what, tally, world.rank)  # if it cannot be written, better now than after the first hour
    work = model.measure(images, tally, batch_size=options.batch_size, world=world)
    _follow(_keeping(work, path, what, tally, world.rank), tally, screen, world)
    if world.rank == 0:
        state.forget_parts(path)
    return tally


def _keeping(
    work: Iterator[int], path: Path, what: state.MeasurementKey, tally: PartialBound, rank: int
) -> Generator[int, None, None]:
    """Pass work on, and save now and then, before others are waited for, and at the end, whatever that is."""
    saved = time.monotonic()
    try:
        for amount in work:
            yield amount
            if amount == 0 or time.monotonic() - saved > SAVE_SECONDS:
                state.save(path, what, tally, rank)
                saved = time.monotonic()
    finally:
        # An interrupt can come in the middle of a sum; then what was saved before is right.
        if tally.settled and (rank == 0 or tally.missing):
            state.save(path, what, tally, rank)


def _follow(work: Iterator[int], tally: PartialBound, screen: Screen, world: World) -> None:
    total = tally.missing // world.size
    for _ in screen.progress(work, total, "measuring terms", amount=lambda done: done):
        pass


def _write(bound: Bound, images: Images, options: MeasureOptions) -> None:
    T = len(bound.terms)
    steps = range(1, T + 1)
    if options.per_image:
        order = np.argsort(-bound.per_image, kind="stable")
        names = [printable(name) for name, _ in zip(images.names(), order, strict=False)]
        rows: Iterable[Iterable[object]] = (
            (rank, index, names[index], bound.per_image[index]) for rank, index in enumerate(order.tolist(), 1)
        )
        write_csv(options.per_image, ("rank", "image", "name", "bits_per_dim"), rows)
    if options.per_t:
        rows = zip(steps, bound.terms, bound.rmse, bound.mean_rmse, strict=True)
        write_csv(options.per_t, ("t", "bits_per_dim", "rmse", "mean_rmse"), rows)
    if options.rd:
        rows = zip((T - t + 1 for t in steps), steps, bound.rates, bound.rmse, bound.mean_rmse, strict=True)
        columns = ("reverse_steps", "t", "rate_bits_per_dim", "rmse", "mean_rmse")
        write_csv(options.rd, columns, sorted(rows, reverse=True))
    if options.plot:
        write_file(options.plot, encode_png(draw(_figure_5(bound))))


def _figure_5(bound: Bound) -> tuple[Panel, ...]:
    """The three panels of Figure 5."""
    T = len(bound.terms)
    known = np.flatnonzero(np.isfinite(bound.rmse))  # an estimate knows nothing of some t
    reverse, rates = (T - known).tolist(), bound.rates[known].tolist()
    rmse, mean_rmse = bound.rmse[known].tolist(), bound.mean_rmse[known].tolist()
    error, rate = "distortion, RMSE (0..255)", "rate, bits/dim"
    steps = "reverse process steps, T - t + 1"
    pair = (
        Curve(reverse, rmse, "root of the mean"),
        Curve(reverse, mean_rmse, "mean of the roots", dashed=True),
    )
    by_rate = Curve(rates, rmse)
    return (
        Panel("distortion over time", steps, error, pair),
        Panel("rate over time", steps, rate, (Curve(reverse, rates),)),
        Panel("distortion by rate", rate, error, (by_rate,)),
    )
