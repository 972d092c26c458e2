"""Which panels are drawn, and that they show the numbers they were given."""

import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from scm_jax.runs.directory import report_curves


def frame(steps=50, **columns):
    step = np.arange(1, steps + 1)
    return pd.DataFrame({"step": step, "images": 10 * step, **columns})


def bins(values, steps=50):
    return [np.asarray(values, float)] * steps


def captions(*named):
    return [caption for caption, _ in report_curves.curve_panels(named)]


def test_a_panel_for_what_some_run_has():
    nan = np.full(50, np.nan)
    a = frame(loss=1.0, **{"eval/class_accuracy": nan, "eval/precision": 0.5})
    b = frame(**{"eval/precision": 0.7, "bins/tangent_norm": bins([1, 2, 3])})
    assert captions(("a", a), ("b", b)) == [
        "loss: a",
        "precision",
        "raw tangent norm over t",
    ]
    assert captions() == []
    assert captions(("empty", pd.DataFrame())) == []


@pytest.mark.parametrize("values", [[0, 0, 0], [np.nan] * 3])
def test_bins_without_content_have_no_panel(values):
    assert captions(("a", frame(**{"bins/tangent_norm": bins(values)}))) == []


def drawn(svg, run):
    """Points of the longest line of a run: pixel coordinates, y upwards."""
    paths = re.findall(rf'<path d="([^"]*)"[^>]*stroke: var\(--run-{run}\)', svg)
    longest = max(paths, key=len)
    points = re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", longest)
    x, y = np.array(points, float).T
    return x, -y


def test_an_evaluation_curve_has_its_values():
    values = np.full(50, np.nan)
    values[[9, 29, 49]] = [3.0, 1.0, 2.0]
    empty = frame(loss=1.0)
    panels = report_curves.curve_panels(
        [("a", empty), ("b", frame(**{"eval/distance": values}))]
    )
    x, y = drawn(dict(panels)["distance"], run=1)
    np.testing.assert_allclose((x - x[0]) / (x[-1] - x[0]), [0, 0.5, 1], atol=1e-4)
    np.testing.assert_allclose((y - y[1]) / (y[0] - y[1]), [1, 0, 0.5], atol=1e-4)


def test_a_bin_curve_is_the_mean_of_the_last_tenth():
    rows = [np.array([np.nan, 5.0, 1.0])] * 45
    rows += [np.array([np.nan, 1.0, 3.0]), np.array([np.nan, np.nan, 4.0])]
    np.testing.assert_array_equal(
        report_curves._mean_of_last(np.array(rows)[-20:]), [np.nan, 1.0, 3.5]
    )


def test_wild_values_at_the_start_do_not_flatten_a_curve():
    values = pd.Series(np.r_[1e4, np.linspace(1, 0, 200)])
    axes = Figure().subplots()
    axes.plot(values)
    report_curves._limit(axes, values)
    assert axes.get_ylim()[1] < 2
    tame = Figure().subplots()
    tame.plot(values[1:])
    before = tame.get_ylim()
    report_curves._limit(tame, values[1:])
    assert tame.get_ylim() == before


@pytest.mark.parametrize(
    ("values", "scale"), [([1, 100], "log"), ([0, 100], "linear"), ([1, 2], "linear")]
)
def test_log_scale_only_for_a_wide_positive_range(values, scale):
    axes = Figure().subplots()
    axes.plot(values)
    report_curves._log_if_wide(axes)
    assert axes.get_yscale() == scale
