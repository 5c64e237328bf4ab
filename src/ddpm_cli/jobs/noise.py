"""What ``ddpm noise`` does once its options are known: the forward process on pictures. Does not import torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..config import DiffusionConfig
from ..core import rng
from ..core.files import check_output, disk_errors, write_file
from ..core.pixels import Raster, encode_npy, grid, to_float, to_levels
from ..diffusion.process import q_sample, q_step
from ..diffusion.schedule import Schedule, from_config
from ..diffusion.spacing import check_times
from ..errors import ArgumentError
from ..ui.console import Screen
from ..ui.pictures import ANIMATIONS, GIF_ALPHA, check_suffix, encode, encode_animation, loses_alpha
from ..ui.results import STDIO, put, refuse_terminal, write_stdout
from .inputs import Input, listed, read, refuse_doubles


@dataclass(frozen=True)
class Noise:
    """The options of ``ddpm noise``; None stands for the default.

    Args:
        times: steps of the forward process, from 0 to ``timesteps``.
        stepwise: by Eq. 2, step by step, instead of by Eq. 4.
        kind: format of what goes to stdout or into a folder, ``png`` or ``npy``.
    """

    times: tuple[int, ...] | None
    schedule: str
    timesteps: int
    stepwise: bool
    seed: int
    output: Path | None
    kind: str | None
    force: bool


@dataclass(frozen=True)
class Settings:
    """What decides the noise of a picture."""

    schedule: Schedule
    times: tuple[int, ...]
    stepwise: bool
    seed: int
    text: dict[str, str]


def noise(images: Sequence[Path], files_from: Path | None, null: bool, options: Noise, screen: Screen) -> None:
    """Do it, for images that were named on the command line or in a list (`inputs.listed`).

    Raises:
        ArgumentError: a step is outside 0..T, or the output does not suit the images.
        InputError: an image cannot be read.
        DiskError: a file cannot be written.
    """
    s = from_config(DiffusionConfig(timesteps=options.timesteps, schedule=options.schedule))
    times = options.times or (s.T // 2,)
    check_times(times, s.T, "times", low=0)
    text = {"t": list(times), "schedule": options.schedule, "timesteps": s.T}
    text |= {"stepwise": options.stepwise, "seed": options.seed}
    settings = Settings(s, times, options.stepwise, options.seed, {"ddpm noise": json.dumps(text)})
    output, kind = options.output, options.kind
    paths = listed(images, files_from, null)
    in_folder = output is not None and output != STDIO and (output.is_dir() or not output.suffix)
    many = in_folder or len(paths) > 1 or any(path.is_dir() for path in images)
    outputs = _outputs(paths, times, output, kind, many=many)
    for path in outputs:
        _check(path, options.force, folder=output if many else None)
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
            raise ArgumentError(f"`kind` is {kind}: that is for stdout and folders; {output} names its format itself")
        return [output]
    if output is None or output == STDIO or output.suffix:
        raise ArgumentError(f"{len(paths)} images make as many files; name a folder with `output`, such as noisy/")
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
