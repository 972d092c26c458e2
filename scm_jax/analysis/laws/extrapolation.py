"""How far a law can be trusted: the largest budget, predicted from the others."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from scm_jax.analysis.laws import power_sums
from scm_jax.analysis.laws.bootstrap import LEVEL, bootstrap
from scm_jax.analysis.laws.law import ChinchillaLaw, Points


@dataclasses.dataclass(frozen=True)
class Extrapolation:
    """The runs of the largest budget against a law that has not seen them.

    95 % of such runs should fall between ``low`` and ``high``: that is the interval of
    the law and of the noise of one run.
    """

    flops: float  # the budget that was left out, the geometric mean of its runs
    times_larger: float  # over the largest budget that the law saw
    parameters: np.ndarray  # N of its runs, (n,)
    images: np.ndarray  # D of its runs
    measured: np.ndarray  # their losses
    predicted: np.ndarray  # what the law expected
    low: np.ndarray
    high: np.ndarray

    @property
    def errors(self) -> np.ndarray:
        """``predicted / measured - 1`` of each run."""
        return self.predicted / self.measured - 1

    @property
    def median_error(self) -> float:
        """The median size of the errors: the headline of a fit."""
        return float(np.median(np.abs(self.errors)))

    @property
    def largest_error(self) -> float:
        """The largest size of the errors."""
        return float(np.max(np.abs(self.errors)))

    @property
    def inside(self) -> np.ndarray:
        """Which runs fell into their interval."""
        return (self.low <= self.measured) & (self.measured <= self.high)


def leave_largest_out(
    parameters: np.ndarray,
    images: np.ndarray,
    flops: np.ndarray,
    loss: np.ndarray,
    budgets: np.ndarray,
    groups: np.ndarray,
    *,
    delta: float | None = None,
    count: int = 1000,
    seed: int = 0,
) -> Extrapolation:
    """Fits a law without the runs of the largest budget, and predicts these.

    ``budgets`` is as of ``isoflop.group_budgets``, ``groups`` as of
    ``bootstrap.configurations``. By default ``delta`` follows the noise, and runs that
    ``power_sums.robust_start`` finds far from the law are left out.

    Raises:
      ValueError: what is left cannot carry a law with intervals.
    """
    middles = {b: float(np.mean(np.log(flops[budgets == b]))) for b in set(budgets)}
    largest = max(middles, key=lambda b: middles[b])
    held, seen = budgets == largest, budgets != largest
    if not seen.any():
        raise ValueError("there is one budget only: none is left to fit a law to")
    points = Points.of(ChinchillaLaw, loss[seen], parameters[seen], images[seen])
    if delta is None:
        _, delta, away = power_sums.robust_start(points.log_x, points.log_y)
        seen[seen] = np.abs(away) <= power_sums.OUTLYING
        points = Points.of(ChinchillaLaw, loss[seen], parameters[seen], images[seen])
    theta = power_sums.fit(points.log_x, points.log_y, delta)
    _, kept = np.unique(groups[seen], return_inverse=True)
    laws = bootstrap(points, theta, kept, delta=delta, count=count, seed=seed)
    law = points.law(theta)
    residuals = np.log(loss[seen] / law(parameters[seen], images[seen]))
    where = parameters[held], images[held]
    low, high = prediction_interval(laws, residuals, *where, seed)
    expected = law(*where)
    below = max(middle for b, middle in middles.items() if b != largest)
    budget, times = np.exp(middles[largest]), np.exp(middles[largest] - below)
    run = (parameters[held], images[held], loss[held], expected, low, high)
    return Extrapolation(float(budget), float(times), *run)


def prediction_interval(
    laws: ChinchillaLaw,
    residuals: np.ndarray,
    parameters: ArrayLike,
    images: ArrayLike,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Where 95 % of single new runs should fall, ``(n,)`` each.

    Each replicate of the law gets one of the ``residuals`` of log losses of the fitted
    runs, scaled up by ``sqrt(n / (n - P))`` since residuals are smaller than errors.
    """
    rng = np.random.default_rng(seed)
    columns = [np.asarray(f)[:, None] for f in dataclasses.astuple(laws)]
    spare = max(len(residuals) - len(columns), 1)
    scaled = residuals * np.sqrt(len(residuals) / spare)
    expected = ChinchillaLaw(*columns)(parameters, images)
    single = expected * np.exp(rng.choice(scaled, size=expected.shape))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(single, [tail, 1 - tail], axis=0)
    return low, high
