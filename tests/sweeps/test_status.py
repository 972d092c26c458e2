import dataclasses
import threading

import pytest

from scm_jax.sweeps import status
from scm_jax.sweeps.state import states
from tests.commands.in_process import scm
from tests.sweeps import planted

AT = {"step": 25, "steps": 100, "images": 3200, "images_per_second": 96.0}
RUNNING = states.RunState("t32-0123456789", "running", 2, heartbeat_age=4.0, **AT)


def row(state, **overrides):
    return status.Row(state, {"label": "", "overrides": overrides, "max_attempts": 3})


def overview(number, state="done"):
    found = (states.RunState(f"r-{i:010d}", state) for i in range(number))
    return status.Overview("runs/s", tuple(row(s, seed=i) for i, s in enumerate(found)))


class TestRender:
    def lines(self, rows, limit=30, width=80):
        text = status.render(status.Overview("runs/s", tuple(rows)), limit, width)
        return text.plain.splitlines()

    def test_a_running_run_in_one_line(self):
        rows = [row(RUNNING, **{"network.width": 32}), row(RUNNING, **{"x.width": 64})]
        title, counts, _, head, first, _ = self.lines(rows)
        assert (title, counts) == ("runs/s: 2 runs", "2 running")
        assert head.split() == ["state", "done", "img/s", "left", "beat", "try", "run"]
        # 9600 images are left at 96 a second.
        cells = ["running", "25%", "96", "1:40", "4s", "2", "012345"]
        assert first.split() == cells
        assert [first.index(c) + len(c) for c in ("25%", "1:40", "4s")] == [
            head.index(name) + len(name) for name in ("done", "left", "beat")
        ]

    def test_what_changed_is_named_and_what_did_not_is_not(self):
        states = [dataclasses.replace(RUNNING, id=f"a-{width}") for width in (32, 64)]
        rows = [
            row(s, **{"network.width": w, "seed": 0, "teacher.run": f"r/{w}"})
            for s, w in zip(states, (32, 64), strict=True)
        ]
        lines = self.lines(rows)
        assert lines[4].endswith(" 2 32 width=32")
        assert lines[5].endswith(" 2 64 width=64")

    def test_an_error_has_a_line_of_its_own(self):
        error = "ValueError: bad\n\ntraceback"
        failed = states.RunState("a-1", "failed", failures=2, error=error)
        assert self.lines([row(failed)])[-1] == "  2 of 3 times: ValueError: bad"

    @pytest.mark.parametrize("width", [60, 80, 120])
    def test_no_line_is_longer_than_the_terminal(self, width):
        long = states.RunState("a-1", "failed", error="x" * 300)
        rows = [row(long, **{"k" * 90: 1}), row(RUNNING, **{"k" * 90: 2})]
        lines = self.lines(rows, width=width)
        assert max(map(len, lines)) == width

    @pytest.mark.parametrize(("number", "hidden"), [(30, 0), (300, 270)])
    def test_what_is_cut_off_is_counted(self, number, hidden):
        rows = [*overview(number - 1).rows, row(RUNNING)]
        lines = self.lines(rows)
        assert lines[4].startswith("running")  # what matters comes first
        assert len(lines) == 4 + 30 + bool(hidden)
        if hidden:
            assert lines[-1] == f"{hidden} more not shown: {hidden} done"
        assert len(self.lines(rows, limit=0)) == 4 + number

    def test_errors_count_as_lines(self):
        failed = states.RunState("a-1", "failed", error="boom")
        lines = self.lines([row(failed)] * 10, limit=7)
        assert len(lines) == 4 + 6 + 1
        assert lines[-1] == "7 more not shown: 7 failed"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("attempts.jsonl", ", line 1: "),
        ("submissions.jsonl", ", line 1: "),
        ("run.json", " is not JSON"),
    ],
)
def test_a_damaged_file_of_one_run_hides_no_run(tmp_path, name, said, caplog):
    for run in ("a", "b"):
        planted.make_run(tmp_path, run, label=f"label {run}")
    planted.write_attempts(tmp_path / "b", "failed")
    path = tmp_path / "b" / name
    path.write_bytes(b'{"\xff": 1}\n' + (path.read_bytes() if path.exists() else b""))
    found = status.gather(tmp_path)
    assert [state.id for state in found.states] == ["a", "b"]
    labels = ["label a", "" if name == "run.json" else "label b"]
    assert [row.plan["label"] for row in found.rows] == labels
    assert f"{path}{said}" in caplog.text


class TestCommand:
    def test_a_table_of_a_sweep(self, tmp_path, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        for seed, base in ((0, "e.py:sct"), (1, "e.py:scd")):
            name = f"s-{seed}123456789"
            planted.make_run(tmp_path, name, base=base, overrides={"seed": seed})
        planted.finish(tmp_path / "s-1123456789")
        lines = scm("sweep", "status", f"--root={tmp_path}").stdout.splitlines()
        assert lines[1] == "1 done  1 missing"
        assert lines[-2].endswith("012345 sct seed=0")
        assert lines[-1].split() == ["done", "100%", "112345", "scd", "seed=1"]

    def test_a_root_without_runs(self, tmp_path):
        said = scm("sweep", "status", f"--root={tmp_path}", check=1)
        assert f"no runs of a sweep in {tmp_path}" in said.stderr

    def test_json_and_watch_exclude_each_other(self, tmp_path):
        flags = ("--root=x", "--json", "--watch")
        assert "exclude" in scm("sweep", "status", *flags, check=2).stderr

    def test_watching_ends_with_the_last_run(self, tmp_path):
        planted.make_run(tmp_path, "a")
        planted.write_status(tmp_path / "a", **planted.ELSEWHERE)
        timer = threading.Timer(0.3, planted.finish, [tmp_path / "a"])
        timer.start()
        status.watch(tmp_path, seconds=0.05)
        assert status.gather(tmp_path).states[0].state == "done"
