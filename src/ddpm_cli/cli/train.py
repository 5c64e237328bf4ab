"""``ddpm train``: Algorithm 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..config import LOSSES, PREDICTIONS, T_SAMPLINGS, VARIANCES
from .options import (
    WORDS,
    Command,
    DurationType,
    NameType,
    PathType,
    SizeType,
    machine_options,
    peer_option,
    verbosity_options,
)

EPILOG = """\b
Examples:
  ddpm train ./images                       train with defaults, into ./ddpm-out
  ddpm train ./images --dry-run             print what it would do, and how long it would take
  ddpm train ./images --size 64x48 --max-time 2h
  ddpm train photos.zip -o run --preset small --steps 50000
  ddpm train ./images --from builtin:digits --channels 1 --size 8
  ddpm train -o run                         resume the run in ./run
Running the same command again resumes, too.
"""

GROUPS = {
    "Data options": ("size", "channels", "flip"),
    "Model options": ("preset", "start", "dropout", "predict", "variance", "schedule", "timesteps"),
    "Training options": (
        *("steps", "batch_size", "lr", "warmup", "ema", "loss", "t_sampling", "seed"),
        *("accumulate", "compile", "device", "precision", "peer_timeout"),
    ),
    "Run options": ("output", "save_every", "sample_every", "log_every", "keep", "max_time", "dry_run", "as_json"),
}


@click.command("train", cls=Command, epilog=EPILOG, groups=GROUPS)
@click.argument("images", metavar="[IMAGES]", required=False, type=NameType())
@click.option(
    "-o", "--output", type=PathType(), default="ddpm-out", show_default=True, help="Run folder, new or to resume."
)
@click.option(
    "--size",
    type=SizeType(),
    help="Train at this height x width: images are scaled to cover it and cropped.  [default: from the images]",
)
@click.option(
    "--channels",
    type=click.Choice(["1", "3", "4"]),
    help="Convert images to grey (1), RGB (3) or RGBA (4).  [default: from the images]",
)
@click.option(
    "--preset",
    type=click.Choice(["auto", "tiny", "small", "cifar10", "256"]),
    default="auto",
    show_default=True,
    help="The network and its training settings; cifar10 and 256 are the paper's.",
)
@click.option(
    "--from",
    "start",
    envvar="DDPM_TRAIN_FROM",
    type=NameType(),
    metavar="MODEL",
    help="Fine-tune this model instead of starting from random weights.",
)
@click.option("--steps", type=click.IntRange(1, 2**40), help="Optimizer steps to train for.  [default: by preset]")
@click.option("--batch-size", type=click.IntRange(1), help="Images per optimizer step.  [default: by preset]")
@click.option(
    "--accumulate",
    type=click.IntRange(1),
    help="Gradient accumulation: compute each batch in this many micro-batches, to save memory.  "
    "[default: as few as fit]",
)
@click.option(
    "--compile/--no-compile",
    default=None,
    help="Compile the network with torch.compile, if that makes it faster.  [default: no-compile]",
)
@click.option("--lr", type=float, help="Learning rate of Adam.  [default: by preset]")
@click.option(
    "--warmup",
    type=click.IntRange(0),
    help="Warm-up: steps over which the learning rate grows linearly.  [default: by preset]",
)
@click.option(
    "--ema",
    type=float,
    help="EMA: decay of the moving average of the weights, which samples use.  [default: by preset]",
)
@click.option("--dropout", type=float, help="Dropout probability in residual blocks.  [default: by preset]")
@click.option(
    "--flip/--no-flip",
    default=None,
    help="Mirror images left to right at random.  [default: flip; no-flip for builtin:digits]",
)
@click.option("--predict", type=click.Choice(PREDICTIONS), help="What the network predicts.  [default: eps]")
@click.option(
    "--loss",
    type=click.Choice(LOSSES),
    help="Objective: L_simple, the variational bound, or L_hybrid.  [default: simple; hybrid for a learned variance]",
)
@click.option(
    "--t-sampling",
    type=click.Choice(list(T_SAMPLINGS)),
    help="Distribution of t in training; importance needs --predict eps and --loss simple.  [default: by preset]",
)
@click.option(
    "--variance", type=click.Choice(VARIANCES), help="Variance sigma_t^2 of the reverse process.  [default: by preset]"
)
@click.option("--schedule", type=click.Choice(["linear", "cosine"]), help="Noise schedule.  [default: linear]")
@click.option("--timesteps", type=click.IntRange(1, 10_000), help="T, the number of diffusion steps.  [default: 1000]")
@click.option("--seed", type=click.IntRange(0), help="Random seed of the run.  [default: 0]")
@click.option(
    "--save-every",
    type=click.IntRange(0),
    help="Steps between checkpoints; 0 saves only the last step.  [default: a tenth of --steps, 100 to 5000]",
)
@click.option(
    "--sample-every",
    type=click.IntRange(0),
    help="Steps between preview images; 0 for none.  [default: a tenth of --steps, 100 to 5000]",
)
@click.option(
    "--log-every",
    type=click.IntRange(0),
    help="Steps between lines of metrics.jsonl; 0 for none.  [default: 10; 100 if --steps is above 10000]",
)
@click.option("--keep", type=click.IntRange(1), help="Number of checkpoints to keep.  [default: 3]")
@click.option(
    "--max-time", type=DurationType(), help="Save and stop after this time: 90s, 4m, 1.5h, 2d.  [default: no limit]"
)
@click.option("--dry-run", is_flag=True, help="Read and pack the images, print what training would do, and stop.")
@click.option(
    "--json", "as_json", envvar="DDPM_TRAIN_JSON", is_flag=True, help="Print one JSON object on stdout at the end."
)
@machine_options
@peer_option
@verbosity_options
def command(
    images: str | None,
    output: Path,
    size: tuple[int, int] | None,
    channels: str | None,
    start: str | None,
    dry_run: bool,
    as_json: bool,
    device: str,
    peer_timeout: float,
    verbosity: int,
    **options: Any,
) -> None:
    """Train a model on IMAGES: a folder, a .zip or .tar, a .npy or .npz of uint8, or builtin:digits.

    Images are scaled to cover the size and cropped at the centre. Ctrl-C saves and stops. To resume a run, run the same
    command again, or give only its folder with -o. The run folder holds checkpoints, preview images and metrics.jsonl.
    """
    from ..jobs.train import Job
    from ..training.plan import TrainOptions
    from ..ui.console import open_screen

    screen = open_screen(verbosity)
    wanted, words = int(channels) if channels else None, click.get_current_context().meta[WORDS]
    job = Job(images, output, size, wanted, start, device, TrainOptions(**options), words, peer_timeout)
    code = job.run(screen, dry_run=dry_run, as_json=as_json)
    click.get_current_context().exit(code)
