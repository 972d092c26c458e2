"""The state of a run, read from its directory."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scm_jax.files.jsonl import append_row, read_whole_rows
from scm_jax.runs.directory import locks
from scm_jax.runs.directory.layout import RunDir
from scm_jax.sweeps.plan import planned
from scm_jax.sweeps.state import journal

ATTEMPTS_FILE = "attempts.jsonl"

DONE, RUNNING, STALE, PREEMPTED, FAILED, QUEUED, MISSING = STATES = (
    "done",  # summary.json is there: it is written last
    "running",  # a worker, or ``scm train``, has the run, and lives
    "stale",  # a worker had it and vanished, or left without an end
    "preempted",  # saved and left, to be started again
    "failed",  # ended with an error
    "queued",  # sent to a launcher that has not started it (again) yet
    "missing",  # never started, and not on its way
)
# A job whose scheduler cannot be asked; otherwise it is QUEUED, RUNNING or not there.
UNKNOWN = "unknown"
# The end of an attempt that could not write it: killed, or the machine went down.
LOST = "lost"
# A line of attempts.jsonl: failures before it no longer count.
FORGIVEN = "forgiven"

_SENDING_SECONDS = 60.0  # how long a submission that has begun and not ended counts
_UNWATCHED_SECONDS = 120.0  # and metrics, the sign of life of a training without worker

# Fields of a state that are those of ``status.json``.
_AS_WRITTEN = ("step", "steps", "images", "host", "pid", "started")


@dataclasses.dataclass(frozen=True)
class RunState:
    """One run at one moment."""

    id: str  # name of its directory
    state: str  # one of ``STATES``
    attempt: int = 0  # how often it was started
    failures: int = 0  # attempts that failed or vanished, not preempted ones
    step: int | None = None  # last known step of the training
    steps: int | None = None  # length of the training
    images: int | None = None  # last known position
    images_per_second: float | None = None  # newest rate, while running
    heartbeat_age: float | None = None  # seconds since the worker last wrote
    error: str | None = None  # why it failed, at most 40 lines
    retry: bool = True  # whether starting it again can help
    job: str | None = None  # what the scheduler calls its newest job
    host: str | None = None  # where it ran last
    pid: int | None = None
    started: float | None = None  # when its newest attempt began, in unix seconds

    @property
    def error_line(self) -> str:
        """The first line of the error, or ""."""
        return next(iter((self.error or "").strip().splitlines()), "")

    @property
    def eta_seconds(self) -> float | None:
        """Seconds of training left at the newest rate; None where there is no rate."""
        if not (self.step and self.steps and self.images and self.images_per_second):
            return None
        images_left = (self.steps - self.step) * self.images / self.step
        return images_left / self.images_per_second


def read_state(
    run_dir: str | os.PathLike,
    now: float | None = None,
    queue: Mapping[str, str] | None = None,
) -> RunState:
    """The state of a run directory; reads files, and on this machine its lock.

    Args:
      run_dir: the directory.
      now: unix seconds; None is the present.
      queue: run id -> QUEUED or RUNNING of all jobs that schedulers know of. None, or
        UNKNOWN for a run, believes the records.
    """
    run_dir = Path(run_dir)
    now = time.time() if now is None else now
    status = _read_status(run_dir)
    attempts = read_whole_rows(run_dir / ATTEMPTS_FILE)
    submission = journal.newest_submission(run_dir)
    job_state = UNKNOWN if queue is None else queue.get(run_dir.name)
    if job_state == UNKNOWN:
        job_state = _recorded_job(submission, status, now)
    state = _decide(run_dir, status, job_state, now)
    vanished = status.get("state") == RUNNING and state not in (RUNNING, DONE)
    beat, running = status.get("heartbeat"), state == RUNNING
    return RunState(
        id=run_dir.name,
        state=state,
        attempt=last_attempt(status, attempts),
        failures=_failures(attempts) + vanished,
        images_per_second=status.get("images_per_second") if running else None,
        heartbeat_age=now - beat if beat else _age_of_metrics(run_dir, now),
        error=_error(state, status, submission),
        retry=bool(status.get("retry", True)) or _forgiven(status, attempts),
        job=status.get("job") if running else getattr(submission, "job", None),
        **{k: status.get(k) for k in _AS_WRITTEN},
    )


def retryable(state: RunState, max_attempts: int) -> bool:
    """Whether the run should be started: no worker has it, and it can still succeed.

    True for missing and preempted runs, and for stale and failed ones with less than
    ``max_attempts`` failures whose error can go away by itself.
    """
    if state.state in (MISSING, PREEMPTED):
        return True
    if state.state == STALE or (state.state == FAILED and state.retry):
        return state.failures < max_attempts
    return False


def is_final(run_dir: str | os.PathLike, state: RunState) -> bool:
    """Whether a run failed for good: only ``--force`` starts it again."""
    if state.state not in (FAILED, STALE):
        return False
    facts = planned.read_facts(run_dir)
    most = facts.get("max_attempts", planned.PlannedRun.max_attempts)
    return not retryable(state, int(most))


def forgive(run_dir: str | os.PathLike) -> None:
    """Lets a run that failed for good be started again, as often as a new one."""
    path = Path(run_dir) / ATTEMPTS_FILE
    attempt = last_attempt(locks.read_status(run_dir), read_whole_rows(path))
    append_row(path, {"attempt": attempt, "event": FORGIVEN, "time": time.time()})


def last_attempt(status: Mapping[str, Any], attempts: Sequence[Mapping]) -> int:
    """Number of the newest attempt; 0 before the first."""
    numbers = [row.get("attempt") or 0 for row in attempts]
    return max([status.get("attempt") or 0, *numbers])


def _read_status(run_dir: Path) -> dict[str, Any]:
    """``status.json``, or who trains the run where no worker does."""
    status, owner = locks.read_status(run_dir), locks.read_owner(run_dir)
    if not owner or locks.same_process(status, owner):
        return status
    return {"state": RUNNING, "attempt": status.get("attempt"), **owner, "held": True}


def _decide(
    run_dir: Path, status: Mapping[str, Any], job: str | None, now: float
) -> str:
    if RunDir(run_dir).is_done:
        return DONE
    recorded = status.get("state")
    if recorded == RUNNING and (
        status.get("held") or locks.is_alive(run_dir, status, now)
    ):
        return RUNNING
    if recorded == RUNNING and job == RUNNING:
        return RUNNING  # its heartbeat is late, but the scheduler says so
    if job in (QUEUED, RUNNING):
        return QUEUED
    if recorded in (PREEMPTED, FAILED):
        return recorded
    if recorded:
        return STALE  # left without an end
    age = _age_of_metrics(run_dir, now)
    if age is None:
        return MISSING
    return RUNNING if age <= _UNWATCHED_SECONDS else STALE


def _age_of_metrics(run_dir: Path, now: float) -> float | None:
    path = RunDir(run_dir).metrics_path
    return now - path.stat().st_mtime if path.exists() else None


def _recorded_job(
    submission: journal.Submission | None, status: Mapping[str, Any], now: float
) -> str | None:
    """QUEUED where the records say that a job was sent and has not begun."""
    if submission is None or submission.time <= (status.get("started") or 0):
        return None
    if submission.event == journal.SENT:
        return QUEUED
    fresh = now - submission.time <= _SENDING_SECONDS
    return QUEUED if submission.event == journal.SENDING and fresh else None


def _failures(attempts: Sequence[Mapping[str, Any]]) -> int:
    failures = 0
    for row in attempts:
        if row.get("event") == FORGIVEN:
            failures = 0
        elif row.get("event") == "ended":
            failures += row.get("outcome") in (FAILED, LOST)
    return failures


def _forgiven(status: Mapping[str, Any], attempts: Sequence[Mapping[str, Any]]) -> bool:
    started = status.get("started") or 0
    return any(r.get("event") == FORGIVEN and r["time"] > started for r in attempts)


def _error(
    state: str, status: Mapping[str, Any], submission: journal.Submission | None
) -> str | None:
    if state in (FAILED, PREEMPTED):
        return status.get("error")
    if state == STALE and status:
        return "vanished without a trace: killed, or its machine went down"
    if state == STALE:
        return "trained without a worker, and has written no metrics lately"
    if state == MISSING and submission is not None:
        if submission.event == journal.SENDING:
            return f"sending it to {submission.launcher} was broken off"
        return submission.error
    return None
