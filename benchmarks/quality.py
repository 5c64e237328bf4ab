"""Time from a folder of pictures to a model as good as the bundled one, beside the loops of diffusers and lucidrains.

``python -m benchmarks.quality PEER IMAGES OUT`` is such a loop as a program: it trains on a folder and saves models.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

import ddpm_cli
from ddpm_cli.config import BUILTIN_DIGITS, UNetConfig
from ddpm_cli.denoiser import choose_device, choose_precision
from ddpm_cli.pixels import encode_png, to_image
from ddpm_cli.presets import PRESETS
from ddpm_cli.unet import build, init_weights

from .convolutions import convolutions, run_both_ways
from .measure import Table, apart
from .peers import DiffusersTraining, LucidrainsTraining, has_lucidrains, lucidrains_samples

if TYPE_CHECKING:
    from judge_digits import Verdict

ROOT = Path(__file__).parents[1]
BATCH = PRESETS["tiny"].train.batch_size
SIDE = 8  # pixels of the bundled digits
STEPS = 6000  # at which the bundled model had seen as many images; twice as many as diffusers' example does by default
PEER_SECONDS = 900.0  # after which a peer is stopped
SAVE_EVERY = 100
APART = 1.3  # each checkpoint that is judged took so many times as long as the one before
FIRST_SECONDS = 15.0
SAMPLES = 1000
SAMPLER_STEPS = 50
NEAR = 1.1  # a distance of so many times the bundled model's counts as reaching it
OURS, DIFFUSERS, LUCIDRAINS = "`ddpm train`", "diffusers", "lucidrains"
GOALS = "as good as promised", f"Fréchet distance up to {NEAR} times the bundled model's"


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
        sides = {side: [_judge(saved) for saved in _spaced(way)] for side, way in ways.items()}
    bare = _bare_step()
    rows = [
        (side, goal, *_arrival(way, [judged.reaches(limit)[i] for judged in way], bare))
        for i, goal in enumerate(GOALS)
        for side, way in sides.items()
    ]
    yield Table(
        "From a folder to a good model",
        f"The bundled digits as PNGs, batches of {BATCH}, the network of `tiny`; one trains after the other. Time is "
        "from the start of the program, imports and reading included, to the first judged checkpoint that is as good. "
        f"`ddpm train --no-flip` runs with its defaults for {STEPS:,} steps; diffusers is the loop of its "
        "unconditional example at its defaults (float32) with `--use_ema`, lucidrains that of its Trainer with its "
        "defaults (float32) and its own network of about as many parameters, both for as many steps or "
        f"{PEER_SECONDS:.0f} s, reading the folder once. "
        f"Judged are {SAMPLES:,} samples by {SAMPLER_STEPS} steps of DDIM with eta 1 "
        "(tools/judge_digits.py). The promise is that of the bundled model: a classifier's confidence "
        "at least 0.95 of that on real digits, all ten digits, no copies. The limit is as many steps of the network's "
        "convolutions alone.",
        ("", "goal", "time", "steps", "the convolutions of these steps"),
        tuple(rows),
    )
    yield Table(
        "The way there",
        f"The same runs. The bundled model's samples have a Fréchet distance of {bundled.frechet:.2f} and a confidence "
        f"of {bundled.verdict.confidence_ratio:.3f} of that on real digits.",
        ("", "time", "steps", "Fréchet distance", "confidence"),
        tuple((side, *_cells(judged)) for side, way in sides.items() for judged in way),
    )


def _arrival(way: Sequence[Judged], reached: Sequence[bool], bare: float) -> tuple[str, str, str]:
    for judged, there in zip(way, reached, strict=True):
        if there:
            saved = judged.saved
            return f"{saved.seconds:.0f} s", f"{saved.step:,}", f"{bare * saved.step:.0f} s"
    last = way[-1].saved
    return f"not within {last.seconds:.0f} s", f"{last.step:,}", f"{bare * last.step:.0f} s"


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


def _judge(saved: Saved) -> Judged:
    if saved.side == LUCIDRAINS:
        samples = lucidrains_samples(
            saved.folder,
            _unet(),
            parameters=_parameters(),
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


def _bare_step() -> float:
    """Seconds of the network's convolutions of one step."""
    return apart({"convolutions": partial(_convolutions, 20)}, 5)["convolutions"].median / 20


def _convolutions(steps: int) -> Callable[[], object]:
    device = choose_device("auto")
    unet = build(replace(_unet(), dropout=0.0), device)
    init_weights(unet, torch.Generator().manual_seed(0))
    layers = convolutions(unet, BATCH, choose_precision("auto", device), device)
    return lambda: run_both_ways(layers, steps)


def _unet() -> UNetConfig:
    return PRESETS["tiny"].unet((SIDE, SIDE), 1)


def _parameters() -> int:
    return sum(p.numel() for p in build(_unet(), torch.device("meta")).parameters())


def train_as(side: str, images: Path, out: Path) -> None:
    """The loop of a peer on a folder, each picture of which it reads once; it saves models in ``out``."""
    began = time.monotonic()
    torch.manual_seed(0)
    pixels = np.stack([np.asarray(Image.open(path))[:, :, None] for path in sorted(images.iterdir())])
    device = choose_device("auto")
    training: DiffusersTraining | LucidrainsTraining
    if side == LUCIDRAINS:
        training = LucidrainsTraining(_unet(), pixels, batch=BATCH, parameters=_parameters(), device=device, flip=False)
    else:
        training = DiffusersTraining(_unet(), pixels, batch=BATCH, steps=STEPS, device=device, ema=True)
    for step in range(1, STEPS + 1):
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
