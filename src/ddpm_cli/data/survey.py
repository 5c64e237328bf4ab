"""A look at every image of a source: what there is, what is damaged, and which size and channels suit it."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from ..core.files import write_file
from ..core.progress import Stage, finished
from ..errors import DiskError
from .packs import cache
from .packs.reader import Images
from .sources.source import Source, no_images
from .tally import Skip
from .workers import Reply, Task, count_workers, run


@dataclass(frozen=True)
class Spread:
    """The smallest, middle and largest of some lengths in pixels."""

    low: int
    median: int
    high: int


@dataclass(frozen=True)
class Survey:
    """What is in a source of images. One whose header is whole counts, even if its pixels turn out to be damaged.

    Args:
        images: how many there are; ``grey`` of them stored without colour, ``transparent`` of them not fully opaque.
        height: of the images as shown.
        width: of the images as shown.
        shorter: the shorter side of each.
        same_size: whether all have one size.
        packed: whether they are in a pack, so that size and channels are fixed.
        notes: what decoding will lose, and in how many images.
        skipped: images that cannot be used, by reason.
        ignored: files that are no images, by extension.
    """

    images: int
    grey: int
    transparent: int
    height: Spread
    width: Spread
    shorter: Spread
    same_size: bool
    notes: tuple[tuple[str, int], ...] = ()
    skipped: tuple[Skip, ...] = ()
    ignored: tuple[tuple[str, int], ...] = ()
    packed: bool = False

    @property
    def colour(self) -> int:
        """How many images are stored with colour."""
        return self.images - self.grey

    @property
    def sizes(self) -> str:
        """The size of all images, or the smallest and largest of each side, for people."""
        smallest = f"{self.height.low}x{self.width.low}"
        return smallest if self.same_size else f"{smallest} to {self.height.high}x{self.width.high}"

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` made."""
        return cls(
            **dict(data)
            | {name: Spread(**data[name]) for name in ("height", "width", "shorter")}
            | {name: tuple((str(text), int(count)) for text, count in data[name]) for name in ("notes", "ignored")}
            | {"skipped": tuple(map(Skip.from_json, data["skipped"]))}
        )


def scan(source: Source, workers: int | None = None) -> Stage[Survey]:
    """Look at every image of a source; at once if that was done before and nothing has changed since.

    Args:
        workers: processes that look; 1 is this one alone, None as many as suit the work.

    Raises:
        InputError: when run, if there is no image that can be read.
    """
    label = f"looking at {source.label}"
    if source.pack is not None:
        return finished(label, _of_pack(source.pack))
    path = cache.survey_path(source)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        survey = Survey.from_json(json.loads(path.read_bytes()))
        cache.mark_used(path)
        return finished(label, survey)
    return Stage(label, source.extent, _scan(source, workers), in_bytes=source.count is None)


def auto_channels(survey: Survey) -> int:
    """The channels that suit: 4 if at least half of the images are transparent, else 1 if all are grey, else 3."""
    if 2 * survey.transparent >= survey.images:
        return 4
    return 1 if survey.colour == 0 else 3


def auto_size(survey: Survey, limit: int) -> tuple[int, int]:
    """The (height, width) to train at: that of the images if all have one that suits, else a square that most cover.

    Args:
        limit: largest side that the machine can do in good time.
    """
    height, width = survey.height.low, survey.width.low
    if survey.packed:
        return height, width
    if survey.same_size and max(height, width) <= limit and height % 4 == width % 4 == 0:
        return height, width
    side = max(8, min(survey.shorter.median, limit) // 8 * 8)
    return side, side


class _Counts:
    """A survey in the making. It grows with the number of different lengths at most, not with that of images."""

    def __init__(self) -> None:
        self.images = self.grey = self.transparent = 0
        self.heights: Counter[int] = Counter()
        self.widths: Counter[int] = Counter()
        self.shorter: Counter[int] = Counter()
        self.notes: Counter[str] = Counter()

    def add(self, reply: Reply) -> None:
        for height, width, grey, transparent, notes in reply.looks:
            self.images += 1
            self.grey += grey
            self.transparent += transparent
            self.heights[height] += 1
            self.widths[width] += 1
            self.shorter[min(height, width)] += 1
            self.notes.update(notes)


def _scan(source: Source, workers: int | None) -> Generator[int, None, Survey]:
    tally, counts = source.tally.copy(), _Counts()
    if source.uniform is not None and source.count is not None:
        n, (height, width, channels) = source.count, source.uniform
        counts.add(Reply(looks=((height, width, channels == 1, False, []),)))
        counts.images, counts.grey = n, n * (channels == 1)
        yield n
    else:
        task = Task(source.kind, str(source.path))
        processes = workers or count_workers(task, source.count, source.nbytes)
        for chunk, reply in run(task, source.chunks(tally), processes):
            for index, problem in reply.problems:
                tally.skip(chunk.names[index], problem, chunk.first + index)
            counts.add(reply)
            yield chunk.amount
    if not counts.images:
        raise no_images(source.label, tally)
    survey = Survey(
        images=counts.images,
        grey=counts.grey,
        transparent=counts.transparent,
        height=_spread(counts.heights),
        width=_spread(counts.widths),
        shorter=_spread(counts.shorter),
        same_size=len(counts.heights) == len(counts.widths) == 1,
        notes=tuple(sorted(counts.notes.items(), key=lambda note: (-note[1], note[0]))),
        skipped=tally.skipped(),
        ignored=tuple(tally.ignored.most_common()),
    )
    with contextlib.suppress(DiskError):  # then the next start takes as long as this one
        path = cache.survey_path(source)
        cache.make_room(path)
        write_file(path, json.dumps(survey.to_json()).encode())
    return survey


def _of_pack(images: Images) -> Survey:
    n, height, width, channels = images.shape
    return Survey(
        images=n,
        grey=n * (channels == 1),
        transparent=n * (channels == 4),
        height=Spread(height, height, height),
        width=Spread(width, width, width),
        shorter=Spread(*[min(height, width)] * 3),
        same_size=True,
        packed=True,
    )


def _spread(lengths: Counter[int]) -> Spread:
    """The median is that of the lower half's largest where there are two middles, so that it is one of the lengths."""
    middle, ordered = (lengths.total() + 1) // 2, sorted(lengths)
    for length in ordered:
        middle -= lengths[length]
        if middle <= 0:
            return Spread(ordered[0], length, ordered[-1])
    raise AssertionError("no lengths")
