"""Feature statistics of all processes of a run, exact to the last bit of each part."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jax.experimental import multihost_utils

from scm_jax.evaluation.metrics.frechet import FeatureStats, empty_stats, merge_stats

# (k,) uint32 of this process -> (num_processes, k), by process, the same on all.
Gather = Callable[[np.ndarray], np.ndarray]


def all_gather(bits: np.ndarray) -> np.ndarray:
    """``Gather`` over the processes of ``jax.distributed``; all must call it."""
    gathered = np.asarray(multihost_utils.process_allgather(bits))
    return gathered.reshape(-1, len(bits))


def all_processes(stats: FeatureStats, gather: Gather = all_gather) -> FeatureStats:
    """Statistics of the union of all processes' disjoint features.

    The numbers travel as pairs of uint32, since JAX would turn float64 to float32, and
    are merged in the order of the processes, so that all get the same bits. A process
    without features takes part with ``empty_stats``.

    Args:
      stats: of this process.
      gather: how the processes exchange arrays.
    """
    dim = len(stats.mean)
    parts = [_unpack(bits, dim) for bits in gather(_pack(stats))]
    merged = empty_stats(dim)
    for part in parts:
        merged = merge_stats(merged, part)
    return merged


def _pack(stats: FeatureStats) -> np.ndarray:
    numbers = [np.array([stats.count]), stats.mean, stats.scatter.ravel()]
    return np.concatenate(numbers).astype(np.float64).view(np.uint32)


def _unpack(bits: np.ndarray, dim: int) -> FeatureStats:
    numbers = np.ascontiguousarray(bits, np.uint32).view(np.float64)
    mean, scatter = numbers[1 : 1 + dim], numbers[1 + dim :]
    return FeatureStats(int(numbers[0]), mean, scatter.reshape(dim, dim))
