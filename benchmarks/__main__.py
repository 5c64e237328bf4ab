"""``python -m benchmarks [NAME ...]``: run the named modules of this package, or all, and write docs/benchmarks.md."""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import sys
import traceback
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

NAMES = ("startup", "packing", "training", "loop", "processes", "quality", "sampling", "bound")
PACKAGES = ("torch", "numpy", "pillow", "diffusers", "denoising-diffusion-pytorch")
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
NOTES = Path(__file__).with_name("notes.md")


def main() -> None:
    """Run what is named, or all. Only a full run writes the page."""
    names = sys.argv[1:] or NAMES
    parts, failed = [], []
    for name in names:
        try:
            for table in importlib.import_module(f"benchmarks.{name}").tables():
                parts.append(table.to_markdown())
                print(parts[-1], flush=True)
        except Exception as error:  # whatever it is, the other tables are worth having
            traceback.print_exc()
            failed.append(name)
            parts.append(f"## {name}\n\nIt failed in this run: {error}\n")
    if names == NAMES:
        PAGE.write_text("\n".join(["# Benchmarks", "", _machine(), "", *parts, NOTES.read_text("utf-8")]), "utf-8")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def _machine() -> str:
    packages = ", ".join(_packages())
    import torch

    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return (
        f"Written by `make bench`. Machine: {_processor()}, {os.cpu_count()} cores{gpu}; {platform.system()}, "
        f"Python {platform.python_version()}, {packages}. Machines are shared and noisy: compare within a table, not "
        "between runs."
    )


def _packages() -> Iterator[str]:
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            yield f"{name} {version(name)}"


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
