"""Checkpoints: the folder format that diffusers reads too, published whole or not at all."""

from .layout import StoredModel, is_model_folder, read_model
from .store import Snapshot, newest, publish, run_lock, training_state

__all__ = ["StoredModel", "Snapshot", "is_model_folder", "newest", "publish", "read_model", "run_lock", "training_state"]
