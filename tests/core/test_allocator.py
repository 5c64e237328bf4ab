"""Freed memory stays with the process."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from ddpm_cli.core.allocator import keep_freed_memory
{}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
x = torch.zeros(2**25)  # 128 MiB
for _ in range(16):
    (x + 1).sum()  # a place for an aligned array must first have become free
before = faults()
for _ in range(8):
    (x + 1).sum()
print(faults() - before)
"""


def page_faults(call: str) -> int:
    """How often the kernel hands out a page while a process computes eight results of 128 MiB, one after another."""
    run = subprocess.run([sys.executable, "-c", PROGRAM.format(call)], capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is told")
def test_large_results_are_computed_in_the_memory_of_those_that_were_freed() -> None:
    pages = 2**27 // resource.getpagesize()
    assert page_faults("") > pages // 32  # huge pages may be in use, of which each counts once
    assert page_faults("keep_freed_memory()") < pages // 256
