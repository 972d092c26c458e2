"""Figures of a scaling study; each is a function that returns its Axes.

    fit = fit_scaling(load_runs("runs/isoflop_digits"), "2_steps/frechet_distance")
    plot_isoflop(fit.isoflop).figure.savefig("isoflop.pdf")

All of them draw into ``axes`` where it is given, else into a new figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scm_jax.analysis import columns
from scm_jax.analysis.laws.bootstrap import LEVEL, Interval
from scm_jax.analysis.laws.envelope import Curve, Envelope
from scm_jax.analysis.laws.extrapolation import Extrapolation
from scm_jax.analysis.laws.fit import ScalingFit
from scm_jax.analysis.laws.frontier import pareto_front
from scm_jax.analysis.laws.isoflop import IsoflopFit
from scm_jax.analysis.laws.ratio import RatioFit
from scm_jax.analysis.plots.axes import MARKERS, new_axes
from scm_jax.files.optional import require

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from scm_jax.analysis.laws.published import PublishedResult

FLOPS = "training compute C [FLOPs]"
PARAMETERS = "parameters N"
IMAGES = "training images D"
SAMPLING = "sampling compute [10⁹ parameters × evaluations per sample]"
_BAND = f"{LEVEL:.0%} interval"


def plot_isoflop(
    fit: IsoflopFit, loss_name: str = "loss", axes: Axes | None = None
) -> Axes:
    """Loss against size at each budget, the fitted valleys and their lowest points.

    Stars are lowest points with their interval; a valley without a trustworthy one
    (``problem``) is dotted and has none.
    """
    axes = _axes(axes, "log", "log")
    for valley, colour in zip(fit.valleys, _colours(len(fit.valleys)), strict=True):
        good = not valley.problem
        axes.plot(valley.parameters, valley.losses, "o", color=colour, markersize=4)
        label = f"{valley.flops:.2g} FLOPs" + ("" if good else f" ({valley.problem})")
        axes.plot(
            valley.curve_parameters,
            valley.curve_losses,
            "-" if good else ":",
            color=colour,
            linewidth=1.2,
            label=label,
        )
        if good:
            best = valley.best_parameters
            axes.errorbar(
                [best.estimate],
                [valley.best_loss.estimate],
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
    axes = _axes(axes, "log", "log")
    sizes = np.unique(fit.parameters)
    low, high = fit.images.min(), fit.images.max()
    along = np.geomspace(low / 1.3, high * 1.3, 100)
    for size, colour in zip(sizes, _colours(len(sizes)), strict=True):
        mine = fit.parameters == size
        axes.plot(fit.images[mine], fit.loss[mine], "o", color=colour, markersize=4)
        label = f"N = {size:.3g}"
        axes.plot(along, fit.law(size, along), color=colour, linewidth=1.2, label=label)
    if float(fit.law.E) > 0.3 * fit.loss.min():
        axes.axhline(
            float(fit.law.E), color="0.5", linestyle="--", linewidth=1, label="E"
        )
    return _named(axes, IMAGES, fit.loss_name)


def plot_residuals(fit: ScalingFit, axes: Axes | None = None) -> Axes:
    """What the law misses, in percent, against compute; a colour per size.

    A trend over compute or size is a law that does not hold; without one it is noise.
    """
    axes = _axes(axes, "log", "linear")
    error = 100 * (fit.loss / fit.law(fit.parameters, fit.images) - 1)
    sizes = np.unique(fit.parameters)
    for size, colour in zip(sizes, _colours(len(sizes)), strict=True):
        mine = fit.parameters == size
        axes.plot(
            *(fit.flops[mine], error[mine], "o"),
            color=colour,
            markersize=4,
            label=f"N = {size:.3g}",
        )
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
    axes = _axes(axes, "log", "log")
    least, most = fit.flops.min(), fit.flops.max()
    for ends, style, label in (
        ((least, most), "-", "law"),
        ((most, beyond * most), "--", "extrapolated"),
    ):
        flops = np.geomspace(*ends, 40)
        found = [fit.optimum(c)["parameters"] for c in flops]
        axes.plot(*(flops, [i.estimate for i in found], style), color="C0", label=label)
        low, high = ([getattr(i, end) for i in found] for end in ("low", "high"))
        if np.all(np.isfinite([low, high])):
            axes.fill_between(
                *(flops, low, high),
                color="C0",
                alpha=0.15,
                linewidth=0,
                label=_BAND if style == "-" else None,
            )
    valleys = fit.isoflop.valleys if fit.isoflop else ()
    good = [v for v in valleys if not v.problem]
    if good:
        best = [v.best_parameters for v in good]
        axes.errorbar(
            [v.flops for v in good],
            [b.estimate for b in best],
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
    axes = _axes(axes, "log", "log")
    whiskers = [
        left_out.predicted - left_out.low,
        left_out.high - left_out.predicted,
    ]
    axes.errorbar(
        *(left_out.measured, left_out.predicted),
        yerr=np.maximum(whiskers, 0),
        fmt="o",
        markersize=4,
        capsize=2,
        linewidth=1,
        label=f"runs of {left_out.flops:.2g} FLOPs, {_BAND} of a run",
    )
    ends = [left_out.measured.min(), left_out.measured.max()]
    ends = [ends[0] / 1.05, ends[1] * 1.05]
    axes.plot(ends, ends, color="0.5", linewidth=1, label="predicted = measured")
    axes.set_title(
        f"median error {100 * left_out.median_error:.2g} %, "
        f"{left_out.times_larger:.2g}× beyond the fitted budgets",
        fontsize=10,
    )
    return _named(axes, f"measured {loss_name}", f"predicted {loss_name}")


def plot_envelope(
    curves: Sequence[Curve],
    envelope: Envelope,
    loss_name: str = "loss",
    axes: Axes | None = None,
) -> Axes:
    """Training curves against compute, and the best of them at each amount."""
    axes = _axes(axes, "log", "log")
    sizes = sorted({curve.parameters for curve in curves})
    colours = dict(zip(sizes, _colours(len(sizes)), strict=True))
    named = {sizes[0], sizes[-1]}
    for curve in curves:
        first = curve.parameters in named
        named.discard(curve.parameters)
        axes.plot(
            *(curve.flops, curve.loss),
            color=colours[curve.parameters],
            linewidth=0.8,
            alpha=0.6,
            label=f"N = {curve.parameters:.3g}" if first else None,
        )
    inner = ~envelope.edge
    axes.plot(
        *(envelope.flops[inner], envelope.loss[inner], "."),
        color="black",
        markersize=4,
        label="envelope",
    )
    return _named(axes, FLOPS, loss_name)


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
        ``nfe``. They were measured by others: something to look at, not to compare.
      axes: where to draw.

    Raises:
      ValueError: no row has both.
    """
    axes = _axes(axes, "log", "log")
    groups: dict[str, list[PublishedResult]] = {}
    for result in published:
        groups.setdefault(f"{result.method} (published)", []).append(result)
    for (label, results), marker in zip(groups.items(), MARKERS, strict=False):
        axes.plot(
            [getattr(r, cost) for r in results],
            [r.value for r in results],
            marker,
            color="0.6",
            markersize=5,
            fillstyle="none",
            label=label,
        )
    rows = columns.numeric(frame, cost, quality)[[cost, quality]].dropna()
    if rows.empty:
        raise ValueError(f"no row has both {cost!r} and {quality!r}")
    x, y = rows[cost].to_numpy(float), rows[quality].to_numpy(float)
    axes.plot(x, y, "o", color="C0", markersize=4, alpha=0.5, label="runs")
    front = pareto_front(x, y)
    axes.step(
        *(x[front], y[front]),
        where="post",
        color="C1",
        marker="o",
        markersize=5,
        label="Pareto front",
    )
    names = {"flops": FLOPS, "sampling_compute": SAMPLING}
    names |= {"nfe": "network evaluations per sample"}
    return _named(axes, names.get(cost, cost.replace("_", " ")), quality)


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
      axes: where to draw.
    """
    axes = _axes(axes, "log", "linear")
    for (label, other), marker in zip((published or {}).items(), MARKERS, strict=False):
        _draw_ratio(axes, other, label, "0.45", marker, fillstyle="none")
    if fit is not None:
        _draw_ratio(axes, fit, "these runs", "C0", "o")
    axes.axhline(1, color="0.3", linewidth=1, linestyle="--", label="as the teacher")
    return _named(axes, PARAMETERS, "quality of student / teacher")


def _draw_ratio(
    axes: Axes, fit: RatioFit, label: str, colour: str, marker: str, **style: Any
) -> None:
    axes.plot(
        *(fit.parameters, fit.ratios, marker),
        color=colour,
        markersize=6,
        label=f"{label}: {fit.ratio}",
        **style,
    )
    along = np.geomspace(fit.parameters.min() / 1.1, fit.parameters.max() * 1.1, 60)
    middle, low, high = fit.at(along)
    axes.plot(along, middle, color=colour, linewidth=1.2)
    if np.all(np.isfinite(low)):
        axes.fill_between(along, low, high, color=colour, alpha=0.12, linewidth=0)


def _axes(axes: Axes | None, x: str, y: str) -> Axes:
    axes = new_axes(axes, (6, 4.2))
    axes.set_xscale(x)
    axes.set_yscale(y)
    return axes


def _named(axes: Axes, x: str, y: str) -> Axes:
    """Labels, a legend, a light grid, and ticks that narrow log axes can read."""
    ticker = require("matplotlib.ticker", "plots", "scm_jax[analysis]")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    for axis, (low, high) in (
        (axes.xaxis, axes.get_xlim()),
        (axes.yaxis, axes.get_ylim()),
    ):
        if axis.get_scale() == "log" and low > 0 and high / low < 100:
            narrow = high / low < 4
            subs = np.arange(1, 10, 0.5 if narrow and high / low < 2 else 1)
            axis.set_major_locator(
                ticker.LogLocator(subs=subs if narrow else (1, 2, 5), numticks=12)
            )
            axis.set_major_formatter(ticker.FuncFormatter(_tick))
            axis.set_minor_formatter(ticker.NullFormatter())
    axes.grid(True, which="both", linewidth=0.4, alpha=0.4)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8, frameon=False)
    return axes


def _tick(value: float, _: int) -> str:
    if value < 1e4:
        return f"{value:g}"
    digits, power = f"{value:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(power)}"


def _colours(count: int) -> list[Any]:
    """From dark to light as numbers grow."""
    require("matplotlib", "plots", "scm_jax[analysis]")
    from matplotlib import colormaps

    return [colormaps["viridis"](v) for v in np.linspace(0, 0.88, max(count, 1))][
        :count
    ]


def _whiskers(intervals: Sequence[Interval]) -> np.ndarray | None:
    """Distances to both ends, ``(2, n)``; none where an interval has no end."""
    ends = np.array([[i.estimate - i.low, i.high - i.estimate] for i in intervals]).T
    return np.maximum(ends, 0) if np.all(np.isfinite(ends)) else None
