"""Precision, recall, density and coverage by nearest neighbours.

Improved precision and recall are from arXiv 1904.06991, density and coverage from arXiv
2002.09797. All four ask which points lie in balls around others, whose radii reach to a
neighbour. The answers are exact at the cost of a float32 matrix product: its distances
have a proven error bound, and only pairs that it leaves undecided are computed again,
in float64 and by the sum of squared differences, of which ``|a|^2 + |b|^2 - 2ab`` would
not give 0 for a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

# Elements of feature pairs that are computed again at a time: 32 MiB in float64.
_ELEMENTS_IN_MEMORY = 2**22

# More than what underflows in a sum of products of float32 numbers, the largest near 1.
_UNDERFLOW = 1e-30


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
    for start, lower, margin in _blocks(points, points, block_size)[1]:
        rows = np.arange(len(lower))
        lower[rows, start + rows] = np.inf
        # The k points with the least lower bounds: the k-th neighbour is no further
        # than the furthest of them can be.
        least = np.partition(lower, k - 1, axis=1)[:, k - 1]
        at = np.nonzero(lower <= least[:, None])
        first = np.searchsorted(at[0], rows)
        reach = np.maximum.reduceat(lower[at] + margin(*at), first)
        at = np.nonzero(lower <= reach[:, None])
        distances = _squared_distances(points, points, start + at[0], at[1])
        ranked = distances[np.lexsort((distances, at[0]))]
        first = np.searchsorted(at[0], rows)
        radii[start : start + len(lower)] = ranked[first + k - 1]
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
    unit, blocks = _blocks(points, centres, block_size)
    reach = radii / unit
    above = np.nextafter(reach.astype(np.float32), np.float32(np.inf))
    for start, lower, margin in blocks:
        rows, columns = np.nonzero(lower <= above[None])
        sure = lower[rows, columns] + margin(rows, columns) <= reach[columns]
        again = start + rows[~sure], columns[~sure]
        sure[~sure] = _squared_distances(points, centres, *again) <= radii[again[1]]
        yield start + rows[sure], columns[sure]


# (rows, columns) of a block -> how far the squared distance can be above ``lower``.
Margin = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _blocks(
    a: np.ndarray, b: np.ndarray, block_size: int
) -> tuple[float, Iterator[tuple[int, np.ndarray, Margin]]]:
    """Bounds of the squared distances, by rows of ``a``.

    A float32 product of ``d`` terms is off by ``d eps / 2 sum |a_i b_i|`` at most in
    any order of summation (Higham, Accuracy and Stability, Sec. 3.1), hence ``|a|^2 +
    |b|^2 - 2ab`` by ``slack (|a|^2 + |b|^2)``, where 32 further roundings are more than
    all others here. Both sets are centred, which makes the norms small, and scaled by a
    power of two, which keeps squares from underflow.

    Returns:
      The unit of the bounds, a power of two, and an iterator over the first row, the
      ``(rows, len(b))`` float32 lower bounds and the ``Margin`` above these.
    """
    shift = b.mean(axis=0, dtype=np.float64)
    largest = max(np.abs(x - shift).max() for x in (a, b))
    scale = 2.0 ** np.ceil(np.log2(largest)) if largest > 0 else 1.0
    a32, b32 = (((x - shift) / scale).astype(np.float32) for x in (a, b))
    rounding = (a.shape[1] + 32) * np.finfo(np.float32).eps / 2
    slack = rounding / (1 - rounding)
    norms_a, norms_b = (
        np.einsum("ij,ij->i", x, x, dtype=np.float64) for x in (a32, b32)
    )

    def blocks() -> Iterator[tuple[int, np.ndarray, Margin]]:
        for start in range(0, len(a), block_size):
            norms = norms_a[start : start + block_size]
            lower = a32[start : start + block_size] @ b32.T
            lower *= -2
            for axis, squares in ((1, norms), (0, norms_b)):
                least = (1 - slack) * squares - _UNDERFLOW
                lower += np.expand_dims(least.astype(np.float32), axis)

            def margin(
                rows: np.ndarray, columns: np.ndarray, norms: np.ndarray = norms
            ) -> np.ndarray:
                width = slack * (norms[rows] + norms_b[columns]) + 2 * _UNDERFLOW
                return (2 * width).astype(np.float32)

            yield start, lower, margin

    return scale**2, blocks()


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
