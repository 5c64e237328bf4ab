"""Checkpoints: the folder format that diffusers reads too, published whole or not at all."""

from .layout import StoredModel, is_model_folder, read_json, read_model
from .store import MANIFEST, MOMENTS, Snapshot, newest, publish, read_snapshot, run_lock, verify

__all__ = [
    "MANIFEST",
    "MOMENTS",
    "Snapshot",
    "StoredModel",
    "is_model_folder",
    "newest",
    "publish",
    "read_json",
    "read_model",
    "read_snapshot",
    "run_lock",
    "verify",
]
