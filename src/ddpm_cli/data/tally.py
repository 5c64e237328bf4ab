"""An account of the files that give no image: what was skipped and why, and what was ignored."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Self

from ..core.files import printable

_EXAMPLES = 3
_REASONS = 20


@dataclass(frozen=True)
class Skip:
    """Files that were left out for one reason: how many, and the first few with what is known of them."""

    reason: str
    count: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        others = self.count - len(self.examples)
        more = f" and {others:,} more" if others else ""
        return f"{self.count:,} skipped, {self.reason}: {', '.join(self.examples)}{more}"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `dataclasses.asdict` made."""
        return cls(str(data["reason"]), int(data["count"]), tuple(map(str, data["examples"])))


@dataclass
class Tally:
    """An account of the files that give no image; its size does not depend on how many there are."""

    ignored: Counter[str] = field(default_factory=Counter)
    _counts: Counter[str] = field(default_factory=Counter)
    _examples: dict[str, list[tuple[int, str]]] = field(default_factory=dict)

    def ignore(self, name: str) -> None:
        """Count a file that does not claim to be an image."""
        extension = PurePosixPath(name).suffix.lower()
        key = printable(extension)[:16] if len(self.ignored) < 100 or extension in self.ignored else "others"
        self.ignored[key or "no extension"] += 1

    def skip(self, name: str, problem: str, position: int = -1) -> None:
        """Count an image that cannot be used. Reasons are told apart by what ``problem`` says before its parenthesis.

        Args:
            position: where it stands among the images; the first ones are kept as examples.
        """
        reason, _, detail = problem.partition(" (")
        detail = detail.removesuffix(")")
        if reason not in self._counts and len(self._counts) >= _REASONS:
            reason, detail = "other reasons", problem
        self._counts[reason] += 1
        examples = self._examples.setdefault(reason, [])
        insort(examples, (position, printable(f"{name} ({detail})" if detail else name)))
        del examples[_EXAMPLES:]

    def skipped(self) -> tuple[Skip, ...]:
        """What was skipped, the most frequent reason first."""
        reasons = sorted(self._counts, key=lambda reason: (-self._counts[reason], reason))
        return tuple(Skip(r, self._counts[r], tuple(text for _, text in self._examples[r])) for r in reasons)

    def copy(self) -> Tally:
        """An account that continues from this one."""
        examples = {reason: list(kept) for reason, kept in self._examples.items()}
        return Tally(self.ignored.copy(), self._counts.copy(), examples)
