"""Time from a folder of pictures to a model as good as the bundled one, beside the loops of diffusers and lucidrains.

``python -m benchmarks.quality PEER IMAGES OUT`` is such a loop as a program: it trains on a folder and saves models.
"""

from __future__ import annotations

import bisect
import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

import ddpm_cli
from ddpm_cli.config import BUILTIN_DIGITS, UNetConfig
from ddpm_cli.core.pixels import encode_png, to_image
from ddpm_cli.network.denoiser import choose_device, choose_precision
from ddpm_cli.network.unet import parameter_count
from ddpm_cli.training.presets import PRESETS

from .convolutions import convolutions, random_unet, run_both_ways
from .measure import Table, apart
from .peers import DiffusersTraining, LucidrainsTraining, has_lucidrains, lucidrains_samples

if TYPE_CHECKING:
    from judge_digits import Verdict

ROOT = Path(__file__).parents[1]
BATCH = PRESETS["tiny"].train.batch_size
SIDE = 8  # pixels of the bundled digits
STEPS = 2000
PEER_BATCH = 64
PEER_STEPS = 8000  # almost three times as many as the 100 epochs of diffusers' example
PEER_SECONDS = 600.0  # after which a peer is stopped
SAVE_EVERY = 50
APART = 1.4  # each checkpoint that is judged took so many times as long as the one before; then it is halved
FIRST_SECONDS = 15.0
SAMPLES = 1000
SAMPLER_STEPS = 50
NEAR = 1.1  # a distance of so many times the bundled model's counts as reaching it
OURS, DIFFUSERS, LUCIDRAINS = "`ddpm train`", "diffusers", "lucidrains"
GOALS = "as good as the bundled model is promised to be", f"Fréchet distance up to {NEAR} times the bundled model's"


@dataclass(frozen=True)
class Saved:
    """A checkpoint: whose, its folder, its step, and the seconds from the start of its program until it was whole."""

    side: str
    folder: Path
    step: int
    seconds: float


@dataclass(frozen=True)
class Judged:
    """What a checkpoint's samples are worth."""

    saved: Saved
    verdict: Verdict
    frechet: float

    def reaches(self, limit: float) -> tuple[bool, bool]:
        """Whether they are as good as the bundled model's are promised to be, and as near as ``limit``."""
        v = self.verdict
        promised = v.confidence_ratio >= 0.95 and v.rarest_class >= 0.04 and v.distance >= 0.9 * v.distance_real
        return promised and v.copies <= 0.05, self.frechet <= limit


def tables() -> Iterator[Table]:
    """When each got there, and the way."""
    bundled = _judge(Saved(OURS, Path(BUILTIN_DIGITS), 0, 0.0))
    limit = NEAR * bundled.frechet
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = folder / "digits"
        _write(images)
        ways = {OURS: _train(images, folder / "run"), DIFFUSERS: _peer(DIFFUSERS, images, folder / DIFFUSERS)}
        if has_lucidrains():
            ways[LUCIDRAINS] = _peer(LUCIDRAINS, images, folder / LUCIDRAINS)
        coarse = {side: tuple(_spaced(way)) for side, way in ways.items()}
        ways_there = {side: [_judge(saved) for saved in some] for side, some in coarse.items()}
        arrivals = [
            {side: _arrival(ways[side], coarse[side], lambda judged, i=i: judged.reaches(limit)[i]) for side in ways}
            for i in range(len(GOALS))
        ]
    bare = {batch: _bare_step(batch) for batch in (BATCH, PEER_BATCH)}
    yield Table(
        "From a folder to a good model",
        f"The bundled digits as PNGs, the network of `tiny`; one trains after the other, once each, `ddpm train` with "
        f"its default batches of {BATCH}, rate and t, which were chosen on these digits; the others at their defaults, "
        f"but with batches of {PEER_BATCH}: with 128, diffusers gets there later, and with 16, its example's default, "
        "it is not there after 8,000 steps. Time is from the start of the program, imports, reading and saving "
        f"included, to the first checkpoint that is as good, of one each {SAVE_EVERY} steps; which it is was found by "
        "halving, as if none that is good came before one that is not. `ddpm train --no-flip --sample-every 0` runs "
        f"for {STEPS:,} steps; diffusers is the loop of "
        "its unconditional example at its defaults (float32) and with its EMA, lucidrains that of its Trainer at its "
        "defaults (float32), but without flips, and on its own network of about as many parameters; both for "
        f"{PEER_STEPS:,} steps or {PEER_SECONDS:.0f} s, reading the folder once. "
        f"Judged are {SAMPLES:,} samples by {SAMPLER_STEPS} steps of DDIM with eta 1, lucidrains' by its own "
        "(tools/judge_digits.py). The promise: a classifier's confidence at least 0.95 of that on real digits, each "
        "digit at least 4 % of the samples, their distance from the images at least 0.9 of that between images, and at "
        "most 5 % as near as copies. The limit is as many steps of the network's convolutions alone.",
        ("", "goal", "time", "steps", "times `ddpm train`'s time", "the convolutions of these steps"),
        tuple(
            (side, goal, *_row(arrival, arrivals[i][OURS], bare))
            for i, goal in enumerate(GOALS)
            for side, arrival in arrivals[i].items()
        ),
        "The aim is a tenth of the time of diffusers' loop."
        + ("" if has_lucidrains() else " lucidrains' package was not installed, so it was left out."),
    )
    yield Table(
        "The way there",
        f"The same runs. The bundled model's samples have a Fréchet distance of {bundled.frechet:.2f} and a confidence "
        f"of {bundled.verdict.confidence_ratio:.3f} of that on real digits.",
        ("", "time", "steps", "Fréchet distance", "confidence"),
        tuple((side, *_cells(judged)) for side, way in ways_there.items() for judged in way),
    )


@dataclass(frozen=True)
class Arrival:
    """The first checkpoint that was good enough, or the last if none was."""

    saved: Saved
    there: bool


def _arrival(way: Sequence[Saved], coarse: Sequence[Saved], good: Callable[[Judged], bool]) -> Arrival:
    """``way`` are all checkpoints, ``coarse`` those that are looked at first."""
    late = next((saved for saved in coarse if good(_judge(saved))), None)
    if late is None:
        return Arrival(way[-1], there=False)
    before = max((saved.step for saved in coarse if saved.step < late.step), default=0)
    between = [saved for saved in way if before < saved.step <= late.step]
    return Arrival(between[bisect.bisect_left(between[:-1], True, key=lambda saved: good(_judge(saved)))], there=True)


def _row(arrival: Arrival, ours: Arrival, bare: Mapping[int, float]) -> tuple[str, ...]:
    """The cells of one; ``bare`` are the seconds of the network's convolutions of a step of so many images."""
    saved = arrival.saved
    ratio = f"{saved.seconds / ours.saved.seconds:.1f}" if ours.there else ""
    time = f"{saved.seconds:.0f} s"
    seconds = saved.step * bare[BATCH if saved.side == OURS else PEER_BATCH]
    limit = "" if saved.side == LUCIDRAINS else f"{seconds:.0f} s"  # its network has other convolutions
    if not arrival.there:
        time, ratio = f"not within {time}", ratio and f"more than {ratio}"
    return time, f"{saved.step:,}", ratio, limit


def _cells(judged: Judged) -> tuple[str, ...]:
    confidence = judged.verdict.confidence_ratio
    return f"{judged.saved.seconds:.0f} s", f"{judged.saved.step:,}", f"{judged.frechet:.2f}", f"{confidence:.3f}"


def _write(images: Path) -> None:
    digits = ddpm_cli.open_images(BUILTIN_DIGITS)
    images.mkdir()
    for i, pixels in enumerate(digits.take(np.arange(len(digits)))):
        (images / f"{i:04d}.png").write_bytes(encode_png(to_image(pixels)))


def _train(images: Path, run: Path) -> list[Saved]:
    settings = {
        "--preset": "tiny",
        "--steps": STEPS,
        "--save-every": SAVE_EVERY,
        "--sample-every": 0,
        "--keep": STEPS,
    }
    options = [str(part) for option in settings.items() for part in option]
    environment = {**os.environ, "DDPM_CACHE": str(run.with_name("cache"))}
    program = [sys.executable, "-m", "ddpm_cli", "train", str(images), "-o", str(run), "--no-flip"]
    began = time.time()
    subprocess.run([*program, *options], check=True, stderr=subprocess.DEVNULL, env=environment)
    return _saved(OURS, run / "checkpoints", began)


def _peer(side: str, images: Path, out: Path) -> list[Saved]:
    began = time.time()
    subprocess.run([sys.executable, "-m", "benchmarks.quality", side, str(images), str(out)], check=True, cwd=ROOT)
    return _saved(side, out, began)


def _saved(side: str, folder: Path, began: float) -> list[Saved]:
    """The checkpoints there, by their steps; each was whole when its folder got its name."""
    return [
        Saved(side, path, int(path.name.removeprefix("step-")), path.stat().st_ctime - began)
        for path in sorted(folder.glob("step-*"))
    ]


def _spaced(way: Sequence[Saved]) -> Iterator[Saved]:
    """Those at growing times, and the last."""
    due = FIRST_SECONDS
    for saved in way:
        if saved.seconds >= due or saved is way[-1]:
            due = APART * saved.seconds
            yield saved


@functools.cache
def _judge(saved: Saved) -> Judged:
    if saved.side == LUCIDRAINS:
        samples = lucidrains_samples(
            saved.folder,
            _unet(),
            parameters=parameter_count(_unet()),
            count=SAMPLES,
            steps=SAMPLER_STEPS,
            device=choose_device("auto"),
        )
    else:
        model = ddpm_cli.load(str(saved.folder))
        samples = model.sample(SAMPLES, sampler="ddim", steps=SAMPLER_STEPS, eta=1.0, batch_size=250)
    sys.path.insert(0, str(ROOT / "tools"))
    from judge_digits import frechet, judge  # not at the top: the peers' programs, whose time is taken, do without

    return Judged(saved, judge(samples), frechet(samples))


def _bare_step(batch: int) -> float:
    """Seconds of the network's convolutions of one step."""
    return apart({"convolutions": partial(_convolutions, batch, 20)}, 5)["convolutions"].median / 20


def _convolutions(batch: int, steps: int) -> Callable[[], object]:
    device = choose_device("auto")
    layers = convolutions(random_unet(_unet(), device), batch, choose_precision("auto", device), device)
    return lambda: run_both_ways(layers, steps)


def _unet() -> UNetConfig:
    return PRESETS["tiny"].unet((SIDE, SIDE), 1)


def train_as(side: str, images: Path, out: Path) -> None:
    """The loop of a peer on a folder, each picture of which it reads once; it saves models in ``out``."""
    began = time.monotonic()
    torch.manual_seed(0)
    pixels = np.stack([np.asarray(Image.open(path))[:, :, None] for path in sorted(images.iterdir())])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # with PyTorch's own settings
    training: DiffusersTraining | LucidrainsTraining
    if side == LUCIDRAINS:
        training = LucidrainsTraining(
            _unet(), pixels, batch=PEER_BATCH, parameters=parameter_count(_unet()), device=device, flip=False
        )
    else:
        training = DiffusersTraining(_unet(), pixels, batch=PEER_BATCH, steps=PEER_STEPS, device=device, ema=True)
    for step in range(1, PEER_STEPS + 1):
        training.step()
        late = time.monotonic() - began > PEER_SECONDS
        if step % SAVE_EVERY == 0 or late:
            staged = out / f"tmp-{step}"
            training.save(staged)
            staged.rename(out / f"step-{step:08d}")
        if late:
            return


if __name__ == "__main__":
    train_as(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
