"""Intervals of a fitted law: a bootstrap over configurations.

``docs/laws.md`` has the measured coverage, and what else was tried.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from scm_jax.analysis.laws import power_sums
from scm_jax.analysis.laws.law import Points

LEVEL = 0.95
# Fewer configurations than this per parameter leave resamples too poor to fit.
ENOUGH = 2
_MIN_DISTINCT = 3


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate with its bootstrap interval; NaN where there is none."""

    estimate: float
    low: float = float("nan")
    high: float = float("nan")

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        if np.isnan(self.low):
            return f"{self.estimate:.4g}"
        return f"{self.estimate:.4g} [{self.low:.4g}, {self.high:.4g}]"


def interval(estimate: ArrayLike, replicates: ArrayLike, level: float = LEVEL) -> Any:
    """The percentile interval of replicates, ``(r, ...)``, for each estimate ``(...)``.

    Replicates without a value (NaN: a resample whose law has no optimum) could lie on
    either side, so they count at both ends; with more than ``1 - level`` of them the
    interval is unbounded.

    Example:
      >>> print(interval(5.0, np.arange(101) / 10))
      5 [0.2, 9.8]
    """
    values = np.asarray(replicates, float)
    tail = (1 - level) / 2
    missing = np.isnan(values)
    # The next replicate outwards: between a number and infinity there is no other.
    low = np.quantile(np.where(missing, -np.inf, values), tail, axis=0, method="lower")
    high = np.quantile(
        np.where(missing, np.inf, values), 1 - tail, axis=0, method="higher"
    )
    if np.ndim(estimate) == 0:
        return Interval(float(np.asarray(estimate)), float(low), float(high))
    rows = zip(*(np.ravel(v) for v in (estimate, low, high)), strict=True)
    return [Interval(*map(float, row)) for row in rows]


def configurations(*columns: ArrayLike) -> np.ndarray:
    """The number of each run's configuration, which agrees in all columns.

    Example:
      >>> configurations([1, 1, 2, 1], [5, 5, 5, 7])
      array([0, 0, 2, 1])
    """
    table = np.stack([np.asarray(column).ravel() for column in columns], axis=1)
    _, groups = np.unique(table, axis=0, return_inverse=True)
    return groups.ravel()


def resample(
    groups: np.ndarray,
    log_x: np.ndarray,
    parameters: int,
    count: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """How often each run occurs in each resample, ``(count, n)``.

    Runs of one configuration (same N and D, other seeds) share what the law misses
    there: a resample takes all of them or none. It has at least 3 values of each column
    of ``log_x``, ``(n, K)``.

    Raises:
      ValueError: there are not more configurations than ``parameters``.
    """
    total = int(groups.max()) + 1
    if total <= parameters:
        raise ValueError(
            f"{total} configurations give no interval for {parameters} parameters"
        )
    # G draws of G configurations make intervals too narrow by sqrt(1 - P / G), as
    # residuals of a fit with P parameters are smaller than errors: G - P do not.
    size = max(total - parameters, (total + 1) // ENOUGH)
    values = [np.unique(column, return_inverse=True)[1] for column in log_x.T]
    kept: list[np.ndarray] = []
    missing = count
    for _ in range(200):
        drawn = rng.multinomial(size, np.full(total, 1 / total), size=missing)
        weights = drawn[:, groups]
        rich = np.ones(missing, bool)
        for v in values:
            held = [(weights[:, v == i] > 0).any(1) for i in range(v.max() + 1)]
            rich &= np.sum(held, axis=0) >= _MIN_DISTINCT
        kept.append(weights[rich])
        missing -= int(rich.sum())
        if missing == 0:
            return np.concatenate(kept).astype(float)
    raise ValueError(
        f"resamples of {total} configurations rarely have {_MIN_DISTINCT} sizes and "
        "training lengths: more of them are needed for an interval"
    )


def bootstrap(
    points: Points,
    theta: np.ndarray,
    groups: np.ndarray,
    *,
    delta: float,
    count: int = 1000,
    seed: int = 0,
) -> Any:
    """The law refitted to ``count`` resamples: a law whose fields are ``(count,)``.

    Every refit starts at ``theta``, the fit of ``points``; ``groups`` has the
    configuration of each run, and ``delta`` is that of the Huber loss.

    Raises:
      ValueError: see ``resample``.
    """
    rng = np.random.default_rng(seed)
    weights = resample(groups, points.log_x, theta.size, count, rng)
    return points.law(
        power_sums.refit(points.log_x, points.log_y, weights, theta, delta)
    )
