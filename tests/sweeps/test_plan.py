"""The plan: estimates from measured rates, and a table that fits a terminal."""

import pytest

from scm_jax.files.jsonl import append_row, write_json
from scm_jax.runs.directory.layout import RunDir
from scm_jax.sweeps.plan import hours as plan
from tests.sweeps import planted


def make_run(number, flops_per_image=1e6, **changes):
    overrides = {"seed": number, "eval.steps": [number], "network.width": 8}
    config = {"seed": number, "eval": {"steps": [number]}, "network": {"width": 8}}
    values = {"base": "e.py:sct", "config": config, "overrides": overrides}
    values |= {"parameters": 1_523_200_000, "images": 204_800_000}
    values |= {"train_flops": flops_per_image * 204_800_000, **changes}
    return planted.plan_run(f"some_rather_long_name-{number:010x}", **values)


def finished(directory, macs_per_image, rate, seconds, **summary):
    """A finished run of 1,000 images at ``rate`` images per second."""
    directory.mkdir(exist_ok=True)
    for step, value in enumerate((rate / 10, rate, rate), 1):
        row = {"step": step, "images_per_second": value}
        append_row(directory / "metrics.jsonl", row)
    facts = {"train_macs_per_image": macs_per_image, "images": 1000, "seconds": seconds}
    facts |= {"total_train_macs": macs_per_image * 1000, **summary}
    facts["environment"] = {"device": "cpu", "device_count": 2}
    write_json(RunDir(directory).summary_path, facts)


def test_hours_come_from_the_run_whose_images_cost_most_alike(tmp_path):
    finished(tmp_path / "small", macs_per_image=1e3, rate=500.0, seconds=12.0)
    finished(tmp_path / "large", macs_per_image=1e6, rate=100.0, seconds=40.0)
    (tmp_path / "unfinished").mkdir()
    names = ("small", "large", "unfinished")
    measured = plan.measured_runs([tmp_path / name for name in names])
    assert [m.flops_per_second for m in measured] == [1e6, 2e8]
    assert [m.overhead_seconds for m in measured] == [10.0, 30.0]
    run = make_run(0, flops_per_image=3e6)
    seconds = 3e6 * 204_800_000 / 2e8 + 30.0
    found = plan.estimated_device_hours(run, measured)
    assert found == pytest.approx(2 * seconds / 3600)
    assert plan.estimated_device_hours(run, []) is None


def test_runs_that_cost_the_same_are_joined_by_the_median(tmp_path):
    for name, rate in (("a", 10.0), ("b", 100.0), ("c", 120.0)):
        finished(tmp_path / name, macs_per_image=1e6, rate=rate, seconds=1000 / rate)
    measured = plan.measured_runs([tmp_path / name for name in "abc"])
    run = make_run(0, flops_per_image=2e6)
    hours = 204_800_000 / 100.0 / 3600
    assert plan.estimated_device_hours(run, measured) == pytest.approx(2 * hours)


def test_a_resumed_run_measures_nothing(tmp_path):
    finished(tmp_path, macs_per_image=1e3, rate=500.0, seconds=12.0, resumed_at_step=1)
    assert plan.measured_run(tmp_path) is None


def test_only_what_tells_runs_apart_is_shown():
    planned = [make_run(n) for n in range(3)]
    assert plan.changed_texts(planned) == ["seed=0", "seed=1", "seed=2"]
    other = make_run(3, base="e.py:scd")
    assert plan.changed_texts([*planned, other])[3] == "scd seed=3"


@pytest.mark.parametrize("width", [80, 140])
def test_the_table_fits_the_terminal(tmp_path, width, monkeypatch, capsys):
    finished(tmp_path, macs_per_image=1e6, rate=100.0, seconds=40.0)
    measured = plan.measured_runs([tmp_path])
    planned = [make_run(n) for n in range(50)]
    states = {run.id: "missing" for run in planned} | {planned[0].id: "done"}
    rows = plan.plan_rows(planned, states, measured)
    monkeypatch.setenv("COLUMNS", str(width))
    plan.print_plan(rows, "runs/s", measured, limit=20)
    lines = capsys.readouterr().out.splitlines()
    table = lines[:21]
    assert all(len(line) <= width for line in table)
    assert "0000000001" in table[2]
    assert ("some_rather_long_name" in table[2]) == (width >= 110)
    assert "1.52G" in table[1] and "205M" in table[1] and "2.05e+14" in table[1]
    assert "and 30 more" in lines[21]
    assert "50 runs in runs/s (49 missing, 1 done), 1.02e+16 FLOPs" in lines[22]
    each = rows[0]["device_hours"]
    assert f"{plan.short_hours(50 * each)} device hours" in lines[23]
    assert f"{plan.short_hours(49 * each)} of them to come" in lines[23]
    assert "2 x cpu" in lines[23]


def test_unknown_hours_say_how_to_know_them():
    rows = plan.plan_rows([make_run(0)], {make_run(0).id: "missing"})
    assert rows[0]["device_hours"] is None
    assert "--measured" in plan.plan_totals(rows, "r", [])[-1]
