import os
import time

import pytest

from scm_jax.runs.directory import locks
from scm_jax.sweeps.state import journal, states
from tests.sweeps import planted


@pytest.fixture
def run_dir(tmp_path):
    planted.make_run(tmp_path, "run")
    return tmp_path / "run"


def state_of(run_dir, queue=None):
    return states.read_state(run_dir, queue=queue)


class TestReadState:
    def test_without_any_file_it_is_missing(self, run_dir):
        assert state_of(run_dir) == states.RunState("run", "missing")

    def test_the_summary_alone_makes_it_done(self, run_dir):
        planted.write_status(run_dir, state="done")
        assert state_of(run_dir).state == "stale"
        planted.write_status(run_dir, state="failed")
        planted.finish(run_dir)
        assert state_of(run_dir).state == "done"

    def test_it_runs_as_long_as_its_worker_lives(self, run_dir):
        planted.write_status(run_dir, step=5, steps=20, images=80, attempt=2)
        with locks.hold(run_dir):
            found = state_of(run_dir)
        assert (found.state, found.step, found.images) == ("running", 5, 80)
        assert found.attempt == 2 and found.failures == 0

    def test_a_training_without_a_worker_runs_while_it_holds_the_lock(self, run_dir):
        """Whatever the worker before it left behind."""
        for left in ({}, {"state": "failed"}, {"step": 5, "images_per_second": 9.0}):
            if left:
                planted.write_status(run_dir, pid=2**22 + 1, **left)
            with locks.hold(run_dir):
                found = state_of(run_dir)
            assert (found.state, found.pid) == ("running", os.getpid())
            assert found.started == pytest.approx(time.time(), abs=60)
            assert found.step is found.images_per_second is found.error is None
        assert state_of(run_dir).state == "stale"

    def test_it_is_stale_as_soon_as_its_worker_is_gone(self, run_dir):
        planted.write_status(run_dir)
        found = state_of(run_dir)
        assert (found.state, found.failures) == ("stale", 1)
        assert "vanished" in found.error

    @pytest.mark.parametrize("state", ["failed", "preempted"])
    def test_the_end_of_a_worker_is_told(self, run_dir, state):
        planted.write_status(run_dir, state=state, error="boom", retry=False)
        planted.write_attempts(run_dir, state)
        found = state_of(run_dir)
        assert (found.state, found.error, found.retry) == (state, "boom", False)
        assert found.failures == (state == "failed")

    @pytest.mark.parametrize(
        "worker, lives, is_stale", [(True, 20, 40), (False, 60, 180)]
    )
    def test_another_machine_runs_while_it_writes(
        self, run_dir, worker, lives, is_stale
    ):
        """Its worker beats; a training without one writes its metrics."""
        for age, state in ((lives, "running"), (is_stale, "stale")):
            now = time.time()
            if worker:
                planted.write_status(run_dir, **planted.ELSEWHERE, heartbeat=now - age)
            else:
                (run_dir / "metrics.jsonl").write_text('{"step": 1}\n')
                os.utime(run_dir / "metrics.jsonl", times=(0, now - age))
            found = state_of(run_dir)
            assert found.state == state
            assert found.heartbeat_age == pytest.approx(age, abs=5)


class TestSubmissions:
    def test_what_was_sent_is_queued_until_it_begins(self, run_dir):
        planted.write_submission(run_dir)
        assert state_of(run_dir).state == "queued"
        planted.write_status(run_dir, state="preempted", started=time.time() + 1)
        assert state_of(run_dir).state == "preempted"
        planted.write_submission(run_dir, time=time.time() + 2)
        assert state_of(run_dir).state == "queued"

    def test_what_was_not_sent_is_not_queued(self, run_dir):
        for event in ("cancelled", "failed"):
            planted.write_submission(run_dir)
            planted.write_submission(run_dir, event, error="no such partition")
            found = state_of(run_dir)
            assert found.state == "missing" and found.error == "no such partition"

    def test_a_sending_that_broke_off_is_believed_for_a_minute(self, run_dir):
        planted.write_submission(run_dir, "sending")
        assert state_of(run_dir).state == "queued"
        planted.write_submission(run_dir, "sending", time=time.time() - 100)
        found = state_of(run_dir)
        assert found.state == "missing" and "broken off" in found.error

    def test_the_scheduler_knows_better_than_the_record(self, run_dir):
        planted.write_submission(run_dir)
        assert state_of(run_dir, queue={}).state == "missing"
        for job in ("queued", "running", "unknown"):
            assert state_of(run_dir, queue={"run": job}).state == "queued"

    def test_a_requeued_job_is_queued_unless_a_worker_lives(self, run_dir):
        planted.write_status(run_dir)
        assert state_of(run_dir, queue={"run": "queued"}).state == "queued"
        assert state_of(run_dir, queue={"run": "running"}).state == "running"
        with locks.hold(run_dir):
            assert state_of(run_dir, queue={"run": "queued"}).state == "running"


class TestRetryable:
    def test_every_state(self):
        def again(state, failures=0, retry=True):
            found = states.RunState("run", state, failures=failures, retry=retry)
            return states.retryable(found, max_attempts=3)

        assert again("missing") and again("preempted", 9)
        for state in ("stale", "failed"):
            assert again(state, 2) and not again(state, 3)
        assert not again("failed", 1, retry=False)
        assert not any(again(state) for state in ("running", "queued", "done"))

    def test_preempted_attempts_are_no_failures(self, run_dir):
        planted.write_attempts(run_dir, "preempted", "failed", "lost", "preempted")
        planted.write_status(run_dir, state="preempted", attempt=4)
        found = state_of(run_dir)
        assert (found.attempt, found.failures) == (4, 2)

    def test_a_forgiven_run_begins_anew(self, run_dir):
        planted.write_attempts(run_dir, "failed", "failed", "failed")
        planted.write_status(run_dir, state="failed", retry=False, attempt=3)
        assert states.is_final(run_dir, state_of(run_dir))
        states.forgive(run_dir)
        found = state_of(run_dir)
        assert (found.failures, found.attempt) == (0, 3)
        assert not states.is_final(run_dir, found)

    def test_the_limit_stands_in_the_file_of_the_run(self, tmp_path):
        planted.make_run(tmp_path, "run", max_attempts=7)
        for failures, final in ((6, False), (7, True)):
            found = states.RunState("run", "failed", failures=failures)
            assert states.is_final(tmp_path / "run", found) is final
        assert states.is_final(tmp_path, states.RunState("run", "stale", failures=3))


class TestJournal:
    def test_a_failure_in_the_middle_leaves_a_record_of_both(self, tmp_path):
        for name in "abc":
            planted.make_run(tmp_path, name)
        with (
            pytest.raises(OSError, match="gone"),
            journal.sending(tmp_path, "slurm", "abc") as batch,
        ):
            assert journal.newest_submission(tmp_path / "c").event == "sending"
            batch.sent({"a": "11"})
            raise OSError("the controller is gone")
        a, b, c = (journal.newest_submission(tmp_path / name) for name in "abc")
        assert (a.event, a.job) == ("sent", "11")
        assert b.event == c.event == "failed"
        assert b.error == "OSError: the controller is gone"
        assert journal.sent_jobs(tmp_path, "slurm") == {"a": "11"}

    def test_jobs_are_those_that_were_sent_and_not_taken_back(self, tmp_path):
        for name in "abcd":
            planted.make_run(tmp_path, name)
        with journal.sending(tmp_path, "slurm", "abc") as batch:
            batch.sent({"a": "1", "b": "2", "c": "3"})
        planted.write_submission(tmp_path / "d", launcher="local")
        journal.record_end(tmp_path, "slurm", {"b": "2"})
        planted.finish(tmp_path / "c")
        assert journal.sent_jobs(tmp_path, "slurm") == {"a": "1"}

    def test_a_torn_last_line_is_no_submission(self, tmp_path):
        planted.write_submission(tmp_path, job="1")
        with (tmp_path / "submissions.jsonl").open("a") as file:
            file.write('{"time": 1, "event": "canc')
        assert journal.newest_submission(tmp_path).event == "sent"
