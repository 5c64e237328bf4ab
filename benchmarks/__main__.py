"""``python -m benchmarks [startup|packing|network|loop|sampling|bound ...]``: run them and write docs/benchmarks.md."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

NAMES = ("startup", "packing", "network", "loop", "sampling", "bound")
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
NOTES = Path(__file__).with_name("notes.md")


def main() -> None:
    """Run what is named, or all. Only a full run writes the page."""
    names = sys.argv[1:] or NAMES
    parts = []
    for name in names:
        for table in importlib.import_module(f"benchmarks.{name}").tables():
            parts.append(table.to_markdown())
            print(parts[-1], flush=True)
    if names == NAMES:
        PAGE.write_text("\n".join(["# Benchmarks", "", _machine(), "", *parts, NOTES.read_text("utf-8")]), "utf-8")


def _machine() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "pillow", "diffusers"))
    import torch

    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return (
        f"Written by `make bench`. Machine: {_processor()}, {os.cpu_count()} cores{gpu}; {platform.system()}, "
        f"Python {platform.python_version()}, {packages}. Machines are shared and noisy: compare within a table, not "
        "between runs."
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("ascii").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    flags = next((line for line in lines if line.startswith("flags")), "")
    return name + (" with AVX512_BF16" if "avx512_bf16" in flags else "")


if __name__ == "__main__":
    main()
