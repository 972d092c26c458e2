"""A table of runs in, a law with everything a reader must know out."""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest

from scm_jax.analysis.laws import bootstrap, power_sums
from scm_jax.analysis.laws.extrapolation import leave_largest_out
from scm_jax.analysis.laws.fit import fit_scaling, fit_study
from scm_jax.analysis.laws.isoflop import group_budgets
from tests.analysis.studies import COST, DIVERGED, LAW, NIGHTLY, measured, study, values

LOSS = "2_steps/frechet_distance"


def table(**settings):
    n, d, c, loss = study(**settings)
    return pd.DataFrame(
        {"parameters": n, "images": d, "flops": c, LOSS: loss, "objective": "sct"}
        | {"state": "done", "seed": np.arange(len(n)) % 2}
    )


@pytest.fixture(scope="module")
def fit():
    return fit_scaling(table(noise=0.01), LOSS, count=100)


def test_the_law_and_its_numbers(fit):
    found = fit.intervals()
    assert list(found) == ["E", "A", "B", "a", "b", "p", "q"]
    for name, true in zip("EABab", values(LAW), strict=True):
        assert true in found[name]
    assert LAW.parameters_exponent(0.9) in found["p"]
    assert found["p"].estimate == pytest.approx(fit.law.parameters_exponent(0.9))
    assert vars(fit.flops_per_image) == pytest.approx(vars(COST))
    assert fit.noise == pytest.approx(0.01, rel=0.4)


def test_predictions_have_intervals(fit):
    best = fit.optimum(5e13)
    true = LAW.optimum(5e13, COST)
    assert true.parameters in best["parameters"] and true.loss in best["loss"]
    assert true.images in best["images"]
    assert LAW(1e6, 1e7) in fit.predict(1e6, 1e7)
    assert fit.predict(1e6, 1e7).estimate == float(fit.law(1e6, 1e7))


def test_the_summary_has_what_a_paper_needs(fit):
    text, page = str(fit), fit._repr_html_()
    for needed in ("E ", "N_opt ~ C^p", "40 of 20 configurations, 4 budgets", LOSS):
        assert needed in text and needed.strip() in page
    left = fit.extrapolation
    assert f"{100 * left.median_error:.2g} % median" in text
    assert f"{fit.law.a:.4g} [" in text


def test_the_largest_budget_is_predicted_from_the_others(fit):
    left = fit.extrapolation
    assert left.flops == pytest.approx(5e12)
    assert left.times_larger == pytest.approx(25 ** (1 / 3))
    assert len(left.measured) == 10 and left.inside.sum() >= 8
    assert left.median_error < 0.05
    np.testing.assert_allclose(left.errors, left.predicted / left.measured - 1)


def test_the_left_out_runs_do_not_reach_the_fit_that_predicts_them():
    n, d, c, loss = study(noise=0.01)
    budgets, groups = group_budgets(c), np.unique(n * d, return_inverse=True)[1]
    largest = budgets == 3
    arrays = (budgets, groups)
    before = leave_largest_out(n, d, c, loss, *arrays, count=20)
    after = leave_largest_out(n, d, c, np.where(largest, 9.0, loss), *arrays, count=20)
    np.testing.assert_array_equal(before.predicted, after.predicted)
    assert not after.inside.any()


def test_new_runs_fall_into_their_interval_as_often_as_promised():
    inside = []
    for seed in range(15 if NIGHTLY else 3):
        n, d, c, loss = study(noise=0.02, seed=seed)
        arrays = (group_budgets(c), bootstrap.configurations(n, d))
        left = leave_largest_out(n, d, c, loss, *arrays, count=100, seed=seed)
        inside.append(left.inside.mean())
    assert 0.92 <= np.mean(inside)


def test_intervals_of_a_run_hold_new_runs_of_measured_configurations():
    """There the law is sure: the noise of a run is nearly all of the interval."""
    n, d, c, loss = study(noise=0.02)
    fit = fit_study(n, d, c, loss, delta=np.inf, count=300)
    found = fit.single_runs(n, d)
    low, high = np.array([[run.low, run.high] for run in found]).T
    assert found[3].estimate == fit.predict(n[3], d[3]).estimate
    with pytest.raises(ValueError, match="no intervals"):
        dataclasses.replace(fit, replicates=None).single_runs(n, d)
    rng = np.random.default_rng(1)
    new = LAW(n, d) * np.exp(0.02 * rng.normal(size=(200, len(n))))
    assert 0.92 < np.mean((low <= new) & (new <= high)) < 0.99


def test_unusable_runs_are_left_out_and_counted():
    frame = table(noise=0.01)
    frame.loc[0, "state"] = "failed"
    frame.loc[[1, 2], LOSS] = np.nan
    frame.loc[3, LOSS] = -0.1
    frame.loc[4, LOSS] = np.inf
    fit = fit_scaling(frame, LOSS, count=20)
    assert len(fit.loss) == 35
    for number, why in (
        (1, "they are not done"),
        (2, f"they have no {LOSS}, size, images or FLOPs"),
        (1, f"their {LOSS} is infinite"),
        (1, f"their {LOSS} is not positive and has no logarithm"),
    ):
        assert f"{number} runs left out: {why}" in fit.warnings


@pytest.mark.parametrize(("run", "factor"), DIVERGED if NIGHTLY else DIVERGED[1:2])
def test_a_diverged_run_is_named_and_left_out_of_everything(run, factor):
    frame = table(noise=0.01, seeds=1)
    frame.index = [f"sct_{i}" for i in range(20)]
    rest = fit_scaling(frame.drop(f"sct_{run}"), LOSS, count=20)
    frame.loc[f"sct_{run}", LOSS] *= factor
    fit = fit_scaling(frame, LOSS, count=20)
    (text,) = (w for w in fit.warnings if "left out of the fit" in w)
    assert "1 of 20 runs lie more than 5 deviations" in text
    times, away = re.search(rf"sct_{run} \((\S+) times .* (\S+) dev", text).groups()
    assert float(times) == pytest.approx(factor, rel=0.2) and float(away) > 20
    for name, found in rest.intervals().items():
        assert vars(fit.intervals()[name]) == pytest.approx(vars(found), rel=1e-2)
    assert fit.isoflop.exponent == rest.isoflop.exponent
    predicted = [study.extrapolation.predicted for study in (fit, rest)]
    np.testing.assert_allclose(*predicted, rtol=1e-3)
    # Whoever chooses the loss keeps the run, and is told.
    kept = fit_scaling(frame, LOSS, count=20, delta=power_sums.HUBER_DELTA)
    assert len(kept.loss) == 20
    assert said(kept, f"kept, because delta was given: sct_{run}")


def test_noise_names_nobody():
    for seed in range(20 if NIGHTLY else 8):
        points = measured(noise=(0.01, 0.03)[seed % 2], seeds=1, seed=seed)
        _, _, away = power_sums.robust_start(points.log_x, points.log_y)
        assert np.abs(away).max() < power_sums.OUTLYING


def test_a_diverged_run_does_not_move_the_extrapolation():
    n, d, c, loss = study(noise=0.01, seeds=1)
    groups = np.arange(20)
    rest = groups != 4
    loss[4] *= 50
    without = [v[rest] for v in (n, d, c, loss, group_budgets(c), groups)]
    expected = leave_largest_out(*without, count=50)
    found = leave_largest_out(n, d, c, loss, group_budgets(c), groups, count=50)
    np.testing.assert_allclose(found.predicted, expected.predicted, rtol=1e-3)
    # Nor does a run have a chance of 1 in 14 to be 50 times as bad.
    np.testing.assert_allclose(found.high, expected.high, rtol=0.05)


def said(fit, *texts):
    return all(any(text in warning for warning in fit.warnings) for text in texts)


def test_minima_at_the_edge_reach_the_summary():
    frame = table()
    fit = fit_scaling(frame[frame.parameters > 1e5], LOSS, count=20)
    assert said(fit, "smallest of the sizes", "rests on") and "warning: " in str(fit)


def test_one_budget_has_no_extrapolation():
    fit = fit_study(*study(budgets=1, sizes=8, noise=0.01), count=20)
    assert fit.extrapolation is None
    assert said(fit, "one budget only", "intervals are too narrow")


def test_too_few_configurations_leave_estimates_without_intervals():
    fit = fit_study(*study(budgets=1, seeds=2), count=20)
    assert fit.replicates is None and said(fit, "no intervals")
    assert np.isnan(fit.intervals()["a"].low)
    assert np.isnan(fit.optimum(1e13)["loss"].low)


def test_flops_that_are_no_power_law_and_an_offset_of_zero_are_reported():
    n, d, c, loss = study(noise=0.03)
    odd = np.where(n == n.max(), 1.5, 1.0)
    fit = fit_study(n, d, c * odd, loss - 0.395, count=40)
    assert said(fit, "no power law of the sizes", "need no offset E")


def test_seeds_are_configurations_where_the_caller_says_so():
    frame = table(noise=0.01)
    fit = fit_scaling(frame, LOSS, group=("parameters", "images", "seed"), count=20)
    assert fit.groups.max() + 1 == 40


def test_bad_tables_are_named():
    frame = table()
    with pytest.raises(ValueError, match=r"objectives.*\['scd', 'sct'\]"):
        fit_scaling(frame.assign(objective=["sct", "scd"] * 20), LOSS)
    with pytest.raises(ValueError, match="needs 3 different values of parameters"):
        fit_scaling(frame.assign(state="failed"), LOSS)
    with pytest.raises(ValueError, match="no column '1_steps/fid'.*2_steps/frechet"):
        fit_scaling(frame, "1_steps/fid")
