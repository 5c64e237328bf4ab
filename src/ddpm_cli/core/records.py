"""Frozen dataclasses from JSON: each value is checked by the annotation of its field."""

from __future__ import annotations

import dataclasses
import functools
import reprlib
import types
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from ..errors import InputError

if TYPE_CHECKING:

    class _Dataclass(Protocol):
        __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    C = TypeVar("C", bound=_Dataclass)


def from_json(cls: type[C], data: object, where: str, *, notes: str = "") -> C:
    """The dataclass that a JSON object describes: the reverse of ``dataclasses.asdict`` and ``json``.

    Lists become tuples, and objects dataclasses, where an annotation says so. Fields with a default may be missing.

    Args:
        data: what ``json.loads`` returned.
        where: what is read, for messages: ``run/config.json: train``.
        notes: keys that start so are ignored.

    Raises:
        InputError: it is no object, lacks a field, has an unknown one, or a value of another type. Names the field.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"{where} is {reprlib.repr(data)}; it must be a JSON object")
    given = {name: value for name, value in data.items() if not notes or not str(name).startswith(notes)}
    known = _hints(cls)
    if unknown := sorted(set(given) - set(known)):
        raise InputError(
            f"{where}: unknown field {reprlib.repr(unknown[0])}; this version knows {', '.join(sorted(known))}"
        )
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in given:
            raise InputError(f"{where}: {field.name} is missing")
    return cls(**{name: _read(known[name], value, f"{where}: {name}") for name, value in given.items()})


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _read(hint: Any, value: object, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_json(hint, value, where)  # type: ignore[arg-type]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for choice in typing.get_args(hint):
            if _is(choice, value):
                return _read(choice, value, where)
    elif _is(hint, value):
        if typing.get_origin(hint) is tuple:
            return tuple(_read(item, each, where) for item, each in zip(_items(hint, value), value, strict=True))  # type: ignore[call-overload]
        return value
    raise InputError(f"{where} is {reprlib.repr(value)}; it must be {_words(hint)}")


def _is(hint: Any, value: object) -> bool:
    """Whether a JSON value is of a type, as far as its outermost level; numbers are finite or not, but bool is none."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_is(choice, value) for choice in args)
    if origin is typing.Literal:
        return any(type(value) is type(choice) and value == choice for choice in args)
    if origin is tuple:
        items = _items(hint, value) if isinstance(value, list | tuple) else None
        return items is not None and all(map(_is, items, value))  # type: ignore[call-overload]
    if dataclasses.is_dataclass(hint) or origin in (dict, Mapping):
        return isinstance(value, Mapping)
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    return isinstance(value, hint)


def _items(hint: Any, value: Any) -> list[Any] | None:
    """The type of each item of a list that is to be such a tuple; None if it has another length."""
    args = typing.get_args(hint)
    if len(args) == 2 and args[1] is ...:
        return [args[0]] * len(value)
    return list(args) if len(args) == len(value) else None


def _words(hint: Any) -> str:
    """A type in words: "a whole number or null"."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_words(choice) for choice in args)
    if origin is typing.Literal:
        return f"one of {', '.join(map(repr, args))}"
    if origin is tuple:
        if len(args) == 2 and args[1] is ...:
            return f"a list, each of it {_words(args[0])}"
        return f"a list of {len(args)}, each of it {_words(args[0])}"
    simple = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    return simple.get(hint, "a JSON object")
