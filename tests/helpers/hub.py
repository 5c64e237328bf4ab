"""A repository on the loopback Hub, and the environment that leads to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from safetensors.torch import save

from ddpm_cli.checkpoint.layout import WEIGHTS
from ddpm_cli.network.unet import UNet
from helpers.checkpoints import HUB_SCHEDULER, old_name
from helpers.hub_server import HubServer


def environment(server: HubServer) -> dict[str, str]:
    """What points the client to a server, and makes it give up soon."""
    return {
        "HF_ENDPOINT": server.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_ETAG_TIMEOUT": "2",
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        "NO_PROXY": "127.0.0.1",
    }


def hub_files(config: Mapping[str, Any], unet: UNet) -> dict[str, bytes]:
    """A repository of the flat layout, with the names that attention had."""
    weights = {old_name(name): tensor.contiguous() for name, tensor in unet.state_dict().items()}
    return {
        "config.json": json.dumps(config).encode(),
        "scheduler_config.json": json.dumps(HUB_SCHEDULER).encode(),
        WEIGHTS: save(weights),
        "README.md": b"not fetched",
    }
