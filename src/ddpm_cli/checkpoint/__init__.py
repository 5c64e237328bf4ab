"""Checkpoints: the folder format that diffusers reads too, published whole or not at all."""

from .layout import (
    MAX_JSON_BYTES,
    NOTES,
    PICKLED_WEIGHTS,
    WEIGHTS,
    Provenance,
    StoredModel,
    is_model_folder,
    largest_weights,
    read_json,
    read_model,
    read_provenance,
    weights_file,
    write_unpickled,
)
from .store import MANIFEST, MOMENTS, Snapshot, check_new, newest, publish, read_snapshot, run_lock, save_model, verify

__all__ = [
    "MANIFEST",
    "MAX_JSON_BYTES",
    "MOMENTS",
    "NOTES",
    "PICKLED_WEIGHTS",
    "WEIGHTS",
    "Provenance",
    "Snapshot",
    "StoredModel",
    "check_new",
    "is_model_folder",
    "largest_weights",
    "newest",
    "publish",
    "read_json",
    "read_model",
    "read_provenance",
    "read_snapshot",
    "run_lock",
    "save_model",
    "verify",
    "weights_file",
    "write_unpickled",
]
