"""How the C library of this process gives memory back."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # mallopt(3)
NEVER, NONE = -1, 0


def keep_freed_memory() -> None:
    """Have the C library reuse what is freed instead of giving it back to the kernel; for a process of its own.

    glibc asks the kernel for each array of 32 MiB or more, and returns it when it is freed. The activations of a large
    batch are such arrays: the kernel then clears every page of every layer's result anew, which takes up to ten times
    as long as computing it. Elsewhere than with glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, NONE)
        mallopt(M_TRIM_THRESHOLD, NEVER)
