"""Precision, recall, density and coverage by nearest neighbours.

Improved precision and recall are from arXiv 1904.06991, density and coverage from arXiv
2002.09797. All four ask which points lie in balls around others, whose radii reach to a
neighbour. Distances are ``|a|^2 + |b|^2 - 2ab`` in float64; the few that rounding
leaves undecided are computed again as sums of squared differences, which are 0 for a
copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# Elements of feature pairs that are computed again at a time: 32 MiB in float64.
_ELEMENTS_IN_MEMORY = 2**22


class PrecisionRecall(NamedTuple):
    """Share of samples that look real, and share of real data that is covered."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """How many real neighbourhoods hold a sample, and how many of them hold any.

    Attributes:
      density: mean number of real balls around a sample over its expectation ``k``;
        can exceed 1.
      coverage: share of real balls that hold a sample or more.
    """

    density: float
    coverage: float


def precision_recall(
    real: np.ndarray, fake: np.ndarray, k: int = 3, block_size: int = 256
) -> PrecisionRecall:
    """Precision and recall of ``fake`` against ``real`` (1904.06991, Eqs. 1 and 2).

    A set's manifold is the union of balls around its points, each reaching to the
    point's ``k``-th neighbour besides itself. Precision is the share of ``fake`` inside
    the manifold of ``real``, recall the share of ``real`` inside that of ``fake``.

    Example:
      >>> line = np.arange(8.0)[:, None]
      >>> precision_recall(line, line[:4])
      PrecisionRecall(precision=1.0, recall=0.875)

    Args:
      real: ``(n, d)`` features.
      fake: ``(m, d)`` features.
      k: which neighbour; the field's habit is 3.
      block_size: rows of the distance matrix in memory at a time.

    Raises:
      ValueError: different dimensions, values that are not finite, or not more than
        ``k`` points on a side.
    """
    real, fake = _check(real, fake)
    precision = covered(fake, real, neighbour_radii(real, k, block_size), block_size)
    recall = covered(real, fake, neighbour_radii(fake, k, block_size), block_size)
    return PrecisionRecall(float(precision.mean()), float(recall.mean()))


def density_coverage(
    real: np.ndarray, fake: np.ndarray, k: int = 5, block_size: int = 256
) -> DensityCoverage:
    """Density and coverage of ``fake`` against ``real`` (2002.09797, Eqs. 3 and 4).

    Example:
      >>> line = np.arange(8.0)[:, None]
      >>> density_coverage(line, line[3:5], k=2)
      DensityCoverage(density=1.5, coverage=0.5)

    Args:
      real: ``(n, d)`` features; the balls are around these.
      fake: ``(m, d)`` features.
      k: which neighbour besides itself a real ball reaches to; the paper's choice is 5.
      block_size: rows of the distance matrix in memory at a time.

    Raises:
      ValueError: see ``precision_recall``.
    """
    real, fake = _check(real, fake)
    radii = neighbour_radii(real, k, block_size)
    pairs, occupied = 0, np.zeros(len(real), bool)
    for _, centres in _inside(fake, real, radii, block_size):
        pairs += len(centres)
        occupied[centres] = True
    return DensityCoverage(pairs / (k * len(fake)), float(occupied.mean()))


def neighbour_radii(
    points: np.ndarray, k: int = 3, block_size: int = 256
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
    margin, blocks = _blocks(points, points, block_size)
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


def covered(
    points: np.ndarray, centres: np.ndarray, radii: np.ndarray, block_size: int = 256
) -> np.ndarray:
    """Which ``points`` lie in any ball of squared ``radii`` around ``centres``."""
    inside = np.zeros(len(points), bool)
    for rows, _ in _inside(points, centres, radii, block_size):
        inside[rows] = True
    return inside


def _inside(
    points: np.ndarray, centres: np.ndarray, radii: np.ndarray, block_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Index pairs of all ``points`` inside the closed balls, block by block."""
    margin, blocks = _blocks(points, centres, block_size)
    for start, near in blocks:
        rows, columns = np.nonzero(near <= radii + margin)
        sure = near[rows, columns] <= radii[columns] - margin
        again = start + rows[~sure], columns[~sure]
        sure[~sure] = _squared_distances(points, centres, *again) <= radii[again[1]]
        yield start + rows[sure], columns[sure]


def _blocks(
    a: np.ndarray, b: np.ndarray, block_size: int
) -> tuple[float, Iterator[tuple[int, np.ndarray]]]:
    """Squared distances by rows of ``a``, and how far they can be off.

    A product of ``d`` terms is off by ``d eps / 2 sum |a_i b_i|`` at most in any order
    of summation (Higham, Accuracy and Stability, Sec. 3.1); 32 further roundings are
    more than all others. Both sets are centred, which makes the norms small.

    Returns:
      The margin, and an iterator over the first row and ``(rows, len(b))`` distances.
    """
    shift = b.mean(axis=0, dtype=np.float64)
    a64, b64 = a - shift, b - shift
    norms_a, norms_b = (np.einsum("ij,ij->i", x, x) for x in (a64, b64))
    largest = norms_a.max() + norms_b.max()
    margin = 2 * (a.shape[1] + 32) * np.finfo(np.float64).eps * largest

    def blocks() -> Iterator[tuple[int, np.ndarray]]:
        for start in range(0, len(a), block_size):
            rows = slice(start, start + block_size)
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


def _check(real: np.ndarray, fake: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    real, fake = np.asarray(real), np.asarray(fake)
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(f"features have shapes {real.shape} and {fake.shape}")
    if not (np.isfinite(real).all() and np.isfinite(fake).all()):
        raise ValueError("features hold values that are not finite")
    return real, fake
