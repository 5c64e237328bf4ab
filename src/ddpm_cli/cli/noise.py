"""``ddpm noise``: the forward process on pictures. Does not import torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from ..config import DiffusionConfig
from ..core import rng
from ..core.files import check_output, disk_errors, write_file
from ..core.pixels import Raster, encode_npy, grid, to_float, to_levels
from ..diffusion.process import q_sample, q_step
from ..diffusion.schedule import Schedule, from_config
from ..errors import ArgumentError
from ..jobs.inputs import Input, listed, read, refuse_doubles
from ..ui.console import Screen, open_screen
from ..ui.pictures import ANIMATIONS, GIF_ALPHA, check_suffix, encode, encode_animation, loses_alpha
from ..ui.results import STDIO, put, refuse_terminal, write_stdout
from .options import Command, IntList, PathType, force_option, list_options, seed_option, verbosity_options

EPILOG = """\b
Examples:
  ddpm noise photo.png                       photo-t500.png
  ddpm noise photo.png --t 0,250,500,1000    a strip of four
  ddpm noise photo.png --t 0,100,200,300,400,500 -o photo.gif
  ddpm noise ./photos --t 300 -o noisy/      each image of a folder
  cat photo.png | ddpm noise - --t 100 > noisy.png
  ddpm noise digit.png --t 400 -o - --format npy | ddpm denoise - --t 400 -o -
"""


@dataclass(frozen=True)
class Settings:
    """What decides the noise of a picture."""

    schedule: Schedule
    times: tuple[int, ...]
    stepwise: bool
    seed: int
    text: dict[str, str]


@click.command("noise", cls=Command, epilog=EPILOG)
@click.argument("images", metavar="IMG...", type=PathType(dash=True), nargs=-1)
@click.option(
    "--t",
    "times",
    envvar="DDPM_NOISE_T",
    type=IntList(),
    help="Step(s) of the forward process, 0 to T.  [default: T/2]",
)
@click.option(
    "-o",
    "--output",
    type=PathType(dash=True),
    help="A .png, .gif, .webp or .apng; .npy for x_t itself, exact; a folder.  [default: <stem>-t500.png]",
)
@click.option(
    "--format", "kind", envvar="DDPM_NOISE_FORMAT", type=click.Choice(["png", "npy"]), help="Of -o - and of a folder's."
)
@click.option("--schedule", type=click.Choice(["linear", "cosine"]), default="linear", show_default=True)
@click.option("--timesteps", type=click.IntRange(1, 10_000), default=1000, show_default=True, help="T.")
@click.option("--stepwise", is_flag=True, help="Walk q(x_t|x_{t-1}), Eq. 2, step by step instead of jumping by Eq. 4.")
@list_options
@seed_option
@force_option
@verbosity_options
def command(
    images: tuple[Path, ...],
    times: tuple[int, ...] | None,
    output: Path | None,
    kind: str | None,
    schedule: str,
    timesteps: int,
    stepwise: bool,
    files_from: Path | None,
    null: bool,
    seed: int,
    force: bool,
    verbosity: int,
) -> None:
    """Show what the forward process makes of IMG at step t: x_t ~ q(x_t|x_0), Eq. 4.

    The result has the image's own size and mode, 16 bits included; an alpha channel is left as it is. IMG may be -
    for stdin, and the result then goes to stdout. Several steps make a strip, or an animation if the output is a
    .gif, .webp or .apng; all share one noise, so that it grows in place. Several images, or a folder of them, give a
    folder. A picture holds x_t in 8 bits, clipped to what an image can be; a .npy holds it as it is.
    """
    screen = open_screen(verbosity)
    s = from_config(DiffusionConfig(timesteps=timesteps, schedule=schedule))
    times = times or (timesteps // 2,)
    if bad := [t for t in times if not 0 <= t <= timesteps]:
        raise ArgumentError(f"--t {bad[0]} is outside 0..{timesteps}; --timesteps sets another T")
    text = {"t": list(times), "schedule": schedule, "timesteps": timesteps, "stepwise": stepwise, "seed": seed}
    settings = Settings(s, times, stepwise, seed, {"ddpm noise": json.dumps(text)})
    paths = listed(images, files_from, null)
    in_folder = output is not None and output != STDIO and (output.is_dir() or not output.suffix)
    many = in_folder or len(paths) > 1 or any(path.is_dir() for path in images)
    outputs = _outputs(paths, times, output, kind, many=many)
    for path in outputs:
        _check(path, force, folder=output if many else None)
    if many and output:
        with disk_errors(output):
            output.mkdir(exist_ok=True)
    for image, path in zip(paths, outputs, strict=True):
        _noise(read(image), path, kind, settings, screen)
    for t in times:
        decibels = f"{10 * np.log10(s.snr[t]):.1f} dB" if t else "no noise"
        screen.say(f"t = {t}: alpha_bar {s.alpha_bar[t]:.6g}, SNR {s.snr[t]:.6g} ({decibels})")


def _outputs(
    paths: list[Path], times: tuple[int, ...], output: Path | None, kind: str | None, *, many: bool
) -> list[Path]:
    """A file for each image, or - for stdout."""
    ending = f"-t{'-'.join(map(str, times))}.{kind or 'png'}"
    names = [("stdin" if path == STDIO else path.stem) + ending for path in paths]
    if not many:
        output = output or (STDIO if paths[0] == STDIO else Path(names[0]))
        if kind and output != STDIO:
            raise ArgumentError(f"--format {kind} is for -o - and folders; the name {output} says the format itself")
        return [output]
    if output is None or output == STDIO or output.suffix:
        raise ArgumentError(f"{len(paths)} images make as many files; name a folder for them with -o, such as noisy/")
    refuse_doubles(names)
    return [output / name for name in names]


def _check(path: Path, force: bool, *, folder: Path | None) -> None:
    if path == STDIO:
        refuse_terminal()
        return
    if path.suffix.lower() != ".npy":
        check_suffix(path.suffix.lower())
    if folder is None or folder.exists():
        check_output(path, force=force)
    else:
        check_output(folder, force=force)


def _noise(image: Input, output: Path, kind: str | None, settings: Settings, screen: Screen) -> None:
    """One image to one file."""
    raster = image.raster()
    if raster.note:
        screen.warn(f"{image.path}: {raster.note}")
    latents = _forward(raster, settings)
    suffix = f".{kind or 'png'}" if output == STDIO else output.suffix.lower()
    if suffix == ".npy":
        if raster.has_alpha:
            screen.warn(f"{image.path}: a .npy holds the x_t of the colours; the alpha channel is left out")
        data = encode_npy(latents if len(latents) > 1 else latents[0])
    else:
        noisy = _pictures(raster, latents)
        if loses_alpha(noisy, suffix):
            screen.warn(GIF_ALPHA)
        data = _encode(noisy, suffix, settings.text)
    if output == STDIO:
        write_stdout(data)
    else:
        write_file(output, data)
        put(output)


def _colours(raster: Raster) -> int:
    """Its channels without alpha."""
    channels: int = raster.pixels.shape[2]
    return channels - (channels in (2, 4))


def _forward(raster: Raster, settings: Settings) -> npt.NDArray[np.float32]:
    """The image's colours at each of the steps, x_t, (len(times), H, W, C)."""
    s, times = settings.schedule, settings.times
    x_0 = to_float(raster.pixels[:, :, : _colours(raster)], raster.levels)[None]
    results = {}
    if settings.stepwise:
        x = x_0
        for t in range(max(times) + 1):
            if t:
                x = q_step(s, x, t, rng.normal(x.shape, settings.seed, "noise", t))
            if t in times:
                results[t] = x
    else:
        eps = rng.normal(x_0.shape, settings.seed, "noise")
        results = {t: q_sample(s, x_0, t, eps) for t in times}
    return np.concatenate([results[t] for t in times])


def _pictures(raster: Raster, latents: npt.NDArray[np.float32]) -> npt.NDArray[np.generic]:
    """Every x_t as an image of the raster's own dtype and channels, (len(latents), H, W, C)."""
    alpha = raster.pixels[:, :, _colours(raster) :]
    return np.stack([np.concatenate([to_levels(x, raster.levels), alpha], axis=2) for x in latents])


def _encode(images: npt.NDArray[np.generic], suffix: str, text: dict[str, str]) -> bytes:
    if len(images) == 1:
        return encode(images[0], suffix, text)
    if suffix in ANIMATIONS:
        return encode_animation(list(images), suffix, text)
    return encode(grid(images, 1, len(images)), suffix, text)
