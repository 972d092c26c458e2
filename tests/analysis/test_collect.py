"""Collected runs read as the runs themselves do, and never as they once were."""

import json
import math
import resource
import shutil
from unittest import mock

import numpy as np
import pandas as pd
import pyarrow.parquet as parquet
import pytest

import scm_jax
from scm_jax.analysis.tables import collected, metric_rows, run_files
from scm_jax.analysis.tables.collect import collect
from tests.analysis.synthetic_runs import result, write, write_metrics
from tests.commands.in_process import scm

FILES = ("runs.parquet", "metrics.parquet", "results.parquet")


def rows(start=0.0):
    return [
        {"step": 1, "images": 10, "loss": start, "bins/loss": [1.0, math.nan]},
        {"step": 2, "images": 20, "loss": math.inf, "eval/x": start},
        {"step": 3, "images": 30, "loss": start + 2, "bins/loss": [3.0, 4.0]},
    ]


@pytest.fixture
def root(tmp_path):
    """Runs of all kinds: planned, of other widths, torn, unreadable, still training."""
    root = tmp_path / "study"
    write(root, {"seed": 0}, results=[result(1, 2.0, 0.1), result(2, 1.0)], rows=rows())
    write(root, {"seed": 1}, results=[result(2, 1.5, times=[0.8])], rows=rows(1.0))
    plan = {"tags": ("a", "b"), "train_flops": 1e9, "metrics": ("2_steps/x",)}
    write(root, {"network.width": 32}, plan=plan, done=False, rows=rows(2.0)[:1])
    write(root, {"network.betas": [1, 2]}, results=[result(2, math.nan)])
    write(root, {"seed": 7}, rows=[{"step": 1, "loss": [1.0, 2.0], "only": 1.0}])
    write(root, {"seed": 8}, name="bad")
    (root / "bad" / "summary.json").write_text("{")
    return root


def frames(root, **options):
    return (
        scm_jax.load_runs(root),
        scm_jax.load_metrics(root, **options),
        scm_jax.load_results(root),
    )


def assert_same(before, after):
    for a, b in zip(before, after, strict=True):
        assert a.attrs == b.attrs
        pd.testing.assert_frame_equal(a, b)


@pytest.fixture
def only_collected(monkeypatch):
    """A call makes every reading of a run's own metrics and results fail."""

    def forbid():
        monkeypatch.delattr(metric_rows, "read_table")
        monkeypatch.delattr(run_files, "result_rows")

    return forbid


def unlink_collected(root):
    for path in root.glob("*.parquet"):
        path.unlink()


def contents(root):
    return {path.name: path.read_bytes() for path in root.iterdir() if path.is_file()}


class TestSame:
    def test_frames_and_their_types(self, root, only_collected):
        before = frames(root)
        done = collect(root)
        assert (done.runs, done.read) == (6, 5)
        assert list(done.errors) == ["bad"]
        only_collected()
        assert_same(before, frames(root))

    def test_asked_columns_and_runs(self, root, only_collected):
        ids = sorted(scm_jax.load_runs(root).index)[:3]
        asked = [{"names": ["loss"]}, {"names": ["bins/loss", "eval/x"]}, {"runs": ids}]
        before = [frames(root, **options) for options in asked]
        collect(root)
        only_collected()
        for options, expected in zip(asked, before, strict=True):
            assert_same(expected, frames(root, **options))

    def test_two_roots_of_which_one_is_collected(self, root, tmp_path):
        write(tmp_path / "other", {"seed": 0}, rows=rows(5.0))
        before = frames(tmp_path / "*")
        collect(root)
        assert_same(before, frames(tmp_path / "*"))

    def test_without_the_run_directories(self, root):
        shutil.rmtree(root / "bad")
        unfinished = scm_jax.load_runs(root).query("state != 'done'").index
        shutil.rmtree(root / unfinished[0])
        before = frames(root)
        collect(root)
        for path in root.glob("*/"):
            shutil.rmtree(path)
        assert_same(before, frames(root))


class TestChanges:
    def test_what_has_changed_since_is_read_from_the_run(self, root):
        collect(root)
        path = next(p for p in root.glob("run-*") if (p / "results.jsonl").exists())
        write_metrics(path, [{"step": 4, "loss": 9.0, "new": 1.0}])
        with (path / "results.jsonl").open("a") as file:
            file.write(json.dumps(result(2, 0.25)) + "\n")
        after = frames(root)
        assert after[0].loc[path.name, "2_steps/frechet_distance"] == 0.25
        metrics = after[1][after[1]["run_id"] == path.name]
        assert metrics["loss"].iloc[-1] == 9.0 and metrics["new"].iloc[-1] == 1.0
        assert (after[2]["frechet_distance"] == 0.25).sum() == 1
        unlink_collected(root)
        assert_same(frames(root), after)

    def test_collecting_again_reads_only_what_has_changed(self, root):
        collect(root)
        path = next(p for p in root.glob("run-*") if (p / "metrics.jsonl").exists())
        write_metrics(path, [{"step": 4, "loss": 9.0}])
        write(root, {"seed": 99}, name="new", rows=rows(7.0))
        with mock.patch.object(
            metric_rows, "read_table", side_effect=metric_rows.read_table
        ) as read:
            assert collect(root).read == 2
        assert {call.args[0].id for call in read.call_args_list} == {path.name, "new"}
        after = frames(root)
        unlink_collected(root)
        assert_same(frames(root), after)

    def test_runs_that_are_gone_leave_nothing_behind(self, root):
        collect(root)
        gone = scm_jax.load_runs(root).query("seed == 7").index[0]
        shutil.rmtree(root / gone)
        for _ in range(2):
            assert gone not in scm_jax.load_runs(root).index
            metrics = scm_jax.load_metrics(root)
            assert gone not in set(metrics["run_id"]) and "only" not in metrics
            collect(root)

    def test_a_file_of_another_format_is_not_used(self, root):
        before = frames(root)
        with mock.patch.object(collected, "FORMAT", "0"):
            collect(root)
        assert_same(before, frames(root))

    def test_a_broken_file_is_named_and_not_used(self, root):
        before = scm_jax.load_runs(root)
        collect(root)
        (root / "runs.parquet").write_bytes(b"PAR1")
        with pytest.warns(UserWarning, match=r"runs.parquet cannot be read"):
            after = scm_jax.load_runs(root)
        pd.testing.assert_frame_equal(before, after)


class TestFiles:
    def test_other_readers_find_plain_columns(self, root):
        collect(root)
        runs = pd.read_parquet(root / "runs.parquet").set_index("run_id")
        frame = scm_jax.load_runs(root).drop(index="bad")
        pd.testing.assert_series_equal(runs["flops"], frame["flops"])
        assert json.loads(runs["tags"].iloc[0]) == list(frame["tags"].iloc[0])
        metrics = pd.read_parquet(root / "metrics.parquet")
        loss = scm_jax.load_metrics(root, ["loss"])["loss"]
        assert metrics["loss"].sum() == sum(v for v in loss if not np.ndim(v) and v > 0)
        results = pd.read_parquet(root / "results.parquet")
        assert sorted(results["frechet_distance"].dropna()) == [1.0, 1.5, 2.0]

    @pytest.mark.parametrize("failing", FILES)
    def test_a_full_disk_leaves_the_old_files_whole(self, root, failing, monkeypatch):
        collect(root)
        before = contents(root)
        write(root, {"seed": 50}, rows=rows())
        write_table = parquet.write_table

        def full(table, path):
            write_table(table, path)
            if failing in path.name:
                raise OSError(28, "No space left on device")

        monkeypatch.setattr(parquet, "write_table", full)
        with pytest.raises(OSError, match=f"{failing}, and nothing.*No space left"):
            collect(root)
        assert contents(root) == before and set(before) == set(FILES)


class TestCommand:
    def test_says_what_it_did(self, root):
        assert scm("sweep", "collect", f"--root={root}").stdout.splitlines() == [
            "6 runs, 5 of them new or changed; 1 cannot be read and are left out:",
            f"  bad: {root / 'bad' / 'summary.json'} is not JSON: Expecting property "
            "name enclosed in double quotes: line 1 column 2 (char 1)",
        ]
        again = scm("sweep", "collect", f"--root={root}").stdout
        assert again.startswith("6 runs, 0 of them")
        with pytest.raises(FileNotFoundError, match="nothing to collect"):
            collect(root / "bad")

    def test_a_write_that_fails_for_real(self, root):
        """No file of the process may grow beyond 3 kB, as on a disk that is full."""
        collect(root)
        before = contents(root)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
        try:
            said = scm("sweep", "collect", f"--root={root}", check=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert said.stderr.startswith("scm sweep collect: cannot collect into")
        assert contents(root) == before and set(before) == set(FILES)
