"""Laws against planted ones, and against what is known of their optimum."""

import subprocess
import sys

import numpy as np
import pytest
from scipy import optimize

from scm_jax.analysis.laws import power_sums
from scm_jax.analysis.laws.law import (
    ChinchillaLaw,
    FlopsPerImage,
    Points,
    PowerLaw,
    fit_chinchilla,
    fit_flops_per_image,
    fit_power_law,
    flops_per_image_error,
)
from tests.analysis.studies import COST, DIVERGED, LAW, study, values


def test_the_planted_law_is_found_exactly_without_noise():
    n, d, _, loss = study()
    found = fit_chinchilla(n, d, loss)
    np.testing.assert_allclose(values(found), values(LAW), rtol=1e-4)


@pytest.mark.parametrize("delta", [1e-3, np.inf])
def test_with_noise_no_other_start_reaches_a_smaller_sum(delta):
    n, d, _, loss = study(noise=0.02)
    points = Points.of(ChinchillaLaw, loss, n, d)

    def total(theta):
        expected, _ = power_sums.evaluate(theta, points.log_x)
        return power_sums.huber(points.log_y - expected, delta).sum()

    best = total(points.theta(fit_chinchilla(n, d, loss, delta)))
    rng = np.random.default_rng(0)
    starts = rng.uniform([-3, -3, -3, 0.1, 0.1], [0, 0, 0, 1.5, 1.5], size=(3, 5))
    others = [power_sums.polish(points.log_x, points.log_y, s, delta) for s in starts]
    assert best <= min(map(total, others)) * (1 + 1e-6)


def test_a_mean_with_default_tolerances_stops_short():
    """The trap of Chinchilla's own fit: a sum and tight tolerances do not."""
    n, d, _, loss = study()
    points = Points.of(ChinchillaLaw, loss, n, d)
    delta = power_sums.HUBER_DELTA
    start = np.array([-1.0, -1.0, -1.0, 1.0, 1.0])

    def mean(theta):
        expected, shares = power_sums.evaluate(theta, points.log_x)
        residual = points.log_y - expected
        slope = np.clip(residual, -delta, delta) @ power_sums.jacobian(
            shares, points.log_x
        )
        return power_sums.huber(residual, delta).mean(), -slope / len(residual)

    stopped = optimize.minimize(mean, start, jac=True, method="L-BFGS-B")
    assert stopped.success  # it believes so
    short = points.law(stopped.x)
    whole = points.law(power_sums.polish(points.log_x, points.log_y, start))
    assert abs(short.a - LAW.a) > 0.02  # of 0.45, without any noise
    np.testing.assert_allclose([whole.a, whole.b], [LAW.a, LAW.b], rtol=1e-3)


def test_an_outlier_moves_the_huber_fit_less_than_least_squares():
    n, d, _, loss = study(noise=0.01)
    loss[7] *= 2.0
    robust, squares = (fit_chinchilla(n, d, loss, delta) for delta in (1e-3, np.inf))
    assert abs(robust.a - LAW.a) < 0.05 < abs(squares.a - LAW.a)


@pytest.mark.parametrize(("run", "factor"), DIVERGED)
@pytest.mark.parametrize("delta", [power_sums.HUBER_DELTA, None])
def test_a_diverged_run_does_not_move_the_law(run, factor, delta):
    """Neither with Chinchilla's delta nor with one that follows the noise."""
    n, d, _, loss = study(seeds=1)
    loss[run] *= factor
    points = Points.of(ChinchillaLaw, loss, n, d)
    if delta is None:
        delta = power_sums.robust_start(points.log_x, points.log_y)[1]
    law = points.law(power_sums.fit(points.log_x, points.log_y, delta))
    assert delta == power_sums.HUBER_DELTA
    np.testing.assert_allclose(values(law), values(LAW), rtol=0.05)


def test_batched_refits_agree_with_single_fits():
    n, d, _, loss = study(noise=0.02)
    points = Points.of(ChinchillaLaw, loss, n, d)
    start = points.theta(fit_chinchilla(n, d, loss))
    rng = np.random.default_rng(1)
    keep = [np.sort(rng.choice(len(n), 32, replace=False)) for _ in range(4)]
    weights = np.zeros((4, len(n)))
    for row, chosen in zip(weights, keep, strict=True):
        row[chosen] = 1
    batch = power_sums.refit(
        points.log_x, points.log_y, weights, start, max_steps=400, tolerance=1e-10
    )
    for theta, chosen in zip(batch, keep, strict=True):
        alone = power_sums.polish(points.log_x[chosen], points.log_y[chosen], start)
        np.testing.assert_allclose(theta[3:], alone[3:], atol=2e-3)


def test_power_law_with_offset():
    x = np.geomspace(1e3, 1e7, 9)
    found = fit_power_law(x, PowerLaw(E=2.0, A=50.0, a=0.3)(x))
    np.testing.assert_allclose([found.E, found.A, found.a], [2, 50, 0.3], rtol=1e-4)


def test_an_offset_of_nothing_is_zero():
    x = np.geomspace(1e3, 1e7, 9)
    found = fit_power_law(x, 50.0 * x**-0.3)
    assert found.E < 1e-3 * 50.0 * 1e7**-0.3
    np.testing.assert_allclose([found.A, found.a], [50, 0.3], rtol=1e-3)


@pytest.mark.parametrize("growth", [1.0, 0.8])
def test_optimum_is_the_smallest_loss_along_a_budget(growth):
    cost = FlopsPerImage(12.0, growth)
    budget = 1e12
    best = LAW.optimum(budget, cost)
    n = best.parameters * np.linspace(0.5, 2.0, 3001)
    along = LAW(n, budget / cost(n))
    assert n[np.argmin(along)] == pytest.approx(best.parameters, rel=1e-3)
    assert along.min() == pytest.approx(best.loss, rel=1e-6)
    assert best.images * cost(best.parameters) == pytest.approx(budget)


@pytest.mark.parametrize("growth", [1.0, 0.8])
def test_exponents_are_the_slopes_of_the_optimum(growth):
    best = LAW.optimum([1e12, 1e14], FlopsPerImage(12.0, growth))
    slope = np.log(best.parameters[1] / best.parameters[0]) / np.log(100)
    assert LAW.parameters_exponent(growth) == pytest.approx(slope)
    slope = np.log(best.images[1] / best.images[0]) / np.log(100)
    assert LAW.images_exponent(growth) == pytest.approx(slope)


def test_a_law_of_replicates_answers_for_each():
    many = ChinchillaLaw(*(np.array([v, 1.1 * v]) for v in values(LAW)))
    best = many.optimum(1e12, COST)
    assert best.parameters.shape == (2,)
    assert best.parameters[0] == LAW.optimum(1e12, COST).parameters
    assert many(1e5, 1e6)[0] == LAW(1e5, 1e6)


def test_without_a_term_there_is_no_optimum():
    flat = ChinchillaLaw(E=0.1, A=0.0, B=3.0, a=0.3, b=0.3)
    assert np.isnan(flat.optimum(1e12, COST).parameters)


def test_flops_per_image_from_exact_counts():
    n = np.array([1e4, 1e5, 1e6])
    found = fit_flops_per_image(n, 12.0 * n**0.9)
    assert (found.coefficient, found.exponent) == pytest.approx((12.0, 0.9))
    assert flops_per_image_error(found, n, 12.0 * n**0.9) < 1e-9
    assert flops_per_image_error(found, n, 13.2 * n**0.9) == pytest.approx(1 / 11)
    assert fit_flops_per_image([1e5], [6e5]) == FlopsPerImage(pytest.approx(6.0), 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": [1.0, 2.0, 0.0, 1.0, 1.0]}, "loss must be positive.* value 2 is 0"),
        ({"loss": [1.0, 2.0, np.nan, 1.0, 1.0]}, "value 2 is nan"),
        ({"parameters": [1.0, 1.0, 2.0, 2.0, 2.0]}, "3 different values of parameters"),
        ({"images": [1.0, 2.0]}, "images has 2 values for 5 losses"),
    ],
)
def test_bad_measurements_are_named(change, message):
    good = {
        "parameters": [1.0, 2.0, 3.0, 4.0, 5.0],
        "images": [5.0, 1.0, 2.0, 4.0, 3.0],
        "loss": [1.0, 2.0, 3.0, 2.0, 1.0],
    }
    with pytest.raises(ValueError, match=message):
        fit_chinchilla(**(good | change))


def test_fewer_points_than_parameters_are_refused():
    with pytest.raises(ValueError, match="5 parameters need"):
        fit_chinchilla([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 0.9, 0.8])


def test_analysis_needs_neither_jax_nor_pandas_to_be_imported():
    modules = (
        *("power_sums", "law", "bootstrap", "isoflop", "envelope", "extrapolation"),
        *("fit", "ratio", "frontier", "proposals"),
    )
    code = f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module("scm_jax.analysis.laws." + name)
importlib.import_module("scm_jax.analysis.plots.laws")
print([m for m in ("jax", "pandas", "matplotlib") if m in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_modules_are_found_by_their_former_names():
    import scm_jax.analysis
    from scm_jax.analysis import law_plots, scaling_fit

    assert scaling_fit.fit_scaling and law_plots.plot_optimum
    for name in scm_jax.analysis._MOVED:
        assert getattr(scm_jax.analysis, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = scm_jax.analysis.nothing
