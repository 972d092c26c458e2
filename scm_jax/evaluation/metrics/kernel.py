"""The Kernel Inception Distance, with an interval for that of the two distributions.

The interval is exact to first order where they differ, too wide where they are equal.
"""

# The deviation over random subsets, as published, is the error of 1,000 samples, and
# the bootstrap of a degenerate U-statistic (of equal distributions) is inconsistent.
# Values of disjoint blocks are independent and unbiased, so that their mean has a valid
# Student interval (the B-test, arXiv 1307.1954). The U-statistic over all points is the
# mean of this over all cuts into blocks, hence has no larger variance (Rao-Blackwell).

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from scm_jax.evaluation.metrics.frechet import check_features

# Disjoint blocks behind an interval: their least number, and the size aimed at.
MIN_BLOCKS, BLOCK_SIZE = 10, 1000
MIN_POINTS = 4 * MIN_BLOCKS

# Kernel values held at a time: 128 MiB in float64.
_VALUES_IN_MEMORY = 2**24


class Kid(NamedTuple):
    """Kernel distance.

    Attributes:
      value: mean over the subsets; unbiased, hence negative at times.
      std: standard deviation over the subsets, as published. No interval.
      low: lower end of the 95 % interval of the distance of the two distributions.
      high: its upper end.
    """

    value: float
    std: float
    low: float
    high: float


def cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``(x.y / d + 1)^3`` of all pairs, ``(n, m)`` (arXiv 1801.01401, Sec. 4)."""
    base = x @ y.T / x.shape[1] + 1
    return base * base * base  # numpy's power takes four times as long


def kid(
    real: np.ndarray,
    fake: np.ndarray,
    num_subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> Kid:
    """Kernel Inception Distance: ``mmd2`` with ``cubic`` over random subsets.

    Args:
      real, fake: ``(n, d)`` and ``(m, d)`` features.
      num_subsets: subsets, each drawn without replacement from both sets.
      subset_size: points of a subset on each side; a smaller set is used whole.
      seed: of the subsets.

    Raises:
      ValueError: different dimensions, values that are not finite, fewer than
        ``MIN_POINTS`` on a side, or settings out of range.
    """
    real, fake = np.asarray(real), np.asarray(fake)
    check_features(real, fake)
    if min(len(real), len(fake)) < MIN_POINTS:
        raise ValueError(
            f"{len(real)} and {len(fake)} features: an interval needs {MIN_POINTS}"
            " or more on each side"
        )
    for name, given in {"num_subsets": num_subsets, "subset_size": subset_size}.items():
        if given < 2:
            raise ValueError(f"{name} = {given}: must be at least 2")
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(num_subsets):
        x, y = (
            points[rng.choice(len(points), min(subset_size, len(points)), False)]
            for points in (real, fake)
        )
        values.append(mmd2(x, y))
    value, std = float(np.mean(values)), float(np.std(values, ddof=1))
    blocks = [mmd2(x, y) for x, y in _blocks(real, fake, seed)]
    # The error of the mean over blocks, plus what is left from drawing subsets.
    subset_error = std / np.sqrt(num_subsets)
    variance = np.var(blocks, ddof=1) / len(blocks) + subset_error**2
    margin = float(student.ppf(0.975, len(blocks) - 1) * np.sqrt(variance))
    return Kid(value, std, value - margin, value + margin)


def mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """Squared maximum mean discrepancy, unbiased (Gretton et al., JMLR 2012, Eq. 3).

    ``mean k(x, x') + mean k(y, y') - 2 mean k(x, y)`` with ``k = cubic``; the first two
    means leave out the pairs of a point with itself.

    Example:
      >>> points = np.array([[0.0], [1.0]])
      >>> mmd2(points, points)
      -3.5
    """
    x, y = x.astype(np.float64, copy=False), y.astype(np.float64, copy=False)
    cross, _ = _sums(x, y)
    found = -2 * cross / (len(x) * len(y))
    for points in (x, y):
        n = len(points)
        every, itself = _sums(points, points)
        found += (every - itself) / (n * (n - 1))
    return found


def _sums(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Sums of the kernel over all pairs, and over the pairs of equal index."""
    rows = max(1, _VALUES_IN_MEMORY // len(y))
    every = equal = 0.0
    for i in range(0, len(x), rows):
        values = cubic(x[i : i + rows], y)
        every += float(values.sum())
        equal += float(np.trace(values, offset=i))
    return every, equal


def _blocks(
    real: np.ndarray, fake: np.ndarray, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Both sets, shuffled and cut into equally many disjoint blocks."""
    rng = np.random.default_rng(seed)
    sizes = len(real), len(fake)
    count = max(MIN_BLOCKS, min(-(-max(sizes) // BLOCK_SIZE), min(sizes) // 4))
    cut = [np.array_split(rng.permutation(len(x)), count) for x in (real, fake)]
    for rows, columns in zip(*cut, strict=True):
        yield real[rows], fake[columns]
