"""Table 2 of the paper on the bundled digits: what to predict against what to minimise.

    python experiments/table2.py            # trains what is not there yet; about two hours on one core
    python experiments/table2.py --table    # only prints the table of what is there

Every cell is trained with the same network, data, number of steps and seeds. It is measured by bits/dim of digits that
were held out, and by the Frechet distance of samples to real digits in the features of a digit classifier
(tools/judge_digits.py): FID with another network. Each result is a line of experiments/table2.jsonl, and a call goes on
where another was stopped.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from judge_digits import frechet, judge

from ddpm_cli.config import BUILTIN_DIGITS, DiffusionConfig, TrainConfig
from ddpm_cli.data import Images, open_images
from ddpm_cli.models import model
from ddpm_cli.training.presets import PRESETS
from ddpm_cli.training.record import Cadence, RunConfig
from ddpm_cli.training.run import run

RESULTS = Path(__file__).with_name("table2.jsonl")
SEEDS = (0, 1, 2)
STEPS = 800
SAMPLES = 400
HELD_OUT = 180

TRAIN = TrainConfig(batch_size=64, lr=1e-3, warmup=100, ema=0.999, flip=False, precision="fp32")

# A fifth of the bound's terms and of the chain's steps; alpha_bar_T is 3.0e-5, of the paper's chain 4.0e-5.
CHAIN = DiffusionConfig(timesteps=200, beta_start=5e-4, beta_end=0.1, variance="fixed-large")


@dataclass(frozen=True)
class Cell:
    """One way to train: a row of the table."""

    predict: str
    loss: str
    variance: str


CELLS = (
    Cell("mu", "vlb", "learned"),
    Cell("mu", "vlb", "fixed-large"),
    Cell("mu", "simple", "fixed-large"),
    Cell("eps", "vlb", "learned"),
    Cell("eps", "vlb", "fixed-large"),
    Cell("eps", "simple", "fixed-large"),
    Cell("eps", "hybrid", "learned-range"),  # not in the paper: what Nichol and Dhariwal made of it
)


@dataclass(frozen=True)
class Result:
    """What a trained network is worth.

    Args:
        bits_per_dim: of the digits held out; ``rate`` and ``decoder`` are its parts.
        frechet: of samples, by all steps of Algorithm 2; ``confidence``: how sure the classifier is of them.
    """

    predict: str
    loss: str
    variance: str
    seed: int
    bits_per_dim: float
    rate: float
    decoder: float
    frechet: float
    confidence: float


def split() -> tuple[Images, Images]:
    """Digits to train on, and others."""
    digits = open_images(BUILTIN_DIGITS)
    pixels = digits.take(np.arange(len(digits)))
    order = np.random.Generator(np.random.Philox(1)).permutation(len(pixels))
    return Images.from_array(pixels[order[HELD_OUT:]]), Images.from_array(pixels[order[:HELD_OUT]])


def measure(cell: Cell, seed: int, train: Images, held_out: Images) -> Result:
    """Train one network and measure it."""
    diffusion = replace(CHAIN, predict=cell.predict, variance=cell.variance)
    unet = PRESETS["tiny"].unet((8, 8), 1)
    if diffusion.learns_variance:
        unet = replace(unet, out_channels=2)
    config = replace(TRAIN, loss=cell.loss, seed=seed)
    what = RunConfig(unet, diffusion, config, train.digest, train.shape)
    cadence = Cadence(STEPS, log_every=100, save_every=0, sample_every=0)
    with tempfile.TemporaryDirectory() as folder:
        for progress in run(Path(folder) / "run", what, cadence, train, torch.device("cpu"), None, threading.Event()):
            if progress.report:
                print(f"  step {progress.step}: loss {progress.report.loss:.4f}", file=sys.stderr)
        trained = model.load(str(Path(folder) / "run"), device="cpu", precision="fp32")
    bound = trained.bits_per_dim(held_out)
    samples = trained.sample(SAMPLES, seed=seed)
    return Result(
        **asdict(cell),
        seed=seed,
        bits_per_dim=bound.bits_per_dim,
        rate=bound.rate,
        decoder=bound.decoder,
        frechet=frechet(samples),
        confidence=judge(samples).confidence_ratio,
    )


def results() -> list[Result]:
    """What is there."""
    return [Result(**json.loads(line)) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def missing() -> Iterator[tuple[Cell, int]]:
    """What is not there yet, all cells with one seed before the next seed."""
    there = {(r.predict, r.loss, r.variance, r.seed) for r in results()}
    for seed in SEEDS:
        for cell in CELLS:
            if (cell.predict, cell.loss, cell.variance, seed) not in there:
                yield cell, seed


def table() -> str:
    """The table as Markdown: the mean over the seeds, and the spread (standard deviation) between them."""
    lines = [
        "| predicts | minimises | variance | bits/dim | Frechet distance | confidence | seeds |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for cell in CELLS:
        found = [r for r in results() if (r.predict, r.loss, r.variance) == (cell.predict, cell.loss, cell.variance)]
        if found:
            columns = [[getattr(r, name) for r in found] for name in ("bits_per_dim", "frechet", "confidence")]
            spread = [f"{np.mean(c):.3f} ± {np.std(c, ddof=1) if len(c) > 1 else 0:.3f}" for c in columns]
            lines.append(f"| {cell.predict} | {cell.loss} | {cell.variance} | {' | '.join(spread)} | {len(found)} |")
    return "\n".join(lines)


def main() -> None:
    """Train and measure what is missing, and print the table."""
    if "--table" not in sys.argv[1:]:
        train, held_out = split()
        for cell, seed in missing():
            print(f"{cell}, seed {seed}", file=sys.stderr)
            result = measure(cell, seed, train, held_out)
            with RESULTS.open("a") as file:
                file.write(json.dumps(asdict(result)) + "\n")
            print(f"  {result.bits_per_dim:.4f} bits/dim, Frechet {result.frechet:.3f}", file=sys.stderr)
    print(table())


if __name__ == "__main__":
    main()
