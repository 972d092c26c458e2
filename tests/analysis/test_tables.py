"""Runs as tables: what stands in a row, whatever state and version a run is in."""

import itertools
import json
import math

import numpy as np
import pytest

import scm_jax
from scm_jax.analysis.tables import frames
from scm_jax.analysis.tables.collect import collect
from scm_jax.runs.directory.layout import RunDir
from scm_jax.runs.directory.run_configs import config_hash
from tests.analysis import synthetic_runs
from tests.analysis.synthetic_runs import result, write, write_metrics


@pytest.fixture
def root(tmp_path):
    return tmp_path / "study"


class TestRows:
    def test_a_run_without_a_sweep(self, root):
        write(root, {"seed": 3}, name="mine", results=[result(2, 1.5, std=0.25)])
        row = scm_jax.load_runs(root).loc["mine"]
        expected = {"state": "done", "sweep": "", "tags": (), "name": "sct", "seed": 3}
        expected |= {"objective": "sct", "images": 1000, "device": "cpu"}
        expected |= {"parameters": synthetic_runs.PARAMETERS, "commit": "abc"}
        expected |= {"flops": 2 * synthetic_runs.MACS_PER_IMAGE * 1000}
        expected |= {"flops_per_image": 2 * synthetic_runs.MACS_PER_IMAGE}
        expected |= {"2_steps/frechet_distance": 1.5, "device_hours": 2 * 36 / 3600}
        expected |= {"2_steps/frechet_distance_std": 0.25}
        assert row[list(expected)].to_dict() == expected
        assert frames.is_missing(row["error"]) and frames.is_missing(row["teacher_id"])

    def test_a_planned_run_has_its_costs_before_it_begins(self, root):
        same = {"tags": ("isoflop", "small"), "parameters": 77, "teacher_id": "t"}
        plan = {"label": "t16", "train_flops": 4e9, **same}
        plan |= {"metrics": ("2_steps/frechet_distance",)}
        frame = scm_jax.load_runs(write(root, name="t16-0", plan=plan, done=False))
        row = frame.loc["t16-0"]
        expected = {"name": "t16", "sweep": "study", "flops": 4e9, **same}
        expected |= {"flops_per_image": 4e6}
        assert row[list(expected)].to_dict() == expected
        assert row["state"] != "done" and np.isnan(row["device_hours"])
        assert frame.attrs["metrics"] == ("2_steps/frechet_distance",)

    def test_objectives_have_the_names_of_the_field(self, root):
        write(root, {"objective.dx_dt": "teacher"}, name="r0")
        write(root, {"objective": {"name": "diffusion"}}, name="r1")
        write(root, {"objective": {"name": "flow_map"}}, name="r2")
        names = scm_jax.load_runs(root)["objective"].tolist()
        assert names == ["scd", "diffusion", "flow_map"]

    def test_only_what_varies_has_a_column(self, root):
        for width, betas in [(16, [0.9, 0.99]), (32, [0.9, 0.999])]:
            write(root, {"network.width": width, "optimizer.betas": betas, "seed": 1})
        frame = scm_jax.load_runs(root)
        assert sorted(frame["network.width"]) == [16, 32]
        assert set(frame["optimizer.betas"]) == {(0.9, 0.99), (0.9, 0.999)}
        assert "network.patch" not in frame
        assert frame.attrs["constant"]["network.patch"] == 2
        assert frame.attrs["constant"]["ema.rel_std"] == (0.1, 0.05)

    def test_attempts_add_up(self, root):
        path = write(root)
        ended = {"event": "ended", "environment": {"device_count": 4, "device": "h"}}
        lines = [{"attempt": 1, "seconds": 100.0, **ended}]
        lines += [{"attempt": 2, "event": "started"}]
        lines += [{"attempt": 3, "seconds": 50.0, **ended}]
        (path / "attempts.jsonl").write_text("\n".join(map(json.dumps, lines)))
        row = scm_jax.load_runs(root).iloc[0]
        assert row["device_hours"] == pytest.approx(4 * 150 / 3600)


class TestResults:
    def test_other_ways_to_sample_have_no_column(self, root):
        other = [{"guidance": 1.5}, {"times": [0.8]}, {"ema": "0.05"}]
        other += [{"sampler": "ddim"}, {"sampler": "map(gamma=0.5)"}]
        rows = [result(2, 2.0, **settings) for settings in other]
        write(root, results=[result(2, 1.0), *rows])
        frame = scm_jax.load_runs(root)
        assert frame["2_steps/frechet_distance"].tolist() == [1.0]
        assert len(scm_jax.load_results(root)) == 6

    def test_the_latest_training_step_counts_then_the_last_row(self, root):
        rows = [result(2, 1.0), result(2, 2.0), result(2, 3.0, step=50)]
        other = result(2, 0.0, precision=0.5, step=50)
        del other["frechet_distance"]
        write(root, results=[*rows, other])
        row = scm_jax.load_runs(root).iloc[0]
        assert row["2_steps/frechet_distance"] == 2.0
        assert row["2_steps/precision"] == 0.5

    def test_how_a_number_was_measured_goes_with_it(self, root):
        rows = [result(1, 1.0), result(2, 2.0, measured={"num_samples": 7})]
        write(root, results=rows)
        found = scm_jax.load_runs(root)["protocols"].iloc[0]
        assert found["1_steps/frechet_distance"]["num_samples"] == 1000
        assert found["2_steps/frechet_distance"]["num_samples"] == 7

    def test_a_number_that_was_not_finite_is_nan(self, root):
        write(root, results=[result(2, math.inf), result(1, 1.0)])
        row = scm_jax.load_runs(root).iloc[0]
        assert np.isnan(row["2_steps/frechet_distance"])
        results = scm_jax.load_results(root).set_index("steps")["frechet_distance"]
        assert np.isnan(results[2]) and results[1] == 1.0

    def test_a_measurement_made_again_replaces_the_first(self, root):
        rows = [result(2, value, key="k", times=[0.8]) for value in (1.0, 5.0)]
        write(root, results=rows)
        means = scm_jax.load_results(root).groupby("times")["frechet_distance"].mean()
        assert means.to_dict() == {(0.8,): 5.0}  # a tuple, so that it can be grouped


class TestDamage:
    @pytest.mark.parametrize(
        ("file", "text"),
        [
            ("config.json", '{"name"'),
            ("config.json", "[1, 2]"),
            ("summary.json", ""),
            ("summary.json", '{"environment": 3}'),
            ("run.json", "x"),
            ("results.jsonl", 'x\n{"steps": 1}\n'),
            ("attempts.jsonl", "3\n4\n"),
        ],
    )
    def test_a_run_that_cannot_be_read_says_why(self, root, file, text):
        write(root, name="good")
        (write(root, name="bad") / file).write_text(text)
        frame = scm_jax.load_runs(root)
        assert frame["state"].to_dict() == {"bad": "unreadable", "good": "done"}
        assert str(root / "bad") in frame.loc["bad", "error"]
        assert frames.is_missing(frame.loc["good", "error"])
        assert frame.attrs["constant"]["network.width"] == 16

    def test_a_torn_last_line_never_was_a_row(self, root):
        rows = [{"step": 10, "loss": 1.0}]
        path = write(root, results=[result(1, 1.0)], rows=rows)
        for file in ("metrics.jsonl", "results.jsonl"):
            with (path / file).open("a") as stream:
                stream.write('{"step": 20, "lo')
        assert scm_jax.load_runs(root)["state"].tolist() == ["done"]
        assert scm_jax.load_metrics(root)["loss"].tolist() == [1.0]
        assert len(scm_jax.load_results(root)) == 1

    def test_broken_metrics_leave_the_other_runs(self, root):
        rows = [{"step": 10, "loss": 1.0}]
        path = write(root, {"seed": 1}, name="bad", rows=rows)
        write(root, name="good", rows=rows)
        (path / "metrics.jsonl").write_text('x\n{"step": 1, "loss": 1.0}\n')
        (path / "results.jsonl").write_text("x\n{}\n")
        with pytest.warns(UserWarning, match="bad: .*metrics.jsonl, line 1"):
            metrics = scm_jax.load_metrics(root)
        assert list(metrics["run_id"]) == ["good"]
        assert set(metrics.attrs["errors"]) == {"bad"}
        with pytest.warns(UserWarning, match="results.jsonl"):
            assert len(scm_jax.load_results(root)) == 0

    def test_runs_of_other_versions(self, root):
        write(root, name="new", results=[result(2, 1.0)])
        old = {"seed": 0, "objective": {"name": "consistency"}, "extra": {"key": 1}}
        run = RunDir(root / "old")
        run.write_config(old)
        run.append_result({"steps": 2, "frechet_distance": 3.0, "w": "x", "flag": True})
        run.write_summary({"seconds": 3.0})
        frame = scm_jax.load_runs(root)
        assert frame["state"].tolist() == ["done", "done"]
        assert frame["2_steps/frechet_distance"].to_dict() == {"new": 1.0, "old": 3.0}
        assert frame["extra.key"].isna().to_dict() == {"new": True, "old": False}
        assert frame.loc["old", "objective"] == "consistency"
        assert "2_steps/flag" not in frame


class TestPlaces:
    def test_directory_run_glob_and_several_find_the_same(self, tmp_path):
        first, second = tmp_path / "a", tmp_path / "b"
        places = (first, first, second)
        runs = [write(place, {"seed": i}) for i, place in enumerate(places)]
        ids = sorted(path.name for path in runs)
        for roots in ([first, second], tmp_path / "*", runs, str(tmp_path / "*/run-*")):
            assert sorted(scm_jax.load_runs(roots).index) == ids

    def test_folders_without_a_config_are_no_runs(self, root):
        write(root, name="mine")
        (root / "submissions").mkdir()
        (root / ".hidden").mkdir()
        assert list(scm_jax.load_runs(root).index) == ["mine"]

    @pytest.mark.parametrize("place", ["nowhere", "nowhere/*", "empty"])
    def test_no_runs_are_an_error(self, tmp_path, place):
        (tmp_path / "empty").mkdir()
        with pytest.raises(FileNotFoundError, match=f"no runs at .*{place[:5]}"):
            scm_jax.load_runs(tmp_path / place)

    def test_ids_stay_unique(self, tmp_path):
        for root, name in itertools.product("ab", ("x", "y")):
            write(tmp_path / root, {"seed": ord(name)}, name=name)
        write(tmp_path / "c", {"seed": 5}, name="z")
        frame = scm_jax.load_runs(tmp_path / "*")
        assert list(frame.index) == ["a/x", "a/y", "b/x", "b/y", "z"]

    def test_the_same_config_at_two_places_is_marked(self, tmp_path):
        write(tmp_path / "a", {"log.every_images": 10}, name="x")
        write(tmp_path / "b", {"log.every_images": 20}, name="x")
        write(tmp_path / "b", {"seed": 1}, name="y")
        frame = scm_jax.load_runs(tmp_path / "*")
        assert frame["duplicate_of"].dropna().to_dict() == {"b/x": "a/x"}

    def test_duplicates_are_those_of_the_hash(self, root):
        values = [{"train.lr": lr} for lr in (1, 1.0, True)]
        values += [{"train.lr": 1.0, "log.every_images": 3}, {}]
        values += [{"train.betas": b} for b in ([1, 2], (1, 2), [1, 2.0], None)]
        hashes = {}
        for number, overrides in enumerate(values):
            write(root, overrides, name=f"r{number}")
            text = config_hash(synthetic_runs.config(overrides))
            hashes.setdefault(text, []).append(f"r{number}")
        frame = scm_jax.load_runs(root)
        expected = {r: ids[0] for ids in hashes.values() for r in ids[1:]}
        assert expected and frame["duplicate_of"].dropna().to_dict() == expected

    @pytest.mark.parametrize(("a", "b"), [(1, 1.0), ([1, 2], [1, 2.0])])
    def test_types_alone_tell_configs_apart(self, root, a, b):
        """To a table these are equal, so no column shows it; to a hash they are two."""
        for number, value in enumerate([a, b, b]):
            write(root, {"train.lr": value}, name=f"r{number}")
        frame = scm_jax.load_runs(root)
        assert "train.lr" not in frame
        assert frame["duplicate_of"].dropna().to_dict() == {"r2": "r1"}


class TestMetrics:
    def test_rows_lists_and_gaps(self, root):
        rows = [
            {"step": 10, "images": 100, "loss": 1.0, "bins/loss": [1.0, math.nan]},
            {"step": 20, "images": 200, "loss": math.inf, "bins/loss": [math.nan]},
            {"step": 30, "images": 300, "eval/x": 3.0},
        ]
        path = write(root, rows=rows)
        frame = scm_jax.load_metrics(root)
        assert set(frame["run_id"]) == {path.name}
        assert frame["images"].tolist() == [100.0, 200.0, 300.0]
        assert frame["nonfinite"].tolist() == ["bins/loss", "loss bins/loss", ""]
        np.testing.assert_equal(frame["loss"].tolist(), [1.0, math.nan, math.nan])
        np.testing.assert_equal(frame["bins/loss"][0], [1.0, math.nan])
        assert np.isnan(frame["bins/loss"][2])

    def test_a_resume_supersedes_what_came_after_it(self, root):
        rows = [{"step": step, "loss": float(step)} for step in (10, 20, 30)]
        path = write(root, rows=rows)
        write_metrics(path, [{"step": 20, "loss": 2.5}], resume_step=10)
        frame = scm_jax.load_metrics(root)
        assert frame["step"].tolist() == [10, 20]
        assert frame["loss"].tolist() == [10.0, 2.5]

    def test_asked_columns_and_the_steps_that_have_them(self, root):
        found = [{}, {"eval/x": 5.0}, {"eval/x": math.nan}]
        rows = [{"step": i, "loss": float(i), **row} for i, row in enumerate(found, 1)]
        write(root, rows=rows)
        frame = scm_jax.load_metrics(root, ["eval/x"])
        assert frame["step"].tolist() == [2, 3]
        assert list(frame.columns)[-1] == "eval/x" and "loss" not in frame

    def test_some_runs_in_the_asked_order(self, root):
        for i in range(3):
            rows = [{"step": 1, "loss": float(i)}]
            write(root, {"seed": i}, name=f"r{i}", rows=rows)
        frame = scm_jax.load_metrics(root, runs=["r2", "r0"])
        assert frame["loss"].tolist() == [2.0, 0.0]
        assert list(frame["run_id"]) == ["r2", "r0"]

    def test_one_name_may_be_a_number_here_and_a_list_there(self, root):
        write(root, name="a", rows=[{"step": 1, "norm": 2.0, "loss": 0.0}])
        write(root, {"seed": 1}, name="b", rows=[{"step": 1, "norm": [1.0, 2.0]}])
        norm = scm_jax.load_metrics(root)["norm"]
        assert norm[0] == 2.0
        np.testing.assert_equal(norm[1], [1.0, 2.0])

    def test_what_is_not_there_is_named(self, root):
        write(root, name="r0", rows=[{"step": 1, "loss": 1.0}])
        with pytest.raises(ValueError, match=r"logged \['los'\]; there are \['loss'\]"):
            scm_jax.load_metrics(root, ["los"])
        with pytest.raises(ValueError, match=r"no runs \['r9'\]"):
            scm_jax.load_metrics(root, None, ["r9"])

    def test_runs_that_logged_nothing_give_an_empty_frame(self, root):
        write(root)
        frame = scm_jax.load_metrics(root)
        assert len(frame) == 0 and frame["step"].dtype == np.int64


class TestState:
    def test_unfinished_runs_say_what_became_of_them(self, root, monkeypatch):
        """They are read anew, whatever was collected."""
        status = {"heartbeat": 100.0, "heartbeat_seconds": 10.0, "host": "elsewhere"}
        failed = {"state": "failed", "error": "boom", "retry": False}
        for name, found in {"r0": {"state": "running"}, "r1": failed}.items():
            path = write(root, name=name, done=False, plan={})
            (path / "status.json").write_text(json.dumps({**status, **found}))
        for now, state in [(125.0, "running"), (135.0, "stale")]:
            monkeypatch.setattr(frames.time, "time", lambda now=now: now)
            frame = scm_jax.load_runs(root)
            assert frame["state"].to_dict() == {"r0": state, "r1": "failed"}
            assert frame.loc["r1", "error"] == "boom"
            collect(root)
