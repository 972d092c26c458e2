"""Freed memory stays with a command, where glibc allocates it."""

import ctypes
import subprocess
import sys

import pytest

CODE = """
import resource, sys
import numpy as np
from scm_jax.commands import allocator
kept = sys.argv[1] == "kept" and allocator.keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(50_000_000, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(kept, faults())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="without glibc")
def test_pages_are_not_faulted_in_again():
    """50 MB are 24 pages of 2 MiB, which NumPy asks for, or 12,207 of 4 KiB."""
    found = {}
    for mode in ("kept", "returned"):
        command = [sys.executable, "-c", CODE, mode]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        kept, faults = done.stdout.split()
        assert kept == str(mode == "kept")
        found[mode] = int(faults)
    assert found["kept"] < 50 < found["returned"]
