"""Dataclasses from JSON: what `asdict` and `json` make of one comes back, and anything else is refused by name."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pytest

from ddpm_cli.core.records import from_json
from ddpm_cli.errors import InputError


@dataclass(frozen=True)
class Inner:
    n: int
    share: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    sizes: tuple[int, ...] = ()
    pair: int | tuple[int, int] | None = None
    kind: Literal["a", "b"] = "a"
    flag: bool = False
    notes: dict[str, Any] = field(default_factory=dict)
    pairs: tuple[tuple[str, int], ...] = ()


FULL = Outer("x", Inner(3, 2), (1, 2), (4, 5), "b", True, {"free": [1, None]}, (("a", 1), ("b", 2)))


def test_what_was_written_comes_back() -> None:
    for record in (FULL, Outer("y", Inner(-1)), Outer("z", Inner(0), pair=7)):
        assert from_json(Outer, json.loads(json.dumps(asdict(record))), "file") == record
    assert from_json(Outer, {"name": "y", "inner": {"n": 1}, "_class": 3}, "file", notes="_").inner.share == 0.5


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"name": 3}, "file: name is 3"),
        ({"name": None}, "file: name is None"),
        ({"inner": [1]}, "file: inner is"),
        ({"inner": {"n": True}}, "file: inner: n is True"),
        ({"inner": {"n": 1.0}}, "file: inner: n is 1.0"),
        ({"inner": {"n": 1, "share": "0.5"}}, "file: inner: share is '0.5'"),
        ({"inner": {}}, "file: inner: n is missing"),
        ({"inner": {"n": 1, "m": 2}}, "file: inner: unknown field 'm'"),
        ({"sizes": [1, "2"]}, "file: sizes is"),
        ({"sizes": 1}, "file: sizes is 1"),
        ({"pair": [1, 2, 3]}, "file: pair is"),
        ({"pair": True}, "file: pair is True"),
        ({"kind": "c"}, "file: kind is 'c'"),
        ({"flag": 1}, "file: flag is 1"),
        ({"notes": []}, "file: notes is"),
        ({"pairs": [["a", "b"]]}, "file: pairs is"),
        ({"nothing": 1}, "file: unknown field 'nothing'"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_by_name(change: dict[str, Any], names: str) -> None:
    with pytest.raises(InputError) as refusal:
        from_json(Outer, json.loads(json.dumps(asdict(FULL))) | change, "file")
    assert str(refusal.value).startswith(names)


def test_what_is_no_object_is_refused() -> None:
    for data in (None, 3, "text", [1, 2]):
        with pytest.raises(InputError):
            from_json(Outer, data, "file")
