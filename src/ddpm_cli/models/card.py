"""The page that goes with a published model: what it is, how it was made, how to use it. No path is in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeGuard

from .. import hub
from ..checkpoint import StoredModel, diffusers_samples, read_json
from ..config import T_SAMPLINGS
from ..core.files import printable
from ..errors import InputError
from .facts import facts

PICTURE = "samples.png"

_WITH_DIFFUSERS = """With diffusers:

```python
from diffusers import DDPMPipeline

pipeline = DDPMPipeline.from_pretrained("{repo}")
image = pipeline().images[0]
```
"""
_LARGEST = 1e9  # of a number that a page can say
_MARKUP = re.compile(r"([\\`*_\[\]<>|])")  # in what others wrote: names of repositories and files


@dataclass(frozen=True)
class RunFacts:
    """What the card says of the run that a model is from.

    Args:
        images: how many it was trained on.
        settings: names and values, for people.
    """

    images: int
    settings: tuple[tuple[str, str], ...]

    @classmethod
    def read(cls, run: Path) -> RunFacts | None:
        """From a run folder's config.json; None if there is none, or one that is not understood."""
        try:
            config = read_json(run / "config.json")
            train = config["train"]
            flips = "mirrored at random" if train["flip"] else "not mirrored"
            average = f"{train['ema']:g}{', warmed up' if train['ema_warmup'] else ''}"
            return cls(
                images=int(config["data"]["shape"][0]),
                settings=(
                    ("batch", f"{train['batch_size']:d} images, {flips}"),
                    ("t", T_SAMPLINGS[train.get("t_sampling", "uniform")]),
                    ("learning rate", f"{train['lr']:g} after {train['warmup']:d} steps of warm-up, Adam"),
                    ("EMA", average),
                    ("gradient clipped at", f"{train['grad_clip']:g}"),
                    ("precision", str(train["precision"])),
                ),
            )
        except (InputError, KeyError, TypeError, ValueError, IndexError):
            return None


@dataclass(frozen=True)
class ReportedBound:
    """What ``ddpm eval-bpd --json`` found.

    Args:
        bits_per_dim: the variational bound; ``stderr`` its standard error over ``images`` images.
    """

    bits_per_dim: float
    stderr: float | None
    images: int

    @classmethod
    def read(cls, path: Path) -> ReportedBound:
        """From the file that the command's output went to.

        Raises:
            InputError: it is not that.
        """
        data = read_json(path)
        bits, stderr, images = (data.get(key) for key in ("bits_per_dim", "stderr", "images"))
        is_spread = stderr is None or (_is_finite(stderr) and stderr >= 0)
        if _is_finite(bits) and is_spread and type(images) is int and images > 0:
            return cls(bits, stderr, images)
        raise InputError(f"{printable(path)} is not what ddpm eval-bpd --json prints")


def _is_finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST


def card(
    repo: str,
    stored: StoredModel,
    run: RunFacts | None,
    measured: ReportedBound | None,
    licence: Mapping[str, str | list[str]] = MappingProxyType({}),
) -> str:
    """README.md for a repository, with the front matter that the Hub reads.

    Args:
        licence: its owner's choice, as fields of the front matter.
    """
    name = repo.partition("/")[2]
    front = hub.FrontMatter(
        name=name,
        library="diffusers" if diffusers_samples(stored.diffusion) else None,
        licence=licence,
        bits_per_dim=(measured.bits_per_dim, f"{measured.images:,} images") if measured else None,
    )
    lines = [
        f"# {name}",
        "",
        "A Denoising Diffusion Probabilistic Model ([Ho, Jain and Abbeel 2020](https://arxiv.org/abs/2006.11239)), "
        "published with `ddpm push`.",
        "",
        f"![Samples of the model]({PICTURE})",
        "",
        "## The model",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in _facts(stored, run, measured)),
        "",
        "## To use it",
        "",
        "With [ddpm](https://pypi.org/project/ddpm-cli/):",
        "",
        "```sh",
        "pip install ddpm-cli",
        f"ddpm sample -m {repo} -n 64 -o grid.png",
        "```",
        "",
        *(_WITH_DIFFUSERS.format(repo=repo).split("\n") if diffusers_samples(stored.diffusion) else []),
        "## Licence",
        "",
        "As the front matter of this page states."
        if licence
        else "Not stated yet. Whoever published this model may add a `license:` to the front matter of this page.",
        "",
    ]
    return front.above("\n".join(lines))


def _facts(stored: StoredModel, run: RunFacts | None, measured: ReportedBound | None) -> list[tuple[str, str]]:
    about = facts(stored.unet, stored.diffusion, stored.provenance)
    rows = [
        *about.rows(),
        ("weights", about.weights),
        ("trained on", run and f"{run.images:,} images"),
        *(run.settings if run else ()),
        ("bits/dim", measured and _bits(measured)),
    ]
    return [(key, _MARKUP.sub(r"\\\1", printable(value))) for key, value in rows if value]


def _bits(measured: ReportedBound) -> str:
    spread = "" if measured.stderr is None else f" ± {measured.stderr:.4f}"
    return f"{measured.bits_per_dim:.4f}{spread} (variational bound, {measured.images:,} images)"


def files(folder: Path, text: str, picture: bytes) -> Mapping[str, Path | bytes]:
    """What is published, by its path in the repository: a model's folder, its card, and its picture."""
    model: dict[str, Any] = {
        path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    return {**model, "README.md": text.encode(), PICTURE: picture}
