"""Precision, recall, density and coverage by nearest neighbours.

All four ask which points lie in balls around others, whose radii reach to a neighbour.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from scm_jax.evaluation.metrics.frechet import check_features

# Rows of the distance matrix in memory at a time.
_BLOCK_ROWS = 256
# Elements of feature pairs that are computed again at a time: 32 MiB in float64.
_ELEMENTS_IN_MEMORY = 2**22


class PrecisionRecall(NamedTuple):
    """Share of samples that look real, and share of real data that is covered."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """How many real balls hold a sample, and how many of them hold any.

    The density is relative to its expectation ``k``, and can exceed 1.
    """

    density: float
    coverage: float


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = 3) -> PrecisionRecall:
    """Precision and recall of ``fake`` against ``real`` (1904.06991, Eqs. 1 and 2).

    A set's manifold is the union of balls around its points, each reaching to the
    point's ``k``-th neighbour besides itself. Precision is the share of ``fake`` inside
    the manifold of ``real``, recall the share of ``real`` inside that of ``fake``.

    Example:
      >>> line = np.arange(8.0)[:, None]
      >>> precision_recall(line, line[:4])
      PrecisionRecall(precision=1.0, recall=0.875)

    Args:
      real, fake: ``(n, d)`` and ``(m, d)`` features.
      k: which neighbour; the field's habit is 3.

    Raises:
      ValueError: different dimensions, values that are not finite, or not more than
        ``k`` points on a side.
    """
    real, fake = np.asarray(real), np.asarray(fake)
    check_features(real, fake)
    precision = covered(fake, real, neighbour_radii(real, k))
    recall = covered(real, fake, neighbour_radii(fake, k))
    return PrecisionRecall(float(precision.mean()), float(recall.mean()))


def density_coverage(real: np.ndarray, fake: np.ndarray, k: int = 5) -> DensityCoverage:
    """Density and coverage of ``fake`` against ``real`` (2002.09797, Eqs. 3 and 4).

    Example:
      >>> line = np.arange(8.0)[:, None]
      >>> density_coverage(line, line[3:5], k=2)
      DensityCoverage(density=1.5, coverage=0.5)

    Args:
      real: ``(n, d)`` features; the balls are around these.
      fake: ``(m, d)`` features.
      k: which neighbour besides itself a real ball reaches to; the paper's choice is 5.

    Raises:
      ValueError: see ``precision_recall``.
    """
    real, fake = np.asarray(real), np.asarray(fake)
    check_features(real, fake)
    pairs, occupied = 0, np.zeros(len(real), bool)
    for _, centres in _inside(fake, real, neighbour_radii(real, k)):
        pairs += len(centres)
        occupied[centres] = True
    return DensityCoverage(pairs / (k * len(fake)), float(occupied.mean()))


def nearest(x: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Root mean square distance of each ``x`` from the nearest of ``others``, ``(n,)``.

    In the dtype of ``x``. A copy is at distance 0, up to rounding.

    Example:
      >>> nearest(np.array([[0.0], [3.0]]), np.array([[0.0], [1.0]])).tolist()
      [0.0, 2.0]
    """
    flat = others.reshape(len(others), -1).astype(x.dtype)
    squares, found = (flat**2).sum(1), []
    for start in range(0, len(x), _BLOCK_ROWS):
        rows = x[start : start + _BLOCK_ROWS].reshape(-1, flat.shape[1])
        away = squares[None] - 2 * rows @ flat.T + (rows**2).sum(1)[:, None]
        found.append(np.sqrt(np.maximum(away.min(1), 0) / flat.shape[1]))
    return np.concatenate(found)


def neighbour_radii(points: np.ndarray, k: int = 3) -> np.ndarray:
    """Squared distance from each point to its ``k``-th neighbour, ``(n,)`` float64.

    The point itself is left out by its index, not by its distance of 0: a duplicate is
    a neighbour.
    """
    if not 1 <= k < len(points):
        raise ValueError(
            f"k = {k} needs more than {k} points and k >= 1: {len(points)}"
        )
    radii = np.empty(len(points))
    margin, blocks = _blocks(points, points)
    for start, near in blocks:
        rows = np.arange(len(near))
        near[rows, start + rows] = np.inf
        # Whatever may be among the k nearest, once rounding is allowed for.
        reach = np.partition(near, k - 1, axis=1)[:, k - 1] + 2 * margin
        at = np.nonzero(near <= reach[:, None])
        distances = _squared_distances(points, points, start + at[0], at[1])
        ranked = distances[np.lexsort((distances, at[0]))]
        first = np.searchsorted(at[0], rows)
        radii[start : start + len(near)] = ranked[first + k - 1]
    return radii


def covered(points: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Which ``points`` lie in any ball of squared ``radii`` around ``centres``."""
    inside = np.zeros(len(points), bool)
    for rows, _ in _inside(points, centres, radii):
        inside[rows] = True
    return inside


def _inside(
    points: np.ndarray, centres: np.ndarray, radii: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Index pairs of all ``points`` inside the closed balls, block by block."""
    margin, blocks = _blocks(points, centres)
    for start, near in blocks:
        rows, columns = np.nonzero(near <= radii + margin)
        sure = near[rows, columns] <= radii[columns] - margin
        # What rounding leaves undecided is computed again.
        again = start + rows[~sure], columns[~sure]
        sure[~sure] = _squared_distances(points, centres, *again) <= radii[again[1]]
        yield start + rows[sure], columns[sure]


def _blocks(
    a: np.ndarray, b: np.ndarray
) -> tuple[float, Iterator[tuple[int, np.ndarray]]]:
    """How far ``|a|^2 + |b|^2 - 2ab`` can be off, and these distances in blocks.

    A block is the number of its first row, and ``(rows, len(b))`` distances.
    """
    shift = b.mean(axis=0, dtype=np.float64)  # makes the norms, and the error, small
    a64, b64 = a - shift, b - shift
    norms_a, norms_b = (np.einsum("ij,ij->i", x, x) for x in (a64, b64))
    largest = norms_a.max() + norms_b.max()
    # A product of d terms is off by d eps / 2 sum |a_i b_i| at most in any order of
    # summation (Higham, Accuracy and Stability, Sec. 3.1); 32 further roundings are
    # more than all others.
    margin = 2 * (a.shape[1] + 32) * np.finfo(np.float64).eps * largest

    def blocks() -> Iterator[tuple[int, np.ndarray]]:
        for start in range(0, len(a), _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            near = a64[rows] @ b64.T
            near *= -2
            near += norms_a[rows, None]
            near += norms_b[None]
            yield start, near

    return margin, blocks()


def _squared_distances(
    a: np.ndarray, b: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """``|a[row] - b[column]|^2`` of index pairs, in float64; 0 for copies."""
    size = max(1, _ELEMENTS_IN_MEMORY // a.shape[1])
    distances = np.empty(len(rows))
    for i in range(0, len(rows), size):
        part = slice(i, i + size)
        difference = a[rows[part]].astype(np.float64) - b[columns[part]]
        distances[part] = (difference**2).sum(axis=1)
    return distances
