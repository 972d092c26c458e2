"""Rows and configs as text."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax.files import atomic, jsonl


class TestEncodeRow:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (np.float32(0.1), 0.1),
            (np.float64(0.1), 0.1),
            (jnp.bfloat16(0.5), 0.5),
            (np.int64(3), 3),
            (np.bool_(True), True),
            (jnp.arange(3), [0, 1, 2]),
            (np.array([[0.1], [2]], np.float32), [[0.1], [2.0]]),
            ((1, "a", None), [1, "a", None]),
            ({"a": np.float32(2)}, {"a": 2.0}),
            (Path("runs") / "x", "runs/x"),
        ],
    )
    def test_plain_values(self, value, expected):
        encoded = jsonl.encode_row({"key": value})
        assert encoded == {"key": expected}
        assert json.loads(json.dumps(encoded)) == encoded

    def test_float32_survives_the_way_through_text(self):
        values = np.random.default_rng(0).normal(size=1000).astype(np.float32) * 1e-3
        text = json.dumps(jsonl.encode_row({"x": values}))
        np.testing.assert_array_equal(
            np.array(json.loads(text)["x"]).astype(np.float32), values
        )

    def test_nonfinite_deep_inside_is_named_once(self):
        row = {"final": {"loss": float("nan"), "list": [np.inf, 1.0, np.nan]}}
        assert jsonl.encode_row(row) == {
            "final": {"loss": None, "list": [None, 1.0, None]},
            "nonfinite": ["final.loss", "final.list"],
        }

    @pytest.mark.parametrize("value", [object(), {1}, np.array([object()])])
    def test_other_values_are_refused_by_key(self, value):
        with pytest.raises(ValueError, match=r"'final\.x'"):
            jsonl.encode_row({"final": {"x": value}})


class TestCanonicalJson:
    @pytest.mark.parametrize(
        "value",
        [np.float32(1), np.float64(1), np.int64(1), np.zeros(2), float("nan"), print],
    )
    def test_values_without_a_text_are_refused_by_key(self, value):
        with pytest.raises(ValueError, match=r"config net\.widths\[1\] = .*legal are"):
            jsonl.canonical_json({"net": {"widths": (1, value)}})

    def test_keys_are_strings(self):
        with pytest.raises(ValueError, match="config key 1 under 'net'"):
            jsonl.canonical_json({"net": {1: 2}})


def test_an_empty_mapping_is_a_leaf():
    assert jsonl.flatten({"a": {"b": 1, "d": {}}}) == {"a.b": 1, "a.d": {}}


class TestWriteJson:
    def test_old_content_survives_a_full_disk(self, tmp_path, monkeypatch):
        path = tmp_path / "summary.json"
        jsonl.write_json(path, {"loss": 1.0})

        def full(fd):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            jsonl.write_json(path, {"loss": 2.0})
        assert json.loads(path.read_text()) == {"loss": 1.0}
        assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]

    def test_two_machines_may_have_one_process_id(self, tmp_path, monkeypatch):
        path = tmp_path / "summary.json"
        with atomic.replacing(path) as here:
            here.write_text("here")
            monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
            with atomic.replacing(path) as there:
                there.write_text("there")
            assert path.read_text() == "there"
        assert path.read_text() == "here"


class TestReadRows:
    def test_only_the_last_line_may_be_torn(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        assert jsonl.read_rows(path) == []
        path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
        assert jsonl.read_rows(path) == [{"step": 1}, {"step": 2}]
        path.write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
        with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
            jsonl.read_rows(path)


class TestMergeSteps:
    def test_rows_of_a_step_become_one_and_the_last_value_wins(self):
        rows = [
            {"step": 1, "loss": 3.0},
            {"step": 2, "loss": 2.0, "nan": 1.0},
            {"step": 2, "eval/d": 0.5},
            {"step": 2, "nan": None},
        ]
        assert jsonl.merge_steps(rows) == [
            {"step": 1, "loss": 3.0},
            {"step": 2, "loss": 2.0, "eval/d": 0.5, "nan": None},
        ]

    def test_a_resume_supersedes_what_came_after_it(self):
        rows = [
            {"step": 1, "loss": 3.0},
            {"step": 2, "loss": 2.0},
            {"step": 3, "loss": 9.0},
            {"resume_step": 1, "wall_time": 0.0},
            {"step": 2, "loss": 1.5},
        ]
        merged = jsonl.merge_steps(rows)
        assert [(row["step"], row["loss"]) for row in merged] == [(1, 3.0), (2, 1.5)]


def test_frame_turns_null_into_nan_and_lists_into_arrays():
    rows = [
        {"step": 1, "loss": None, "bins": [1.0, None], "nonfinite": ["loss", "bins"]},
        {"step": 2, "loss": None, "note": "text"},
    ]
    frame = jsonl.to_frame(rows)
    assert list(frame.columns) == ["step", "loss", "bins", "note"]
    assert frame["loss"].dtype == np.float64 and frame["loss"].isna().all()
    np.testing.assert_array_equal(frame["bins"][0], [1.0, np.nan])
    assert frame["step"].dtype == np.int64
    assert len(jsonl.to_frame([])) == 0
