"""The first approach of arXiv 2203.15556: the envelope of training curves.

It needs curves of a quality that compares between runs, measured during training (a
fixed validation error), and takes each moment of a run for the end of one: under a
learning-rate decay it asks for models that are too small. A run that diverged is never
the best one and moves nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from scm_jax.analysis import columns
from scm_jax.analysis.laws.bootstrap import Interval, interval

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True)
class Curve:
    """One run in training."""

    parameters: float  # N
    images: np.ndarray  # seen at each measurement, growing, (k,)
    flops: np.ndarray  # training FLOPs spent until then, (k,)
    loss: np.ndarray  # measured then, positive, (k,)


@dataclasses.dataclass(frozen=True)
class Envelope:
    """The best run at each amount of compute, and the power laws through them.

    At an ``edge`` the best was the smallest or largest size that got so far: a size
    outside the study may be better, and the point is no part of the fits.
    """

    flops: np.ndarray  # where curves were compared, (m,)
    loss: np.ndarray  # of the best one
    parameters: np.ndarray  # its N
    images: np.ndarray  # its D by then
    edge: np.ndarray
    parameters_exponent: Interval  # p of N_opt = k C^p; NaN without two inner sizes
    images_exponent: Interval  # q of D_opt = m C^q
    coefficients: tuple[float, float]  # k and m
    warnings: tuple[str, ...]  # what a reader must know, in sentences


def curves_of(runs: pd.DataFrame, metrics: pd.DataFrame, loss: str) -> list[Curve]:
    """The curves of tables as ``load_runs`` and ``load_metrics`` return them.

    Raises:
      ValueError: no run has the loss, a column of ``metrics``, at two moments.
    """
    runs = columns.numeric(runs, "parameters", "flops_per_image")
    metrics = columns.numeric(metrics, loss, "images")
    usable = metrics[(metrics[loss] > 0) & (metrics["images"] > 0)]
    found = []
    for name, rows in usable.groupby("run_id"):
        if name not in runs.index or len(rows) < 2:
            continue
        rows = rows.sort_values("images")
        images = rows["images"].to_numpy(float)
        size, cost = map(float, runs.loc[name, ["parameters", "flops_per_image"]])
        found.append(Curve(size, images, images * cost, rows[loss].to_numpy(float)))
    if not found:
        raise ValueError(f"no run has {loss} at two moments of its training")
    return found


def fit_envelope(
    curves: Sequence[Curve], *, points: int = 40, count: int = 1000, seed: int = 0
) -> Envelope:
    """Compares curves at ``points`` amounts of compute, geometrically spaced.

    They reach from the least compute that two sizes have reached to the most. Losses
    between measurements are interpolated in ``log L`` against ``log C``; a curve counts
    only where it was measured. Intervals are of a bootstrap over runs.

    Raises:
      ValueError: fewer than 3 sizes, or no compute that two of them have reached.
    """
    sizes = np.array([curve.parameters for curve in curves])
    if (found := len(np.unique(sizes))) < 3:
        raise ValueError(f"an envelope needs curves of 3 sizes; there are {found}")
    flops = _grid(curves, points)
    # log L of each curve; infinite where it was not measured
    ends = {"left": np.inf, "right": np.inf}
    logs = [(np.log(c.flops), np.log(c.loss)) for c in curves]
    table = np.stack([np.interp(np.log(flops), *pair, **ends) for pair in logs])
    best, edge = _best(table, sizes)
    rng = np.random.default_rng(seed)
    slopes = np.full((count, 2), np.nan)
    cost = np.array([curve.flops[-1] / curve.images[-1] for curve in curves])
    for i in range(count):
        chosen = rng.integers(len(curves), size=len(curves))
        where, outside = _best(table[chosen], sizes[chosen])
        slopes[i] = _slopes(flops, sizes[chosen], cost[chosen], where, outside)[0]
    (p, q), coefficients = _slopes(flops, sizes, cost, best, edge)
    for_n, for_d = interval(np.array([p, q]), slopes)
    warnings = []
    if edge.any():
        warnings.append(
            f"at {100 * np.mean(edge):.0f} % of the envelope the best size is the "
            "smallest or largest that got so far; those points are left out"
        )
    if (inner := len(np.unique(sizes[best[~edge]]))) < 3:
        warnings.append(f"the envelope's exponents rest on {inner} sizes")
    if not np.isfinite(p):
        for_n = for_d = Interval(float("nan"))
    loss = np.exp(table[best, np.arange(len(flops))])
    drawn = (flops, loss, sizes[best], flops / cost[best], edge)
    return Envelope(*drawn, for_n, for_d, coefficients, tuple(warnings))


def _grid(curves: Sequence[Curve], points: int) -> np.ndarray:
    """Where curves of at least two sizes have been measured."""
    sizes = {curve.parameters for curve in curves}
    same = [[c.flops for c in curves if c.parameters == size] for size in sizes]
    low = sorted(min(flops[0] for flops in own) for own in same)[1]
    high = sorted(max(flops[-1] for flops in own) for own in same)[-2]
    if low >= high:
        raise ValueError("no two sizes were measured at the same training FLOPs")
    # Inside by a hair: the ends of curves are themselves.
    return np.geomspace(low * (1 + 1e-9), high * (1 - 1e-9), points)


def _best(table: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest curve of each column, and whether its size is an extreme there."""
    best = table.argmin(0)
    there = np.isfinite(table)
    smallest = np.where(there, sizes[:, None], np.inf).min(0)
    largest = np.where(there, sizes[:, None], -np.inf).max(0)
    # Columns that no curve of a resample covers count as edges too.
    edge = (sizes[best] == smallest) | (sizes[best] == largest) | ~there.any(0)
    return best, edge


def _slopes(
    flops: np.ndarray,
    sizes: np.ndarray,
    cost: np.ndarray,
    best: np.ndarray,
    edge: np.ndarray,
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Exponents and coefficients of N_opt and D_opt; NaN without two inner sizes."""
    nothing = (float("nan"), float("nan"))
    inner = best[~edge]
    if len(np.unique(sizes[inner])) < 2:
        return nothing, nothing
    log_c, log_n = np.log(flops[~edge]), np.log(sizes[inner])
    log_d = log_c - np.log(cost[inner])
    (p, k), (q, m) = (np.polyfit(log_c, v, 1) for v in (log_n, log_d))
    return (float(p), float(q)), (float(np.exp(k)), float(np.exp(m)))
