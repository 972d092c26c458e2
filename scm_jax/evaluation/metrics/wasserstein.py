"""Sliced Wasserstein distance of two sets of features, exact on every line."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from scm_jax.evaluation.metrics.frechet import check_features

_VALUES_IN_MEMORY = 2**23  # projected values over both sets: 64 MiB in float64


class Sliced(NamedTuple):
    """Mean over the projections, and the standard error that their number leaves.

    The error says nothing about the samples: see ``frechet.halves_floor`` for these.
    """

    value: float
    standard_error: float


def mind(
    a: np.ndarray, b: np.ndarray, num_projections: int = 1000, seed: int = 0
) -> Sliced:
    """``3 d mean_v W2^2(v.a, v.b)`` over random unit vectors ``v`` (arXiv 2605.06797).

    For two distributions that differ by a shift it is ``3 |shift|^2`` in any dimension.

    Args:
      a, b: ``(n, d)`` and ``(m, d)`` features; ``m`` may differ from ``n``.
      num_projections: directions, uniform on the sphere.
      seed: of the directions.

    Raises:
      ValueError: features of other shapes or not finite, or no projection.
    """
    check_features(a, b)
    if num_projections < 1:
        raise ValueError(f"num_projections = {num_projections}: must be at least 1")
    vectors = directions(a.shape[1], num_projections, seed)
    block = max(1, _VALUES_IN_MEMORY // (len(a) + len(b)))
    distances = np.concatenate(
        [
            squared_w2(*(_project(x, vectors[i : i + block]) for x in (a, b)))
            for i in range(0, num_projections, block)
        ]
    )
    scaled = 3 * a.shape[1] * distances
    spread = scaled.std(ddof=1) if num_projections > 1 else 0.0
    return Sliced(float(scaled.mean()), float(spread / np.sqrt(num_projections)))


def directions(dim: int, num: int, seed: int = 0) -> np.ndarray:
    """``num`` unit vectors, uniform on the sphere, ``(num, dim)`` float64."""
    vectors = np.random.default_rng(seed).standard_normal((num, dim))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _project(x: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """``(n, p)`` float64 projections, without a float64 copy of all of ``x``."""
    rows = max(1, _VALUES_IN_MEMORY // x.shape[1])
    starts = range(0, len(x), rows)
    return np.concatenate([x[i : i + rows].astype(float) @ vectors.T for i in starts])


def squared_w2(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared W2 distance of each column: ``(n, p)`` and ``(m, p)`` to ``(p,)``.

    The optimal coupling on a line pairs equal quantiles. Both quantile functions are
    steps, so the integral over them is a sum over the union of their edges.

    Example:
      >>> squared_w2(np.array([[0.0], [2.0]]), np.array([[1.0]]))
      array([1.])
    """
    n, m = len(a), len(b)
    # Edges i/n and j/m as integers in units of 1/(n m), so that common ones coincide.
    edges = np.union1d(np.arange(n + 1) * m, np.arange(m + 1) * n)
    left, widths = edges[:-1], np.diff(edges)
    a, b = np.sort(a, axis=0)[left // m], np.sort(b, axis=0)[left // n]
    return widths @ (a - b) ** 2 / (n * m)
