"""Trains runs of a sweep on this machine, several at once, and restarts what dies.

All state is in the run directories: the launcher may be killed and started again, and
two of them on one directory share the work.
"""

from __future__ import annotations

import collections
import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from scm_jax.runs.directory import locks
from scm_jax.sweeps.launchers import slots as slots_lib
from scm_jax.sweeps.launchers.options import Options, Root, Runs, in_order, job_command
from scm_jax.sweeps.launchers.slots import Slot
from scm_jax.sweeps.plan.planned import PlannedRun
from scm_jax.sweeps.state import journal, signals, states
from scm_jax.types import EXIT_PREEMPTED

NAME = "local"
_POLL_SECONDS = 0.2
_LOOK_SECONDS = 1.0  # between looks at runs that wait for others or another launcher


def submit(root: Root, runs: Runs, options: Options) -> int:
    """Trains the runs, and returns when all have ended.

    Runs that failed, vanished or were preempted are started again, as often as their
    ``max_attempts`` allows. SIGINT and SIGTERM ask the workers to save and wait for
    them; a second one kills them.

    Returns:
      0 when all are done, 75 after a signal, 1 when some failed or cannot start.

    Raises:
      ValueError: more devices are asked for than there are; nothing is started.
    """
    slots = slots_lib.make_slots(options, os.environ, slots_lib.usable_cores())
    runs = in_order(runs)
    with journal.sending(root, NAME, [run.id for run in runs]) as batch:
        batch.sent({run.id: _this_process() for run in runs})
    return _Launch(Path(root), runs, slots).run()


def queue(root: Root) -> Mapping[str, str]:
    """Runs whose launcher still lives; one on another machine cannot be asked."""
    here = socket.gethostname()
    found = {}
    for run_id, job in journal.sent_jobs(root, NAME).items():
        host, pid, start = [*job.split(":"), "", ""][:3]
        if host != here:
            found[run_id] = states.UNKNOWN
        elif _start_of(pid) == start:
            found[run_id] = states.QUEUED
    return found


def cancel(root: Root, run_ids: Sequence[str]) -> Sequence[str]:
    """Asks the workers of this machine to save; their launcher starts them no more."""
    jobs, waiting = journal.sent_jobs(root, NAME), queue(root)
    cancelled = {}
    for run_id in jobs.keys() & set(run_ids):
        state = states.read_state(Path(root) / run_id)
        if run_id in waiting or state.state == states.RUNNING:
            cancelled[run_id] = jobs[run_id]
    # Recorded before any worker ends, or its launcher would start the run again.
    journal.record_end(root, NAME, cancelled)
    for run_id in cancelled:
        state = states.read_state(Path(root) / run_id)
        if state.state == states.RUNNING and state.host == socket.gethostname():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(int(state.pid or 0), signal.SIGTERM)
    return list(cancelled)


def script(root: Root, runs: Runs, options: Options) -> str:
    """The commands, in the order in which they would be started."""
    slots = slots_lib.make_slots(options, os.environ, slots_lib.usable_cores())
    lines = [f"# {len(slots)} at once: " + "; ".join(slot.text for slot in slots)]
    commands = (job_command(Path(root) / r.id, sys.executable) for r in in_order(runs))
    lines += map(shlex.join, commands)
    return "".join(f"{line}\n" for line in lines)


class _Worker(NamedTuple):
    run: PlannedRun
    process: subprocess.Popen
    attempt: int


class _Launch:
    def __init__(self, root: Path, runs: Runs, slots: Sequence[Slot]):
        self._root, self._slots = root, slots
        self._left = {run.id: run for run in runs}
        self._workers: dict[int, _Worker] = {}
        self._ends: dict[str, str] = {}
        # Starts that ended before the worker could record anything, by run.
        self._mute: collections.Counter[str] = collections.Counter()
        self._elsewhere: set[str] = set()
        self._signals = 0
        self._next_look = 0.0
        self._total = len(runs)

    def run(self) -> int:
        said = "" if self._total == 1 else "s"
        _say(f"{self._total} run{said} in {len(self._slots)} slots; root {self._root}")
        with signals.handled((signal.SIGINT, signal.SIGTERM), self._on_signal):
            while self._workers or (self._left and not self._signals):
                self._reap()
                self._fill()
                time.sleep(_POLL_SECONDS)
        return self._conclude()

    def _fill(self) -> None:
        free = [slot for slot in self._slots if slot.index not in self._workers]
        now = time.monotonic()
        if not free or self._signals or now < self._next_look:
            return
        busy = {worker.run.id for worker in self._workers.values()}
        for run in list(self._left.values()):
            if not free:
                return
            if run.id not in busy and self._is_ready(run):
                self._start(run, free.pop(0))
        self._next_look = now + _LOOK_SECONDS

    def _is_ready(self, run: PlannedRun) -> bool:
        """Whether to start it now; takes it off the list when nothing is left to do."""
        # No launcher's queue: whoever gets the lock of the run trains it.
        state = states.read_state(self._root / run.id, queue={})
        if state.state == states.DONE:
            self._end(run, states.DONE)
        elif state.state == states.RUNNING:
            if run.id not in self._elsewhere:
                self._elsewhere.add(run.id)
                _say(f"{run.id} is trained by another launcher, on {state.host}")
        elif not states.retryable(state, run.max_attempts):
            self._end(run, "failed for good", state.error_line)
        elif self._was_cancelled(run):
            self._end(run, "cancelled")
        elif self._mute[run.id] >= run.max_attempts:
            self._end(run, "failed for good", "its worker does not even begin")
        else:
            return self._dependencies_are_done(run)
        return False

    def _dependencies_are_done(self, run: PlannedRun) -> bool:
        for run_id in run.depends_on:
            state = states.read_state(self._root / run_id)
            if state.state == states.DONE:
                continue
            ended = self._ends.get(run_id)
            on_its_way = state.state in (states.RUNNING, states.QUEUED)
            if ended or not (on_its_way or run_id in self._left):
                self._end(run, "blocked", f"{run_id} is {ended or state.state}")
            return False
        return True

    def _was_cancelled(self, run: PlannedRun) -> bool:
        newest = journal.newest_submission(self._root / run.id)
        return newest is not None and newest.event == journal.CANCELLED

    def _start(self, run: PlannedRun, slot: Slot) -> None:
        directory = self._root / run.id
        attempt = states.read_state(directory, queue={}).attempt + 1
        log = _log(directory, attempt)
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as output, _cores(slot.cores):
            process = subprocess.Popen(
                job_command(directory, sys.executable),
                env={**os.environ, **slot.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for this launcher only
            )
        self._workers[slot.index] = _Worker(run, process, attempt)
        self._elsewhere.discard(run.id)
        _say(f"{run.id} starts, attempt {attempt}, {slot.text}")

    def _reap(self) -> None:
        for index, worker in list(self._workers.items()):
            code = worker.process.poll()
            if code is not None:
                del self._workers[index]
                self._ended(worker, code)
                self._next_look = 0.0

    def _ended(self, worker: _Worker, code: int) -> None:
        run = worker.run
        state = states.read_state(self._root / run.id, queue={})
        if state.state == states.DONE:
            self._end(run, states.DONE)
            return
        if state.state == states.RUNNING:
            return  # another launcher was faster
        if state.attempt < worker.attempt:
            self._mute[run.id] += 1
        log = _log(self._root / run.id, worker.attempt)
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        why = state.error_line if state.state == states.FAILED else how
        _say(f"{run.id} {state.state}: {why}; log {log}")
        # Behind all others: what failed for want of memory may find it later.
        self._left[run.id] = self._left.pop(run.id)

    def _end(self, run: PlannedRun, how: str, why: str = "") -> None:
        del self._left[run.id]
        self._ends[run.id] = how
        text = f"{how}: {why}" if why else how
        _say(f"{run.id} {text} ({len(self._ends)}/{self._total})")
        if how not in (states.DONE, "cancelled"):
            jobs = {run.id: _this_process()}
            journal.record_end(self._root, NAME, jobs, journal.FAILED, text)

    def _conclude(self) -> int:
        ends = collections.Counter(self._ends.values())
        counts = [f"{number} {end}" for end, number in ends.items()]
        if self._left:
            counts.append(f"{len(self._left)} not done")
        _say(", ".join(counts))
        if self._left:
            root = shlex.quote(str(self._root))
            _say(
                "to resume: python -m scm_jax sweep resubmit "
                f"--root={root} --launcher=local --max_parallel={len(self._slots)}"
            )
            return EXIT_PREEMPTED
        return 0 if set(ends) <= {states.DONE} else 1

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals == 1:
            _say(
                f"asked to leave: {len(self._workers)} runs save what they have; once "
                "more kills them"
            )
        for worker in self._workers.values():
            with contextlib.suppress(ProcessLookupError):
                worker.process.send_signal(
                    signal.SIGTERM if self._signals == 1 else signal.SIGKILL
                )


def _log(directory: Path, attempt: int) -> Path:
    return directory / "logs" / f"attempt-{attempt}.log"


@contextlib.contextmanager
def _cores(cores: tuple[int, ...]) -> Iterator[None]:
    """Children started here run on these cores: they inherit them from the thread."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _this_process() -> str:
    """The job of all runs of this launcher: its machine, id and time of start."""
    return f"{socket.gethostname()}:{os.getpid()}:{_start_of(str(os.getpid()))}"


def _start_of(pid: str) -> str | None:
    """Time of start of a process in ticks: ids are used again; None without one."""
    if not locks.process_exists(pid):
        return None
    try:
        # The name of the program, in parentheses, may hold spaces.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""  # not Linux


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
