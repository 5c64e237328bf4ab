"""``ddpm eval-bpd``: the variational bound."""

from __future__ import annotations

import click

from .options import Command, NameType, machine_options, model_option, put_text, seed_option, verbosity_options

EPILOG = """\b
Examples:
  ddpm eval-bpd ./images                   the model in ./ddpm-out on a folder of images
  ddpm eval-bpd ./images --limit 100       the first 100 only
  ddpm eval-bpd builtin:digits -m builtin:digits --limit 20 --json
"""


@click.command("eval-bpd", cls=Command, epilog=EPILOG)
@click.argument("images", metavar="IMAGES", type=NameType())
@model_option
@click.option("--limit", type=click.IntRange(1), help="Measure the first so many images.  [default: all]")
@click.option(
    "--batch-size", type=click.IntRange(1), default=128, show_default=True, help="Pairs (image, t) at a time."
)
@click.option(
    "--json", "as_json", envvar="DDPM_EVAL_BPD_JSON", is_flag=True, help="One JSON object on stdout instead of a table."
)
@seed_option
@machine_options
@verbosity_options
def command(
    images: str,
    model: str | None,
    limit: int | None,
    batch_size: int,
    as_json: bool,
    seed: int,
    device: str,
    precision: str,
    verbosity: int,
) -> None:
    """Measure a model on IMAGES in bits/dim: the variational bound, Eq. 5, as the paper's code computes it.

    Every term L_{t-1} of every image is computed once, with x_0_hat clipped, and the decoder of Eq. 13. IMAGES are
    read like those of ddpm train, at the model's size. auto precision means fp32 here.
    """
    from ..ui.console import Screen, log_to
    from .measuring import measure

    screen = Screen(verbosity)
    log_to(screen)
    precision = "fp32" if precision == "auto" else precision
    result = measure(
        images, model, screen, limit=limit, batch_size=batch_size, seed=seed, device=device, precision=precision
    )
    put_text(result.to_json() if as_json else result.to_table())
