"""``python -m benchmarks [NAME ...]``: run the named modules of this package, or all; each renews its part of the page.

The page is docs/benchmarks.md. A part stays as it was when its module fails.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import os
import platform
import re
import sys
import traceback
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

NAMES = (
    "startup",
    "saving",
    "randomness",
    "packing",
    "training",
    "loop",
    "processes",
    "busy",
    "sampling",
    "bound",
    "quality",
)
PACKAGES = ("torch", "numpy", "pillow", "diffusers", "denoising-diffusion-pytorch")
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
NOTES = Path(__file__).with_name("notes.md")
INTRODUCTION = """# Benchmarks

Written by `make bench`, part by part; `python -m benchmarks NAME` renews the part of one module of `benchmarks/`.
Machines are shared and noisy: compare within a table, whose sides ran in turn, not between tables.
"""
PART = re.compile(r"<!-- (\w+) -->\n(.*?)<!-- end -->\n", re.DOTALL)


def main() -> None:
    """Run what is named, or all."""
    failed = []
    for name in sys.argv[1:] or NAMES:
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            tables = [table.to_markdown() for table in importlib.import_module(f"benchmarks.{name}").tables()]
        except Exception:  # whatever it is, the other tables are worth having
            traceback.print_exc()
            failed.append(name)
            continue
        part = "\n".join([*tables, _machine(), ""])
        print(part, flush=True)
        PAGE.write_text(renewed(PAGE.read_text("utf-8"), name, part), "utf-8")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def renewed(page: str, name: str, part: str) -> str:
    """The page with another part of that name."""
    parts = dict(PART.findall(page)) | {name: part}
    marked = [f"<!-- {known} -->\n{parts[known]}<!-- end -->\n" for known in NAMES if known in parts]
    return "\n".join([INTRODUCTION, *marked, NOTES.read_text("utf-8")])


def _machine() -> str:
    packages = ", ".join(_packages())
    import torch

    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return (
        f"*{_processor()}, {os.cpu_count()} cores{gpu}; {platform.system()}, Python {platform.python_version()}, "
        f"{packages}; {datetime.datetime.now(datetime.UTC):%Y-%m-%d}.*"
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
