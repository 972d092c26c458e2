"""Quality against the cost of sampling, with published results beside one's own."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scm_jax.analysis.laws.published import PublishedResult, load_published
from scm_jax.analysis.plots import axes as axes_lib
from scm_jax.evaluation.comparable import Row, require_comparable
from scm_jax.files.jsonl import read_rows
from scm_jax.files.optional import require
from scm_jax.runs.directory import layout

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The metric of a plot is the first of these that some row has.
METRICS: tuple[str, ...] = ("fid", "fd_dinov2", "frechet_distance")
METRICS += ("trajectory_rmse", "consistency_rmse", "validation_error")
COSTS = {
    "nfe": "network evaluations per sample",
    "sampling_compute": "billion parameters x evaluations per sample",
}
_NAMES = {"fid": "FID", "fd_dinov2": "FD-DINOv2"}


def plot_runs(
    directories: Sequence[str | os.PathLike], out: str | os.PathLike, metric: str = ""
) -> None:
    """``plot_rows`` of all results of some run directories.

    Published results are drawn behind where all runs are of one dataset.
    """
    runs = [layout.RunDir(directory) for directory in directories]
    rows = [
        {"run": Path(run.path).resolve().name, **row}
        for run in runs
        for row in read_rows(run.results_path)
    ]
    datasets = {run.read_config()["dataset"]["name"] for run in runs}
    plot_rows(rows, out, metric, datasets.pop() if len(datasets) == 1 else "")


def plot_rows(
    rows: Sequence[Row], out: str | os.PathLike, metric: str = "", dataset: str = ""
) -> None:
    """Draws rows against both costs, into one figure.

    Args:
      rows: results, as ``evaluate`` writes them; ``run`` tells lines apart.
      out: the figure, a PNG, PDF or SVG.
      metric: what to draw; default is the first of ``METRICS`` that is there.
      dataset: whose published results are drawn behind; empty for none.

    Raises:
      ValueError: no row has such a metric, or rows were measured in different ways
        (``comparable``).
    """
    figures = require("matplotlib.figure", "plots", "scm_jax[analysis]")
    if not metric:
        known = [m for m in METRICS if any(row.get(m) is not None for row in rows)]
        if not known:
            raise ValueError(f"no row has one of the metrics {', '.join(METRICS)}")
        metric = known[0]
    require_comparable(rows, metric)
    name = dataset.removesuffix("_latents")
    published = load_published(name, metric) if name else []
    figure = figures.Figure(figsize=(10, 4.2), layout="constrained")
    for axes, cost in zip(figure.subplots(1, 2, sharey=True), COSTS, strict=True):
        plot_quality(rows, metric, cost, published, axes)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    figure.savefig(out, dpi=120)


def plot_quality(
    rows: Sequence[Row],
    metric: str,
    cost: str = "nfe",
    published: Sequence[PublishedResult] = (),
    axes: Axes | None = None,
) -> Axes:
    """One metric of rows, as ``evaluate`` writes them, against the cost of a sample.

    A line joins the rows that differ in steps alone; crosses are other intermediate
    times; whiskers are the standard deviation over seeds, where several were drawn.
    Published results are drawn hollow behind them.

    Raises:
      ValueError: no row has the metric and its cost, or the cost is unknown.
    """
    if cost not in COSTS:
        raise ValueError(f"cost = {cost!r} is not one of {sorted(COSTS)}")
    shown = [row for row in rows if row.get(metric) is not None and cost in row]
    if not shown:
        raise ValueError(f"no row has the metric {metric!r} and its {cost}")
    axes = axes_lib.new_axes(axes)
    _draw_published(published, cost, axes)
    for label, line in _lines(shown).items():
        usual = [row for row in line if row.get("times") is None]
        others = [row for row in line if row.get("times") is not None]
        deviations = [row.get(f"{metric}_std") or 0.0 for row in usual]
        drawn = axes.errorbar(
            *([row[cost] for row in usual], [row[metric] for row in usual]),
            yerr=deviations if any(deviations) else None,
            marker="o",
            markersize=5,
            linewidth=1.6,
            capsize=3,
            label=label,
        )
        axes.plot(
            *([row[cost] for row in others], [row[metric] for row in others], "x"),
            color=drawn.lines[0].get_color(),
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axes_lib.plain_ticks(axis, numticks=8)
    return axes_lib.tidy(axes, COSTS[cost], _NAMES.get(metric, metric))


def _lines(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by what is the same along a line, in the order of steps.

    The last of the rows that were sampled alike counts.
    """
    swept = [k for k in ("guidance", "ema") if len({r.get(k) for r in rows}) > 1]
    lines: dict[str, dict[Any, Row]] = {}
    for row in rows:
        details = [f"{key} {row.get(key)}" for key in swept]
        name = str(row.get("run", row.get("method", "")))
        point = (row["steps"], tuple(row.get("times") or ()))
        lines.setdefault(", ".join([name, *details]), {})[point] = row
    return {name: [line[p] for p in sorted(line)] for name, line in lines.items()}


def _draw_published(
    published: Sequence[PublishedResult], cost: str, axes: Axes
) -> None:
    markers = itertools.cycle(axes_lib.MARKERS)
    groups: dict[tuple[str, int, str], list[PublishedResult]] = {}
    for result in published:
        key = (result.method, result.nfe, result.source)
        groups.setdefault(key, []).append(result)
    for (method, nfe, source), results in groups.items():
        axes.plot(
            *([getattr(r, cost) for r in results], [r.value for r in results]),
            marker=next(markers),
            markersize=5,
            fillstyle="none",
            linestyle="none" if cost == "nfe" else ":",
            linewidth=0.8,
            color="0.55",
            label=f"{method}, NFE {nfe} (published, {source})",
        )
