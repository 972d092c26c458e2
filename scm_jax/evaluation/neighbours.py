"""Improved precision and recall by nearest neighbours (arXiv 1904.06991)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist


class PrecisionRecall(NamedTuple):
    """Share of samples that look real, and share of real data that is covered."""

    precision: float
    recall: float


def precision_recall(
    real: np.ndarray, fake: np.ndarray, k: int = 3, block_size: int = 1024
) -> PrecisionRecall:
    """Precision and recall of ``fake`` against ``real`` (1904.06991, Eqs. 1 and 2).

    A set's manifold is the union of balls around its points, each reaching to the
    point's ``k``-th neighbour besides itself. Precision is the share of ``fake`` inside
    the manifold of ``real``, recall the share of ``real`` inside that of ``fake``.

    >>> line = np.arange(8.0)[:, None]
    >>> precision_recall(line, line[:4])
    PrecisionRecall(precision=1.0, recall=0.875)

    Args:
      real: ``(n, d)`` features.
      fake: ``(m, d)`` features.
      k: which neighbour; the field's habit is 3.
      block_size: rows of the distance matrix in memory at a time.

    Raises:
      ValueError: different dimensions, or not more than ``k`` points on a side.
    """
    real, fake = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(f"features have shapes {real.shape} and {fake.shape}")
    precision = covered(fake, real, neighbour_radii(real, k, block_size), block_size)
    recall = covered(real, fake, neighbour_radii(fake, k, block_size), block_size)
    return PrecisionRecall(float(precision.mean()), float(recall.mean()))


def neighbour_radii(
    points: np.ndarray, k: int = 3, block_size: int = 1024
) -> np.ndarray:
    """Squared distance from each point to its ``k``-th neighbour, ``(n,)`` float64.

    The point itself is left out by its index, not by its distance of 0: a duplicate is
    a neighbour.
    """
    if not 1 <= k < len(points):
        raise ValueError(
            f"k = {k} needs more than {k} points and k >= 1: {len(points)}"
        )
    radii = np.empty(len(points))
    for start, distances in _blocks(points, points, block_size):
        rows = np.arange(len(distances))
        distances[rows, start + rows] = np.inf
        nearest = np.partition(distances, k - 1, axis=1)[:, k - 1]
        radii[start : start + len(distances)] = nearest
    return radii


def covered(
    points: np.ndarray, centres: np.ndarray, radii: np.ndarray, block_size: int = 1024
) -> np.ndarray:
    """Which ``points`` lie in any ball of squared ``radii`` around ``centres``."""
    inside = [
        (distances <= radii).any(axis=1)
        for _, distances in _blocks(points, centres, block_size)
    ]
    return np.concatenate(inside)


def _blocks(
    a: np.ndarray, b: np.ndarray, block_size: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Squared distances by rows of ``a``: first row and ``(rows, len(b))`` block.

    Sums of squared differences rather than ``|a|^2 + |b|^2 - 2ab``, whose rounding
    would put a copy of a point outside a ball of radius 0.
    """
    for start in range(0, len(a), block_size):
        yield start, cdist(a[start : start + block_size], b, "sqeuclidean")
