"""What ``ddpm neighbors`` does once its options are known: search, judge, and draw."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import numpy as np

from ..core.files import check_distinct, check_output, printable, write_csv, write_file
from ..core.pixels import Raster, encode_png, sheet_scale, to_channels, to_image
from ..data import Images
from ..errors import ArgumentError
from ..evaluation.neighbors import Comparison, Int64, Nearest, Queries, compare, nearest
from ..ui.console import Screen, as_json, plural, shown
from ..ui.sheet import Caption, Layout, check_size, draw
from .images import load_at_their_size, load_images

TITLES = ("sample", "nearest, RMSE 0..255")
TILE = 64  # pixels that the shorter side of an image has at least on the sheet, for the caption below it
_NAMED = 5


@dataclass(frozen=True)
class NeighborOptions:
    """The options of ``ddpm neighbors``, but for how the result is shown."""

    held_out: str | None
    n: int
    k: int
    output: Path
    scale: int | None
    csv: Path | None
    resize: bool
    seed: int
    force: bool


@dataclass(frozen=True)
class Copy:
    """A sample that is a training image, by their names."""

    sample: str
    image: str


@dataclass(frozen=True, eq=False)
class Others:
    """What samples are compared with: held-out images, or training images that look for others than themselves.

    Args:
        kind: ``held-out`` or ``leave-one-out``.
        of: how many there were to choose from.
    """

    kind: str
    nearest: Nearest
    of: int

    @property
    def count(self) -> int:
        """How many they are."""
        return len(self.nearest.indices)

    @property
    def copies(self) -> int:
        """How many are equal to a training image that they were compared with."""
        return int((self.nearest.squared == 0).sum())

    @property
    def near(self) -> str:
        """How near they are to the training images, as the end of a comparison."""
        return "held-out ones are" if self.kind == "held-out" else "these are to each other"


@dataclass(frozen=True, eq=False)
class Report:
    """What was found out about samples.

    Args:
        nearest: the neighbours of all samples.
        images: how many images there are to be neighbours.
        copies: the samples that are equal to a training image.
        others, comparison: None where there was nothing to compare with.
    """

    output: Path
    nearest: Nearest
    images: int
    copies: tuple[Copy, ...]
    others: Others | None
    comparison: Comparison | None

    @property
    def verdict(self) -> str:
        """One sentence for people."""
        if self.comparison is None or self.others is None:
            return "whether the model has memorised cannot be told: IMAGES has one image only; give --held-out"
        z, near = f"z = {self.comparison.z:.1f}", self.others.near
        if self.comparison.is_suspicious:
            return f"samples are nearer to the training images than {near}: {z}; the model may have memorised"
        if not self.comparison.is_conclusive:
            counts = f"{plural(self.comparison.samples, 'sample')} and {plural(self.others.count, 'image')}"
            return (
                f"whether the model has memorised cannot be told from {counts} to compare them with; take more of both"
            )
        relation = "farther from {} than" if self.comparison.is_far else "about as near to {} as"
        if self.copies:
            copies = f"{len(self.copies):,} of {plural(self.comparison.samples, 'sample')}"
            return (
                f"{copies} are copies of training images; as a whole, samples are {relation.format('them')} {near}: {z}"
            )
        return f"no sign of memorisation: samples are {relation.format('the training images')} {near}: {z}"

    def to_json(self) -> str:
        """One JSON object; distances on the scale 0..255."""
        others, comparison = self.others, self.comparison
        return as_json(
            {
                "output": str(self.output),
                "samples": len(self.nearest.indices),
                "images": self.images,
                "median_rmse": _median(self.nearest),
                "copies": [{"sample": copy.sample, "image": copy.image} for copy in self.copies],
                "baseline": others.kind if others else None,
                "baseline_images": others.count if others else 0,
                "baseline_median_rmse": _median(others.nearest) if others else None,
                "baseline_copies": others.copies if others else 0,
                "nearer": comparison.nearer if comparison else None,
                "z": comparison.z if comparison else None,
                "verdict": self.verdict,
            }
        )


def find_neighbors(samples_name: str, images_name: str, options: NeighborOptions, screen: Screen) -> Report:
    """Find the neighbours of samples, write the sheet and the table, and say on the screen what they mean."""
    _check_outputs(options)
    samples = load_at_their_size(samples_name, screen)
    images = _fitting(images_name, samples, options, screen)
    held_out = _fitting(options.held_out, samples, options, screen) if options.held_out is not None else None
    if options.k > len(images):
        raise ArgumentError(f"-k is {options.k}, and {printable(images_name)} has {plural(len(images), 'image')}")
    layout = _layout(samples, options)
    found = shown(nearest(Queries.all_of(samples), images, options.k), screen)
    others = _others(images, held_out, options.seed, screen)
    comparison = compare(found.squared[:, 0], others.nearest.squared[:, 0]) if others else None
    report = Report(options.output, found, len(images), _copies(samples, images, found), others, comparison)
    _write_sheet(layout, samples, images, report)
    if options.csv:
        _write_table(options.csv, samples, images, found)
    _tell(report, screen)
    return report


def _check_outputs(options: NeighborOptions) -> None:
    outputs = [path for path in (options.output, options.csv) if path]
    if options.output.suffix.lower() != ".png":
        raise ArgumentError(f"-o {printable(options.output)}: the sheet is a PNG; give a name that ends with .png")
    check_distinct(outputs)
    for path in outputs:
        check_output(path, force=options.force)


def _fitting(name: str, samples: Images, options: NeighborOptions, screen: Screen) -> Images:
    """Images of the size and channels of the samples."""
    _, height, width, channels = samples.shape
    must_fit = "" if options.resize else "the samples'"
    return load_images(name, screen, size=(height, width), channels=channels, limit=0, must_fit=must_fit)


def _others(images: Images, held_out: Images | None, seed: int, screen: Screen) -> Others | None:
    if held_out is not None:
        return Others("held-out", shown(nearest(Queries.all_of(held_out), images, 1), screen), len(held_out))
    if len(images) == 1:
        return None
    queries = Queries.leave_one_out(images, seed)
    return Others("leave-one-out", shown(nearest(queries, images, 1), screen), len(images))


def _copies(samples: Images, images: Images, found: Nearest) -> tuple[Copy, ...]:
    equal = np.flatnonzero(found.squared[:, 0] == 0)
    sample_names, image_names = _names(samples, equal), _names(images, found.indices[equal, 0])
    return tuple(Copy(sample_names[i], image_names[int(found.indices[i, 0])]) for i in equal.tolist())


def _names(images: Images, numbers: Int64) -> dict[int, str]:
    """The printable names of some images by their numbers; the file of names is read once, and not kept."""
    wanted = np.zeros(len(images), bool)
    wanted[numbers] = True
    return {number: printable(name) for number, name in compress(enumerate(images.names()), wanted)}


def _layout(samples: Images, options: NeighborOptions) -> Layout:
    """A row for each sample shown, with its neighbours beside it. Refuses a sheet that few programs show."""
    _, height, width, _ = samples.shape
    rows, scale = min(options.n, len(samples)), options.scale or sheet_scale((height, width), TILE)
    titles = (*TITLES, *[""] * (options.k - 1))
    layout = Layout((rows, 1 + options.k), (height, width, 3), scale, columns=titles, captions=True)
    check_size(layout.height, layout.width, "use a smaller `n`, `k` or `scale`")
    return layout


def _write_sheet(layout: Layout, samples: Images, images: Images, report: Report) -> None:
    """Write the sheet as RGB, transparency on white."""
    found, rows = report.nearest, range(layout.shape[0])
    names = _names(samples, np.arange(len(rows)))
    captions = [
        [Caption(names[row]), *(Caption(f"{rmse:.2f}", marked=rmse == 0) for rmse in found.rmse[row].tolist())]
        for row in rows
    ]
    tiles = (np.concatenate([samples.take([row]), images.take(found.indices[row])]) for row in rows)
    opaque = (np.stack([to_channels(Raster(tile), 3) for tile in line]) for line in tiles)
    write_file(report.output, encode_png(to_image(draw(layout, opaque, captions))))


def _write_table(path: Path, samples: Images, images: Images, found: Nearest) -> None:
    names = _names(images, found.indices.ravel())
    rmse = found.rmse
    rows: Iterable[Iterable[object]] = (
        (printable(sample), rank + 1, names[int(found.indices[number, rank])], rmse[number, rank])
        for number, sample in enumerate(samples.names())
        for rank in range(rmse.shape[1])
    )
    write_csv(path, ("sample", "rank", "neighbor", "rmse"), rows)


def _tell(report: Report, screen: Screen) -> None:
    others, comparison = report.others, report.comparison
    rows = [("samples", _spread(report.nearest))]
    if others and comparison:
        rows.append((others.kind, _spread(others.nearest)))
        rows.append(("P(nearer)", f"{comparison.nearer:.3f}, of a sample than of such an image; 0.5 is chance"))
        rows.append(("z", f"{comparison.z:.1f}"))
    screen.say("distance to the nearest training image, RMSE (0..255):")
    screen.table(rows)
    if others and others.kind == "leave-one-out":
        screen.say(f"without --held-out, {_stand_ins(others)}, with its nearest other one")
    if others and others.copies:
        screen.warn(_doubles(others))
    if report.copies:
        screen.warn(_naming(report, _NAMED if screen.verbosity < 1 else len(report.copies)))
    screen.say(report.verdict)


def _stand_ins(others: Others) -> str:
    if others.count == others.of:
        return "each training image stands in for a held-out one"
    return f"each of {others.count:,} training images, chosen at random, stands in for a held-out one"


def _doubles(others: Others) -> str:
    noun, what = ("held-out", "a training image") if others.kind == "held-out" else ("training", "another one")
    return f"{others.copies:,} of {plural(others.count, f'{noun} image')} equal {what}, which hides memorisation"


def _naming(report: Report, limit: int) -> str:
    copies = report.copies
    more = f" and {len(copies) - limit:,} more" if len(copies) > limit else ""
    named = ", ".join(f"{copy.sample} = {copy.image}" for copy in copies[:limit])
    samples = plural(len(report.nearest.indices), "sample")
    return f"{len(copies):,} of {samples} equal a training image in every pixel: {named}{more}"


def _spread(found: Nearest) -> str:
    values = found.rmse[:, 0]
    return f"{_median(found):.2f} median, {values.min():.2f} to {values.max():.2f} ({plural(len(values), 'image')})"


def _median(found: Nearest) -> float:
    return float(np.median(found.rmse[:, 0]))
