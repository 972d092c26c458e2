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
from tests.analysis.studies import COST, DIVERGED, LAW, measured, study, values


def test_the_planted_law_is_found_exactly_without_noise():
    n, d, _, loss = study()
    found = fit_chinchilla(n, d, loss)
    np.testing.assert_allclose(values(found), values(LAW), rtol=1e-4)


@pytest.mark.parametrize("delta", [1e-3, np.inf])
def test_with_noise_no_other_start_reaches_a_smaller_sum(delta):
    points = measured(noise=0.02)

    def total(theta):
        expected, _ = power_sums.evaluate(theta, points.log_x)
        return power_sums.huber(points.log_y - expected, delta).sum()

    best = total(power_sums.fit(points.log_x, points.log_y, delta))
    rng = np.random.default_rng(0)
    starts = rng.uniform([-3, -3, -3, 0.1, 0.1], [0, 0, 0, 1.5, 1.5], size=(3, 5))
    others = [power_sums.polish(points.log_x, points.log_y, s, delta) for s in starts]
    assert best <= min(map(total, others)) * (1 + 1e-6)


def test_a_mean_with_default_tolerances_stops_short():
    """The trap of Chinchilla's own fit: a sum and tight tolerances do not."""
    points = measured()
    delta = power_sums.HUBER_DELTA
    start = np.array([-1.0, -1.0, -1.0, 1.0, 1.0])

    def mean(theta):
        expected, shares = power_sums.evaluate(theta, points.log_x)
        residual = points.log_y - expected
        slopes = power_sums.jacobian(shares, points.log_x)
        slope = np.clip(residual, -delta, delta) @ slopes / len(residual)
        return power_sums.huber(residual, delta).mean(), -slope

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
    points = measured(noise=0.02)
    start = power_sums.fit(points.log_x, points.log_y)
    rng = np.random.default_rng(1)
    weights = rng.permuted(np.tile(np.arange(40) < 32, (2, 1)), axis=1)
    settings = {"max_steps": 400, "tolerance": 1e-10}
    batch = power_sums.refit(points.log_x, points.log_y, weights, start, **settings)
    for theta, chosen in zip(batch, weights, strict=True):
        alone = power_sums.polish(points.log_x[chosen], points.log_y[chosen], start)
        np.testing.assert_allclose(theta[3:], alone[3:], atol=2e-3)


@pytest.mark.parametrize(("offset", "rtol"), [(2.0, 1e-4), (0.0, 1e-3)])
def test_power_law_with_and_without_offset(offset, rtol):
    x = np.geomspace(1e3, 1e7, 9)
    found = fit_power_law(x, PowerLaw(E=offset, A=50.0, a=0.3)(x))
    assert found.E == pytest.approx(offset, rel=rtol, abs=1e-3 * 50.0 * 1e7**-0.3)
    np.testing.assert_allclose([found.A, found.a], [50, 0.3], rtol=rtol)


@pytest.mark.parametrize("growth", [1.0, 0.8])
def test_optimum_is_the_smallest_loss_along_a_budget(growth):
    cost = FlopsPerImage(12.0, growth)
    best = LAW.optimum(1e12, cost)
    n = best.parameters * np.linspace(0.5, 2.0, 3001)
    along = LAW(n, 1e12 / cost(n))
    assert n[np.argmin(along)] == pytest.approx(best.parameters, rel=1e-3)
    assert along.min() == pytest.approx(best.loss, rel=1e-6)
    assert best.images * cost(best.parameters) == pytest.approx(1e12)


@pytest.mark.parametrize("growth", [1.0, 0.8])
def test_exponents_are_the_slopes_of_the_optimum(growth):
    best = LAW.optimum([1e12, 1e14], FlopsPerImage(12.0, growth))
    slopes = [np.ptp(np.log(v)) / np.log(100) for v in (best.parameters, best.images)]
    assert LAW.parameters_exponent(growth) == pytest.approx(slopes[0])
    assert LAW.images_exponent(growth) == pytest.approx(slopes[1])


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
    ("n", "d", "loss", "message"),
    [
        ("12345", "51243", "12021", "loss must be positive.* value 2 is 0"),
        ("12345", "51243", [1, 2, np.nan, 2, 1], "value 2 is nan"),
        ("11222", "51243", "12321", "3 different values of parameters"),
        ("12345", "12", "12321", "images has 2 values for 5 losses"),
        ("123", "123", "123", "5 parameters need 5 points"),
    ],
)
def test_bad_measurements_are_named(n, d, loss, message):
    with pytest.raises(ValueError, match=message):
        fit_chinchilla(list(n), list(d), list(loss))


def test_analysis_needs_neither_jax_nor_pandas_to_be_imported():
    code = """
import sys
from scm_jax.analysis.laws import proposals, ratio
from scm_jax.analysis.plots import curves, laws
from scm_jax.analysis.tables import frames
print([m for m in ("jax", "pandas", "pyarrow", "matplotlib") if m in sys.modules])
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_modules_are_found_by_their_former_names():
    from scm_jax import analysis

    for name in analysis._MOVED:
        assert getattr(analysis, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = analysis.nothing
