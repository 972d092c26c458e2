"""Means over pairs with their intervals, and the noise of seeds and of metrics."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from scm_jax.analysis.ablation.cells import Cell, Cells

_BOOTSTRAPS = 10_000


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over pairs; its bootstrap interval is too narrow where they are few."""

    value: float  # NaN without pairs
    interval: tuple[float, float]  # of Student's t, n - 1 degrees; infinite for n = 1
    bootstrap: tuple[float, float]  # percentiles of the mean over resampled pairs

    def map(self, fn: Any) -> Estimate:
        """The estimate of an increasing function of the mean."""
        pairs = [tuple(map(fn, pair)) for pair in (self.interval, self.bootstrap)]
        return Estimate(fn(self.value), *pairs)

    def text(self, sign: str = "") -> str:
        """``+0.5 [−0.1, +1.1]``: two digits of the interval's half width."""
        if math.isnan(self.value):
            return "–"
        low, high = self.interval
        half = (high - low) / 2
        numbers = (self.value, low, high)
        if 0 < half < math.inf:
            decimals = max(0, 1 - math.floor(math.log10(half)))
            texts = [f"{x:{sign}.{decimals}f}".replace("-", "−") for x in numbers]
        else:
            texts = [number_text(x, sign) for x in numbers]
        return f"{texts[0]} [{', '.join(texts[1:])}]"


NOTHING = Estimate(math.nan, (math.nan, math.nan), (math.nan, math.nan))


def estimate(values: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Mean of independent values, one a pair, with its intervals.

    Example:
      >>> low, high = estimate([1.0, 2.0, 3.0]).interval
      >>> round(low, 3), round(high, 3)
      (-0.484, 4.484)
    """
    values = np.asarray(values, np.float64)
    n = len(values)
    if n == 0:
        return NOTHING
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
    """Standard deviation over seeds within shared configs; its degrees of freedom."""
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


def number_text(value: float, sign: str = "") -> str:
    """Three digits; empty for NaN."""
    if math.isnan(value):
        return ""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:{sign}.3g}".replace("-", "−")
