"""What figures draw, on studies with known answers."""

import numpy as np
import pandas as pd
import pytest

from scm_jax.analysis.laws.fit import fit_study
from scm_jax.analysis.laws.isoflop import fit_isoflop
from scm_jax.analysis.laws.published import load_published
from scm_jax.analysis.laws.ratio import fit_ratio, published_ratio
from scm_jax.analysis.plots import axes as axes_lib
from scm_jax.analysis.plots import laws
from tests.analysis.studies import COST, LAW, study
from tests.analysis.test_isoflop import BUDGETS, EXPONENT, valleys


@pytest.fixture(scope="module")
def fit():
    n, d, c, loss = study(noise=0.003)
    return fit_study(n, d, c, loss, loss_name="2_steps/fid", count=40)


def points(line):
    return np.transpose(np.asarray(line.get_data(), float))


def named(axes):
    """Label -> points of all lines that have one."""
    lines = {line.get_label(): line for line in axes.get_lines()}
    lines |= {c.get_label(): c.lines[0] for c in axes.containers}
    return {k: points(line) for k, line in lines.items() if not k.startswith("_")}


def markers(axes, marker):
    """Points of all lines with this marker."""
    lines = [line for line in axes.get_lines() if line.get_marker() == marker]
    return np.concatenate([points(line) for line in lines])


def labels(axes):
    return axes.get_xlabel(), axes.get_ylabel()


def test_isoflop_valleys_and_their_lowest_points():
    n, c, loss = valleys(noise=0.001)
    fit = fit_isoflop(n, c, loss, count=50)
    axes = laws.plot_isoflop(fit, "FID")
    stars = np.concatenate([points(star.lines[0]) for star in axes.containers])
    np.testing.assert_allclose(stars[:, 0], 0.02 * BUDGETS**EXPONENT, rtol=0.05)
    np.testing.assert_allclose(stars[:, 1], 40 * BUDGETS**-0.12, rtol=0.01)
    assert sorted(markers(axes, "o")[:, 1]) == pytest.approx(sorted(loss))
    assert labels(axes) == ("parameters N", "FID")
    curve = named(axes)["1e+12 FLOPs"]
    assert curve[:, 1].min() == pytest.approx(stars[0, 1], rel=1e-4)


def test_a_valley_with_a_problem_has_no_star():
    axes = laws.plot_isoflop(fit_isoflop(*valleys(bend=-0.08), count=20))
    assert not axes.containers
    assert "1e+12 FLOPs (not convex)" in named(axes)


def test_the_law_goes_through_its_runs(fit):
    axes = laws.plot_law(fit)
    for size in np.unique(fit.parameters):
        images, loss = named(axes)[f"N = {size:.3g}"].T
        np.testing.assert_allclose(loss, fit.law(size, images))
    drawn = sorted(markers(axes, "o")[:, 0])
    np.testing.assert_allclose(drawn, sorted(fit.images), rtol=1e-12)
    assert labels(axes) == ("training images D", "2_steps/fid")


def test_residuals_are_in_percent(fit):
    given = laws.plot_law(fit)
    assert laws.plot_residuals(fit, axes=given) is given
    axes = laws.plot_residuals(fit)
    error = 100 * (fit.loss / fit.law(fit.parameters, fit.images) - 1)
    drawn = markers(axes, "o")
    np.testing.assert_allclose(sorted(drawn[:, 1]), sorted(error))
    assert axes.get_ylabel().endswith("[%]") and "[FLOPs]" in axes.get_xlabel()


def test_the_optimum_is_dashed_beyond_the_measured_budgets(fit):
    axes = laws.plot_optimum(fit, beyond=20.0)
    lines = named(axes)
    most = fit.flops.max()
    assert lines["law"][-1, 0] == pytest.approx(most)
    assert lines["extrapolated"][[0, -1], 0] == pytest.approx([most, 20 * most])
    for name in ("law", "extrapolated"):
        flops, best = lines[name].T
        np.testing.assert_allclose(best, LAW.optimum(flops, COST).parameters, rtol=0.3)
        own = fit.law.optimum(flops, fit.flops_per_image).parameters
        np.testing.assert_allclose(best, own)
    good = [v for v in fit.isoflop.valleys if not v.problem]
    best = [[v.flops, v.best_parameters.estimate] for v in good]
    np.testing.assert_allclose(lines["isoFLOP minima"], best)
    # The band holds the line, on both parts.
    assert len(axes.collections) >= 2
    assert "compute-optimal parameters N" in axes.get_ylabel()


def test_predicted_stands_against_measured(fit):
    left = fit.extrapolation
    axes = laws.plot_extrapolation(left, "FID")
    (drawn,) = [v for k, v in named(axes).items() if k.startswith("runs of 5e+12")]
    np.testing.assert_allclose(drawn, np.stack([left.measured, left.predicted], 1))
    np.testing.assert_array_equal(*named(axes)["predicted = measured"].T)
    assert labels(axes) == ("measured FID", "predicted FID")
    assert f"{100 * left.median_error:.2g} %" in axes.get_title()


def test_the_front_is_a_step_through_unbeaten_runs():
    costs = [1.0, 2.0, 3.0, np.nan]
    frame = pd.DataFrame({"sampling_compute": costs, "fid": [5.0, 6.0, 2.0, 1.0]})
    published = load_published("cifar10", "fid")
    axes = laws.plot_frontier(frame, "sampling_compute", "fid", published=published)
    lines = named(axes)
    np.testing.assert_array_equal(lines["Pareto front"], [[1, 5], [3, 2]])
    assert len(lines["runs"]) == 3
    published = [[0.0557, 2.85], [0.1114, 2.06]]
    np.testing.assert_allclose(lines["sct (published)"], published)
    assert "parameters × evaluations" in axes.get_xlabel()
    with pytest.raises(ValueError, match="no row has both"):
        laws.plot_frontier(frame[3:], "sampling_compute", "fid")


def test_ratios_stand_beside_the_paper_s():
    own = fit_ratio([1e8, 2e8, 4e8], [1.2, 1.3, 1.1], [1.0, 1.0, 1.0])
    paper = published_ratio("imagenet512", "fid")
    axes = laws.plot_ratio(own, {"sCD, 2 steps (paper)": paper})
    lines = named(axes)
    (mine,) = [v for k, v in lines.items() if k.startswith("these runs")]
    np.testing.assert_allclose(mine, [[1e8, 1.2], [2e8, 1.3], [4e8, 1.1]])
    (theirs,) = [v for k, v in lines.items() if k.startswith("sCD, 2 steps (paper)")]
    np.testing.assert_allclose(theirs[0], [280.2e6, 2.5 / 2.29])
    assert f"{paper.ratio}" in " ".join(lines)
    assert labels(axes) == ("parameters N", "quality of student / teacher")


def test_ticks_of_large_numbers_are_short():
    texts = [axes_lib.tick(value) for value in (0.5, 2.0, 5e3, 1e5, 2.5e12)]
    assert texts == ["0.5", "2", "5000", "1e5", "2.5e12"]
