"""Figure of an ablation: every arm's difference with its interval, and the noise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from scm_jax.analysis.ablation.compare import Ablation, Arm
from scm_jax.analysis.plots import axes as axes_lib

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_ablation(
    ablation: Ablation, *, ratio: bool = False, axes: Axes | None = None
) -> Axes:
    """A forest plot: a row an arm, its mean over pairs and the t interval.

    Filled points differ by more than noise, hollow ones do not. The bands are one
    standard deviation of the difference of two runs by the seed alone, and by the
    samples alone; ``ratio`` draws ratios to the baseline, without bands. An interval of
    one pair is infinite and reaches the edges, dotted.

    Raises:
      ValueError: no arm has a pair (of positive values, for ratios).
    """
    arms = ablation.arms
    estimates = [arm.ratio if ratio else arm.difference for arm in arms]
    finite = [e.value for e in estimates if math.isfinite(e.value)]
    if not finite:
        raise ValueError(f"no arm has a pair to draw for {ablation.metric}")
    axes = axes_lib.new_axes(axes, (6.4, 1.2 + 0.42 * len(arms)))
    if ratio:
        axes.set_xscale("log")
    for noise, alpha, name in (
        (ablation.seed_noise, 0.12, "seed noise"),
        (ablation.metric_noise, 0.22, "metric noise"),
    ):
        if not ratio and noise > 0:
            reach = math.sqrt(2) * noise  # of a difference of two runs
            axes.axvspan(-reach, reach, color="0.1", alpha=alpha, lw=0, label=name)
    axes.axvline(1.0 if ratio else 0.0, color="0.3", linewidth=1)
    axes.set_xlim(*_limits(ablation, estimates, ratio))
    shade = axes_lib.COLOURS[0]
    for row, (arm, found) in enumerate(zip(arms, estimates, strict=True)):
        if math.isfinite(found.value):
            known = math.isfinite(found.interval[1])
            ends = found.interval if known else axes.get_xlim()
            style = "-" if known else ":"
            axes.plot(ends, (row, row), style, color=shade, linewidth=1.6)
            face = shade if arm.verdict.startswith("yes") else "white"
            point = axes.plot(found.value, row, "o", color=shade, markersize=6)
            point[0].set_markerfacecolor(face)
        axes.annotate(
            *(_note(arm), (1.02, row)),
            xycoords=("axes fraction", "data"),
            fontsize=8,
            va="center",
            color="0.35",
            annotation_clip=False,
        )
    axes.set_yticks(range(len(arms)), [arm.name for arm in arms], fontsize=9)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    kind = "ratio to" if ratio else "difference from"
    interval = f"{100 * ablation.confidence:g} % t interval over seeds"
    name = axes_lib.metric_name(ablation.metric)
    axes_lib.tidy(axes, f"{name}: {kind} the baseline\n{interval}", "")
    axes.grid(False, axis="y")
    if ratio:
        axes_lib.plain_ticks(axes.xaxis, (1, 1.5, 2, 3, 5, 7))
    elif axes.patches:
        place = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "ncols": 2}
        axes.legend(**axes_lib.LEGEND, **place)
    return axes


def _limits(ablation: Ablation, estimates: list, ratio: bool) -> tuple[float, float]:
    """Room for all finite intervals, the line of no difference and the bands."""
    ends = [end for e in estimates for end in (e.value, *e.interval)]
    shown = [end for end in ends if math.isfinite(end)]
    if ratio:
        shown = [math.log(end) for end in shown if end > 0] + [0.0]
    else:
        noise = math.sqrt(2) * np.nan_to_num(ablation.seed_noise)
        shown += [0.0, noise, -noise]
    margin = 0.06 * (max(shown) - min(shown)) or 0.1
    limits = min(shown) - margin, max(shown) + margin
    return (math.exp(limits[0]), math.exp(limits[1])) if ratio else limits


def _note(arm: Arm) -> str:
    if not arm.num_pairs:
        return "; ".join(arm.missing) or "no pairs"
    if arm.missing:
        return f"{arm.num_pairs} of {arm.num_pairs + len(arm.missing)} pairs"
    return f"{arm.num_pairs} pairs" if arm.num_pairs > 1 else "1 pair"
