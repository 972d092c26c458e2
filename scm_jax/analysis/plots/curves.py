"""Figures of trainings: curves with bands of seeds, values by time bin, spikes.

Each ``plot_*`` draws into ``axes``, or else into a new figure, and returns the Axes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scm_jax.analysis import columns
from scm_jax.analysis.plots import axes as axes_lib
from scm_jax.analysis.tables.settings import setting_names, varying_keys
from scm_jax.files.optional import require
from scm_jax.runs.directory.report_curves import TIMES, log_if_wide, thinned

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# What a curve can be drawn over -> its label.
SCALES = {
    "steps": "optimizer steps",
    "images": "images",
    "flops": "training FLOPs",
    "device_hours": "device hours",
}
MAX_POINTS = 400


def plot_curves(
    metrics: pd.DataFrame,
    column: str,
    runs: pd.DataFrame,
    *,
    x: str = "images",
    by: Sequence[str] | None = None,
    axes: Axes | None = None,
) -> Axes:
    """A metric during training, a line for each setting with a band over its seeds.

    The line is the mean over the runs of a setting, the band reaches from the least to
    the greatest of them; both end where the first of the runs ends. Every run is drawn
    faintly too, with a cross where a value was not finite.

    Args:
      metrics: as ``load_metrics`` gives them.
      column: of these.
      runs: as ``load_runs`` gives them; runs without metrics are left out.
      x: a key of ``SCALES``. Device hours are spread over a run's images evenly.
      by: columns of ``runs`` that tell lines apart; default is every config key that
        varies but the seed.

    Raises:
      ValueError: another x, no such column, or nothing to draw.
    """
    axes = axes_lib.new_axes(axes)
    by = varying_keys(runs) if by is None else list(by)
    names = setting_names(runs, by)
    curves = run_curves(metrics, column, runs, x)
    groups: dict[str, list[Curve]] = {}
    for run, curve in curves.items():
        groups.setdefault(names[run], []).append(curve)
    for number, (name, found) in enumerate(groups.items()):
        colour, dash = axes_lib.colour(number), axes_lib.dash(number)
        style: dict[str, Any] = {"alpha": 0.3, "linewidth": 0.7}
        if len(found) == 1:
            style = {"linewidth": 1.6, "label": name, "linestyle": dash}
        for curve in found:
            axes.plot(*thinned(curve.x, curve.y, MAX_POINTS), color=colour, **style)
            axes.plot(curve.lost_x, curve.lost_y, "x", color=colour, markersize=6)
        if len(found) > 1:
            grid, mean, low, high = _band(found)
            label = f"{name} ({len(found)} seeds)"
            line = thinned(grid, mean, MAX_POINTS)
            style = {"linewidth": 1.8, "label": label, "linestyle": dash}
            axes.plot(*line, color=colour, **style)
            axes.fill_between(grid, low, high, color=colour, alpha=0.18, linewidth=0)
    log_if_wide(axes, np.concatenate([c.y for c in curves.values()]))
    axes_lib.engineering(axes.xaxis)
    return axes_lib.tidy(axes, SCALES[x], column, legend=len(groups) > 1)


@dataclasses.dataclass(frozen=True)
class Curve:
    """A metric of one run."""

    x: np.ndarray  # where it is finite
    y: np.ndarray
    lost_x: np.ndarray  # where it was not
    lost_y: np.ndarray  # the last finite value before: a mark lies on the curve


def run_curves(
    metrics: pd.DataFrame, column: str, runs: pd.DataFrame, x: str = "images"
) -> dict[Hashable, Curve]:
    """The curve of each run; arguments are those of ``plot_curves``."""
    if x not in SCALES:
        raise ValueError(f"x = {x!r} is not one of {sorted(SCALES)}")
    metrics = columns.numeric(_with_metric(metrics, column), column)
    curves = {}
    for run, rows in metrics.groupby("run_id", observed=True, sort=False):
        if run in runs.index:
            curve = _curve(rows, column, _scale(rows, runs.loc[run], x))
            if len(curve.x):
                curves[run] = curve
    if not curves:
        raise ValueError(f"no run has {column!r} over {x}")
    return {run: curves[run] for run in runs.index if run in curves}


def _with_metric(metrics: pd.DataFrame, column: str) -> pd.DataFrame:
    if column not in metrics.columns:
        raise ValueError(f"no metric {column!r}; there are {list(metrics.columns)[5:]}")
    return metrics


def _band(
    curves: Sequence[Curve],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Common x of some curves, and mean, least and greatest value there."""
    low = max(curve.x.min() for curve in curves)
    high = min(curve.x.max() for curve in curves)
    grid = np.unique(np.concatenate([curve.x for curve in curves]))
    grid = grid[(grid >= low) & (grid <= high)]
    values = np.array([np.interp(grid, curve.x, curve.y) for curve in curves])
    if not len(grid):
        return grid, grid, grid, grid
    return grid, values.mean(axis=0), values.min(axis=0), values.max(axis=0)


def _scale(rows: pd.DataFrame, run: pd.Series, x: str) -> np.ndarray:
    values = rows["step" if x == "steps" else "images"].to_numpy(np.float64)
    if x == "flops":
        return values * run["flops_per_image"]
    return (
        values * run["device_hours"] / run["images"] if x == "device_hours" else values
    )


def _curve(rows: pd.DataFrame, column: str, x: np.ndarray) -> Curve:
    lost = _is_lost(rows, column) & np.isfinite(x)
    finite = rows[column].astype(float).where(np.isfinite)
    y, before = finite.to_numpy(), finite.ffill().to_numpy()
    shown = np.isfinite(x) & np.isfinite(y)
    return Curve(x[shown], y[shown], x[lost], before[lost])


def _is_lost(rows: pd.DataFrame, column: str) -> np.ndarray:
    """Rows of ``load_metrics`` in which a value was NaN or infinite."""
    texts = rows["nonfinite"].to_numpy()
    return np.array([bool(text) and column in text.split(" ") for text in texts], bool)


def plot_bins(
    metrics: pd.DataFrame,
    column: str = "bins/tangent_norm",
    *,
    x: str = "images",
    stages: int = 5,
    axes: Axes | None = None,
) -> Axes:
    """A diagnostic by TrigFlow time, of one run, over its training.

    Args:
      metrics: of one run, as ``load_metrics(root, [column], [run])`` gives them.
      column: with a list of values at equal bins of ``t`` in ``[0, pi/2]``, such as
        ``bins/tangent_norm`` or ``bins/log_weight``.
      x: ``images``: a line for each bin; ``t``: a line for each of some stages.
      stages: how many, each the mean of so many equal parts of the training.

    Raises:
      ValueError: several runs, no such values, or another x.
    """
    if x not in ("images", "t"):
        raise ValueError(f"x = {x!r} is not one of ['images', 't']")
    pandas = require("pandas", "plots", "scm_jax[analysis]")
    images, values = bin_values(metrics, column)
    axes = axes_lib.new_axes(axes)
    centres = (np.arange(values.shape[1]) + 0.5) / values.shape[1] * np.pi / 2
    colours = require("matplotlib", "plots", "scm_jax[analysis]").colormaps["viridis"]
    if x == "images":
        for place, t in enumerate(centres):
            shown = np.isfinite(values[:, place])
            line = thinned(images[shown], values[shown, place], MAX_POINTS)
            axes.plot(*line, color=colours(t / (np.pi / 2) * 0.95), linewidth=1.4)
        _time_bar(axes, colours)
        axes_lib.engineering(axes.xaxis)
        label = "images"
    else:
        for number, part in enumerate(np.array_split(np.arange(len(images)), stages)):
            if len(part):
                shade = colours(0.95 * number / max(1, stages - 1))
                name = f"until {_engineering(images[part[-1]])}"
                mean = pandas.DataFrame(values[part]).mean().to_numpy()
                axes.plot(centres, mean, ".-", color=shade, label=name, linewidth=1.4)
        axes.set_xlim(0, np.pi / 2)
        axes.set_xticks(*TIMES)
        axes.legend(title="images", title_fontsize=8, **axes_lib.LEGEND)
        label = "t"
    log_if_wide(axes, values)
    return axes_lib.tidy(axes, label, column.removeprefix("bins/"))


def bin_values(metrics: pd.DataFrame, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Images ``(n,)`` and values ``(n, bins)`` of one run; an empty bin is NaN."""
    _with_metric(metrics, column)
    names = list(dict.fromkeys(metrics["run_id"]))
    rows = metrics[[np.size(value) > 1 for value in metrics[column]]]
    if len(names) != 1 or rows.empty:
        raise ValueError(
            f"values by time bin are drawn of one run; these metrics are of {names}, "
            f"and {len(rows)} rows have {column!r}"
        )
    return rows["images"].to_numpy(np.float64), np.stack(list(rows[column]))


def _time_bar(axes: Axes, colours: object) -> None:
    cm = require("matplotlib.cm", "plots", "scm_jax[analysis]")
    colors = require("matplotlib.colors", "plots", "scm_jax[analysis]")
    scale = cm.ScalarMappable(colors.Normalize(0, np.pi / 2 / 0.95), colours)
    bar = axes.figure.colorbar(scale, ax=axes, pad=0.02)
    bar.ax.set_ylim(0, np.pi / 2)
    bar.set_ticks(TIMES[0], labels=TIMES[1])
    bar.ax.set_title("t", fontsize=10)


def _engineering(value: float) -> str:
    ticker = require("matplotlib.ticker", "plots", "scm_jax[analysis]")
    return ticker.EngFormatter(sep="", places=None).format_eng(float(f"{value:.3g}"))


def spikes(
    metrics: pd.DataFrame, column: str, *, factor: float = 3.0, window: int = 20
) -> pd.DataFrame:
    """Logged steps at which a positive metric jumps, or is not finite.

    A value is a spike if it is more than ``factor`` times the median of the ``window``
    logged values before it (at least five).

    Returns:
      ``run_id``, ``step``, ``images``, ``value``, ``ratio`` to the median, ``finite``.

    Raises:
      ValueError: no such column, or a factor not above 1.
    """
    import pandas

    metrics = columns.numeric(_with_metric(metrics, column), column)
    if factor <= 1:
        raise ValueError(f"factor = {factor} must be more than 1")
    found = []
    for _, rows in metrics.groupby("run_id", observed=True, sort=False):
        lost = _is_lost(rows, column)
        rows = rows[rows[column].notna().to_numpy() | lost]
        values = rows[column].astype(float)
        usual = values.rolling(window, min_periods=5).median().shift().ffill()
        ratio = values / usual
        finite = values.notna()
        taken = ~finite | (ratio > factor)
        whole = rows[["run_id", "step", "images"]]
        found.append(whole.assign(value=values, ratio=ratio, finite=finite)[taken])
    return pandas.concat(found, ignore_index=True)


def plot_spikes(
    metrics: pd.DataFrame, column: str = "grad_norm", *, axes: Axes | None = None
) -> Axes:
    """A metric of some runs with its ``spikes``, which the legend counts.

    Circles are jumps; crosses on the upper edge are values that were not finite.
    """
    axes = axes_lib.new_axes(axes)
    found = spikes(metrics, column)
    groups = metrics.groupby("run_id", observed=True, sort=False)
    for number, (run, rows) in enumerate(groups):
        shade = axes_lib.colour(number)
        own = found[found["run_id"] == run]
        high, lost = own[own["finite"]], own[~own["finite"]]
        counts = f"{run}: {len(high)} spikes"
        counts += f", {len(lost)} not finite" if len(lost) else ""
        rows = rows[rows[column].notna()]
        axes.plot(rows["images"], rows[column], color=shade, linewidth=1, label=counts)
        axes.plot(high["images"], high["value"], "o", color=shade, fillstyle="none")
        edge = axes.get_xaxis_transform()
        ones = np.ones(len(lost))
        axes.plot(lost["images"], ones, "x", color=shade, transform=edge, clip_on=False)
    log_if_wide(axes, metrics[column].to_numpy(np.float64), 10.0)
    axes_lib.engineering(axes.xaxis)
    return axes_lib.tidy(axes, "images", column, legend=True)
