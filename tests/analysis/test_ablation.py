"""Paired differences with known answers, and what is said where runs are missing."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import scm_jax
from scm_jax.analysis.ablation.compare import compare
from scm_jax.analysis.ablation.statistics import estimate
from scm_jax.analysis.tables import settings
from tests.analysis.studies import NIGHTLY
from tests.analysis.synthetic_runs import protocol, result, write

METRIC = "2_steps/frechet_distance"
NORM = "objective.tangent_normalization"
TAGS = [("baseline",)] * 4 + [()] * 2
TEACHERS = {"teacher.run": list("abcabc")}


def table(values, **columns):
    """A frame as ``load_runs`` gives it: a run per (normalization, seed)."""
    rows = [(norm, seed, value) for (norm, seed), value in values.items()]
    frame = pd.DataFrame(rows, columns=[NORM, "seed", METRIC]).assign(state="done")
    return frame.assign(**columns).set_axis([f"r{i}" for i in range(len(rows))])


def three_seeds(difference=2.0, noise=(0.0, 0.0, 0.0), seeds=(1.0, 1.1, 0.9)):
    arm = np.add(seeds, difference) + noise
    values = {("l2", seed): base for seed, base in enumerate(seeds)}
    return table(values | {("none", seed): value for seed, value in enumerate(arm)})


def only_arm(frame, **options):
    found = compare(frame, METRIC, **{"baseline": {NORM: "l2"}, **options})
    (arm,) = found.arms
    return found, arm


class TestNumbers:
    def test_differences_are_paired_by_seed(self):
        """Seeds spread ten times wider than the difference cancel in pairs."""
        frame = three_seeds(0.1, (0.01, -0.01, 0.0), seeds=(1.0, 3.0, 5.0))
        _, arm = only_arm(frame.sample(frac=1, random_state=0))
        assert arm.num_pairs == 3
        assert arm.difference.value == pytest.approx(0.1)
        half = stats.t.ppf(0.975, 2) * 0.01 / math.sqrt(3)
        assert arm.difference.interval == pytest.approx((0.1 - half, 0.1 + half))

    def test_ratio_is_of_pairs_and_geometric(self):
        values = {("l2", 0): 1.0, ("l2", 1): 10.0, ("none", 0): 2.0, ("none", 1): 80.0}
        _, arm = only_arm(table(values))
        assert arm.ratio.value == pytest.approx(4.0)
        logs = estimate(np.log([2.0, 8.0]))
        assert arm.ratio.interval == pytest.approx(np.exp(logs.interval))

    def test_interval_is_that_of_students_t_and_the_bootstrap_within_the_pairs(self):
        values = np.array([1.0, 4.0, 2.5, 3.0])
        expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.9)
        assert estimate(values, 0.9).interval == pytest.approx(tuple(expected))
        found = estimate([1.0, 2.0, 6.0])
        low, high = found.bootstrap
        assert 1.0 <= low < found.value < high <= 6.0
        assert found.interval[0] < low and high < found.interval[1]

    def test_one_pair_has_no_interval_and_a_negative_value_no_ratio(self):
        found, arm = only_arm(table({("l2", 0): -1.0, ("none", 0): 9.0}))
        assert arm.difference.value == 10.0 and math.isnan(arm.ratio.value)
        assert arm.difference.interval == (-math.inf, math.inf)
        assert arm.verdict == "unknown: one pair"
        assert "[−∞, ∞]" in found.to_markdown().replace("+", "")
        assert r"$-$$\infty$" in found.to_latex().replace("+", "")

    def test_shared_config_makes_pairs_of_its_own(self):
        cases = itertools.product(("l2", "none"), (10.0, 1000.0), (0, 1))
        columns = [NORM, "network.width", "seed"]
        frame = pd.DataFrame(cases, columns=columns).assign(state="done")
        added = 5 * (frame[NORM] == "none") * (1 + 0.01 * frame["seed"])
        frame[METRIC] = frame["network.width"] + frame["seed"] + added
        found, arm = only_arm(frame, factors=[NORM])
        assert arm.num_pairs == 4
        assert arm.difference.value == pytest.approx(5.025)
        assert found.seed_noise == pytest.approx(math.sqrt(0.5))  # not that of widths


def measured(frame, std, **protocol_fields):
    known = {METRIC: protocol(**protocol_fields)}
    return frame.assign(**{f"{METRIC}_std": std, "protocols": [known] * len(frame)})


class TestNoise:
    def test_seed_noise_is_the_spread_of_the_baseline(self):
        found, _ = only_arm(three_seeds(seeds=(1.0, 3.0, 2.0)))
        assert found.seed_noise == pytest.approx(1.0)
        assert math.isnan(found.metric_noise)

    def test_metric_noise_is_that_of_a_mean_over_sets(self):
        found, _ = only_arm(measured(three_seeds(), 0.5, seeds=(0, 1, 2, 3)))
        assert found.metric_noise == pytest.approx(0.5 / math.sqrt(4))

    @pytest.mark.parametrize(
        ("difference", "seeds", "std", "verdict"),
        [
            (2.0, (1.0, 1.1, 0.9), 0.01, "yes"),
            (2.0, (1.0, 3.0, 5.0), 0.01, "no: within seed noise"),
            (2.0, (1.0, 1.1, 0.9), 4.0, "no: within metric noise"),
            (0.2, (1.0, 1.1, 0.9), 4.0, "no: within seed and metric noise"),
            (2.0, (1.0, 1.1, 0.9), None, "yes (metric noise not known)"),
        ],
    )
    def test_verdicts(self, difference, seeds, std, verdict):
        frame = three_seeds(difference, (0.01, -0.01, 0.0), seeds)
        if std is not None:
            frame = measured(frame, std)
        assert only_arm(frame)[1].verdict.startswith(verdict)

    def test_an_interval_with_0_is_no_difference(self):
        frame = three_seeds(2.0, (4.0, -2.0, 0.0))
        assert only_arm(frame)[1].verdict == "no: interval contains 0"

    def test_noise_alone_is_rarely_called_a_difference(self):
        draws = np.random.default_rng(1).normal(size=(200 if NIGHTLY else 60, 2, 3))
        frames = (three_seeds(0.0, noise, tuple(seeds)) for noise, seeds in draws)
        called = [only_arm(frame)[1].verdict.startswith("yes") for frame in frames]
        assert np.mean(called) < 0.05


class TestMissing:
    def test_every_missing_pair_says_why(self):
        values = {("l2", seed): 1.0 + 0.1 * seed for seed in range(4)}
        values |= {("none", 0): 2.0, ("none", 1): math.nan, ("none", 2): math.nan}
        frame = table(values)
        frame.loc["r6", "state"] = "failed"
        found, arm = only_arm(frame)
        assert arm.num_pairs == 1
        reasons = ("seed 1: no finite value", "seed 2: failed", "seed 3: no run")
        assert arm.missing == reasons
        assert "1 of 4" in found.to_markdown() and "seed 2: failed" in found.to_latex()

    def test_the_baselines_own_gaps_are_said(self):
        values = {("l2", 0): math.nan, ("l2", 1): 1.0, ("none", 0): 2.0}
        found, arm = only_arm(table(values))
        reasons = {"seed 0: no finite value in the baseline", "seed 1: no run"}
        assert set(arm.missing) == reasons
        assert any("baseline: seed 0" in note for note in found.notes)
        assert arm.verdict == "no pairs"

    def test_unreadable_runs_and_repeated_configs_are_named(self):
        frame = three_seeds()
        frame.loc["bad"] = {"state": "unreadable", "seed": math.nan}
        frame.loc["again"] = frame.loc["r0"]
        frame["duplicate_of"] = None
        frame.loc["again", "duplicate_of"] = "r0"
        found, arm = only_arm(frame)
        assert arm.num_pairs == 3
        assert "read: bad" in found.notes[0] and "already: again" in found.notes[1]


class TestArms:
    def test_switches_are_found_and_named(self, tmp_path):
        switches = [{}, {NORM: "none"}, {"objective.learned_weighting": False}]
        switches += [{NORM: "clip", "objective.tangent_warmup_images": 0}]
        for keys, seed in itertools.product(switches, range(2)):
            rows = [result(2, 1.0 + 0.1 * seed + len(keys), std=0.01)]
            overrides = {**keys, "seed": seed, "log.every_images": seed + 1}
            plan = {"tags": () if keys else ("baseline",)}
            write(tmp_path, overrides, results=rows, plan=plan)
        found = compare(scm_jax.load_runs(tmp_path), METRIC)
        assert {arm.name: round(arm.difference.value, 9) for arm in found.arms} == {
            "tangent_normalization = none": 1.0,
            "learned_weighting = off": 1.0,
            "tangent_normalization = clip, tangent_warmup_images = 0": 2.0,
        }
        assert found.metric_noise == pytest.approx(0.01 / math.sqrt(3))

    def test_the_parameterization_is_a_switch_though_in_no_section(self):
        values = {("l2", seed): float(seed) for seed in range(3)}
        edm = table(values, parameterization="edm").add_prefix("e", axis=0)
        frame = pd.concat([table(values, parameterization="trigflow"), edm])
        assert settings.varying_keys(frame) == ["parameterization"]
        found = compare(frame, METRIC, baseline={"parameterization": "trigflow"})
        assert [arm.num_pairs for arm in found.arms] == [3]

    def test_without_a_tag_the_most_frequent_values_are_the_baseline(self):
        frame = table({("l2", 0): 1.0, ("l2", 1): 1.0, ("none", 0): 2.0})
        assert compare(frame, METRIC).baseline == {NORM: "l2"}

    def test_a_teacher_of_each_seed_is_no_switch(self):
        assert only_arm(three_seeds().assign(**TEACHERS))[1].num_pairs == 3

    def test_gaps_in_a_factor_are_one_arm(self):
        values = {(None, 0): 2.0, (None, 1): 2.0, ("l2", 0): 1.0, ("l2", 1): 1.0}
        frame = table(values)
        frame[NORM] = frame[NORM].where(frame[NORM].notna(), math.nan)
        _, arm = only_arm(frame)
        assert arm.name == "tangent_normalization = None" and arm.num_pairs == 2

    @pytest.mark.parametrize(
        ("frame", "options", "message"),
        [
            (three_seeds(), {}, "as often as .*give baseline"),
            (three_seeds(), {"metric": "x"}, "no column 'x'.*2_steps/frechet"),
            (three_seeds(), {"factors": ["net"]}, "no column 'net'"),
            (three_seeds(), {"baseline": {NORM: "x"}}, "no run has the values"),
            (three_seeds(), {"baseline": {"seed": 1}}, "one of each factor"),
            (three_seeds().query("seed > 5"), {}, "no runs to compare"),
            (three_seeds()[:3], {}, "nothing was switched"),
            (three_seeds().assign(tags=TAGS), {}, "runs tagged 'baseline' differ"),
            (
                three_seeds().assign(**TEACHERS, seed=0),
                {"baseline": {NORM: "l2"}},
                r"'r0' and 'r1' have the same .* \['teacher.run'\]",
            ),
        ],
    )
    def test_what_is_not_clear_is_refused(self, frame, options, message):
        options = {"metric": METRIC, **options}
        with pytest.raises(ValueError, match=message):
            compare(frame, **options)

    def test_rows_measured_in_different_ways_are_refused(self):
        known = [{METRIC: protocol(num_samples=n)} for n in [1000] * 5 + [5000]]
        with pytest.raises(ValueError, match="num_samples: 1000 there, 5000 here"):
            only_arm(three_seeds().assign(protocols=known))


class TestTables:
    def test_markdown_latex_and_the_frame_have_all_numbers(self):
        found, arm = only_arm(three_seeds(2.0, (0.01, -0.01, 0.0)))
        text = found.to_markdown()
        cells = [[c.strip() for c in line.split("|")] for line in text.splitlines()]
        assert cells[0][1] == "arm" and cells[2][2] == "1"
        assert cells[3][1:4] == [arm.name, "3", "+2.000 [+1.975, +2.025]"]
        assert "with 3 pairs it has 2 degrees of freedom and reaches 4.30" in text
        assert "over training seeds: 0.1." in text
        text = found.to_latex()
        assert r"tangent\_normalization = none" in text and r"95 \%" in text
        rows = [line for line in text.splitlines() if line.endswith(r"\\")]
        assert {row.count(" & ") for row in rows} == {5}
        row = found.to_frame().loc["tangent_normalization = none"]
        interval = (row["difference_low"], row["difference_high"])
        assert interval == arm.difference.interval
        assert row["verdict"] == arm.verdict and row["num_pairs"] == 3

    def test_html_escapes(self):
        values = {("l2", 0): 1.0, ("<b>", 0): 2.0, ("l2", 1): 1.0}
        text = compare(table(values), METRIC)._repr_html_()
        assert "&lt;b&gt;" in text and "<b>" not in text

    def test_many_arms_say_that_intervals_are_not_adjusted(self):
        values = {("l2", seed): 1.0 for seed in range(3)}
        values |= {(arm, seed): 2.0 for arm in ("a", "b") for seed in range(2)}
        text = compare(table(values), METRIC).to_markdown()
        assert "not adjusted for 2 comparisons" in text


def test_names_of_settings_leave_out_what_most_have():
    frame = table({("l2", 0): 1.0, ("l2", 1): 1.0, ("none", 0): 2.0})
    frame["network.width"] = [8, 16, 8]
    names = settings.setting_names(frame, [NORM, "network.width"])
    expected = ["baseline", "width = 16", "tangent_normalization = none"]
    assert list(names.values()) == expected
    names = settings.setting_names(frame, ["network.width"])
    assert list(names.values()) == ["width = 8", "width = 16", "width = 8"]


def test_long_keys_stay_apart():
    assert settings.short_name("a.width", ["a.width", "b.width"]) == "a.width"
    assert settings.short_name("a.width", ["a.width", "b.depth"]) == "width"
