"""Figures of synthetic runs: what is drawn, where the numbers are known."""

import itertools
import math

import numpy as np
import pytest

import scm_jax
from scm_jax.analysis.ablation.compare import compare
from scm_jax.analysis.plots.ablation import plot_ablation
from scm_jax.analysis.plots.curves import (
    bin_values,
    plot_bins,
    plot_curves,
    plot_spikes,
    run_curves,
    spikes,
)
from scm_jax.analysis.plots.sampling import plot_sampling, sampling_lines
from tests.analysis.synthetic_runs import result, write
from tests.analysis.test_ablation import METRIC, only_arm, table, three_seeds


def rendered(axes):
    """The axes, laid out: labels and texts are made then."""
    axes.figure.draw_without_rendering()
    return axes


def line_of(axes, value, what="label"):
    (line,) = [x for x in axes.get_lines() if getattr(x, f"get_{what}")() == value]
    return line


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


class TestCurves:
    @pytest.fixture
    def study(self, tmp_path):
        """Two widths, two seeds each: loss = width + seed + step."""
        for width, seed in itertools.product((16, 32), (0, 2)):
            rows = [
                {"step": s, "images": 10 * s, "loss": width + seed + float(s)}
                for s in range(0, 101, 10)
            ]
            write(tmp_path, {"network.width": width, "seed": seed}, rows=rows)
        return tmp_path

    def draw(self, root, column="loss", **options):
        frames = scm_jax.load_metrics(root), column, scm_jax.load_runs(root)
        return rendered(plot_curves(*frames, **options))

    def test_the_line_is_the_mean_and_the_band_its_range(self, study):
        axes = self.draw(study)
        assert sorted(labels(axes)) == ["width = 16 (2 seeds)", "width = 32 (2 seeds)"]
        line = line_of(axes, "width = 16 (2 seeds)")
        np.testing.assert_allclose(line.get_xdata(), np.arange(0, 1001, 100))
        np.testing.assert_allclose(line.get_ydata(), 17 + np.arange(0, 101, 10))
        bands = [c.get_datalim(axes.transData) for c in axes.collections]
        assert {(b.y0, b.y1) for b in bands} == {(16, 118), (32, 134)}

    def test_no_two_lines_look_alike(self, tmp_path):
        rows = [{"step": s, "images": s, "loss": float(s)} for s in (1, 2)]
        for width, seed in itertools.product(range(16, 25), (0, 1)):
            write(tmp_path, {"network.width": width, "seed": seed}, rows=rows)
        write(tmp_path, {"network.width": 25}, rows=rows)
        axes = self.draw(tmp_path)
        lines = [line_of(axes, label) for label in labels(axes)]
        assert len({(x.get_color(), x.get_linestyle()) for x in lines}) == 10

    @pytest.mark.parametrize(
        ("x", "last"),
        [("steps", 100), ("images", 1000), ("flops", 2e9), ("device_hours", 0.02)],
    )
    def test_scales(self, study, x, last):
        metrics, runs = scm_jax.load_metrics(study), scm_jax.load_runs(study)
        curves = run_curves(metrics, "loss", runs, x)
        assert [curve.x[-1] for curve in curves.values()] == pytest.approx([last] * 4)

    def test_other_steps_are_interpolated_where_both_ran(self, tmp_path):
        for seed, steps in enumerate((range(0, 101, 20), range(10, 71, 20))):
            points = [(s, 2.0 * s + 10 * seed) for s in steps]
            rows = [{"step": s, "images": s, "loss": loss} for s, loss in points]
            write(tmp_path, {"seed": seed}, rows=rows)
        axes = self.draw(tmp_path)
        (line,) = [line for line in axes.get_lines() if len(line.get_xdata()) == 7]
        np.testing.assert_allclose(line.get_xdata(), np.arange(10, 71, 10))
        np.testing.assert_allclose(line.get_ydata(), 2 * np.arange(10, 71, 10) + 5)

    def test_a_value_that_was_not_finite_is_a_cross(self, tmp_path):
        rows = [{"step": 1, "images": 1, "loss": 4.0}]
        rows += [{"step": 2, "images": 2, "loss": math.nan}]
        write(tmp_path, rows=[*rows, {"step": 3, "images": 3, "eval/x": 1.0}])
        axes = self.draw(tmp_path)
        assert line_of(axes, "x", "marker").get_xydata().tolist() == [[2.0, 4.0]]

    def test_what_cannot_be_drawn_is_named(self, study):
        with pytest.raises(ValueError, match="'device_hours', 'flops', 'images', 's"):
            self.draw(study, x="epochs")
        with pytest.raises(ValueError, match="no metric 'los'"):
            self.draw(study, "los")

    def test_runs_without_the_accounts_are_left_out(self, study):
        rows = [{"step": 1, "images": 1, "loss": 0}]
        write(study, {"seed": 9}, done=False, rows=rows)
        metrics, runs = scm_jax.load_metrics(study), scm_jax.load_runs(study)
        assert len(run_curves(metrics, "loss", runs, "flops")) == 4
        assert len(run_curves(metrics, "loss", runs, "images")) == 5


class TestBins:
    @pytest.fixture
    def metrics(self, tmp_path):
        """The norm in bin b is (b + 1) times the step; the last bin is first empty."""
        values = np.outer(np.arange(1.0, 11), np.arange(1.0, 5))
        values[:5, 3] = math.nan
        rows = [
            {"step": step, "images": 10 * step, "bins/tangent_norm": list(row)}
            for step, row in enumerate(values, 1)
        ]
        write(tmp_path, rows=rows)
        return scm_jax.load_metrics(tmp_path)

    def test_a_line_for_each_bin_over_training(self, metrics):
        lines = rendered(plot_bins(metrics)).get_lines()
        assert len(lines) == 4
        np.testing.assert_allclose(lines[1].get_ydata(), 2 * np.arange(1, 11))
        np.testing.assert_allclose(lines[3].get_xdata(), np.arange(60, 101, 10))

    def test_a_line_for_each_stage_over_t(self, metrics):
        axes = rendered(plot_bins(metrics, x="t", stages=2))
        early, late = axes.get_lines()
        np.testing.assert_allclose(early.get_xdata(), np.pi * np.arange(1, 8, 2) / 16)
        np.testing.assert_allclose(early.get_ydata(), [3, 6, 9, math.nan])
        np.testing.assert_allclose(late.get_ydata(), [8, 16, 24, 32])
        assert labels(axes) == ["until 50", "until 100"]

    def test_one_run_with_such_values(self, metrics, tmp_path):
        write(tmp_path, {"seed": 1}, rows=[{"step": 1, "loss": 1.0}])
        both = scm_jax.load_metrics(tmp_path)
        with pytest.raises(ValueError, match="of one run"):
            bin_values(both, "bins/tangent_norm")
        with pytest.raises(ValueError, match="no metric 'bins/x'"):
            plot_bins(metrics, "bins/x")
        with pytest.raises(ValueError, match="x = 'steps'"):
            plot_bins(metrics, x="steps")


class TestSpikes:
    @pytest.fixture
    def metrics(self, tmp_path):
        """Smooth but for jumps at step 30 and 31 and a NaN at 40."""
        norms = np.linspace(10.0, 4.1, 60) * np.random.default_rng(0).uniform(
            0.9, 1.1, 60
        )
        norms[[30, 31, 40]] = 100.0, 90.0, math.nan
        rows = [
            {"step": step, "images": 10 * step, "grad_norm": norm, "loss": 1.0}
            for step, norm in enumerate(norms)
        ]
        write(tmp_path, name="wild", rows=rows)
        return scm_jax.load_metrics(tmp_path)

    def test_only_the_planted_ones(self, metrics):
        found = spikes(metrics, "grad_norm")
        assert found["step"].tolist() == [30, 31, 40]
        assert found["finite"].tolist() == [True, True, False]
        assert found["ratio"].iloc[0] == pytest.approx(100 / 8, rel=0.1)
        assert spikes(metrics, "loss").empty

    def test_they_are_marked_and_counted(self, metrics):
        axes = rendered(plot_spikes(metrics))
        assert labels(axes) == ["wild: 2 spikes, 1 not finite"]
        assert line_of(axes, "o", "marker").get_xdata().tolist() == [300.0, 310.0]
        assert line_of(axes, "x", "marker").get_xdata().tolist() == [400.0]

    def test_bad_questions(self, metrics):
        with pytest.raises(ValueError, match="no metric 'x'"):
            spikes(metrics, "x")
        with pytest.raises(ValueError, match="more than 1"):
            spikes(metrics, "loss", factor=1.0)


class TestForest:
    def test_points_intervals_and_bands(self):
        found, arm = only_arm(three_seeds(2.0, (0.01, -0.01, 0.0)))
        axes = rendered(plot_ablation(found))
        point = line_of(axes, "o", "marker")
        assert point.get_xdata().tolist() == [arm.difference.value]
        assert point.get_markerfacecolor() != "white"
        intervals = [tuple(line.get_xdata()) for line in axes.get_lines()]
        assert arm.difference.interval in intervals
        (band,) = axes.patches
        reach = math.sqrt(2) * found.seed_noise
        assert (band.get_x(), band.get_width()) == pytest.approx((-reach, 2 * reach))
        assert [t.get_text() for t in axes.get_yticklabels()] == [arm.name]

    def test_one_pair_reaches_the_edges_and_none_says_why(self):
        values = {("l2", 0): 1.0, ("l2", 1): 1.1, ("a", 0): 3.0, ("b", 0): math.nan}
        frame = table(values)
        frame.loc["r3", "state"] = "failed"
        axes = rendered(plot_ablation(compare(frame, METRIC)))
        assert tuple(line_of(axes, ":", "linestyle").get_xdata()) == axes.get_xlim()
        notes = [text.get_text() for text in axes.texts]
        assert notes == ["1 of 2 pairs", "seed 0: failed; seed 1: no run"]
        assert line_of(axes, "o", "marker").get_markerfacecolor() == "white"

    def test_ratios(self):
        found, arm = only_arm(three_seeds(2.0))
        axes = rendered(plot_ablation(found, ratio=True))
        assert line_of(axes, "o", "marker").get_xdata()[0] == arm.ratio.value
        low, high = axes.get_xlim()
        assert low < 1.0 and high > arm.ratio.interval[1]

    def test_nothing_to_draw(self):
        frame = table({("l2", 0): 1.0, ("l2", 1): 1.0, ("a", 2): 3.0})
        with pytest.raises(ValueError, match="no arm has a pair"):
            plot_ablation(compare(frame, METRIC))


class TestSampling:
    @pytest.fixture
    def results(self, tmp_path):
        rows = [result(1, 4.0, 0.5), result(2, 2.0, 0.25)]
        rows += [result(2, 3.0, times=[0.4]), result(2, 1.0, times=[1.2])]
        rows += [result(2, 1.5, guidance=2.0, nfe=4)]
        write(tmp_path, name="a", results=rows)
        return scm_jax.load_results(tmp_path)

    def test_evaluations_and_guidance(self, results):
        one, two, guided = (4.0, 3.5, 4.5), (2.0, 1.75, 2.25), (1.5, 1.5, 1.5)
        lines = sampling_lines(results, "frechet_distance", "nfe")
        expected = {"a, guidance 1.0": {1.0: one, 2.0: two}}
        assert lines == {**expected, "a, guidance 2.0": {4.0: guided}}
        lines = sampling_lines(results, "frechet_distance", "guidance")
        assert lines == {"a, steps 2": {1.0: two, 2.0: guided}}

    def test_intermediate_time(self, results):
        shown = results[results["guidance"] == 1.0]
        lines = sampling_lines(shown, "frechet_distance", "time")
        found = {t: mean for t, (mean, _, _) in lines["a"].items()}
        assert found == {None: 2.0, 0.4: 3.0, 1.2: 1.0}
        axes = rendered(plot_sampling(shown, "frechet_distance", "time"))
        assert sorted(labels(axes)) == ["a", "default time"]
        dashed = next(x for x in axes.get_lines() if x.get_linestyle() == "--")
        assert list(dashed.get_ydata()) == [2.0, 2.0]

    def test_samplers_of_a_run_are_lines_of_their_own(self, tmp_path):
        rows = [result(2, 3.0, sampler="map"), result(2, 5.0)]
        write(tmp_path, name="a", results=rows)
        results = scm_jax.load_results(tmp_path)
        lines = sampling_lines(results, "frechet_distance", "nfe")
        means = {name: points[2.0][0] for name, points in lines.items()}
        assert means == {"a, sampler map": 3.0, "a, sampler consistency": 5.0}

    def test_seeds_of_a_setting_are_one_line_with_their_range(self, tmp_path):
        for seed, value in enumerate((1.0, 2.0, 6.0)):
            write(tmp_path, {"seed": seed}, results=[result(1, value, 0.1)])
        results = scm_jax.load_results(tmp_path).assign(method="sct")
        lines = sampling_lines(results, "frechet_distance", "nfe", by=["method"])
        assert lines == {"sct": {1.0: (3.0, 1.0, 6.0)}}
        axes = rendered(plot_sampling(results, "frechet_distance", by=["method"]))
        assert [t.get_text() for t in axes.get_xticklabels()] == ["1"]

    def test_other_protocols_are_refused(self, tmp_path):
        rows = [result(1, 1.0), result(2, 1.0, measured={"num_samples": 5})]
        write(tmp_path, results=rows)
        with pytest.raises(ValueError, match="num_samples: 1000 there, 5 here"):
            sampling_lines(scm_jax.load_results(tmp_path), "frechet_distance", "nfe")

    def test_bad_questions(self, results):
        for question, message in (
            (("fid", "nfe"), "no column 'fid'"),
            (("frechet_distance", "cost"), "x = 'cost'"),
            (("frechet_distance", "nfe", ["width"]), "no column 'width'"),
            (("frechet_distance", "time"), "no row has"),
        ):
            with pytest.raises(ValueError, match=message):
                sampling_lines(results[results["steps"] == 1], *question)
