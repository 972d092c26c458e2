"""What figures draw, on studies with known answers."""

import numpy as np
import pandas as pd
import pytest

from scm_jax.analysis.laws.envelope import fit_envelope
from scm_jax.analysis.laws.fit import fit_study
from scm_jax.analysis.laws.isoflop import fit_isoflop
from scm_jax.analysis.laws.published import load_published
from scm_jax.analysis.laws.ratio import fit_ratio, published_ratio
from scm_jax.analysis.plots import laws
from tests.analysis.studies import COST, LAW, study
from tests.analysis.test_envelope import curves
from tests.analysis.test_isoflop import BUDGETS, EXPONENT, valleys


@pytest.fixture(scope="module")
def fit():
    n, d, c, loss = study(noise=0.003)
    return fit_study(n, d, c, loss, loss_name="2_steps/fid", count=60)


def named(axes):
    """Label -> points of all lines that have one."""
    lines = {line.get_label(): line for line in axes.get_lines()}
    lines |= {c.get_label(): c.lines[0] for c in axes.containers}
    return {
        label: np.transpose(np.asarray(line.get_data(), float))
        for label, line in lines.items()
        if not label.startswith("_")
    }


def markers(axes, marker):
    """Points of all lines with this marker."""
    return np.concatenate(
        [
            np.transpose(np.asarray(line.get_data(), float))
            for line in axes.get_lines()
            if line.get_marker() == marker
        ]
    )


def labels(axes):
    return axes.get_xlabel(), axes.get_ylabel()


def test_isoflop_valleys_and_their_lowest_points():
    n, c, loss = valleys(noise=0.001)
    fit = fit_isoflop(n, c, loss, count=50)
    axes = laws.plot_isoflop(fit, "FID")
    stars = np.array(
        [np.asarray(b.lines[0].get_data(), float).ravel() for b in axes.containers]
    )
    np.testing.assert_allclose(stars[:, 0], 0.02 * BUDGETS**EXPONENT, rtol=0.05)
    np.testing.assert_allclose(stars[:, 1], 40 * BUDGETS**-0.12, rtol=0.01)
    drawn = markers(axes, "o")
    assert sorted(drawn[:, 1]) == pytest.approx(sorted(loss))
    assert labels(axes) == ("parameters N", "FID")
    assert "1e+12 FLOPs" in named(axes)
    curve = named(axes)["1e+12 FLOPs"]
    assert curve[:, 1].min() == pytest.approx(stars[0, 1], rel=1e-4)


def test_a_valley_with_a_problem_has_no_star():
    axes = laws.plot_isoflop(fit_isoflop(*valleys(bend=-0.08), count=20))
    assert not axes.containers
    assert "1e+12 FLOPs (not convex)" in named(axes)


def test_the_law_goes_through_its_runs(fit):
    axes = laws.plot_law(fit)
    lines = named(axes)
    sizes = np.unique(fit.parameters)
    for size in sizes:
        line = lines[f"N = {size:.3g}"]
        np.testing.assert_allclose(line[:, 1], fit.law(size, line[:, 0]))
    np.testing.assert_allclose(
        sorted(markers(axes, "o")[:, 0]), sorted(fit.images), rtol=1e-12
    )
    assert labels(axes) == ("training images D", "2_steps/fid")


def test_residuals_are_in_percent(fit):
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
    np.testing.assert_allclose(
        lines["isoFLOP minima"],
        [[v.flops, v.best_parameters.estimate] for v in good],
    )
    # The band holds the line, on both parts.
    assert len(axes.collections) >= 2
    assert "compute-optimal parameters N" in axes.get_ylabel()


def test_predicted_stands_against_measured(fit):
    left = fit.extrapolation
    axes = laws.plot_extrapolation(left, "FID")
    (points,) = [v for k, v in named(axes).items() if k.startswith("runs of 5e+12")]
    np.testing.assert_allclose(points, np.stack([left.measured, left.predicted], 1))
    line = named(axes)["predicted = measured"]
    np.testing.assert_array_equal(line[:, 0], line[:, 1])
    assert labels(axes) == ("measured FID", "predicted FID")
    assert f"{100 * left.median_error:.2g} %" in axes.get_title()


def test_envelope_lies_under_all_curves():
    runs = curves(sizes=7)
    envelope = fit_envelope(runs, count=3)
    axes = laws.plot_envelope(runs, envelope, "validation error")
    drawn = named(axes)["envelope"]
    np.testing.assert_allclose(drawn[:, 1], envelope.loss[~envelope.edge])
    assert {"N = 1e+04", "N = 3e+06"} <= set(named(axes))
    assert axes.get_ylabel() == "validation error"


def test_the_front_is_a_step_through_unbeaten_runs():
    frame = pd.DataFrame(
        {"sampling_compute": [1.0, 2.0, 3.0, np.nan], "fid": [5.0, 6.0, 2.0, 1.0]}
    )
    published = load_published("cifar10", "fid")
    axes = laws.plot_frontier(frame, "sampling_compute", "fid", published=published)
    lines = named(axes)
    np.testing.assert_array_equal(lines["Pareto front"], [[1, 5], [3, 2]])
    assert len(lines["runs"]) == 3
    np.testing.assert_allclose(
        lines["sct (published)"], [[0.0557, 2.85], [0.1114, 2.06]]
    )
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


def test_figures_draw_into_given_axes(fit):
    first = laws.plot_law(fit)
    assert laws.plot_residuals(fit, axes=first) is first


def test_ticks_of_large_numbers_are_short():
    texts = [laws._tick(v, 0) for v in (0.5, 2.0, 5e3, 1e5, 2.5e12)]
    assert texts == ["0.5", "2", "5000", "1e5", "2.5e12"]
