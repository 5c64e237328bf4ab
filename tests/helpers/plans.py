"""Plans of small runs."""

from __future__ import annotations

from typing import Any

import torch

from ddpm_cli.checkpoint import StoredModel
from ddpm_cli.training.plan import Plan, TrainOptions, plan
from ddpm_cli.training.record import Origin

CPU = torch.device("cpu")


DIGEST = "blake2b-256:" + "0" * 64


def planned(
    shape: tuple[int, int, int, int] = (100, 32, 32, 3),
    start: StoredModel | None = None,
    source: str = "images",
    **options: Any,
) -> Plan:
    return plan(TrainOptions(**options), shape, DIGEST, start, CPU, Origin(images=source))
