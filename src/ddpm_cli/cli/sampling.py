"""What ``ddpm sample`` does once its options are known: make the images, put them where the output's name says."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .. import generate
from ..errors import ArgumentError
from ..files import check_output, disk_errors, printable, write_file
from ..generate import pixels_of
from ..model import Model
from ..pixels import Pixels, encode_png, grid, sheet_scale, to_image
from ..recipe import Recipe
from ..ui.console import Screen
from ..ui.pictures import ANIMATIONS, GIF_ALPHA, chain_frames, encode, encode_animation, loses_alpha
from .models import open_model
from .options import refuse_terminal


@dataclass(frozen=True, eq=False)
class BatchStep:
    """A step of the chain of the images ``indices``: they are now at ``t``."""

    indices: range
    t: int
    x_t: torch.Tensor


def sample(
    recipe: Recipe, output: Path, screen: Screen, *, batch_size: int, device: str, force: bool
) -> Iterator[Path | bytes]:
    """Make the images of a recipe; yields each path written, or the bytes that are meant for stdout."""
    _check(output, recipe, force)
    model = open_model(recipe.model, screen, device=device, precision=recipe.precision)
    step = model.provenance.step
    if recipe.step is not None and recipe.step != step:
        screen.warn(f"the recipe is of step {recipe.step} of {model.source}, which is now at {step}")
    recipe = recipe.overridden({"model": model.source, "step": step, "precision": model.denoiser.precision})
    generate.visited(recipe.sampling, model.diffusion)  # refuses too many steps before anything is written
    yield from _results(model, recipe, output, batch_size, screen)


def _check(output: Path, recipe: Recipe, force: bool) -> None:
    """Refuse, before the work, an output that cannot be written and settings that do not go together."""
    _ = recipe.sampling, recipe.grid
    if str(output) == "-":
        refuse_terminal()
    elif not output.suffix and output.is_file():
        raise ArgumentError(f"{printable(output)} is a file without a suffix; name a .png, or a folder")
    elif _is_folder(output):
        check_output(output / ".ddpm" if output.exists() else output, force=True)
        taken = next((file for file in _files(output, recipe) if file.exists()), None) if output.exists() else None
        if taken and not force:
            raise ArgumentError(f"{printable(taken)} exists already; name another folder, or use --force")
    elif output.suffix.lower() not in (".png", ".npy", ".npz", *ANIMATIONS):
        raise ArgumentError(f"-o {printable(output)}: use .png, .npy, .npz, .gif, .webp, .apng, a folder, or -")
    else:
        check_output(output, force=force)


def _results(model: Model, recipe: Recipe, output: Path, batch_size: int, screen: Screen) -> Iterator[Path | bytes]:
    """Make the images and write them; yields what goes to stdout."""
    if _is_folder(output):
        with disk_errors(output):
            output.mkdir(exist_ok=True)
        files = _files(output, recipe)
        for step in _steps(model, recipe, batch_size, screen):
            if step.t == 0:
                for index, image in zip(step.indices, pixels_of(step.x_t), strict=True):
                    file = next(files)
                    write_file(file, encode_png(to_image(image), recipe.alone(index).to_text()))
                    yield file
        return
    suffix = ".png" if str(output) == "-" else output.suffix.lower()
    visited = [0, *generate.visited(recipe.sampling, model.diffusion)[:-1]]
    shown = chain_frames(visited) if suffix in ANIMATIONS else [0]
    frames = _frames(_steps(model, recipe, batch_size, screen), shown)
    if loses_alpha(frames[-1], suffix):
        screen.warn(GIF_ALPHA)
    data = _encode(frames, recipe, suffix, model.unet_config.size)
    if str(output) == "-":
        yield data
    else:
        write_file(output, data)
        yield output


def _steps(model: Model, recipe: Recipe, batch_size: int, screen: Screen) -> Iterator[BatchStep]:
    """All chains, one batch after the other, under one progress bar."""
    batches = list(generate.batches(recipe.first, recipe.n, batch_size))
    total = len(batches) * len(generate.visited(recipe.sampling, model.diffusion))
    steps = (
        BatchStep(indices, step.t, step.x_t) for indices in batches for step in model.chain(recipe.sampling, indices)
    )
    return screen.progress(steps, total, "sampling")


def _frames(steps: Iterator[BatchStep], shown: list[int]) -> list[Pixels]:
    """The images (n, H, W, C) at each t of ``shown``, which descend to 0."""
    frames: dict[int, list[Pixels]] = {t: [] for t in shown}
    for step in steps:
        if step.t in frames:
            frames[step.t].append(pixels_of(step.x_t))
    return [np.concatenate(parts) for parts in frames.values()]


def _encode(frames: list[Pixels], recipe: Recipe, suffix: str, size: tuple[int, int]) -> bytes:
    if suffix in (".npy", ".npz"):
        buffer = io.BytesIO()
        np.save(buffer, frames[-1]) if suffix == ".npy" else np.savez_compressed(buffer, images=frames[-1])
        return buffer.getvalue()
    rows, columns = recipe.grid
    single = recipe.n == 1 and recipe.scale is None
    scale = recipe.scale or sheet_scale(size)
    sheets = [frame[0] if single else grid(frame, rows, columns, scale=scale) for frame in frames]
    return encode_animation(sheets, suffix) if suffix in ANIMATIONS else encode(sheets[0], suffix, recipe.to_text())


def _is_folder(output: Path) -> bool:
    return str(output) != "-" and (output.is_dir() or not output.suffix)


def _files(output: Path, recipe: Recipe) -> Iterator[Path]:
    return (output / f"{index:06d}.png" for index in range(recipe.first, recipe.first + recipe.n))
