"""Curves of some runs as small SVG panels, drawn by matplotlib and coloured by CSS.

CSS variables (``--line``, ``--run-0`` and on) replace the colours that matplotlib
draws, so that panels follow the light or dark setting of their page.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scm_jax.files.optional import require

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# Colours that matplotlib draws with -> what the page draws with.
_INK, _LINE = "#0a0b01", "#0a0b02"
NUM_COLOURS = 8
_MARKERS = {
    _INK: "currentColor",
    _LINE: "var(--line)",
    **{f"#0a0c{i:02x}": f"var(--run-{i})" for i in range(NUM_COLOURS)},
}

# Values per time bin that are drawn where a run has them.
_BIN_PANELS = {
    "bins/tangent_norm": "raw tangent norm over t",
    "bins/log_weight": "learned log-weight over t",
}

# Ticks of an axis of TrigFlow time, with their labels.
TIMES = ([0, np.pi / 4, np.pi / 2], ["0, data", "π/4", "π/2, noise"])

_MAX_POINTS = 300

Panel = tuple[str, str]


def curve_panels(runs: Sequence[tuple[str, pd.DataFrame]]) -> list[Panel]:
    """(caption, SVG) of losses, evaluation metrics and diagnostics over t.

    ``runs`` holds name and metrics (``Run.metrics``) of each run; run i has the colour
    ``--run-i``. What no run has logged gets no panel.
    """
    frames = [frame for _, frame in runs]
    # One panel per run: the losses of two objectives cannot be compared.
    losses = [
        (f"loss: {name}", _svg(functools.partial(_draw_loss, i, frame), f"loss{i}"))
        for i, (name, frame) in enumerate(runs)
        if _has_numbers(frame, "loss")
    ]
    return [*losses, *_evaluation_panels(frames), *_bin_panels(frames)]


def _draw_loss(i: int, frame: pd.DataFrame, axes: Axes) -> None:
    x, y = _series(frame, "loss")
    window = max(1, len(y) // 30)
    smooth = y.rolling(window, min_periods=1, center=True).mean()
    axes.plot(*thinned(x, y, _MAX_POINTS), color=_colour(i), alpha=0.3, linewidth=0.8)
    axes.plot(*thinned(x, smooth, _MAX_POINTS), color=_colour(i), linewidth=1.6)
    _limit(axes, y)
    _images_axis(axes)


def _evaluation_panels(frames: Sequence[pd.DataFrame]) -> list[Panel]:
    columns = dict.fromkeys(
        column
        for frame in frames
        for column in frame.columns
        if column.startswith("eval/") and _has_numbers(frame, column)
    )
    return [
        (
            column.removeprefix("eval/").replace("_", " "),
            _svg(functools.partial(_draw_evaluation, column, frames), f"eval{number}"),
        )
        for number, column in enumerate(columns)
    ]


def _draw_evaluation(column: str, frames: Sequence[pd.DataFrame], axes: Axes) -> None:
    for i, frame in enumerate(frames):
        if _has_numbers(frame, column):
            x, y = _series(frame, column)
            axes.plot(x, y, ".-", color=_colour(i), linewidth=1.4, markersize=5)
    _images_axis(axes)


def _bin_panels(frames: Sequence[pd.DataFrame]) -> list[Panel]:
    panels = []
    for column, caption in _BIN_PANELS.items():
        shown = {}
        for i, frame in enumerate(frames):
            rows = [np.ravel(v) for v in frame.get(column, ()) if np.size(v) > 1]
            # Objectives without this diagnostic log zeros.
            if np.isfinite(rows).any() and np.nanmax(np.abs(rows)) > 0:
                shown[i] = (rows[0], _mean_of_last(np.array(rows)))
        if shown:
            draw = functools.partial(_draw_bins, shown)
            panels.append((caption, _svg(draw, column.replace("/", "-"))))
    return panels


def _draw_bins(shown: dict[int, tuple[np.ndarray, np.ndarray]], axes: Axes) -> None:
    for i, (first, last) in shown.items():  # dotted at the start, solid now
        t = (np.arange(len(last)) + 0.5) / len(last) * np.pi / 2
        axes.plot(t, first, ":", color=_colour(i), linewidth=1.2)
        axes.plot(t, last, ".-", color=_colour(i), linewidth=1.6, markersize=5)
    axes.set_xlim(0, np.pi / 2)
    axes.set_xticks(*TIMES)
    _log_if_wide(axes)


def _svg(draw: Callable[[Axes], None], key: str) -> str:
    """A panel whose colours are CSS and whose ids begin with ``key``."""
    matplotlib = require("matplotlib", "the report", "scm_jax[analysis]")
    figure_module = require("matplotlib.figure", "the report", "scm_jax[analysis]")
    ink = ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor")
    lines = ("axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    settings = {
        **{"svg.fonttype": "none", "svg.hashsalt": key, "font.size": 9},
        **dict.fromkeys(ink, _INK),
        **dict.fromkeys(lines, _LINE),
        **{"axes.grid": True, "grid.linewidth": 0.6},
        **{"axes.spines.top": False, "axes.spines.right": False},
    }
    buffer = io.StringIO()
    with matplotlib.rc_context(settings):
        figure = figure_module.Figure(figsize=(4.4, 2.6), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.subplots()
        axes.patch.set_visible(False)
        draw(axes)
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for marker, colour in _MARKERS.items():
        text = text.replace(marker, colour)
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{key}-", text)


def _images_axis(axes: Axes) -> None:
    ticker = require("matplotlib.ticker", "the report", "scm_jax[analysis]")
    axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
    axes.set_xlabel("images")
    _log_if_wide(axes)


def _log_if_wide(axes: Axes) -> None:
    lines = (np.asarray(line.get_ydata(), float) for line in axes.get_lines())
    log_if_wide(axes, np.concatenate([*lines]))


def log_if_wide(axes: Axes, values: np.ndarray, factor: float = 30.0) -> None:
    """A logarithmic y axis where positive values span more than a factor."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() / values.min() > factor:
        axes.set_yscale("log")


def _limit(axes: Axes, values: pd.Series) -> None:
    # A few wild values at the start must not flatten the rest of a curve.
    finite = values[np.isfinite(values)]
    low, high = np.quantile(finite[len(finite) // 50 :], [0.01, 0.99])
    if finite.max() - finite.min() > 3 * (high - low) > 0:
        axes.set_ylim(low - 0.15 * (high - low), high + 0.35 * (high - low))


def _has_numbers(frame: pd.DataFrame, column: str) -> bool:
    if column not in frame or not np.issubdtype(frame[column].dtype, np.number):
        return False
    return bool(np.isfinite(frame[column]).any())


def _series(frame: pd.DataFrame, column: str) -> tuple[pd.Series, pd.Series]:
    """Images (steps, where there are none) and values of the rows that have both."""
    x = frame["images"] if "images" in frame else frame["step"]
    logged = frame[column].notna() & x.notna()
    return x[logged], frame[column][logged]


def thinned(x: Any, y: Any, points: int) -> tuple[Any, Any]:
    """Every so many values of two series, about ``points`` of them."""
    every = max(1, len(x) // points)
    return x[::every], y[::every]


def _mean_of_last(rows: np.ndarray) -> np.ndarray:
    """Mean of the last tenth; a bin that was empty all along stays NaN."""
    last = rows[-max(1, len(rows) // 10) :]
    return np.ma.masked_invalid(last).mean(axis=0).filled(np.nan)


def _colour(i: int) -> str:
    return list(_MARKERS)[2 + i % NUM_COLOURS]
