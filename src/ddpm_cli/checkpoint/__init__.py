"""Checkpoints: the folder format that diffusers reads too, published whole or not at all."""

from .layout import Provenance, StoredModel, is_model_folder, read_json, read_model, read_provenance
from .store import MANIFEST, MOMENTS, Snapshot, check_new, newest, publish, read_snapshot, run_lock, save_model, verify

__all__ = [
    "MANIFEST",
    "MOMENTS",
    "Provenance",
    "Snapshot",
    "StoredModel",
    "check_new",
    "is_model_folder",
    "newest",
    "publish",
    "read_json",
    "read_model",
    "read_provenance",
    "read_snapshot",
    "run_lock",
    "save_model",
    "verify",
]
