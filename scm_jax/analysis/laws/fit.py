"""A scaling study as one object: the law, its intervals, its prediction error.

fit = fit_scaling(load_runs("runs/isoflop_digits"), "2_steps/frechet_distance")
print(fit)                      # in a notebook ``fit`` alone shows a table
fit.optimum(1e15)               # parameters, images, loss with intervals
"""

from __future__ import annotations

import dataclasses
import html
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from scm_jax.analysis import columns
from scm_jax.analysis.laws import bootstrap, extrapolation, isoflop, power_sums
from scm_jax.analysis.laws import law as laws
from scm_jax.analysis.laws.bootstrap import Interval, interval
from scm_jax.analysis.laws.extrapolation import Extrapolation
from scm_jax.analysis.laws.isoflop import IsoflopFit
from scm_jax.analysis.laws.law import ChinchillaLaw, FlopsPerImage, Points

if TYPE_CHECKING:
    import pandas as pd

# A power law of FLOPs per image that misses a size by more than this is reported.
_COST_TOLERANCE = 0.05
# Columns of N, D and training FLOPs.
_INPUTS = ("parameters", "images", "flops")


@dataclasses.dataclass(frozen=True)
class ScalingFit:
    """A fitted study; ``print`` it for what a paper needs.

    Arrays have an entry for each run that was fitted, ``(n,)``. ``replicates`` is a law
    whose fields are arrays: fits of resampled configurations.
    """

    loss_name: str  # the quality that was fitted
    parameters: np.ndarray  # N
    images: np.ndarray  # D
    flops: np.ndarray  # training FLOPs
    loss: np.ndarray  # the quality
    budgets: np.ndarray  # number of the budget, smallest first
    groups: np.ndarray  # number of the configuration
    law: ChinchillaLaw
    replicates: ChinchillaLaw | None
    flops_per_image: FlopsPerImage  # how training FLOPs per image grow with N
    delta: float  # of the Huber loss
    noise: float  # robust standard deviation of log losses around the law
    isoflop: IsoflopFit | None  # by parabolas; None where no budget has 3 sizes
    extrapolation: Extrapolation | None  # of the largest budget, if the others suffice
    warnings: tuple[str, ...]  # what a reader must know, in sentences

    def _interval(self, number: Callable[[ChinchillaLaw], Any]) -> Interval:
        estimate = float(number(self.law))
        if self.replicates is None:
            return Interval(estimate)
        return interval(estimate, number(self.replicates))

    def intervals(self) -> dict[str, Interval]:
        """E, A, B, a, b and the exponents of ``N_opt ~ C^p`` and ``D_opt ~ C^q``."""
        growth = self.flops_per_image.exponent
        found = {n: self._interval(operator.attrgetter(n)) for n in "EABab"}
        found["p"] = self._interval(lambda law: law.parameters_exponent(growth))
        found["q"] = self._interval(lambda law: law.images_exponent(growth))
        return found

    def predict(self, parameters: float, images: float) -> Interval:
        """The expected loss of N parameters trained on D images."""
        return self._interval(lambda law: law(parameters, images))

    def single_runs(self, parameters: ArrayLike, images: ArrayLike) -> list[Interval]:
        """The losses of new runs, ``(n,)``: where 95 % of such runs should fall.

        Unlike ``predict`` this has the noise of a run in it.

        Raises:
          ValueError: the fit has no intervals.
        """
        if self.replicates is None:
            raise ValueError("the fit has no intervals: see its warnings")
        residuals = np.log(self.loss / self.law(self.parameters, self.images))
        low, high = extrapolation.prediction_interval(
            self.replicates, residuals, parameters, images
        )
        expected = self.law(parameters, images)
        rows = zip(*map(np.ravel, (expected, low, high)), strict=True)
        return [Interval(*map(float, row)) for row in rows]

    def optimum(self, flops: float) -> dict[str, Interval]:
        """The compute-optimal ``parameters``, ``images`` and ``loss`` of a budget."""

        def best(name: str) -> Interval:
            return self._interval(
                lambda law: getattr(law.optimum(flops, self.flops_per_image), name)
            )

        return {name: best(name) for name in ("parameters", "images", "loss")}

    def rows(self) -> dict[str, str]:
        """The summary, as names and values."""
        found = {name: str(value) for name, value in self.intervals().items()}
        cost = self.flops_per_image
        rows = {
            "law": "L = E + A / N^a + B / D^b",
            "loss": self.loss_name,
            "runs": f"{len(self.loss)} of {self.groups.max() + 1} configurations, "
            f"{self.budgets.max() + 1} budgets, {self.flops.min():.2g} to "
            f"{self.flops.max():.2g} FLOPs",
            **{name: found[name] for name in "EABab"},
            "N_opt ~ C^p, p": found["p"],
            "D_opt ~ C^q, q": found["q"],
        }
        if self.isoflop is not None:
            rows["p by parabolas"] = str(self.isoflop.exponent)
        noise, delta = 100 * self.noise, self.delta
        rows["noise"] = f"{noise:.2g} % around the law, delta {delta:.2g}"
        rows["FLOPs per image"] = f"{cost.coefficient:.4g} N^{cost.exponent:.4g}"
        if (left := self.extrapolation) is not None:
            rows["extrapolation"] = (
                f"{100 * left.median_error:.2g} % median, "
                f"{100 * left.largest_error:.2g} % largest, {left.inside.sum()} of "
                f"{left.inside.size} runs inside the interval, over a factor "
                f"{left.times_larger:.2g} in FLOPs"
            )
        return rows

    def __str__(self) -> str:
        lines = [f"{name:15s}  {value}" for name, value in self.rows().items()]
        return "\n".join([*lines, *(f"warning: {w}" for w in self.warnings)])

    def _repr_html_(self) -> str:
        left = "style='text-align:left'"
        cells = "".join(
            f"<tr><th {left}>{html.escape(name)}</th>"
            f"<td {left}>{html.escape(value)}</td></tr>"
            for name, value in self.rows().items()
        )
        warnings = map(html.escape, self.warnings)
        notes = "".join(f"<p><b>warning</b>: {text}</p>" for text in warnings)
        return f"<table>{cells}</table>{notes}"


def fit_scaling(
    frame: pd.DataFrame,
    loss: str,
    *,
    group: Sequence[str] = (),
    delta: float | None = None,
    count: int = 1000,
    seed: int = 0,
) -> ScalingFit:
    """Fits a table of runs, as ``load_runs`` returns it.

    Runs without the loss, runs that are not done (where there is a column ``state``)
    and losses that are infinite or not positive are left out, and so are runs more than
    five deviations from the law of the others; warnings say which.

    Args:
      frame: one row per run, with the columns ``parameters``, ``images`` and ``flops``.
      loss: column of the quality, such as ``2_steps/frechet_distance``.
      group: columns that tell configurations apart; runs that agree in them are seeds
        of one. Default is N and D.
      delta: where the Huber loss of ``log L`` turns linear; default follows the noise
        (``power_sums.robust_start``), ``power_sums.HUBER_DELTA`` is Chinchilla's. If
        it is given, runs far from the law are named and kept.
      count, seed: replicates of the bootstrap, and where they come from.

    Raises:
      ValueError: a column is missing or holds text, runs of several objectives are
        mixed, or the runs cannot carry a law.
    """
    frame = columns.numeric(frame, loss, *_INPUTS)
    if unknown := set(group) - set(frame.columns):
        raise ValueError(f"group: the table has no columns {sorted(unknown)}")
    dropped, frame = _usable(frame, loss)
    if "objective" in frame.columns and frame["objective"].nunique() > 1:
        raise ValueError(
            "runs of several objectives share no law: select one of "
            f"{sorted(frame['objective'].unique())} by the column 'objective'"
        )
    telling = [frame[name].to_numpy() for name in group or _INPUTS[:2]]
    codes = [np.unique(column, return_inverse=True)[1] for column in telling]
    fit = fit_study(
        *(frame[name].to_numpy(float) for name in (*_INPUTS, loss)),
        groups=bootstrap.configurations(*codes) if len(frame) else None,
        names=[i if isinstance(i, str) else f"run {i}" for i in frame.index],
        loss_name=loss,
        delta=delta,
        count=count,
        seed=seed,
    )
    return dataclasses.replace(fit, warnings=(*dropped, *fit.warnings))


def fit_study(
    parameters: ArrayLike,
    images: ArrayLike,
    flops: ArrayLike,
    loss: ArrayLike,
    *,
    groups: np.ndarray | None = None,
    names: Sequence[str] | None = None,
    loss_name: str = "loss",
    delta: float | None = None,
    count: int = 1000,
    seed: int = 0,
) -> ScalingFit:
    """``fit_scaling`` of arrays, ``(n,)`` each; ``names`` are those of the runs.

    Raises:
      ValueError: values that are not positive and finite, or too few of them.
    """
    given = {"parameters": parameters, "images": images, "flops": flops, "loss": loss}
    n, d, c, y = (columns.numbers(values, name) for name, values in given.items())
    if groups is None:
        groups = bootstrap.configurations(n, d)
    points = Points.of(ChinchillaLaw, y, n, d)
    near, follows, away = power_sums.robust_start(points.log_x, points.log_y)
    sound = np.abs(away) <= power_sums.OUTLYING
    names = names or [f"run {i}" for i in range(len(y))]
    warnings = _outlying(names, y / points.law(near)(n, d), away, delta)
    if delta is None and not sound.all():
        n, d, c, y = n[sound], d[sound], c[sound], y[sound]
        groups = np.unique(groups[sound], return_inverse=True)[1]
        points = Points.of(ChinchillaLaw, y, n, d)
    delta = follows if delta is None else delta
    cost = laws.fit_flops_per_image(n, c / d)
    budgets = isoflop.group_budgets(c)
    theta = power_sums.fit(points.log_x, points.log_y, delta)
    settings: dict[str, Any] = {"count": count, "seed": seed}
    warnings += _bound_warnings(points, theta)
    replicates = valleys = left_out = None
    try:
        replicates = bootstrap.bootstrap(points, theta, groups, delta=delta, **settings)
        warnings += _interval_warnings(replicates, groups, theta.size)
    except ValueError as error:
        warnings.append(f"no intervals: {error}")
    try:
        valleys = isoflop.fit_isoflop(n, c, y, budgets=budgets, **settings)
        warnings += valleys.warnings
    except ValueError as error:
        warnings.append(f"no isoFLOP minima: {error}")
    try:
        left_out = extrapolation.leave_largest_out(
            n, d, c, y, budgets, groups, delta=delta, **settings
        )
    except ValueError as error:
        warnings.append(f"no extrapolation error: {error}")
    if (miss := laws.flops_per_image_error(cost, n, c / d)) > _COST_TOLERANCE:
        warnings.append(
            f"FLOPs per image are no power law of the sizes (off by {100 * miss:.0f} % "
            "at one of them): optima at a budget are that far off too"
        )
    noise = power_sums.noise(theta, points.log_x, points.log_y)
    return ScalingFit(
        loss_name=loss_name,
        parameters=n,
        images=d,
        flops=c,
        loss=y,
        budgets=budgets,
        groups=groups,
        law=points.law(theta),
        replicates=replicates,
        flops_per_image=cost,
        delta=delta,
        noise=noise,
        isoflop=valleys,
        extrapolation=left_out,
        warnings=tuple(warnings),
    )


def _usable(frame: pd.DataFrame, loss: str) -> tuple[list[str], pd.DataFrame]:
    """What was left out, in sentences, and the rows that remain."""
    said: list[str] = []

    def keep(frame: pd.DataFrame, mask: pd.Series, why: str) -> pd.DataFrame:
        if left := int((~mask).sum()):
            said.append(f"{left} runs left out: {why}")
        return frame[mask]

    if "state" in frame.columns:
        frame = keep(frame, frame["state"] == "done", "they are not done")
    known = frame[[loss, *_INPUTS]].notna().all(axis=1)
    frame = keep(frame, known, f"they have no {loss}, size, images or FLOPs")
    frame = keep(frame, np.isfinite(frame[loss]), f"their {loss} is infinite")
    return said, keep(
        frame, frame[loss] > 0, f"their {loss} is not positive and has no logarithm"
    )


def _outlying(
    names: Sequence[str], times: np.ndarray, away: np.ndarray, delta: float | None
) -> list[str]:
    """Which runs lie far from the law of the others, the farthest first."""
    limit = power_sums.OUTLYING
    far = [i for i in np.argsort(-np.abs(away), kind="stable") if abs(away[i]) > limit]
    if not far:
        return []
    said = ", ".join(
        f"{names[i]} ({times[i]:.3g} times the law, {abs(away[i]):.3g} deviations)"
        for i in far
    )
    left = "left out of the fit" if delta is None else "kept, because delta was given"
    return [
        f"{len(far)} of {len(away)} runs lie more than {limit:g} deviations from the "
        f"law of the rest and are {left}: {said}; see whether they diverged"
    ]


def _interval_warnings(
    replicates: ChinchillaLaw, groups: np.ndarray, parameters: int
) -> list[str]:
    said = []
    if groups.max() + 1 < bootstrap.ENOUGH * parameters:
        said.append(
            f"{groups.max() + 1} configurations for {parameters} parameters: the "
            "intervals are too narrow; their coverage was measured with 20"
        )
    if (share := np.mean(replicates.E == 0)) > 0.025:
        said.append(
            f"{100 * share:.0f} % of the resamples need no offset E: these runs do not "
            "tell it from zero"
        )
    return said


def _bound_warnings(points: Points, theta: np.ndarray) -> list[str]:
    stuck = power_sums.bound_reached(theta, points.log_x, points.log_y)
    return [
        f"{'EABab'[i]} is at its bound: these runs do not determine it"
        for i in stuck
        if i > 0  # an offset of zero is reported by the share of replicates
    ]
