"""``ddpm train``: Algorithm 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..config import LOSSES, PREDICTIONS, T_SAMPLINGS, VARIANCES
from .options import (
    Command,
    DurationType,
    NameType,
    PathType,
    SizeType,
    machine_options,
    peer_option,
    seed_option,
    verbosity_options,
)

EPILOG = """\b
Examples:
  ddpm train ./images                       choose everything; the result is in ./ddpm-out
  ddpm train ./images --dry-run             say what it would do, and how long it would take
  ddpm train ./images --size 64x48 --max-time 2h
  ddpm train photos.zip -o run --preset small --steps 50000
  ddpm train ./images --from builtin:digits --channels 1 --size 8
To resume, run the same command again.
"""


@click.command("train", cls=Command, epilog=EPILOG)
@click.argument("images", metavar="IMAGES", type=NameType())
@click.option("-o", "--output", type=PathType(), default="ddpm-out", show_default=True, help="The run folder.")
@click.option("--size", type=SizeType(), help="Height x width to train at.  [default: from the images]")
@click.option("--channels", type=click.Choice(["1", "3", "4"]), help="Grey, RGB, RGBA.  [default: from the images]")
@click.option(
    "--preset",
    type=click.Choice(["auto", "tiny", "small", "cifar10", "256"]),
    default="auto",
    show_default=True,
    help="The network and its training; cifar10 and 256 are the paper's.",
)
@click.option(
    "--from",
    "start",
    envvar="DDPM_TRAIN_FROM",
    type=NameType(),
    metavar="MODEL",
    help="Fine-tune this model instead of starting from random weights.",
)
@click.option("--steps", type=click.IntRange(1, 2**40), help="Optimizer steps.  [default: by preset]")
@click.option("--batch-size", type=click.IntRange(1), help="Images a step.  [default: by preset]")
@click.option("--accumulate", type=click.IntRange(1), help="Parts to compute a batch in.  [default: as few as fit]")
@click.option("--compile", is_flag=True, help="Compile the network, if that makes it faster.")
@click.option("--lr", type=float, help="Learning rate of Adam.  [default: by preset]")
@click.option("--warmup", type=click.IntRange(0), help="Steps of growing learning rate.  [default: by preset]")
@click.option("--ema", type=float, help="Rate of the moving average of the weights.  [default: by preset]")
@click.option("--dropout", type=float, help="[default: by preset]")
@click.option("--flip/--no-flip", default=None, help="Mirror images at random.  [default: flip]")
@click.option("--predict", type=click.Choice(PREDICTIONS), help="What the network predicts.  [default: eps]")
@click.option("--loss", type=click.Choice(LOSSES), help="[default: simple; hybrid if the variance is learned]")
@click.option(
    "--t-sampling",
    type=click.Choice(list(T_SAMPLINGS)),
    help="How t is drawn; importance is for eps and simple.  [default: by preset]",
)
@click.option("--variance", type=click.Choice(VARIANCES), help="sigma_t^2.  [default: by preset]")
@click.option("--schedule", type=click.Choice(["linear", "cosine"]), help="[default: linear]")
@click.option("--timesteps", type=click.IntRange(1, 10_000), help="T.  [default: 1000]")
@click.option("--save-every", type=click.IntRange(0), help="Steps between checkpoints; 0 for only the last.")
@click.option("--sample-every", type=click.IntRange(0), help="Steps between preview pictures; 0 for none.")
@click.option("--log-every", type=click.IntRange(0), help="Steps between lines of metrics.jsonl; 0 for none.")
@click.option("--keep", type=click.IntRange(1), default=3, show_default=True, help="Checkpoints to keep.")
@click.option("--max-time", type=DurationType(), help="Save and stop after 90s, 4m, 1.5h, 2d.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and stop.")
@click.option("--json", "as_json", envvar="DDPM_TRAIN_JSON", is_flag=True, help="One JSON object on stdout at the end.")
@seed_option
@machine_options
@peer_option
@verbosity_options
def command(
    images: str,
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

    Images are scaled to cover the size and cropped at the centre. To resume a run, give the same command again;
    Ctrl-C saves and stops. The run folder holds checkpoints, preview pictures and metrics.jsonl.
    """
    from ..jobs.train import Job
    from ..training.plan import TrainOptions
    from ..ui.console import open_screen

    screen = open_screen(verbosity)
    job = Job(images, output, size, int(channels) if channels else None, start, device, TrainOptions(**options), peer_timeout)
    code = job.run(screen, dry_run=dry_run, as_json=as_json)
    click.get_current_context().exit(code)
