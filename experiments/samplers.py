"""Sample quality against time for each sampler, on the bundled model.

    python experiments/samplers.py                  # measures what is not there yet; about half an hour on one core
    python experiments/samplers.py --table          # only prints the tables of what is there
    python experiments/samplers.py --plot FILE.png  # only draws it

Time is counted in evaluations of the network. Quality is the Frechet distance of samples to real digits in the features
of a digit classifier (tools/judge_digits.py): FID with another network. Each result is a line of
experiments/samplers.jsonl, and a call goes on where another was stopped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from judge_digits import frechet, judge

from ddpm_cli.config import BUILTIN_DIGITS
from ddpm_cli.core.allocator import keep_freed_memory
from ddpm_cli.core.pixels import encode_png
from ddpm_cli.data import builtin
from ddpm_cli.diffusion.samplers import SAMPLERS
from ddpm_cli.diffusion.spacing import SPACINGS
from ddpm_cli.models import model
from ddpm_cli.sampling.settings import Sampling
from ddpm_cli.ui.plot import Curve, Panel, draw

RESULTS = Path(__file__).with_name("samplers.jsonl")
SEEDS = (0,)
SAMPLES = 1000
BATCH = 250
PRECISION = "bf16"
BUDGETS = (5, 10, 20, 50, 100, 1000)  # evaluations of the network
MANY = BUDGETS[-1]  # so many only with the first seed
SPACED = (10, 20)  # budgets at which spacings are compared
SNRS = (0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Way:
    """One way to sample: a row of a table."""

    sampler: str
    steps: int
    spacing: str
    snr: float | None = None  # of langevin

    @property
    def evaluations(self) -> int:
        """How often the network is asked; by langevin at each step twice, but for the last."""
        return 2 * self.steps - 1 if self.sampler == "langevin" else self.steps

    def settings(self) -> dict[str, object]:
        """For `Model.sample`."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Result(Way):
    """What the samples of one way are worth.

    Args:
        frechet: their distance to real digits.
        confidence: how sure the classifier is of them, relative to real digits.
    """

    seed: int = 0
    frechet: float = 0.0
    confidence: float = 0.0


def ways() -> Iterator[Way]:
    """All of them."""
    for budget in BUDGETS:
        yield Way("ddpm", budget, "uniform")
        for spacing in SPACINGS if budget in SPACED else ("uniform",):
            yield Way("ddim", budget, spacing)
        if budget < MANY:
            for spacing in SPACINGS if budget in SPACED else ("logsnr",):
                yield Way("dpm++", budget, spacing)
        for snr in SNRS if budget < MANY else (SNRS[-1],):
            yield Way("langevin", (budget + 1) // 2, "uniform", snr)


def measure(way: Way, seed: int, trained: model.Model) -> Result:
    """Make samples one way and judge them."""
    samples = trained.sample(SAMPLES, seed, batch_size=BATCH, **way.settings())
    return Result(**asdict(way), seed=seed, frechet=frechet(samples), confidence=judge(samples).confidence_ratio)


def results() -> list[Result]:
    """What is there."""
    return [Result(**json.loads(line)) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def of(way: Way, found: Sequence[Result]) -> list[Result]:
    """The results of one way."""
    return [r for r in found if all(getattr(r, name) == value for name, value in asdict(way).items())]


def missing() -> Iterator[tuple[Way, int]]:
    """What is not there yet, all ways with one seed before the next seed, the short ones first."""
    found = results()
    for seed in SEEDS:
        for way in sorted(ways(), key=lambda way: way.evaluations):
            short = way.evaluations < MANY - 1
            if (short or seed == SEEDS[0]) and seed not in {r.seed for r in of(way, found)}:
                yield way, seed


def floor() -> float:
    """The distance of real digits to those that samples are compared with: the classifier's other half."""
    with np.load(builtin(BUILTIN_DIGITS)) as file:
        images = file["images"]
    order = np.random.Generator(np.random.Philox(0)).permutation(len(images))  # as `judge_digits.appoint` cuts it
    return frechet(images[order[: len(order) // 2]])


def table() -> str:
    """All results as Markdown: the mean over the seeds, and each seed's."""
    found = results()
    lines = ["| sampler | steps | evaluations | spacing | snr | Frechet distance | each seed | confidence |"]
    lines.append("|---|---:|---:|---|---:|---:|---|---:|")
    for way in sorted(ways(), key=lambda way: (list(SAMPLERS).index(way.sampler), way.snr or 0, way.evaluations)):
        if there := of(way, found):
            cells = (
                *(way.sampler, way.steps, way.evaluations, way.spacing, way.snr or ""),
                f"{np.mean([r.frechet for r in there]):.3f}",
                ", ".join(f"{r.frechet:.3f}" for r in there),
                f"{np.mean([r.confidence for r in there]):.3f}",
            )
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*lines, "", f"Half of the real digits to the other half: {floor():.3f}"])


def plot(path: Path) -> None:
    """Draw one curve a sampler, by its default spacing and snr, and the floor."""
    found = results()
    curves = []
    for name, sampler in SAMPLERS.items():
        chosen = [r for r in found if r.sampler == name and r.spacing == sampler.spacing]
        chosen = [r for r in chosen if r.snr == Sampling(name).settings.get("snr")]
        x = sorted({r.evaluations for r in chosen})
        y = [float(np.mean([r.frechet for r in chosen if r.evaluations == each])) for each in x]
        curves.append(Curve(x, y, name))
    ends = [BUDGETS[0], BUDGETS[-1]]
    curves.append(Curve(ends, [floor()] * 2, "real digits", dashed=True))
    labels = "evaluations of the network", "Frechet distance"
    panel = Panel("samples of the bundled digits", *labels, tuple(curves), log_x=True, log_y=True)
    path.write_bytes(encode_png(draw([panel])))


def main() -> None:
    """Measure what is missing, and print the table; or only print it, or draw it."""
    arguments = sys.argv[1:]
    if "--plot" in arguments:
        plot(Path(arguments[arguments.index("--plot") + 1]))
        return
    if "--table" not in arguments:
        keep_freed_memory()
        trained = model.load(BUILTIN_DIGITS, device="cpu", precision=PRECISION)
        for way, seed in missing():
            result = measure(way, seed, trained)
            with RESULTS.open("a") as file:
                file.write(json.dumps(asdict(result)) + "\n")
            print(f"{way}, seed {seed}: Frechet {result.frechet:.3f}", file=sys.stderr)
    print(table())


if __name__ == "__main__":
    main()
