"""What ``ddpm env`` does: look at this machine, and say what the commands would choose here."""

from __future__ import annotations

import importlib.util
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch

from .. import __version__
from ..core import threads
from ..data import cache_folder
from ..network.denoiser import choose_device, choose_precision

PACKAGES = ("torch", "numpy", "pillow", "safetensors", "huggingface_hub")
EXTRAS = {
    "parquet": "pyarrow",
    "lmdb": "lmdb",
    "hdf5": "h5py",
    "heif": "pillow_heif",
    "tensorboard": "tensorboardX",
    "wandb": "wandb",
    "onnx": "onnx",
}


@dataclass(frozen=True)
class Environment:
    """This machine as the commands see it.

    Args:
        versions: of this program, Python and the packages it needs, by name.
        device, precision: what ``auto`` stands for.
        bf16: whether the device has bfloat16 in hardware.
        threads: what was chosen for the CPU; ``computing`` is how many PyTorch takes.
        extras: optional packages that are installed, by the name of the extra.
    """

    versions: dict[str, str]
    system: str
    device: str
    precision: str
    bf16: bool
    threads: threads.Threads
    computing: int
    cache: str
    extras: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self) | {"extras": list(self.extras)}

    def to_rows(self) -> list[tuple[str, str]]:
        """Names and values for people."""
        chosen = self.threads
        quota = "" if chosen.quota is None else f", of which a quota allows {chosen.quota:g}"
        return [
            ("versions", ", ".join(f"{name} {number}" for name, number in self.versions.items())),
            ("system", self.system),
            ("device", f"{self.device}, {self.precision}; {'' if self.bf16 else 'no '}bfloat16 in hardware"),
            ("cores", f"{chosen.cores}{quota}"),
            ("threads", f"{self.computing}: {chosen.count_reason}"),
            ("waiting", f"{chosen.wait}: {chosen.wait_reason}"),
            ("cache", self.cache),
            ("extras", ", ".join(self.extras) or "none"),
        ]


def look() -> Environment:
    """This machine."""
    device = choose_device("auto")
    own = {"ddpm": __version__, "python": platform.python_version()}
    precision = choose_precision("auto", device)
    return Environment(
        versions=own | {name: version(name) for name in PACKAGES},
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        device=str(device),
        precision=precision,
        bf16=precision == "bf16",
        threads=threads.prepare(),
        computing=torch.get_num_threads(),
        cache=str(cache_folder()),
        extras=tuple(extra for extra, module in EXTRAS.items() if importlib.util.find_spec(module)),
    )
