"""Valleys with a known lowest point."""

import numpy as np
import pytest

from scm_jax.analysis.laws.isoflop import fit_isoflop
from tests.analysis.studies import NIGHTLY

BUDGETS = np.array([1e12, 4e12, 1.6e13, 6.4e13])
EXPONENT = 0.55


def valleys(noise=0.0, bend=0.08, seed=0, shift=0.0, seeds=2, spread=1.5, sizes=7):
    """Parabolas in log N; their lowest points follow N = 0.02 C^0.55."""
    rng = np.random.default_rng(seed)
    best = 0.02 * BUDGETS**EXPONENT
    offsets = np.repeat(np.linspace(-spread, spread, sizes) + shift, seeds)
    n = best[:, None] * np.exp(offsets)
    c = np.broadcast_to(BUDGETS[:, None], n.shape)
    log_loss = np.log(c**-0.12 * 40) + bend * np.log(n / best[:, None]) ** 2
    loss = np.exp(log_loss + noise * rng.normal(size=n.shape))
    return n.ravel(), c.ravel(), loss.ravel()


def test_parabolas_give_their_lowest_points_and_exponent():
    fit = fit_isoflop(*valleys())
    found = [valley.best_parameters.estimate for valley in fit.valleys]
    np.testing.assert_allclose(found, 0.02 * BUDGETS**EXPONENT, rtol=1e-6)
    depths = [valley.best_loss.estimate for valley in fit.valleys]
    np.testing.assert_allclose(depths, 40 * BUDGETS**-0.12, rtol=1e-6)
    assert fit.exponent.estimate == pytest.approx(EXPONENT)
    assert fit.coefficient == pytest.approx(0.02)
    assert fit.loss_law.a == pytest.approx(0.12, rel=0.01)
    assert fit.warnings == ()


def skewed():
    """Valleys that are three times as steep on one side."""
    n, c, _ = valleys(sizes=9)
    u = np.log(n / (0.02 * c**EXPONENT))
    return n, c, np.exp(0.3 * np.abs(u) ** 1.5 * np.where(u > 0, 3.0, 1.0))


@pytest.mark.parametrize(
    ("method", "least", "most"), [("akima", 0.0, 0.03), ("parabola", 0.1, np.inf)]
)
def test_akima_follows_a_valley_that_is_no_parabola(method, least, most):
    found = fit_isoflop(*skewed(), method=method).valleys
    best = [v.best_parameters.estimate / (0.02 * v.flops**EXPONENT) for v in found]
    assert least <= np.abs(np.log(best)).max() < most


def test_akima_uses_the_mean_of_the_seeds():
    n, c, loss = valleys()
    tilted = loss * np.where(np.arange(len(loss)) % 2, 1.1, 1 / 1.1)
    found = fit_isoflop(n, c, tilted, method="akima").valleys[0].best_parameters
    assert found.estimate == pytest.approx(0.02 * BUDGETS[0] ** EXPONENT, rel=0.02)


@pytest.mark.parametrize("method", ["parabola", "akima"])
def test_intervals_hold_the_lowest_points(method):
    held, exponents, studies = 0, 0, 40 if NIGHTLY else 20
    truth = 0.02 * BUDGETS**EXPONENT
    for seed in range(studies):
        found = valleys(noise=0.02, seed=seed)
        fit = fit_isoflop(*found, method=method, count=200, seed=seed)
        pairs = zip(truth, fit.valleys, strict=True)
        held += sum(t in valley.best_parameters for t, valley in pairs)
        exponents += EXPONENT in fit.exponent
    assert held >= 0.92 * studies * len(BUDGETS)
    assert exponents >= 0.9 * studies


@pytest.mark.parametrize(("shift", "side"), [(2.0, "smallest"), (-2.0, "largest")])
def test_a_minimum_at_the_edge_is_reported_and_left_out(shift, side):
    n, c, loss = valleys()
    moved = valleys(shift=shift)
    first = c == BUDGETS[0]
    n[first], loss[first] = moved[0][first], moved[2][first]
    fit = fit_isoflop(n, c, loss)
    assert [v.problem for v in fit.valleys] == ["edge", "", "", ""]
    assert f"{side} of the sizes" in fit.warnings[0] and "1e+12" in fit.warnings[0]
    assert fit.exponent.estimate == pytest.approx(EXPONENT)


@pytest.mark.parametrize("method", ["parabola", "akima"])
@pytest.mark.parametrize(("run", "factor"), [(0, 2.0), (7, 500.0), (19, 0.02)])
def test_a_diverged_run_is_no_part_of_its_valley(method, run, factor):
    n, c, loss = valleys(noise=0.01, seeds=1, sizes=5)
    loss[run] *= factor
    fit = fit_isoflop(n, c, loss, method=method, count=50)
    rest = np.arange(len(n)) != run
    without = fit_isoflop(n[rest], c[rest], loss[rest], method=method, count=50)
    assert fit.exponent == without.exponent and fit.noise == without.noise
    (said,) = fit.left_out
    assert f"loss {loss[run]:.3g} of {n[run]:.3g} parameters" in said
    assert said in fit.warnings and not without.left_out


def test_noise_and_valleys_that_are_no_parabolas_leave_no_run_out():
    for seed in range(20 if NIGHTLY else 8):
        found = valleys(noise=0.02, seeds=1, sizes=5, seed=seed)
        assert not fit_isoflop(*found, count=2).left_out
    assert not fit_isoflop(*skewed(), count=2).left_out


def test_a_hill_is_no_valley():
    fit = fit_isoflop(*valleys(bend=-0.08))
    assert {v.problem for v in fit.valleys} == {"not convex"}
    assert all(np.isnan(v.best_parameters.estimate) for v in fit.valleys)
    assert np.isnan(fit.exponent.estimate) and fit.loss_law is None
    assert "rests on 0 budgets" in fit.warnings[-1]


def test_a_valley_drowned_in_noise_has_an_unbounded_interval():
    fit = fit_isoflop(*valleys(noise=0.3, bend=0.005))
    assert any(np.isinf(v.best_parameters.high) for v in fit.valleys)


def test_three_runs_at_each_budget_have_minima_without_intervals():
    fit = fit_isoflop(*valleys(seeds=1, sizes=3))
    assert fit.exponent.estimate == pytest.approx(EXPONENT)
    assert fit.exponent.low == -np.inf and np.isnan(fit.noise)


def test_bad_input_is_named():
    one, sizes = np.ones(3), np.arange(1.0, 4.0)
    with pytest.raises(ValueError, match="method = 'cubic' is not one of"):
        fit_isoflop(sizes, one, one, method="cubic")
    with pytest.raises(ValueError, match="loss must be positive"):
        fit_isoflop(sizes, one, one - 1)
    with pytest.raises(ValueError, match="no budget has 3 sizes"):
        fit_isoflop([1.0, 1.0, 2.0], one, one)
