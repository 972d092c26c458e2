"""Curves of a known law: their envelope is its compute-optimal path."""

import numpy as np
import pandas as pd
import pytest

from scm_jax.analysis.laws.envelope import Curve, curves_of, fit_envelope
from tests.analysis.studies import COST, LAW


def curves(sizes=15, seeds=1, noise=0.0):
    """Each size trained for 300 times the images that it starts at."""
    sizes = np.repeat(np.geomspace(1e4, 3e6, sizes), seeds)
    shifts = np.exp(noise * np.random.default_rng(0).normal(size=sizes.shape))
    images = np.geomspace(3e4, 3e8, 200)
    return [
        Curve(n, images, images * COST(n), shift * LAW(n, images))
        for n, shift in zip(sizes, shifts, strict=True)
    ]


def test_the_envelope_is_the_optimal_path_of_the_law():
    fit = fit_envelope(curves(), count=30)
    inner = ~fit.edge
    best = LAW.optimum(fit.flops[inner], COST)
    steps = np.log(3e6 / 1e4) / 14
    assert np.all(np.abs(np.log(fit.parameters[inner] / best.parameters)) < steps)
    np.testing.assert_allclose(fit.loss[inner], best.loss, rtol=0.01)
    p = LAW.parameters_exponent(COST.exponent)
    assert fit.parameters_exponent.estimate == pytest.approx(p, abs=0.04)
    q = LAW.images_exponent(COST.exponent)
    assert fit.images_exponent.estimate == pytest.approx(q, abs=0.04)
    np.testing.assert_allclose(fit.images * COST(fit.parameters), fit.flops, rtol=1e-6)
    middle = np.sqrt(fit.flops[~fit.edge].min() * fit.flops[~fit.edge].max())
    there = fit.coefficients[0] * middle**fit.parameters_exponent.estimate
    assert there == pytest.approx(float(LAW.optimum(middle, COST).parameters), rel=0.15)


def test_intervals_hold_the_exponent_of_noisy_curves():
    fit = fit_envelope(curves(seeds=2, noise=0.01), count=100)
    assert LAW.parameters_exponent(COST.exponent) in fit.parameters_exponent
    assert fit.parameters_exponent.high - fit.parameters_exponent.low < 0.5


def test_extreme_sizes_are_edges_and_no_part_of_the_fit():
    few = [c for c in curves() if c.parameters > 1e5]
    fit = fit_envelope(few, count=30)
    at_edge = np.isin(fit.parameters, [few[0].parameters, few[-1].parameters])
    assert at_edge.any()
    np.testing.assert_array_equal(fit.edge, at_edge)
    assert "the best size is the smallest or largest" in fit.warnings[0]
    p = LAW.parameters_exponent(COST.exponent)
    assert fit.parameters_exponent.estimate == pytest.approx(p, abs=0.05)


def test_a_curve_counts_only_where_it_was_measured():
    short = curves()
    n, images = short[7].parameters, np.geomspace(3e4, 1e5, 20)
    short[7] = Curve(n, images, images * COST(n), 0.5 * LAW(n, images))
    fit = fit_envelope(short, count=5)
    assert np.all(fit.flops[fit.parameters == n] <= 1e5 * COST(n) * (1 + 1e-6))
    with pytest.raises(ValueError, match="curves of 3 sizes; there are 2"):
        fit_envelope(curves(sizes=2))


def test_curves_of_tables():
    columns = {"parameters": [10, 20], "flops_per_image": [60.0, 120.0]}
    runs = pd.DataFrame(columns, index=["a", "b"])
    rows = [("a", 2, 0.5), ("a", 1, 0.9), ("b", 1, 0.8), ("a", 3, np.nan), ("c", 1, 1)]
    metrics = pd.DataFrame(rows, columns=["run_id", "images", "validation_error"])
    (curve,) = curves_of(runs, metrics, "validation_error")
    assert curve.parameters == 10
    np.testing.assert_array_equal(curve.flops, [60.0, 120.0])
    np.testing.assert_array_equal(curve.loss, [0.9, 0.5])
    with pytest.raises(ValueError, match="no run has validation_error at two moments"):
        curves_of(runs[1:], metrics, "validation_error")
