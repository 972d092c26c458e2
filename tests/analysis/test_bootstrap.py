"""Intervals: what a resample is, and whether they hold what they promise."""

import numpy as np
import pytest

from scm_jax.analysis.laws import bootstrap, power_sums
from scm_jax.analysis.laws.bootstrap import Interval, interval
from scm_jax.analysis.laws.law import ChinchillaLaw, Points
from tests.analysis.studies import COST, LAW, NIGHTLY, study

GROWTH = COST.exponent
FAR = 5e13  # ten times the largest budget of a study


def fit(n, d, loss, count, seed=0):
    points = Points.of(ChinchillaLaw, loss, n, d)
    delta = power_sums.robust_start(points.log_x, points.log_y)[1]
    theta = power_sums.fit(points.log_x, points.log_y, delta)
    settings = {"delta": delta, "count": count, "seed": seed}
    groups = bootstrap.configurations(n, d)
    return points.law(theta), bootstrap.bootstrap(points, theta, groups, **settings)


def test_the_planted_law_lies_in_its_interval_in_95_of_100_studies():
    def numbers(law):
        best = law.optimum(FAR, COST)
        exponents = law.parameters_exponent(GROWTH), law.images_exponent(GROWTH)
        return (law.E, law.a, law.b, *exponents, best.parameters, best.loss)

    truth, studies = numbers(LAW), 100 if NIGHTLY else 6
    held, widths = np.zeros(len(truth)), []
    for seed in range(studies):
        n, d, _, loss = study(noise=(0.01, 0.02, 0.03)[seed % 3], seed=seed)
        one, many = fit(n, d, loss, 200 if NIGHTLY else 100, seed)
        found = list(map(interval, numbers(one), numbers(many)))
        held += [true in own for true, own in zip(truth, found, strict=True)]
        widths.append(found[3].high - found[3].low)
    assert held.min() >= 0.95 * studies, held
    # Honest, not merely wide: an interval of the exponent says something.
    assert np.median(widths) < 0.3


def resampled(count, **settings):
    n, d, _, _ = study(**settings)
    groups = bootstrap.configurations(n, d)
    log_x = np.log(np.stack([n, d], 1))
    rng = np.random.default_rng(0)
    return n, groups, bootstrap.resample(groups, log_x, 5, count, rng)


def test_seeds_are_drawn_together_and_as_many_as_the_fit_has_freedom():
    _, groups, weights = resampled(50)
    assert len(set(groups)) == 20
    for group in range(20):
        np.testing.assert_array_equal(*weights[:, groups == group].T)
    np.testing.assert_array_equal(weights.sum(1), 2 * 15)


def test_every_resample_can_carry_a_law():
    n, _, weights = resampled(200, seeds=1, sizes=3, budgets=3)
    assert weights.shape == (200, 9)
    assert min(len(set(n[row > 0])) for row in weights) == 3


def test_too_few_configurations_have_no_interval():
    n, d, _, loss = study(seeds=8, sizes=5, budgets=1)
    with pytest.raises(ValueError, match="5 configurations give no interval for 5"):
        fit(n, d, loss, 10)


def test_runs_of_two_seeds_and_repeated_runs_differ():
    """Copies of every run are no new evidence: intervals stay as wide."""
    n, d, _, loss = study(seeds=1, noise=0.02)
    once = fit(n, d, loss, 200)[1]
    twice = fit(*(np.repeat(v, 2) for v in (n, d, loss)), 200)[1]
    widths = [np.ptp(np.quantile(many.a, [0.025, 0.975])) for many in (once, twice)]
    assert widths[1] == pytest.approx(widths[0], rel=0.2)


def test_replicates_without_a_value_widen_to_both_sides():
    values = np.arange(1000.0)
    some = np.concatenate([values, np.full(20, np.nan)])
    wide, narrow = interval(1.0, some), interval(1.0, values)
    assert wide.low < narrow.low and wide.high > narrow.high
    lost = np.concatenate([values, np.full(100, np.nan)])
    assert (interval(1.0, lost).low, interval(1.0, lost).high) == (-np.inf, np.inf)


def test_intervals_as_text():
    assert str(Interval(0.45123, 0.4, 0.51239)) == "0.4512 [0.4, 0.5124]"
    assert str(Interval(0.45)) == "0.45"
    assert 0.5 in Interval(0.45, 0.4, 0.51) and 0.52 not in Interval(0.45, 0.4, 0.51)
