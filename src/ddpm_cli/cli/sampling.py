"""What ``ddpm sample`` does once its options are known: make the images, put them where the output's name says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .. import generate
from ..recipe import Recipe
from ..ui.console import Screen
from .models import open_model
from .output import Batch, Destination, chains, check_destination, check_files, check_sheet, watched, write_pictures

LEFT = 0.05  # alpha_bar beyond which x_t is no longer taken for noise


def sample(recipe: Recipe, to: Destination, screen: Screen, *, batch_size: int, device: str) -> Iterator[Path | bytes]:
    """Make the images of a recipe; yields each path written, or the bytes that are meant for stdout."""
    sampling = recipe.sampling
    check_destination(to)
    _ = recipe.grid
    check_files(to, recipe)
    model = open_model(recipe.model, screen, device=device, precision=recipe.precision)
    step = model.provenance.step
    if recipe.step is not None and recipe.step != step:
        screen.warn(f"the recipe is of step {recipe.step} of {model.source}, which is now at {step}")
    recipe = recipe.overridden({"model": model.source, "step": step, "precision": model.denoiser.precision})
    check_sheet(to, recipe, model.shape)
    chain = generate.visited(sampling, model.diffusion)  # refuses too many steps before anything is written
    T = model.diffusion.schedule.T
    if model.diffusion.schedule.alpha_bar[chain[-1]] > LEFT:
        screen.warn(
            f"the chain begins with pure noise at t = {chain[-1]} of {T}, where much of an image should be left"
        )
    batches = [
        Batch(range(indices.start - recipe.first, indices.stop - recipe.first), indices)
        for indices in generate.batches(recipe.first, recipe.n, batch_size)
    ]
    steps = chains(model, sampling, batches)
    steps = watched(steps, len(batches) * len(chain), "sampling", screen, preview=to.preview)
    yield from write_pictures(to, recipe, steps, chain, screen)
