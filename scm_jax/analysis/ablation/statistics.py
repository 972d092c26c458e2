"""Means over pairs with their intervals, and the noise of seeds and of metrics."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_BOOTSTRAPS = 10_000


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over pairs.

    Attributes:
      value: the mean; NaN without pairs.
      interval: of Student's t with n - 1 degrees of freedom; infinite for one pair.
      bootstrap: percentiles of the mean over resampled pairs. Of few pairs it is too
        narrow: it cannot reach beyond the least and the greatest of them.
    """

    value: float
    interval: tuple[float, float]
    bootstrap: tuple[float, float]

    def map(self, fn: Any) -> Estimate:
        """The estimate of an increasing function of the mean."""
        pairs = [tuple(map(fn, pair)) for pair in (self.interval, self.bootstrap)]
        return Estimate(fn(self.value), *pairs)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A run as a comparison needs it."""

    run: str
    state: str
    value: float
    deviation: float
    sets: int

    @property
    def missing(self) -> str:
        """Why there is no value; empty where there is one."""
        if math.isfinite(self.value):
            return ""
        return self.state if self.state != "done" else "no finite value"


# Arm -> (shared config, seed) -> run.
Cells = dict[tuple, dict[tuple, Cell]]


def estimate(
    values: Sequence[float] | np.ndarray, confidence: float = 0.95
) -> Estimate:
    """Mean of independent values with its intervals.

    Example:
      >>> low, high = estimate([1.0, 2.0, 3.0]).interval
      >>> round(low, 3), round(high, 3)
      (-0.484, 4.484)

    Args:
      values: one per pair.
      confidence: of the intervals.
    """
    values = np.asarray(values, np.float64)
    n = len(values)
    if n == 0:
        return Estimate(math.nan, (math.nan, math.nan), (math.nan, math.nan))
    mean = float(values.mean())
    if n == 1:
        return Estimate(mean, (-math.inf, math.inf), (-math.inf, math.inf))
    half = t_quantile(n - 1, confidence) * float(values.std(ddof=1)) / math.sqrt(n)
    rng = np.random.default_rng(0)
    means = values[rng.integers(n, size=(_BOOTSTRAPS, n))].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = map(float, np.quantile(means, [tail, 1 - tail]))
    return Estimate(mean, (mean - half, mean + half), (low, high))


def pooled_seed_noise(cells: Mapping[tuple, Cell]) -> tuple[float, int]:
    """Standard deviation over seeds, pooled over shared configs; its degrees of
    freedom."""
    blocks = collections.defaultdict(list)
    for (*block, _), cell in cells.items():
        if not cell.missing:
            blocks[tuple(block)].append(cell.value)
    degrees = sum(len(values) - 1 for values in blocks.values())
    if not degrees:
        return math.nan, 0
    squares = sum(float(np.var(values)) * len(values) for values in blocks.values())
    return math.sqrt(squares / degrees), degrees


def mean_metric_noise(cells: Cells) -> float:
    """Root mean square of the standard error of values over sets of samples."""
    squares = [
        cell.deviation**2 / cell.sets
        for own in cells.values()
        for cell in own.values()
        if math.isfinite(cell.deviation) and cell.sets > 1
    ]
    return math.sqrt(float(np.mean(squares))) if squares else math.nan


def t_quantile(degrees: float, confidence: float) -> float:
    """How many standard errors a two-sided interval reaches to each side."""
    from scipy import stats

    return float(stats.t.ppf((1 + confidence) / 2, degrees))


def exp(value: float) -> float:
    """``e^value``; infinite where that overflows."""
    return math.exp(value) if value < 700 else math.inf
