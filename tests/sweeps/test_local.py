import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest

from scm_jax.sweeps import submissions
from scm_jax.sweeps.launchers import local, options, slots
from scm_jax.sweeps.launchers.options import Options
from scm_jax.sweeps.state import states
from tests.sweeps import planted

CPU = {"JAX_PLATFORMS": "cpu"}
STUB = Path(__file__).with_name("stub_worker.py")


def plan(root, name, behaviour, *depends_on, **facts):
    run = planted.make_run(root, name, *depends_on, **facts)
    (root / name / "behaviour").write_text(behaviour)
    return run


@pytest.fixture(autouse=True)
def stub(monkeypatch):
    command = [sys.executable, str(STUB)]
    monkeypatch.setattr(local, "job_command", lambda folder, _: [*command, str(folder)])
    monkeypatch.setattr(local, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(local, "_POLL_SECONDS", 0.02)


def outcomes(run_dir):
    return [r["outcome"] for r in planted.rows(run_dir) if r["event"] == "ended"]


class TestSubmit:
    def test_whatever_can_still_succeed_is_started_again(self, tmp_path, capsys):
        runs = [
            plan(tmp_path, "student", "done", "teacher"),
            plan(tmp_path, "teacher", "die fail preempted done"),
            plan(tmp_path, "other", "done"),
        ]
        assert local.submit(tmp_path, runs, Options(max_parallel=2)) == 0
        assert outcomes(tmp_path / "teacher") == ["lost", "failed", "preempted", "done"]
        begin = planted.rows(tmp_path / "student")[0]["time"]
        assert begin > planted.rows(tmp_path / "teacher")[-1]["time"]
        logs = sorted(p.name for p in (tmp_path / "teacher" / "logs").iterdir())
        assert logs == [f"attempt-{i}.log" for i in (1, 2, 3, 4)]
        said = capsys.readouterr().out
        assert "teacher stale: signal 9" in said and "teacher failed: fail!" in said
        assert said.splitlines()[-1].endswith("3 done")
        assert local.queue(tmp_path) == {}

    @pytest.mark.parametrize(
        "behaviour, starts", [("fail", 3), ("die", 3), ("final", 1)]
    )
    def test_a_failed_run_blocks_others(self, tmp_path, behaviour, starts, capsys):
        runs = [
            plan(tmp_path, "teacher", behaviour),
            plan(tmp_path, "student", "done", "teacher"),
            plan(tmp_path, "grandstudent", "done", "student"),
        ]
        assert local.submit(tmp_path, runs, Options()) == 1
        events = [row["event"] for row in planted.rows(tmp_path / "teacher")]
        assert events.count("started") == starts
        assert "1 failed for good, 2 blocked" in capsys.readouterr().out
        error = states.read_state(tmp_path / "student").error
        assert error == "blocked: teacher is failed for good"
        assert states.read_state(tmp_path / "teacher").state in ("failed", "stale")

    def test_a_worker_that_cannot_begin_is_not_started_for_ever(self, tmp_path, capsys):
        runs = [plan(tmp_path, "run", "mute", max_attempts=2)]
        assert local.submit(tmp_path, runs, Options()) == 1
        log = (tmp_path / "run" / "logs" / "attempt-1.log").read_text()
        assert log.count("mute") == 2
        assert "does not even begin" in states.read_state(tmp_path / "run").error

    def test_a_run_of_a_launcher_that_died_is_waited_for(self, tmp_path, monkeypatch):
        runs = [plan(tmp_path, "run", "sleep done")]
        code = "from tests.sweeps.stub_worker import *; main(Path(sys.argv[1]))"
        with planted.python(code, tmp_path / "run") as orphan:
            planted.wait_for((tmp_path / "run" / "asleep").exists, orphan)

            def end_the_orphan(text):
                if "trained by another launcher" in text:
                    orphan.terminate()

            monkeypatch.setattr(local, "_say", end_the_orphan)
            assert local.submit(tmp_path, runs, Options()) == 0
        assert outcomes(tmp_path / "run") == ["preempted", "done"]

    def test_a_circle_is_an_error_before_anything_is_sent(self, tmp_path):
        a, b = plan(tmp_path, "a", "done", "b"), plan(tmp_path, "b", "done", "a")
        with pytest.raises(ValueError, match=r"circle: \['a', 'b'\]"):
            local.submit(tmp_path, [a, b], Options())
        assert not (tmp_path / "a" / "submissions.jsonl").exists()

    def test_cores_are_split_between_slots(self, tmp_path, monkeypatch):
        monkeypatch.setenv("JAX_PLATFORMS", "cpu")
        core = min(os.sched_getaffinity(0))
        monkeypatch.setattr(slots, "usable_cores", lambda: (core,))
        before = os.sched_getaffinity(0)
        local.submit(tmp_path, [plan(tmp_path, "run", "done")], Options())
        log = (tmp_path / "run" / "logs" / "attempt-1.log").read_text()
        assert f"{{{core}}}" in log
        assert os.sched_getaffinity(0) == before

    def test_the_script_is_what_would_be_started(self, tmp_path):
        runs = [plan(tmp_path, "b", "done", "a"), plan(tmp_path, "a", "done")]
        lines = local.script(tmp_path, runs, Options()).splitlines()
        assert lines[0].startswith("# 1 at once: slot 0")
        assert [line.split("/")[-1] for line in lines[1:]] == ["a", "b"]


LAUNCHER = """
    import sys
    from scm_jax.sweeps.plan import planned
    from scm_jax.sweeps.launchers import local
    from scm_jax.sweeps.launchers.options import Options
    local._LOOK_SECONDS, local._POLL_SECONDS = 0.1, 0.02
    local.job_command = lambda d, python: [python, sys.argv[2], d]
    runs = [planned.read_run(p) for p in planned.sweep_runs(sys.argv[1])]
    sys.exit(local.submit(sys.argv[1], runs, Options(max_parallel=2)))
"""


@contextlib.contextmanager
def launched(root, *asleep):
    """A process that submits what is planned; returns when these runs are asleep."""
    with planted.python(LAUNCHER, root, STUB) as launcher:
        for name in asleep:
            planted.wait_for((root / name / "asleep").exists, launcher)
        yield launcher


class TestProcesses:
    def test_a_signal_makes_the_runs_save_and_says_how_to_go_on(self, tmp_path):
        plan(tmp_path, "a", "sleep done")
        plan(tmp_path, "b", "sleep done")
        plan(tmp_path, "c", "done", "a")
        with launched(tmp_path, "a", "b") as launcher:
            assert local.queue(tmp_path) == dict.fromkeys("abc", "queued")
            launcher.send_signal(signal.SIGINT)
            said = launcher.communicate()[0]
            assert launcher.returncode == 75
        assert "2 runs save what they have" in said
        resume = f"sweep resubmit --root={tmp_path} --launcher=local --max_parallel=2"
        assert resume in said
        found = {name: states.read_state(tmp_path / name).state for name in "ab"}
        assert found == dict.fromkeys("ab", "preempted")
        assert submissions.queue(tmp_path) == {}

    def test_two_launchers_at_once_run_nothing_twice(self, tmp_path):
        names = [f"run{i}" for i in range(4)]
        for name in names:
            plan(tmp_path, name, "die done" if name < "run2" else "done")
        with launched(tmp_path) as one, launched(tmp_path) as other:
            said = one.communicate()[0], other.communicate()[0]
            assert (one.returncode, other.returncode) == (0, 0), said
        for name in names:
            rows = sorted(planted.rows(tmp_path / name), key=lambda row: row["time"])
            wanted = [(1, "started"), (1, "ended"), (2, "started"), (2, "ended")]
            found = [(row["attempt"], row["event"]) for row in rows]
            assert found == wanted[: 4 if name < "run2" else 2]
            assert rows[-1]["outcome"] == "done"


class TestCancel:
    def test_a_waiting_run_is_not_started_and_a_training_one_saves(self, tmp_path):
        plan(tmp_path, "a", "sleep done")
        plan(tmp_path, "b", "done", "a")
        with launched(tmp_path, "a") as launcher:
            assert sorted(submissions.cancel(tmp_path)) == ["a", "b"]
            said = launcher.communicate()[0]
            assert launcher.returncode == 1
        assert "1 cancelled, 1 blocked" in said or "2 cancelled" in said
        assert states.read_state(tmp_path / "a").state == "preempted"
        assert states.read_state(tmp_path / "b").state == "missing"
        assert submissions.cancel(tmp_path) == []


class TestQueue:
    def test_a_launcher_lives_where_it_was_started(self, tmp_path):
        plan(tmp_path, "a", "done")
        host, pid, start = local._this_process().split(":")
        for job, expected in (
            ("elsewhere:1:5", {"a": "unknown"}),
            (f"{host}:4194305:5", {}),
            (f"{host}:{pid}:5", {}),  # another process has the id now
            (f"{host}:{pid}:{start}", {"a": "queued"}),
        ):
            planted.write_submission(tmp_path / "a", launcher="local", job=job)
            assert local.queue(tmp_path) == expected, job


@pytest.fixture
def eight_gpus(monkeypatch):
    names = {"nvidia": list("01234567")}
    monkeypatch.setattr(slots, "_numbers", lambda prefix: names.get(prefix, []))


class TestSlots:
    def test_cores_without_accelerators(self):
        each = [(0,), (1,), (2,), (3,), (4,)]
        cores = {0: [(0, 1, 2, 3, 4)], 2: [(0, 1), (2, 3, 4)], 5: each}
        for parallel, expected in {**cores, 6: [*each, (0,)]}.items():
            found = slots.make_slots(Options(parallel), CPU, (0, 1, 2, 3, 4))
            assert [slot.cores for slot in found] == expected
            assert all(slot.environment == {} for slot in found)

    @pytest.mark.parametrize(
        ("options", "pinned"),
        [
            (Options(), ["4", "5", "6", "7"]),
            (Options(max_parallel=2), ["4,5", "6,7"]),
            (Options(devices_per_run=2), ["4,5", "6,7"]),
            (Options(max_parallel=1, devices_per_run=3), ["4,5,6"]),
            (Options(max_parallel=3, devices_per_run=0), [None] * 3),
        ],
    )
    def test_accelerators_that_are_visible(self, eight_gpus, options, pinned):
        found = slots.make_slots(options, {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}, (0, 1))
        assert [s.environment.get("CUDA_VISIBLE_DEVICES") for s in found] == pinned
        assert all(slot.cores == () for slot in found)

    @pytest.mark.parametrize(
        ("options", "environ", "message"),
        [
            (Options(9), {}, "--max_parallel=9 x --devices_per_run=1 is more"),
            (Options(devices_per_run=9), {}, "more than the 8 devices"),
            (Options(devices_per_run=1), CPU, "no accelerator"),
        ],
    )
    def test_too_many_are_refused(self, eight_gpus, options, environ, message):
        with pytest.raises(ValueError, match=message):
            slots.make_slots(options, environ, (0, 1))


def test_runs_come_after_those_that_they_depend_on():
    chain = [planted.plan_run(*names) for names in ("cba", "ba", "a", "dx")]
    assert [run.id for run in options.in_order(chain)] == ["a", "d", "b", "c"]


@pytest.mark.parametrize("listed", ["-1", "", "NoDevFiles", "1,-1,2"])
def test_a_hidden_accelerator_is_none(eight_gpus, listed):
    found = slots.accelerators({"CUDA_VISIBLE_DEVICES": listed})
    assert found == (("cuda", ["1"]) if listed[:1] == "1" else ("cpu", []))
