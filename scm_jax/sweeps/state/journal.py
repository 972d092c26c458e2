"""What was sent where: ``submissions.jsonl`` of each run, written around the sending.

Whatever goes wrong in the middle, the files tell which runs were sent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from scm_jax.files.jsonl import append_row, read_whole_rows
from scm_jax.runs.directory.layout import RunDir

SUBMISSIONS_FILE = "submissions.jsonl"
# Events. SENDING is written before anything is sent: from there on a job may exist.
SENDING, SENT, FAILED, CANCELLED = "sending", "sent", "failed", "cancelled"


@dataclasses.dataclass(frozen=True)
class Submission:
    """The newest line of a run's ``submissions.jsonl``."""

    time: float  # in unix seconds
    launcher: str
    submission: str
    job: str | None  # what the launcher calls the job
    event: str
    error: str | None = None  # why it was not sent


@dataclasses.dataclass
class Sending:
    """Runs that are being sent together; ``sent`` says which of them are."""

    root: Path
    launcher: str
    submission: str  # id of this sending
    left: list[str]  # ids of the runs that are not known to be sent yet

    def sent(self, jobs: Mapping[str, str]) -> None:
        """Records run id -> job."""
        for run_id, job in jobs.items():
            self.record(run_id, SENT, job)
            self.left.remove(run_id)

    def record(
        self, run_id: str, event: str, job: str | None = None, error: str | None = None
    ) -> None:
        """Appends a line to the file of one run."""
        line = Submission(
            time.time(), self.launcher, self.submission, job, event, error
        )
        row = dataclasses.asdict(line)
        if error is None:
            del row["error"]
        append_row(self.root / run_id / SUBMISSIONS_FILE, row)


@contextlib.contextmanager
def sending(
    root: str | os.PathLike, launcher: str, run_ids: Iterable[str]
) -> Iterator[Sending]:
    """Records around the sending of runs; one call per thing that is sent as a whole.

        with journal.sending(root, "slurm", ids) as batch:
            job = submit_array(...)
            batch.sent({run_id: f"{job}_{i}" for i, run_id in enumerate(ids)})

    Runs that are not reported with ``sent`` are recorded as failed at the end, also
    when the body raises; the error goes on to the caller.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S") + f"-{os.urandom(2).hex()}"
    batch = Sending(Path(root), launcher, stamp, list(run_ids))
    for run_id in batch.left:
        batch.record(run_id, SENDING)
    error = "the launcher did not say that it was sent"
    try:
        yield batch
    except BaseException as raised:
        error = f"{type(raised).__name__}: {raised}"
        raise
    finally:
        for run_id in batch.left:
            batch.record(run_id, FAILED, error=error)


def record_end(
    root: str | os.PathLike,
    launcher: str,
    jobs: Mapping[str, str],
    event: str = CANCELLED,
    error: str | None = None,
) -> None:
    """Records that jobs (run id -> job) were taken back, or will not begin (again)."""
    for run_id, job in jobs.items():
        newest = newest_submission(Path(root) / run_id)
        batch = Sending(Path(root), launcher, newest.submission if newest else "", [])
        batch.record(run_id, event, job, error)


def newest_submission(run_dir: str | os.PathLike) -> Submission | None:
    """The last line of ``submissions.jsonl``; None without one."""
    rows = read_whole_rows(Path(run_dir) / SUBMISSIONS_FILE)
    if not rows:
        return None
    known = {f.name for f in dataclasses.fields(Submission)}
    return Submission(**{k: v for k, v in rows[-1].items() if k in known})


def sent_jobs(root: str | os.PathLike, launcher: str) -> dict[str, str]:
    """Run id -> job of all runs that ``launcher`` sent last and that are not done."""
    jobs = {}
    for path in Path(root).glob(f"*/{SUBMISSIONS_FILE}"):
        newest = newest_submission(path.parent)
        if newest is None or (newest.launcher, newest.event) != (launcher, SENT):
            continue
        if newest.job and not RunDir(path.parent).is_done:
            jobs[path.parent.name] = newest.job
    return jobs
