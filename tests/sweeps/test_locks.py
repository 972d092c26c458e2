import concurrent.futures
import contextlib
import os
import socket
import time

import pytest

from scm_jax.runs.directory import locks
from tests.sweeps import planted

HOLD = """
    import sys, time
    from scm_jax.runs.directory import locks
    try:
        with locks.hold(sys.argv[1]):
            print("held", flush=True)
            time.sleep(float(sys.argv[2]))
    except locks.HeldError as error:
        print("refused", flush=True)
"""


def hold(folder):
    with locks.hold(folder):
        pass


@contextlib.contextmanager
def holder_of(folder, seconds=60):
    """Another process that holds a directory."""
    with planted.python(HOLD, folder, seconds) as holder:
        assert holder.stdout.readline() == "held\n"
        yield holder


class TestHold:
    def test_a_kill_frees_at_once(self, tmp_path):
        with holder_of(tmp_path) as holder:
            assert locks.is_held(tmp_path)
            holder.kill()
        assert not locks.is_held(tmp_path)
        hold(tmp_path)

    def test_of_processes_that_race_one_wins(self, tmp_path):
        with contextlib.ExitStack() as stack:
            racers = [
                stack.enter_context(planted.python(HOLD, tmp_path, 3)) for _ in range(3)
            ]
            said = sorted(racer.communicate()[0] for racer in racers)
        assert said == ["held\n", "refused\n", "refused\n"]

    def test_a_look_does_not_keep_a_worker_out(self, tmp_path):
        """Somebody holds it for an instant, as ``is_held`` does."""
        with holder_of(tmp_path, 0.3):
            hold(tmp_path)

    @pytest.mark.parametrize("age", [0.0, 29.0])
    def test_another_machine_holds_it_for_three_heartbeats(self, tmp_path, age):
        planted.write_status(tmp_path, **planted.ELSEWHERE, heartbeat=time.time() - age)
        with pytest.raises(locks.HeldError, match="process 1 on elsewhere.* 30 s"):
            hold(tmp_path)

    def test_another_machine_that_is_silent_or_has_ended_holds_nothing(self, tmp_path):
        silent = {"heartbeat": time.time() - 31}
        for fields in (
            silent,
            *({"state": s} for s in ("failed", "preempted", "done")),
        ):
            planted.write_status(tmp_path, **planted.ELSEWHERE, **fields)
            hold(tmp_path)

    def test_the_refusal_says_who_has_it_and_since_when(self, tmp_path):
        """A worker that was killed left its name, and another one holds it."""
        planted.write_status(tmp_path, pid=2**22 + 1)
        with holder_of(tmp_path) as holder:
            owner = locks.read_owner(tmp_path)
            who = rf"process {holder.pid} on {socket.gethostname()} since 20\d\d-"
            with pytest.raises(locks.HeldError, match=who):
                hold(tmp_path)
            holder.kill()
        assert owner["pid"] == holder.pid
        assert time.time() - 60 < owner["started"] <= time.time()
        assert locks.read_owner(tmp_path) == {}

    def test_who_holds_it_may_hold_it_again(self, tmp_path):
        """A worker trains with the function that also trains without one."""
        with locks.hold(tmp_path):
            with locks.hold(os.path.relpath(tmp_path)):
                assert locks.is_held(tmp_path)
            assert locks.is_held(tmp_path)
        assert not locks.is_held(tmp_path)

    def test_another_thread_of_the_same_process_is_refused(self, tmp_path):
        with locks.hold(tmp_path), concurrent.futures.ThreadPoolExecutor(1) as pool:
            with pytest.raises(locks.HeldError):
                pool.submit(hold, tmp_path).result()


class TestIsAlive:
    def is_alive(self, folder, **status):
        planted.write_status(folder, **status)
        return locks.is_alive(folder, locks.read_status(folder), time.time())

    def test_on_this_machine_the_lock_decides(self, tmp_path):
        assert not self.is_alive(tmp_path, heartbeat=0.0)
        with locks.hold(tmp_path):
            assert self.is_alive(tmp_path, heartbeat=0.0)

    def test_machines_of_one_name_are_told_apart(self, tmp_path):
        assert self.is_alive(tmp_path, boot="another-boot")

    @pytest.mark.parametrize(("seconds", "alive"), [(10.0, False), (60.0, True)])
    def test_the_limit_is_of_the_workers_own_interval(self, tmp_path, seconds, alive):
        late = {"heartbeat": time.time() - 100, "heartbeat_seconds": seconds}
        assert self.is_alive(tmp_path, **planted.ELSEWHERE, **late) is alive


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_a_broken_status_is_none(tmp_path, text):
    (tmp_path / "status.json").write_text(text)
    assert locks.read_status(tmp_path) == {}
