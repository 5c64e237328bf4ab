"""What ``ddpm sample`` does once its options are known: make the images, put them where the output's name says."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path

from ..core.distributed import PEER_TIMEOUT, init_world, local_device
from ..sampling import generate
from ..sampling.metadata import Recipe
from ..ui.console import Screen
from .models import open_model
from .output import (
    Batch,
    Destination,
    check_destination,
    check_files,
    check_sheet,
    shown_steps,
    watched,
    write_pictures,
)
from .sharing import shared_chains, steps_seen

LEFT = 0.05  # alpha_bar beyond which x_t is no longer taken for noise


def sample(
    recipe: Recipe,
    to: Destination,
    screen: Screen,
    *,
    batch_size: int,
    device: str,
    peer_timeout: float = PEER_TIMEOUT,
) -> Iterator[Path | bytes]:
    """Make the images of a recipe; yields each path written, or the bytes that are meant for stdout.

    Of several processes each makes a share, and rank 0 writes them all.
    """
    sampling = recipe.sampling
    check_destination(to)
    _ = recipe.grid
    check_files(to, recipe)
    model = open_model(recipe.model, screen, device=local_device(device), precision=recipe.precision)
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
    shown = shown_steps(to, chain)
    with init_world(str(model.device), peer_timeout) as world:
        steps = shared_chains(model, sampling, batches, shown, world)
        if world.rank > 0:
            deque(steps, maxlen=0)
            return
        total = steps_seen(len(batches), len(chain), len(shown), world)
        steps = watched(steps, total, "sampling", screen, preview=to.preview)
        yield from write_pictures(to, recipe, steps, chain, screen)
