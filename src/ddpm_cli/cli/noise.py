"""``ddpm noise``: the forward process on a picture. Does not import torch."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from .. import rng
from ..config import DiffusionConfig
from ..diffusion.process import q_sample, q_step
from ..diffusion.schedule import Schedule, from_config
from ..errors import ArgumentError, InputError
from ..files import check_output, printable, write_file
from ..pixels import Raster, decode, grid, to_float, to_levels
from ..ui.console import Screen
from ..ui.pictures import ANIMATIONS, GIF_ALPHA, check_suffix, encode, encode_animation, loses_alpha
from .options import (
    Command,
    IntList,
    PathType,
    force_option,
    put,
    refuse_terminal,
    seed_option,
    verbosity_options,
    write_stdout,
)

EPILOG = """\b
Examples:
  ddpm noise photo.png                       photo-t500.png
  ddpm noise photo.png --t 0,250,500,1000    a strip of four
  ddpm noise photo.png --t 0,100,200,300,400,500 -o photo.gif
  cat photo.png | ddpm noise - --t 100 > noisy.png
"""


@click.command("noise", cls=Command, epilog=EPILOG)
@click.argument("image", metavar="IMG", type=PathType(dash=True))
@click.option(
    "--t",
    "times",
    envvar="DDPM_NOISE_T",
    type=IntList(),
    help="Step(s) of the forward process, 0 to T.  [default: T/2]",
)
@click.option("-o", "--output", type=PathType(dash=True), help="[default: <stem>-t500.png]")
@click.option("--schedule", type=click.Choice(["linear", "cosine"]), default="linear", show_default=True)
@click.option("--timesteps", type=click.IntRange(1, 10_000), default=1000, show_default=True, help="T.")
@click.option("--stepwise", is_flag=True, help="Walk q(x_t|x_{t-1}), Eq. 2, step by step instead of jumping by Eq. 4.")
@seed_option
@force_option
@verbosity_options
def command(
    image: Path,
    times: tuple[int, ...] | None,
    output: Path | None,
    schedule: str,
    timesteps: int,
    stepwise: bool,
    seed: int,
    force: bool,
    verbosity: int,
) -> None:
    """Show what the forward process makes of IMG at step t: x_t ~ q(x_t|x_0), Eq. 4.

    The result has the image's own size and mode, 16 bits included; an alpha channel is left as it is. IMG may be -
    for stdin, and the result then goes to stdout. Several steps make a strip, or an animation if the output is a
    .gif, .webp or .apng; all share one noise, so that it grows in place.
    """
    screen = Screen(verbosity)
    s = from_config(DiffusionConfig(timesteps=timesteps, schedule=schedule))
    times = times or (timesteps // 2,)
    if bad := [t for t in times if not 0 <= t <= timesteps]:
        raise ArgumentError(f"--t {bad[0]} is outside 0..{timesteps}; --timesteps sets another T")
    output = output or (Path("-") if str(image) == "-" else Path(f"{image.stem}-t{'-'.join(map(str, times))}.png"))
    if str(output) == "-":
        refuse_terminal()
    else:
        check_suffix(output.suffix.lower())
        check_output(output, force=force)
    raster = _read(image)
    if raster.note:
        screen.warn(f"{image}: {raster.note}")
    noisy = _forward(raster, s, times, seed, stepwise)
    for t in times:
        decibels = f"{10 * np.log10(s.snr[t]):.1f} dB" if t else "no noise"
        screen.say(f"t = {t}: alpha_bar {s.alpha_bar[t]:.6g}, SNR {s.snr[t]:.6g} ({decibels})")
    settings = {"t": list(times), "schedule": schedule, "timesteps": timesteps, "stepwise": stepwise, "seed": seed}
    if loses_alpha(noisy, output.suffix.lower()):
        screen.warn(GIF_ALPHA)
    data = _encode(noisy, output, {"ddpm noise": json.dumps(settings)})
    if str(output) == "-":
        write_stdout(data)
    else:
        write_file(output, data)
        put(output)


def _read(image: Path) -> Raster:
    name = "stdin" if str(image) == "-" else printable(image)
    if name != "stdin" and not image.is_file():
        if image.is_dir():
            raise InputError(f"{name} is a folder; give an image")
        if image.exists():
            raise InputError(f"{name} is neither a file nor a folder; give - to read stdin")
        raise InputError(f"there is no file {name}")
    data = sys.stdin.buffer.read() if name == "stdin" else image.read_bytes()
    if not data:
        raise InputError(f"{name} is empty; give an image")
    try:
        return decode(io.BytesIO(data))
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def _forward(raster: Raster, s: Schedule, times: tuple[int, ...], seed: int, stepwise: bool) -> npt.NDArray[np.generic]:
    """The image at each of the steps, (len(times), H, W, C) of its own dtype."""
    channels = raster.pixels.shape[2]
    colours = channels - (channels in (2, 4))
    x_0 = to_float(raster.pixels[:, :, :colours], raster.levels)[None]
    results = {}
    if stepwise:
        x = x_0
        for t in range(max(times) + 1):
            if t:
                x = q_step(s, x, t, rng.normal(x.shape, seed, "noise", t))
            if t in times:
                results[t] = x
    else:
        eps = rng.normal(x_0.shape, seed, "noise")
        results = {t: q_sample(s, x_0, t, eps) for t in times}
    noisy = [to_levels(results[t][0], raster.levels) for t in times]
    return np.stack([np.concatenate([image, raster.pixels[:, :, colours:]], axis=2) for image in noisy])


def _encode(images: npt.NDArray[np.generic], output: Path, text: dict[str, str]) -> bytes:
    suffix = ".png" if str(output) == "-" else output.suffix.lower()
    if len(images) == 1:
        return encode(images[0], suffix, text)
    if suffix in ANIMATIONS:
        return encode_animation(list(images), suffix, text)
    return encode(grid(images, 1, len(images)), suffix, text)
