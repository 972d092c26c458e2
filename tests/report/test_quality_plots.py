"""Pictures of results, read back as the data of their lines."""

import numpy as np
import pytest

from scm_jax.analysis.laws.published import load_published
from scm_jax.analysis.plots import quality
from scm_jax.runs.directory import layout
from tests.report.test_comparable import measured


def row(steps, fid, **more):
    facts = {"steps": steps, "nfe": steps, "sampling_compute": 0.28 * steps}
    return {**facts, "fid": fid, "guidance": 1.0, "ema": "0.05", "times": None} | more


def labelled_lines(axes):
    """Label -> data of everything drawn with points."""
    drawn = {c.get_label(): c.lines[0] for c in axes.containers}
    drawn |= {line.get_label(): line for line in axes.get_lines()}
    return {
        label: np.transpose(line.get_data()).tolist()
        for label, line in drawn.items()
        if not label.startswith("_")
    }


def test_a_line_joins_steps_and_the_newest_row_of_each():
    rows = [row(2, 2.6, run="a"), row(1, 9.0, run="a"), row(1, 3.2, run="a")]
    rows += [row(1, 4.0, run="b"), row(1, None, run="a")]
    axes = quality.plot_quality(rows, "fid", "sampling_compute")
    lines = labelled_lines(axes)
    assert lines["a"] == [[0.28, 3.2], [0.56, 2.6]]
    assert lines["b"] == [[0.28, 4.0]]
    assert axes.get_xscale() == "log" and "FID" in axes.get_ylabel()


def test_what_is_swept_stands_in_the_label_and_other_times_are_crosses():
    rows = [row(2, 3.0, run="a", ema="0.1"), row(2, 2.0, run="a")]
    rows += [row(2, 2.5, run="a", times=[0.8])]
    axes = quality.plot_quality(rows, "fid")
    assert {"a, ema 0.1", "a, ema 0.05"} <= set(labelled_lines(axes))
    crosses = [line for line in axes.get_lines() if line.get_marker() == "x"]
    assert [2.5] in [list(line.get_ydata()) for line in crosses]


def test_published_results_are_drawn_beside():
    published = load_published("cifar10", "fid")
    axes = quality.plot_quality([row(2, 3.0)], "fid", "nfe", published)
    lines = labelled_lines(axes)
    assert lines["sct, NFE 2 (published, arXiv 2410.11081v2)"] == [[2, 2.06]]
    assert all(r.dataset == "cifar10" for r in published) and len(published) == 6


def test_published_table_is_the_paper_s():
    best = [
        min(load_published(name, "fid"), key=lambda r: r.value)
        for name in ("cifar10", "imagenet64", "imagenet512")
    ]
    assert [(r.method, r.value) for r in best] == [
        ("edm", 2.01),
        ("edm2", 1.33),
        ("teacher", 1.73),
    ]
    (xxl,) = [
        r
        for r in load_published("imagenet512", "fid")
        if (r.method, r.size, r.steps) == ("scd", "xxl", 2)
    ]
    assert xxl.value == 1.88
    # Sec. 5 of the paper: 3.05 billion parameter evaluations, 1.6 % of EDM2's.
    assert xxl.sampling_compute == pytest.approx(3.05, abs=0.01)
    teacher = best[2].sampling_compute
    assert xxl.sampling_compute / teacher == pytest.approx(0.016, abs=0.0005)


def test_runs_that_were_measured_differently_are_not_drawn_together(tmp_path):
    for name, num in (("a", 100), ("b", 200)):
        run_dir = layout.RunDir(tmp_path / name)
        run_dir.write_config({"dataset": {"name": "digits"}})
        run_dir.append_result(row(2, 3.0) | measured("fid", num_samples=num))
    quality.plot_runs([tmp_path / "a"], tmp_path / "one.png")
    with pytest.raises(ValueError, match="num_samples: 100 there, 200 here"):
        quality.plot_runs([tmp_path / "a", tmp_path / "b"], tmp_path / "two.png")
    assert not (tmp_path / "two.png").exists()


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="no row has the metric 'fid'"):
        quality.plot_quality([row(1, None)], "fid")
    with pytest.raises(ValueError, match="cost = 'macs'"):
        quality.plot_quality([row(1, 1.0)], "fid", "macs")
    with pytest.raises(FileNotFoundError, match="nowhere.csv"):
        load_published(path=quality.Path("nowhere.csv"))
