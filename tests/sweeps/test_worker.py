import contextlib
import os
import signal
import sys
import threading
import time
from unittest import mock

import pytest

from scm_jax.runs import train
from scm_jax.runs.directory import layout, locks
from scm_jax.sweeps import worker
from scm_jax.sweeps.state import heartbeat, states
from scm_jax.training.loop import NonFiniteError
from tests.commands.in_process import scm
from tests.sweeps import planted


@pytest.fixture
def run_dir(tmp_path):
    planted.make_run(tmp_path, "run", config=planted.tiny_config())
    return tmp_path / "run"


@pytest.fixture
def trains(monkeypatch):
    """``trains(fake)``: in place of the training; ``fake(run_dir, progress)``."""
    monkeypatch.setattr(layout, "environment", lambda: {"device_count": 1})

    def install(fake):
        def train_and_evaluate(config, workdir, *, label="", progress=None):
            return fake(workdir, progress)

        monkeypatch.setattr(train, "train_and_evaluate", train_and_evaluate)

    return install


@pytest.fixture
def student(tmp_path):
    """A run that depends on ``teacher``, which has not begun."""
    planted.make_run(tmp_path, "teacher")
    planted.make_run(tmp_path, "student", "teacher", config=planted.tiny_config())
    return tmp_path / "student"


def complete(run_dir, progress):
    progress.start(0)
    progress.update(40)
    progress.finish()
    planted.finish(run_dir)
    return "done"


class TestOutcomes:
    def test_done(self, run_dir, trains, capfd, monkeypatch):
        monkeypatch.setenv("SLURM_JOB_ID", "42")
        trains(complete)
        assert worker.work(run_dir) == 0
        found = states.read_state(run_dir)
        assert (found.state, found.attempt, found.failures) == ("done", 1, 0)
        assert (found.step, found.steps, found.images) == (40, 40, 640)
        started, ended = planted.rows(run_dir)
        assert started["job"] == ended["job"] == "42"
        assert (started["event"], ended["event"]) == ("started", "ended")
        assert started["environment"] == {"device_count": 1}
        assert 0 <= ended["seconds"] < 60 and ended["pid"] == os.getpid()
        assert worker.work(run_dir) == 0  # and does nothing
        assert len(planted.rows(run_dir)) == 2
        assert "is done" in capfd.readouterr().err

    def test_what_another_worker_ended_meanwhile_is_not_trained_again(
        self, run_dir, trains, monkeypatch
    ):
        hold = locks.hold

        @contextlib.contextmanager
        def hold_late(path):
            planted.finish(run_dir)  # after the worker looked, before it has the lock
            with hold(path):
                yield

        monkeypatch.setattr(locks, "hold", hold_late)
        trains(lambda run_dir, progress: pytest.fail("trained twice"))
        assert worker.work(run_dir) == 0
        assert not (run_dir / "attempts.jsonl").exists()

    def test_preempted_is_75_and_no_failure(self, run_dir, trains):
        trains(lambda run_dir, progress: "preempted")
        for attempt in (1, 2):
            assert worker.work(run_dir) == 75
            found = states.read_state(run_dir)
            assert (found.state, found.failures) == ("preempted", 0)
            assert found.attempt == attempt
        assert locks.read_status(run_dir)["exit_code"] == 75

    @pytest.mark.parametrize(
        ("error", "retry"),
        [
            (ValueError("a bad key"), False),
            (FileNotFoundError("no weights"), False),
            (NonFiniteError("step 3 is not finite", 3, "x"), False),
            (RuntimeError("RESOURCE_EXHAUSTED"), True),
            (OSError(28, "No space left on device"), True),
        ],
    )
    def test_an_error_is_recorded_and_says_whether_to_try_again(
        self, run_dir, trains, error, retry, capfd
    ):
        trains(mock.Mock(side_effect=error))
        assert worker.work(run_dir) == 1
        found = states.read_state(run_dir)
        assert (found.state, found.retry, found.failures) == ("failed", retry, 1)
        assert found.error.splitlines()[0] == f"{type(error).__name__}: {error}"
        assert planted.rows(run_dir)[-1]["error"] == found.error
        assert str(error) in capfd.readouterr().err

    def test_of_a_long_error_the_beginning_stays(self, run_dir, trains):
        error = RuntimeError("\n".join(f"line {i}" for i in range(100)))
        trains(mock.Mock(side_effect=error))
        worker.work(run_dir)
        lines = states.read_state(run_dir).error.splitlines()
        assert len(lines) == 40 and lines[0] == "RuntimeError: line 0"

    def test_a_config_that_cannot_be_read_is_a_failure(self, run_dir):
        (run_dir / "config.json").write_text("{")
        with pytest.raises(ValueError):
            worker.work(run_dir)
        found = states.read_state(run_dir)
        assert (found.state, found.retry) == ("failed", False)

    def test_a_run_that_was_never_planned_is_an_error(self, tmp_path):
        said = scm("sweep", "work", f"--run={tmp_path}", check=1)
        assert "is not a run of a sweep" in said.stderr


class TestOthers:
    def test_a_run_that_another_has_is_left_alone(self, run_dir, trains, capfd):
        planted.write_status(run_dir, **planted.ELSEWHERE)
        before = (run_dir / "status.json").read_text()
        trains(complete)
        assert worker.work(run_dir) == 0
        assert "held by process 1 on elsewhere" in capfd.readouterr().err
        assert (run_dir / "status.json").read_text() == before
        assert not (run_dir / "attempts.jsonl").exists()

    def test_an_attempt_that_vanished_gets_its_end(self, run_dir, trains):
        planted.write_status(run_dir, attempt=2, started=100.0, heartbeat=160.0)
        trains(complete)
        assert worker.work(run_dir) == 0
        lost, *mine = planted.rows(run_dir)
        assert (lost["attempt"], lost["outcome"], lost["seconds"]) == (2, "lost", 60.0)
        assert [row["attempt"] for row in mine] == [3, 3]
        assert states.read_state(run_dir).failures == 1

    def test_a_run_waits_for_those_that_it_depends_on(self, student, trains, capfd):
        trains(complete)
        assert worker.work(student) == 75
        assert "not done yet: teacher (missing)" in capfd.readouterr().err
        assert states.read_state(student).state == "missing"
        planted.finish(student.parent / "teacher")
        assert worker.work(student) == 0

    def test_a_teacher_that_failed_for_good_is_not_waited_for(self, student, capfd):
        teacher = student.parent / "teacher"
        planted.write_status(teacher, state="failed", retry=False, error="a bad key")
        for wait in (False, True):
            assert worker.work(student, wait=wait) == 1
            assert "teacher, which has failed: a bad key" in capfd.readouterr().err

    def test_it_waits_when_it_is_told_to(self, student, trains, monkeypatch):
        looks = []

        def sleep(seconds):
            looks.append(seconds)
            if len(looks) == 3:
                planted.finish(student.parent / "teacher")

        monkeypatch.setattr(worker.time, "sleep", sleep)
        trains(complete)
        assert worker.work(student, wait=True) == 0
        assert len(looks) >= 3


class TestHeartbeat:
    def beating(self, run_dir, **kwargs):
        beat = heartbeat.Heartbeat(run_dir, 0.02, **kwargs)
        beat.start()
        return beat

    def test_it_tells_where_the_training_is(self, run_dir):
        beat = self.beating(run_dir)
        beat.at(0, 40, 16)
        time.sleep(0.01)
        beat.at(10, 40, 16)
        planted.wait_for(lambda: locks.read_status(run_dir).get("step") == 10)
        status = locks.read_status(run_dir)
        beat.end("done", 0)
        assert (status["images"], status["steps"]) == (160, 40)
        assert 0 < status["images_per_second"] < 160 / 0.01

    @pytest.mark.parametrize(
        ("module", "name", "error"),
        [
            (heartbeat, "write_json", OSError(28, "No space left on device")),
            (locks, "read_status", ZeroDivisionError("division")),
        ],
    )
    def test_an_error_in_the_thread_is_said_and_survived(
        self, run_dir, monkeypatch, caplog, module, name, error
    ):
        beat = self.beating(run_dir)
        monkeypatch.setattr(module, name, mock.Mock(side_effect=error))

        def said_twice():
            return caplog.text.count(error.args[-1]) >= 2

        planted.wait_for(lambda: said_twice() or not beat._thread.is_alive())
        assert said_twice()
        monkeypatch.undo()
        beat.at(7, 40, 16)
        planted.wait_for(lambda: locks.read_status(run_dir).get("step") == 7)
        beat.end("done", 0)

    def test_an_end_that_cannot_be_written_is_survived(self, run_dir, monkeypatch):
        beat = self.beating(run_dir)
        full_disk = mock.Mock(side_effect=OSError(28, "No space left on device"))
        monkeypatch.setattr(heartbeat, "write_json", full_disk)
        monkeypatch.setattr(heartbeat, "append_row", full_disk)
        beat.end("done", 0)
        assert not (run_dir / "attempts.jsonl").exists()

    def test_the_end_is_recorded_once_and_not_overwritten(self, run_dir):
        beat = self.beating(run_dir)
        beat.end("failed", 1, "boom")
        beat.end("preempted", 75)
        time.sleep(0.1)
        assert locks.read_status(run_dir)["state"] == "failed"
        assert len(planted.rows(run_dir)) == 1

    def test_a_worker_that_was_replaced_leaves_without_a_trace(self, run_dir):
        """It was asleep so long that another machine took the run."""
        replaced = threading.Event()
        beat = self.beating(run_dir, on_replaced=replaced.set)

        def take_it():
            planted.write_status(run_dir, **planted.ELSEWHERE)
            return replaced.wait(0.05)

        planted.wait_for(take_it, seconds=50)  # a beat of its own may come between
        assert locks.read_status(run_dir)["host"] == "elsewhere"
        beat._ended = True


# A worker whose training is a few lines; the second argument says which. The module
# that really trains is not imported: that takes seconds.
WORKER = """
    import hashlib, sys, time, types
    from scm_jax import runs
    from scm_jax.runs.directory import layout
    from scm_jax.sweeps import worker
    from scm_jax.training import loop
    layout.environment = lambda: {}

    def train(config, workdir, *, label="", progress=None):
        progress.start(0)
        print("training", flush=True)
        if sys.argv[2] == "compiles":  # one call, in which no handler can run
            hashlib.pbkdf2_hmac("sha512", b"", b"", 10**9)
        if sys.argv[2] == "steps":
            with loop.Interruption().installed() as interruption:
                for step in range(1, 10**6):
                    progress.update(step)
                    if step == 2:
                        print("stepping", flush=True)
                    if interruption.requested(step):
                        time.sleep(0.2)
                        print("saved", flush=True)
                        return "preempted"
                    time.sleep(0.01)
        progress.update(40)
        progress.finish()
        print("evaluating", flush=True)
        hashlib.pbkdf2_hmac("sha512", b"", b"", 10**9)

    runs.train = types.SimpleNamespace(train_and_evaluate=train)
    sys.exit(worker.work(sys.argv[1]))
"""


class TestSignals:
    @contextlib.contextmanager
    def started(self, run_dir, how, until):
        with planted.python(WORKER, run_dir, how) as process:
            assert f"{until}\n" in process.stdout  # reads on to it, or to the end
            yield process

    @pytest.mark.parametrize("until", ["training", "evaluating"])
    def test_where_there_is_nothing_to_save_it_leaves_at_once(self, run_dir, until):
        how = "compiles" if until == "training" else "evaluates"
        with self.started(run_dir, how, until) as process:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 75
        found = states.read_state(run_dir)
        assert (found.state, found.failures) == ("preempted", 0)
        assert planted.rows(run_dir)[-1]["outcome"] == "preempted"

    def test_the_loop_saves_before_it_leaves(self, run_dir):
        with self.started(run_dir, "steps", "stepping") as process:
            process.send_signal(signal.SIGUSR1)
            assert "saved\n" in process.stdout
            assert process.wait(60) == 75
        assert states.read_state(run_dir).state == "preempted"

    def test_a_killed_worker_is_stale_at_once_and_can_be_followed(
        self, run_dir, trains
    ):
        with self.started(run_dir, "steps", "stepping") as process:
            process.kill()
            process.wait()
        found = states.read_state(run_dir)
        assert (found.state, found.failures) == ("stale", 1)
        trains(complete)
        assert worker.work(run_dir) == 0
        outcomes = [row["outcome"] for row in planted.rows(run_dir)]
        assert outcomes == [None, "lost", None, "done"]


def test_handlers_of_before_come_back(run_dir, trains):
    before = signal.getsignal(signal.SIGTERM)
    trains(complete)
    worker.work(run_dir)
    assert signal.getsignal(signal.SIGTERM) == before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.slow
def test_a_real_training_through_the_command(run_dir):
    said = scm("sweep", "work", f"--run={run_dir}", "--heartbeat_seconds=0.5")
    assert "run starts at step 0 of 40" in said.stderr or sys.platform != "linux"
    found = states.read_state(run_dir)
    assert (found.state, found.step, found.images) == ("done", 40, 640)
    assert planted.rows(run_dir)[0]["environment"]["device_count"] >= 1
    assert (run_dir / "checkpoints" / "40").is_dir()
