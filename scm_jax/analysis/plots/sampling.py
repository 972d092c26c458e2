"""Quality against how samples are drawn: evaluations, guidance, intermediate time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scm_jax.analysis import columns
from scm_jax.analysis.plots import axes as axes_lib
from scm_jax.analysis.tables.frames import is_missing
from scm_jax.evaluation.comparable import require_comparable
from scm_jax.runs.directory.report_curves import log_if_wide

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# What quality can be drawn over -> its label.
SETTINGS = {
    "nfe": "network evaluations per sample",
    "guidance": "guidance scale",
    "time": "intermediate time t of two steps",
}


def plot_sampling(
    results: pd.DataFrame,
    metric: str,
    x: str = "nfe",
    *,
    by: Sequence[str] = ("run_id",),
    axes: Axes | None = None,
) -> Axes:
    """A metric against one setting of the sampler; a line where all others agree.

    Points are means over the rows that agree in all that is drawn. Whiskers are the
    range of several rows (seeds, if ``by`` names a setting instead of the run), or the
    standard deviation over sets of samples of one.

    Args:
      results: as ``load_results`` gives them; join columns of ``load_runs`` to tell
        lines apart by them.
      metric: a column.
      x: a key of ``SETTINGS``. ``time`` takes two-step rows with an intermediate time
        of their own; the default time is a dashed line.
      by: columns that tell lines apart, beside the settings that vary.

    Raises:
      ValueError: another x, no rows, or rows that were measured in different ways.

    Example:
      >>> results = scm_jax.load_results("runs/study")  # doctest: +SKIP
      >>> plot_sampling(results, "frechet_distance", "time")  # doctest: +SKIP
    """
    lines = sampling_lines(results, metric, x, by)
    axes = axes_lib.new_axes(axes)
    dashed = any(None in points for points in lines.values())
    for number, (name, points) in enumerate(lines.items()):
        shade = axes_lib.colour(number)
        usual = points.pop(None, None)
        if usual is not None:
            axes.axhline(usual[0], color=shade, linestyle="--", linewidth=1)
        places = _places([points])
        drawn = np.array([points[place] for place in places]).reshape(-1, 3)
        means, low, high = drawn.T
        axes.errorbar(
            *(places, means),
            yerr=(means - low, high - means) if (high > low).any() else None,
            color=shade,
            marker="o",
            markersize=4.5,
            linewidth=1.5,
            capsize=3,
            label=name or None,
        )
    if x == "nfe":
        places = _places(lines.values())
        axes.set_xscale("log", base=2)
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.minorticks_off()
    every = [p[0] for points in lines.values() for p in points.values()]
    log_if_wide(axes, np.array(every), 10.0)
    if dashed:
        axes.plot([], [], "--", color="0.4", linewidth=1, label="default time")
    return axes_lib.tidy(axes, SETTINGS[x], metric, len(lines) > 1 or dashed)


def sampling_lines(
    results: pd.DataFrame, metric: str, x: str, by: Sequence[str] = ("run_id",)
) -> dict[str, dict[float | None, tuple[float, float, float]]]:
    """What ``plot_sampling`` draws: line -> x -> mean, lower and upper end.

    The key None of a line over ``time`` is the default time.
    """
    if x not in SETTINGS:
        raise ValueError(f"x = {x!r} is not one of {sorted(SETTINGS)}")
    results = columns.numeric(results, metric)
    for column in by:
        if column not in results.columns:
            raise ValueError(f"no column {column!r}; there are {list(results.columns)}")
    rows = [row for row in results.to_dict("records") if _has_place(row, metric, x)]
    if not rows:
        raise ValueError(f"no row has {metric!r} and {SETTINGS[x]}")
    found = [{k: None if is_missing(v) else v for k, v in r.items()} for r in rows]
    require_comparable([{**r, "run": str(r.get("run_id", ""))} for r in found], metric)
    swept = [
        name
        for name in ("steps", "guidance", "ema", "sampler")
        if name not in (x, "steps" if x == "nfe" else "")
        and len({row.get(name) for row in rows if not is_missing(row.get(name))}) > 1
    ]
    groups: dict[str, dict[float | None, list[dict[str, Any]]]] = {}
    for row in rows:
        parts = [str(row[name]) for name in by]
        parts += [f"{name.replace('_', ' ')} {row[name]}" for name in swept]
        points = groups.setdefault(", ".join(parts), {})
        points.setdefault(_place(row, x), []).append(row)
    lines = {
        name: {place: _point(found, metric) for place, found in points.items()}
        for name, points in groups.items()
    }
    if x == "nfe":
        return lines
    # Where a setting was swept, the steps and averages of which it was not say nothing.
    return {name: found for name, found in lines.items() if len(found) > 1} or lines


def _places(lines: Iterable[Mapping[float | None, Any]]) -> list[float]:
    return sorted({x for points in lines for x in points if x is not None})


def _has_place(row: dict[str, Any], metric: str, x: str) -> bool:
    value = row[metric]
    if is_missing(value) or not math.isfinite(value):
        return False
    if x == "time":
        return row["steps"] == 2
    return is_missing(row.get("times")) and not is_missing(row.get(x))


def _place(row: dict[str, Any], x: str) -> float | None:
    if x != "time":
        return float(row[x])
    return None if is_missing(row["times"]) else float(row["times"][0])


def _point(rows: Sequence[dict[str, Any]], metric: str) -> tuple[float, float, float]:
    values = [row[metric] for row in rows]
    mean = float(np.mean(values))
    if len(rows) > 1:
        return mean, min(values), max(values)
    found = rows[0].get(f"{metric}_std", 0.0)
    std = 0.0 if is_missing(found) else found
    return mean, mean - std, mean + std
