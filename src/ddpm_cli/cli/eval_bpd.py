"""``ddpm eval-bpd``: the variational bound."""

from __future__ import annotations

from typing import Any

import click

from ..ui.results import put_text
from .options import (
    Command,
    NameType,
    PathType,
    force_option,
    machine_options,
    model_option,
    peer_option,
    seed_option,
    verbosity_options,
)

EPILOG = """\b
Examples:
  ddpm eval-bpd ./images                   all terms, for every image of a folder
  ddpm eval-bpd ./images --terms 20        an estimate from 20 terms per image
  ddpm eval-bpd ./images --per-image ranked.csv          the least likely images first
  ddpm eval-bpd ./images --rd rd.csv --plot rd.png       rate and distortion, as in Figure 5
  ddpm eval-bpd ./images --resume bpd.state              can be interrupted and resumed
  ddpm eval-bpd builtin:digits -m builtin:digits --limit 20 --json
"""


class TermsType(click.ParamType[int]):
    """``all``, as 0, or a number."""

    name = "terms"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value in (0, "all"):
            return 0
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is neither all nor a number of at least 1", param, ctx)
        return int(value)


@click.command("eval-bpd", cls=Command, epilog=EPILOG)
@click.argument("images", metavar="IMAGES", type=NameType())
@model_option
@click.option(
    "--terms",
    type=TermsType(),
    default="all",
    show_default=True,
    metavar="K|all",
    help="Number of terms to compute per image, of T; K terms give an unbiased estimate.",
)
@click.option("--limit", type=click.IntRange(1), help="Evaluate only the first images.  [default: all]")
@click.option("--resize", is_flag=True, help="Scale, crop and convert images to the model's size, as train does.")
@click.option("--no-clip", is_flag=True, help="Leave x_0_hat unclipped instead of clipping it to [-1, 1].")
@click.option(
    "--per-image", type=PathType(), metavar="FILE.csv", help="Write each image's bits/dim, least likely first."
)
@click.option("--per-t", type=PathType(), metavar="FILE.csv", help="Write each term's mean and the error of x_0_hat.")
@click.option(
    "--rd", type=PathType(), metavar="FILE.csv", help="Write rate and distortion over time (section 4.3, Table 4)."
)
@click.option("--plot", type=PathType(), metavar="FILE.png", help="Plot rate and distortion (Figure 5).")
@click.option(
    "--resume", type=PathType(), metavar="FILE", help="Save progress to this file, and resume from it if it exists."
)
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True, help="Terms per batch.")
@click.option(
    "--json",
    "as_json",
    envvar="DDPM_EVAL_BPD_JSON",
    is_flag=True,
    help="Print one JSON object on stdout instead of a table.",
)
@force_option
@seed_option
@machine_options
@peer_option
@verbosity_options
def command(images: str, as_json: bool, verbosity: int, **options: Any) -> None:
    """Evaluate a model on IMAGES in bits/dim: the variational bound on the negative log-likelihood (Eq. 5).

    The bound is computed as in the paper's code, with x_0_hat clipped and the decoder of Eq. 13. --terms K computes
    K of each image's T terms, an unbiased estimate whose standard error is printed. IMAGES are read as in
    ddpm train. --precision auto is fp32 here. Under torchrun the processes share the work, with the same result.
    """
    from ..core import distributed
    from ..jobs.eval_bpd import MeasureOptions, measure
    from ..ui.console import open_screen

    screen = open_screen(verbosity)
    result = measure(images, MeasureOptions(**options), screen)
    if distributed.rank() == 0:
        put_text(result.to_json() if as_json else result.to_table())
