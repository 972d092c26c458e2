"""What the figures of this room share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scm_jax.files.optional import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

# Told apart also by readers who see no red or no green (Okabe and Ito, 2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5a5a5a")
# One for each published result beside one's own.
MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
LEGEND: dict[str, Any] = {"fontsize": 8, "frameon": False}


def new_axes(axes: Axes | None, size: tuple[float, float] = (6.0, 3.8)) -> Axes:
    """The given axes, or those of a new figure, which a notebook shows by itself."""
    if axes is not None:
        return axes
    pyplot = require("matplotlib.pyplot", "plots", "scm_jax[analysis]")
    return pyplot.subplots(figsize=size, layout="constrained")[1]


def tidy(axes: Axes, x: str, y: str, legend: bool = False) -> Axes:
    """Labels, a light grid, no frame above and on the right."""
    axes.set_xlabel(x)
    axes.set_ylabel(metric_name(y))
    axes.grid(True, linewidth=0.5, alpha=0.4)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(**LEGEND)
    return axes


def metric_name(column: str) -> str:
    """A column of results as a reader says it.

    Example:
      >>> metric_name("2_steps/frechet_distance")
      'frechet distance, 2 steps'
    """
    steps, found, metric = column.partition("_steps/")
    if not found or not steps.isdigit():
        return column.replace("_", " ")
    return f"{metric.replace('_', ' ')}, {steps} step{'s' * (steps != '1')}"


def engineering(axis: Axis) -> None:
    """Ticks such as 20k and 3M."""
    ticker = require("matplotlib.ticker", "plots", "scm_jax[analysis]")
    axis.set_major_formatter(ticker.EngFormatter(sep=""))


def plain_ticks(
    axis: Axis, subs: Sequence[float] = (1, 2, 5), numticks: int | None = None
) -> None:
    """Ticks such as 2 and 50 where logarithmic axes write 2 x 10^0."""
    ticker = require("matplotlib.ticker", "plots", "scm_jax[analysis]")
    axis.set_major_locator(ticker.LogLocator(subs=subs, numticks=numticks))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: tick(value)))
    axis.set_minor_formatter(ticker.NullFormatter())


def tick(value: float) -> str:
    """``5000``, and ``1e5`` instead of ``100000``."""
    if value < 1e4:
        return f"{value:g}"
    digits, power = f"{value:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(power)}"


def colour(number: int) -> str:
    """The colour of line ``number``."""
    return COLOURS[number % len(COLOURS)]


def dash(number: int) -> str:
    """The style of line ``number``: another one each time the colours begin again."""
    return ("-", "--", ":", "-.")[number // len(COLOURS) % 4]


def shades(count: int, end: float = 0.88) -> list[Any]:
    """Colours from dark to light as numbers grow."""
    matplotlib = require("matplotlib", "plots", "scm_jax[analysis]")
    return list(matplotlib.colormaps["viridis"](np.linspace(0, end, count)))
