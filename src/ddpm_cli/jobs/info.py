"""What ``ddpm info`` does once its options are known: find a model, and say what it is."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import ArgumentError, InputError
from ..models.info import examine
from ..models.model import default_spec
from ..ui.console import Screen, aligned, as_json
from .models import find_model


def info(spec: str | None, screen: Screen, *, verify: bool, json: bool) -> Iterator[str]:
    """What is known of a model, as a table or as JSON.

    Raises:
        ArgumentError: ``verify``, and no outputs were published for it.
        InputError: ``verify``, and its outputs are not the published ones.
    """
    found = examine(find_model(default_spec() if spec is None else spec, screen), outputs=verify)
    for warning in found.warnings:
        screen.warn(warning)
    yield as_json(found.to_json()) if json else "\n".join(aligned(found.to_rows()))
    if verify and found.verification is None:
        raise ArgumentError(f"no outputs were published for {found.stored.source}; `verify` knows google/ddpm-*")
    if found.verification and not found.verification.passed:
        raise InputError(f"{found.stored.source} is not the network that was published: its outputs differ")
