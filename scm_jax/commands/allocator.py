"""Memory of the C library, kept between the steps of a computation on CPUs."""

from __future__ import annotations

import ctypes

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Freed memory stays with the process; returns whether that is so.

    XLA's CPU backend allocates the buffers of a step anew in every step. Large ones are
    mapped and unmapped by default, so that all of their pages are faulted in again
    (``benchmarks/allocator.py``). Without glibc nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
