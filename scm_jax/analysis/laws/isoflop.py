"""The second approach of arXiv 2203.15556: the best size at each budget of compute.

Lowest points of several budgets give ``N_opt ~ C^p`` and ``L_opt(C)``. Their intervals
say nothing of the method's own bias, which depends on how wide and how centred the grid
of sizes is, even without noise (arXiv 2603.22339): trust the third approach
(``law.fit_chinchilla``) where the two disagree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import Akima1DInterpolator

from scm_jax.analysis import columns
from scm_jax.analysis.laws import power_sums
from scm_jax.analysis.laws.bootstrap import Interval, interval
from scm_jax.analysis.laws.law import Points, PowerLaw

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
_FINE = 201  # points at which an Akima curve is searched for its minimum


@dataclasses.dataclass(frozen=True)
class Valley:
    """Runs of one budget, and the lowest point of the curve through them.

    ``problem`` is ``""``, ``"edge"`` or ``"not convex"``; ``message`` says what that
    means, with numbers.
    """

    flops: float  # of the budget, the geometric mean of its runs
    parameters: np.ndarray  # N of its runs, (n,)
    losses: np.ndarray  # L of its runs, (n,)
    curve_parameters: np.ndarray  # N along the fitted curve
    curve_losses: np.ndarray  # L along it
    best_parameters: Interval  # N of the lowest point; NaN where the curve has none
    best_loss: Interval  # L there
    problem: str
    message: str


@dataclasses.dataclass(frozen=True)
class IsoflopFit:
    """The valleys of all budgets, and what their lowest points follow.

    Only valleys without a problem count for ``exponent`` and ``coefficient`` of
    ``N_opt = k C^p`` (two at least, else NaN) and for ``loss_law`` (three at least).
    """

    method: str  # "parabola" or "akima"
    valleys: tuple[Valley, ...]  # by growing budget
    exponent: Interval  # p of N_opt = k C^p
    coefficient: float  # k
    loss_law: PowerLaw | None  # L_opt = E + A C^-a
    noise: float  # standard deviation of log losses around the curves, pooled
    left_out: tuple[str, ...] = ()  # a sentence on each run too far from its valley

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of the numbers must know, in sentences."""
        found = [valley.message for valley in self.valleys if valley.message]
        good = len(self.valleys) - len(found)
        if good < 3:
            found.append(
                f"the {self.method} exponent rests on {good} budgets with a minimum "
                "inside their sizes; 3 are the least that can show a wrong fit"
            )
        return (*self.left_out, *found)


def group_budgets(flops: ArrayLike, tolerance: float = 0.1) -> np.ndarray:
    """The number of each run's budget, smallest first.

    Whole steps make runs of one budget differ a little: a new budget begins where the
    sorted FLOPs jump by more than ``tolerance``, relatively.

    Example:
      >>> group_budgets([1.00e12, 3.0e12, 1.02e12])
      array([0, 1, 0])
    """
    values = np.asarray(flops, float)
    order = np.argsort(values, kind="stable")
    jumps = np.diff(np.log(values[order])) > np.log1p(tolerance)
    groups = np.empty(len(values), int)
    groups[order] = np.concatenate([[0], np.cumsum(jumps)])
    return groups


def fit_isoflop(
    parameters: ArrayLike,
    flops: ArrayLike,
    loss: ArrayLike,
    *,
    method: str = "parabola",
    budgets: ArrayLike | None = None,
    count: int = 1000,
    seed: int = 0,
) -> IsoflopFit:
    """Valleys, their lowest points and the power laws these follow.

    A run of a valley of at least 5 is left out where it lies more than five robust
    deviations from the parabola through the others; ``IsoflopFit.left_out`` names it.
    Intervals are of a parametric bootstrap: new losses around the curve, with the noise
    pooled over all budgets.

    Args:
      parameters, flops, loss: N, training FLOPs and L of each run, ``(n,)``.
      method: ``"parabola"`` of ``log L`` in ``log N`` through all runs, or ``"akima"``,
        a curve through the mean of each size.
      budgets: number of each run's budget; default is ``group_budgets(flops)``.
        Budgets with fewer than 3 sizes are left out.
      count, seed: replicates of the bootstrap, and where they come from.

    Raises:
      ValueError: another method, a loss that is not positive, or no budget of 3 sizes.

    Example:
      >>> n = np.tile(np.geomspace(1e5, 1e7, 5), 3)
      >>> c = np.repeat([1e13, 1e14, 1e15], 5)
      >>> loss = np.exp(0.05 * np.log(n / (0.3 * c**0.5)) ** 2) * c**-0.1
      >>> round(fit_isoflop(n, c, loss).exponent.estimate, 3)
      0.5
    """
    curves = {"parabola": _parabola, "akima": _akima}
    if method not in curves:
        raise ValueError(f"method = {method!r} is not one of {sorted(curves)}")
    curve = curves[method]
    n, c = columns.numbers(parameters, "parameters"), columns.numbers(flops, "flops")
    y = columns.positive(loss, "loss")
    groups = group_budgets(c) if budgets is None else np.asarray(budgets)
    members = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    members = [m for m in members if len(np.unique(n[m])) >= 3]
    if not members:
        raise ValueError("no budget has 3 sizes: a valley needs them")
    members.sort(key=lambda m: float(np.median(c[m])))
    members, left_out = _near(members, np.log(n), np.log(y))
    rng = np.random.default_rng(seed)
    rests = [
        np.log(y[m]) - _parabola(np.log(n[m]), np.log(y[m])[None])[2][0]
        for m in members
    ]
    freedom = sum(len(rest) - 3 for rest in rests)
    # Three runs at every budget: the parabolas go through them, nothing is known.
    total = sum(float(np.sum(rest**2)) for rest in rests)
    noise = float(np.sqrt(total / freedom)) if freedom else float("nan")
    valleys, optima = [], []
    for m in members:
        order = m[np.argsort(n[m], kind="stable")]
        log_n, log_y = np.log(n[order]), np.log(y[order])
        low, depth = np.full((2, count), np.nan)
        if freedom:
            middle = curve(log_n, log_y[None])[2][0]
            spread = noise * np.sqrt(freedom / rng.chisquare(freedom, size=(count, 1)))
            drawn = middle + spread * rng.normal(size=(count, len(order)))
            low, depth, _ = curve(log_n, drawn)
        optima.append(low)
        budget = float(np.exp(np.mean(np.log(c[order]))))
        valleys.append(_valley(curve, budget, log_n, log_y, low, depth))
    powers = _powers(valleys, np.stack(optima, 1))
    return IsoflopFit(method, tuple(valleys), *powers, noise, left_out)


def _near(
    members: Sequence[np.ndarray], log_n: np.ndarray, log_y: np.ndarray
) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """The runs of each valley but those far from its parabola, and who these are."""
    # One at a time, by residuals over their standard deviation ``sqrt(1 - leverage)``:
    # the largest is that of the run without which the others fit best.
    members, said = list(members), list[str]()
    while True:
        scaled = [np.abs(_scaled(log_n[m], log_y[m])) for m in members]
        freedom = sum(len(m) - 3 for m in members)
        unit = 1.4826 * np.median(np.concatenate(scaled)) * (1 + 5 / max(freedom, 1))
        worst = [int(v.argmax()) for v in scaled]
        rests = [np.delete(m, w) for m, w in zip(members, worst, strict=True)]
        away = [
            v[w] if len(r) >= 4 and len(np.unique(log_n[r])) >= 3 else 0.0
            for v, w, r in zip(scaled, worst, rests, strict=True)
        ] / np.maximum(unit, power_sums.LEAST)
        i = int(away.argmax())
        if away[i] <= power_sums.OUTLYING:
            return members, tuple(said)
        run = members[i][worst[i]]
        said.append(
            f"the loss {np.exp(log_y[run]):.3g} of {np.exp(log_n[run]):.3g} parameters "
            f"lies {away[i]:.3g} deviations from the parabola of its budget and is "
            "left out of the isoFLOP minima"
        )
        members[i] = rests[i]


def _scaled(log_n: np.ndarray, log_y: np.ndarray) -> np.ndarray:
    """Residuals of a parabola over ``sqrt(1 - leverage)``: of one deviation all."""
    powers = np.vander(log_n - log_n.mean(), 3)
    hat = powers @ np.linalg.pinv(powers)
    return (log_y - hat @ log_y) / np.sqrt(np.maximum(1 - np.diag(hat), 1e-6))


def _parabola(log_n: np.ndarray, log_y: np.ndarray) -> Arrays:
    """Vertex, value there and values at the runs, for each row of ``log_y``.

    A parabola that opens downwards has no minimum: NaN.
    """
    center = log_n.mean()
    powers = np.vander(log_n - center, 3, increasing=True)
    constant, slope, bend = (log_y @ np.linalg.pinv(powers).T).T
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = np.where(bend > 0, -slope / (2 * bend), np.nan)
    depth = constant + slope * shift + bend * shift**2
    values = np.stack([constant, slope, bend], 1) @ powers.T
    return center + shift, depth, values


def _akima(log_n: np.ndarray, log_y: np.ndarray) -> Arrays:
    """The same of an Akima curve through the mean of each size."""
    sizes, index, means = _means(log_n, log_y)
    fine = np.linspace(sizes[0], sizes[-1], _FINE)
    along = Akima1DInterpolator(sizes, means, axis=0)(fine)
    return fine[along.argmin(0)], along.min(0), means[index].T


def _means(log_n: np.ndarray, log_y: np.ndarray) -> Arrays:
    """Sizes, the index of each run's, and the mean of each, ``(sizes, rows)``."""
    sizes, index = np.unique(log_n, return_inverse=True)
    sums = np.zeros((len(sizes), len(log_y)))
    np.add.at(sums, index, log_y.T)
    return sizes, index, sums / np.bincount(index)[:, None]


def _valley(
    curve: Callable[[np.ndarray, np.ndarray], Arrays],
    budget: float,
    log_n: np.ndarray,
    log_y: np.ndarray,
    low: np.ndarray,
    depth: np.ndarray,
) -> Valley:
    best, lowest, _ = (v[0] for v in curve(log_n, log_y[None]))
    fine = np.linspace(log_n[0], log_n[-1], _FINE)
    problem, message = _problem(budget, log_n, log_y, best)
    if curve is _akima:
        sizes, _, means = _means(log_n, log_y[None])
        along = Akima1DInterpolator(sizes, means[:, 0])(fine)
    else:
        along = np.polyval(np.polyfit(log_n - fine[0], log_y, 2), fine - fine[0])
    with np.errstate(over="ignore"):  # a flat valley may end at infinity
        optima, depths = np.exp(low), np.exp(depth)
    best_n, least = interval(np.exp(best), optima), interval(np.exp(lowest), depths)
    n, y, curve_n, curve_y = map(np.exp, (log_n, log_y, fine, along))
    return Valley(budget, n, y, curve_n, curve_y, best_n, least, problem, message)


def _problem(
    budget: float, log_n: np.ndarray, log_y: np.ndarray, best: float
) -> tuple[str, str]:
    """Why the lowest point of a valley is not to be trusted, if it is not."""
    smallest, largest = np.exp(log_n[0]), np.exp(log_n[-1])
    at = f"budget {budget:.3g} FLOPs"
    if np.isnan(best):
        return "not convex", f"{at}: the curve is not convex, it has no minimum"
    sizes, _, means = _means(log_n, log_y[None])
    outside = best <= log_n[0] + 1e-9 or best >= log_n[-1] - 1e-9
    if outside or means.argmin() in (0, len(sizes) - 1):
        small = best - log_n[0] < log_n[-1] - best
        side, more = ("smallest", "smaller") if small else ("largest", "larger")
        return "edge", (
            f"{at}: the minimum, {np.exp(best):.3g} parameters, lies at the {side} of "
            f"the sizes, {smallest:.3g} to {largest:.3g}: add {more} ones"
        )
    return "", ""


def _powers(
    valleys: Sequence[Valley], optima: np.ndarray
) -> tuple[Interval, float, PowerLaw | None]:
    """Exponent and coefficient of ``N_opt``, and the law of ``L_opt``."""
    good = [i for i, valley in enumerate(valleys) if not valley.problem]
    exponent, coefficient, law = Interval(float("nan")), float("nan"), None
    if len(good) >= 2:
        log_c = np.log([valleys[i].flops for i in good])
        best = np.log([valleys[i].best_parameters.estimate for i in good])
        slope = (log_c - log_c.mean()) / np.sum((log_c - log_c.mean()) ** 2)
        exponent = interval(float(best @ slope), optima[:, good] @ slope)
        coefficient = float(np.exp(best.mean() - exponent.estimate * log_c.mean()))
    if len(good) >= 3:
        losses = [valleys[i].best_loss.estimate for i in good]
        points = Points.of(PowerLaw, losses, np.exp(log_c))
        law = points.law(power_sums.fit(points.log_x, points.log_y, np.inf))
    return exponent, coefficient, law
