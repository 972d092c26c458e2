"""Figures of a scaling study.

    fit = fit_scaling(load_runs("runs/isoflop_digits"), "2_steps/frechet_distance")
    plot_isoflop(fit.isoflop).figure.savefig("isoflop.pdf")

Each function draws into ``axes``, or else into a new figure, and returns the Axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scm_jax.analysis import columns
from scm_jax.analysis.laws.bootstrap import LEVEL, Interval
from scm_jax.analysis.laws.extrapolation import Extrapolation
from scm_jax.analysis.laws.fit import ScalingFit
from scm_jax.analysis.laws.frontier import pareto_front
from scm_jax.analysis.laws.isoflop import IsoflopFit
from scm_jax.analysis.laws.ratio import RatioFit
from scm_jax.analysis.plots import axes as axes_lib

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from scm_jax.analysis.laws.published import PublishedResult

FLOPS = "training compute C [FLOPs]"
PARAMETERS = "parameters N"
IMAGES = "training images D"
COSTS = {
    "flops": FLOPS,
    "sampling_compute": "sampling compute [10⁹ parameters × evaluations per sample]",
    "nfe": "network evaluations per sample",
}
_INTERVAL = f"{LEVEL:.0%} interval"


def plot_isoflop(
    fit: IsoflopFit, loss_name: str = "loss", axes: Axes | None = None
) -> Axes:
    """Loss against size at each budget, the fitted valleys and their lowest points.

    Stars are lowest points with their interval; a valley without a trustworthy one
    (``problem``) is dotted and has none.
    """
    axes = _new_axes(axes)
    shades = axes_lib.shades(len(fit.valleys))
    for valley, colour in zip(fit.valleys, shades, strict=True):
        _points(axes, valley.parameters, valley.losses, color=colour)
        problem = f" ({valley.problem})" if valley.problem else ""
        axes.plot(
            *(valley.curve_parameters, valley.curve_losses),
            ":" if problem else "-",
            color=colour,
            linewidth=1.2,
            label=f"{valley.flops:.2g} FLOPs{problem}",
        )
        if not problem:
            best = valley.best_parameters
            axes.errorbar(
                *([best.estimate], [valley.best_loss.estimate]),
                xerr=_whiskers([best]),
                fmt="*",
                color=colour,
                markeredgecolor="black",
                markersize=12,
                capsize=3,
                zorder=3,
            )
    return _named(axes, PARAMETERS, loss_name)


def plot_law(fit: ScalingFit, axes: Axes | None = None) -> Axes:
    """Loss against training images: the law's line and the runs of each size."""
    axes = _new_axes(axes)
    along = np.geomspace(fit.images.min() / 1.3, fit.images.max() * 1.3, 100)
    for size, colour, mine in _sizes(fit):
        _points(axes, fit.images[mine], fit.loss[mine], color=colour)
        label = f"N = {size:.3g}"
        axes.plot(along, fit.law(size, along), color=colour, linewidth=1.2, label=label)
    if (offset := float(fit.law.E)) > 0.3 * fit.loss.min():
        axes.axhline(offset, color="0.5", linestyle="--", linewidth=1, label="E")
    return _named(axes, IMAGES, fit.loss_name)


def plot_residuals(fit: ScalingFit, axes: Axes | None = None) -> Axes:
    """What the law misses, in percent, against compute; a colour per size.

    Without a trend it is noise; with one the law does not hold.
    """
    axes = _new_axes(axes, y="linear")
    error = 100 * (fit.loss / fit.law(fit.parameters, fit.images) - 1)
    for size, colour, mine in _sizes(fit):
        label = f"N = {size:.3g}"
        _points(axes, fit.flops[mine], error[mine], color=colour, label=label)
    axes.axhline(0, color="0.3", linewidth=1)
    spread = 100 * fit.noise
    axes.axhspan(-spread, spread, color="0.9", zorder=0, label="noise (robust sd)")
    return _named(axes, FLOPS, "measured / law - 1 [%]")


def plot_optimum(
    fit: ScalingFit, beyond: float = 10.0, axes: Axes | None = None
) -> Axes:
    """Compute-optimal size against compute, with its interval.

    The line is dashed where no budget was measured, up to ``beyond`` times the largest.
    Stars are the lowest points of the isoFLOP valleys.
    """
    axes = _new_axes(axes)
    least, most = fit.flops.min(), fit.flops.max()
    for end, start, style, label in (
        (most, least, "-", "law"),
        (beyond * most, most, "--", "extrapolated"),
    ):
        flops = np.geomspace(start, end, 40)
        found = [fit.optimum(c)["parameters"] for c in flops]
        axes.plot(flops, [i.estimate for i in found], style, color="C0", label=label)
        low, high = ([getattr(i, end) for i in found] for end in ("low", "high"))
        _fill(axes, flops, low, high, "C0", 0.15, _INTERVAL if style == "-" else None)
    valleys = fit.isoflop.valleys if fit.isoflop else ()
    if good := [valley for valley in valleys if not valley.problem]:
        best = [valley.best_parameters for valley in good]
        axes.errorbar(
            *([valley.flops for valley in good], [b.estimate for b in best]),
            yerr=_whiskers(best),
            fmt="*",
            color="C1",
            markersize=10,
            capsize=3,
            label="isoFLOP minima",
        )
    return _named(axes, FLOPS, f"compute-optimal {PARAMETERS}")


def plot_extrapolation(
    left_out: Extrapolation, loss_name: str = "loss", axes: Axes | None = None
) -> Axes:
    """The largest budget, predicted by a law that has not seen it, against measured."""
    axes = _new_axes(axes)
    predicted, measured = left_out.predicted, left_out.measured
    axes.errorbar(
        *(measured, predicted),
        yerr=np.maximum([predicted - left_out.low, left_out.high - predicted], 0),
        fmt="o",
        markersize=4,
        capsize=2,
        linewidth=1,
        label=f"runs of {left_out.flops:.2g} FLOPs, {_INTERVAL} of a run",
    )
    ends = [measured.min() / 1.05, measured.max() * 1.05]
    axes.plot(ends, ends, color="0.5", linewidth=1, label="predicted = measured")
    axes.set_title(
        f"median error {100 * left_out.median_error:.2g} %, "
        f"{left_out.times_larger:.2g}× beyond the fitted budgets",
        fontsize=10,
    )
    return _named(axes, f"measured {loss_name}", f"predicted {loss_name}")


def plot_frontier(
    frame: pd.DataFrame,
    cost: str,
    quality: str,
    *,
    published: Sequence[PublishedResult] = (),
    axes: Axes | None = None,
) -> Axes:
    """Quality against a cost, and the points that no other beats in both.

    Args:
      frame: such as ``load_runs`` (cost ``flops``), ``load_results`` or
        ``frontier.sampling_points`` (cost ``sampling_compute``).
      cost: column, on the horizontal axis.
      quality: column, small is good.
      published: drawn hollow behind them, where the cost is ``sampling_compute`` or
        ``nfe``. Others measured them: something to look at, not to compare.

    Raises:
      ValueError: no row has both.
    """
    axes = _new_axes(axes)
    methods = dict.fromkeys(result.method for result in published)
    for method, marker in zip(methods, axes_lib.MARKERS, strict=False):
        results = [result for result in published if result.method == method]
        axes.plot(
            *([getattr(r, cost) for r in results], [r.value for r in results]),
            marker,
            color="0.6",
            markersize=5,
            fillstyle="none",
            label=f"{method} (published)",
        )
    rows = columns.numeric(frame, cost, quality)[[cost, quality]].dropna()
    if rows.empty:
        raise ValueError(f"no row has both {cost!r} and {quality!r}")
    x, y = rows[cost].to_numpy(float), rows[quality].to_numpy(float)
    _points(axes, x, y, color="C0", alpha=0.5, label="runs")
    front = pareto_front(x, y)
    style: dict[str, Any] = {"color": "C1", "marker": "o", "markersize": 5}
    axes.step(x[front], y[front], where="post", label="Pareto front", **style)
    return _named(axes, COSTS.get(cost, cost.replace("_", " ")), quality)


def plot_ratio(
    fit: RatioFit | None = None,
    published: Mapping[str, RatioFit] | None = None,
    axes: Axes | None = None,
) -> Axes:
    """Student over teacher against size, the line through it and its interval.

    Args:
      fit: of one's own runs.
      published: label -> fit, drawn hollow and grey, such as
        ``{"sCD, 2 steps (paper)": published_ratio("imagenet512", "fid")}``.
    """
    axes = _new_axes(axes, y="linear")
    others = (published or {}).items()
    for (label, other), marker in zip(others, axes_lib.MARKERS, strict=False):
        _draw_ratio(axes, other, label, "0.45", marker, fillstyle="none")
    if fit is not None:
        _draw_ratio(axes, fit, "these runs", "C0", "o")
    axes.axhline(1, color="0.3", linewidth=1, linestyle="--", label="as the teacher")
    return _named(axes, PARAMETERS, "quality of student / teacher")


def _draw_ratio(
    axes: Axes, fit: RatioFit, label: str, colour: str, marker: str, **style: Any
) -> None:
    style |= {"color": colour, "markersize": 6, "label": f"{label}: {fit.ratio}"}
    axes.plot(fit.parameters, fit.ratios, marker, **style)
    along = np.geomspace(fit.parameters.min() / 1.1, fit.parameters.max() * 1.1, 60)
    middle, low, high = fit.at(along)
    axes.plot(along, middle, color=colour, linewidth=1.2)
    _fill(axes, along, low, high, colour, 0.12)


def _new_axes(axes: Axes | None, y: str = "log") -> Axes:
    axes = axes_lib.new_axes(axes, (6, 4.2))
    axes.set_xscale("log")
    axes.set_yscale(y)
    return axes


def _sizes(fit: ScalingFit) -> list[tuple[float, Any, np.ndarray]]:
    """Each size with its colour and its runs."""
    sizes = np.unique(fit.parameters)
    shades = axes_lib.shades(len(sizes))
    return [(n, c, fit.parameters == n) for n, c in zip(sizes, shades, strict=True)]


def _points(axes: Axes, x: Any, y: Any, **style: Any) -> None:
    axes.plot(x, y, "o", markersize=4, **style)


def _fill(
    axes: Axes,
    x: np.ndarray,
    low: Any,
    high: Any,
    colour: str,
    alpha: float,
    label: str | None = None,
) -> None:
    if np.all(np.isfinite([low, high])):
        style: dict[str, Any] = {"color": colour, "alpha": alpha, "label": label}
        axes.fill_between(x, low, high, linewidth=0, **style)


def _named(axes: Axes, x: str, y: str) -> Axes:
    """Labels, a legend, a light grid, and ticks that narrow log axes can read."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    for axis, ends in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        span = ends[1] / ends[0] if axis.get_scale() == "log" and ends[0] > 0 else 100
        if span < 4:
            axes_lib.plain_ticks(axis, [*np.arange(1, 10, 0.5 if span < 2 else 1)], 12)
        elif span < 100:
            axes_lib.plain_ticks(axis, numticks=12)
    axes.grid(True, which="both", linewidth=0.4, alpha=0.4)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(**axes_lib.LEGEND)
    return axes


def _whiskers(intervals: Sequence[Interval]) -> np.ndarray | None:
    """Distances to both ends, ``(2, n)``; none where an interval has no end."""
    ends = np.array([[i.estimate - i.low, i.high - i.estimate] for i in intervals]).T
    return np.maximum(ends, 0) if np.all(np.isfinite(ends)) else None
