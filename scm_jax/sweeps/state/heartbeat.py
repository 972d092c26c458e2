"""What a worker says of itself while it trains: ``status.json`` and ``attempts.jsonl``.

A thread writes the status every few seconds, whatever the training waits for.
"""

from __future__ import annotations

import collections
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from scm_jax.files.jsonl import append_row, read_whole_rows, write_json
from scm_jax.runs.directory import locks
from scm_jax.sweeps.state import states
from scm_jax.training.progress import Progress
from scm_jax.types import num_steps

logger = logging.getLogger(__name__)

_MAX_ERROR_LINES = 40
# The rate is of the last half minute, so that compilation drops out of it soon.
_RATE_SECONDS = 30.0


class Heartbeat:
    """The status of one attempt; start it while the run is locked (``locks.hold``).

    Args:
      run_dir: the run directory.
      seconds: interval between two writes.
      on_replaced: called from the thread when another worker has taken the run.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike,
        seconds: float,
        on_replaced: Callable[[], None] = lambda: os._exit(0),
    ):
        self._dir = Path(run_dir)
        self._on_replaced = on_replaced
        self._wake, self._lock = threading.Event(), threading.Lock()
        self._points = collections.deque[tuple[float, int]](maxlen=1000)
        self._seconds, self._ended = seconds, False
        self._thread = threading.Thread(target=self._beat, daemon=True)
        attempt, now = self._close_lost_attempt() + 1, time.time()
        self._fields: dict[str, Any] = {"state": states.RUNNING, "attempt": attempt}
        self._fields |= {"started": now, "heartbeat": now, "heartbeat_seconds": seconds}
        self._fields |= dict.fromkeys(("step", "steps", "images", "images_per_second"))
        self._fields |= {**locks.identity(), "job": job_name(os.environ)}
        self._fields |= {"error": None, "retry": True, "exit_code": None}

    def start(self) -> None:
        """Writes the first status; OSError where that cannot be written."""
        self._write()
        self._thread.start()

    def started(self, environment: Mapping[str, Any]) -> None:
        """Appends the beginning of the attempt to ``attempts.jsonl``."""
        self._append(event="started", outcome=None, environment=dict(environment))

    def at(self, step: int, steps: int, batch_size: int) -> None:
        """Where the training is; cheap, to be called after every step."""
        now, points = time.monotonic(), self._points
        points.append((now, step))
        while len(points) > 2 and now - points[0][0] > _RATE_SECONDS:
            points.popleft()
        (begin, first), rate = points[0], None
        if step > first and now > begin:
            rate = (step - first) * batch_size / (now - begin)
        with self._lock:
            self._fields |= {"step": step, "steps": steps, "images": step * batch_size}
            self._fields["images_per_second"] = rate

    def beat_soon(self) -> None:
        """Writes the status without waiting for its time."""
        self._wake.set()

    def pause(self) -> None:
        """Leaves the time from the last step to the next out of the rate."""
        self._points.clear()

    def end(
        self, outcome: str, exit_code: int, error: str = "", retry: bool = True
    ) -> None:
        """Records the end of the attempt, once; later calls do nothing.

        Never raises, so that a full disk does not hide how the training ended.
        """
        text = "\n".join(error.strip().splitlines()[:_MAX_ERROR_LINES]) or None
        with self._lock:
            if self._ended:
                return
            self._ended = True
            self._fields |= {"state": outcome, "exit_code": exit_code, "error": text}
            self._fields |= {"retry": retry, "images_per_second": None}
        self._wake.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()
        seconds = time.time() - self._fields["started"]
        row = {"outcome": outcome, "error": text, "seconds": seconds}
        self._try(self._write, "the end of the attempt")
        self._try(lambda: self._append(event="ended", **row), "the end of the attempt")

    def _beat(self) -> None:
        while True:
            self._wake.wait(self._seconds)
            self._wake.clear()
            if self._ended:
                return
            self._try(self._beat_once, "the heartbeat")

    def _beat_once(self) -> None:
        found = locks.read_status(self._dir)
        if found and not locks.same_process(found, self._fields):
            logger.error(
                "%s was taken by process %s on %s after this one had been silent for "
                "long: leaving",
                self._dir,
                found.get("pid"),
                found.get("host"),
            )
            self._on_replaced()
            return
        self._write()

    def _write(self) -> None:
        with self._lock:
            self._fields["heartbeat"] = time.time()
            fields = dict(self._fields)
        write_json(self._dir / locks.STATUS_FILE, fields)

    def _append(self, **row: Any) -> None:
        common = {key: self._fields[key] for key in ("attempt", "host", "pid", "job")}
        row = {**common, "time": time.time(), **row}
        append_row(self._dir / states.ATTEMPTS_FILE, row)

    def _try(self, call: Callable[[], None], what: str) -> None:
        # A full disk ends neither thread nor training, which notices when it saves.
        try:
            call()
        except OSError as error:
            logger.warning("%s of %s cannot be written: %s", what, self._dir, error)
        except Exception:
            logger.exception("%s of %s failed", what, self._dir)

    def _close_lost_attempt(self) -> int:
        """Gives a vanished attempt its end; returns the number of the newest one."""
        path = self._dir / states.ATTEMPTS_FILE
        status = locks.read_status(self._dir)
        rows = read_whole_rows(path)
        last = states.last_attempt(status, rows)
        closed = any(r["event"] == "ended" and r["attempt"] == last for r in rows)
        if status.get("state") != states.RUNNING or closed:
            return last
        beat = status["heartbeat"]
        row = {"attempt": last, "event": "ended", "time": beat}
        row |= {key: status.get(key) for key in ("host", "pid", "job")}
        row |= {"outcome": states.LOST, "error": None}
        append_row(path, {**row, "seconds": beat - status["started"]})
        return last


class ReportedProgress:
    """Shows the progress of a training loop, and feeds the heartbeat with it.

    ``on_leave_loop`` is called when the last step is done.
    """

    def __init__(
        self,
        train: Any,  # section of a config
        label: str,
        heartbeat: Heartbeat,
        on_leave_loop: Callable[[], None],
    ):
        self._batch_size = train.batch_size
        self._steps = num_steps(train.duration_images, train.batch_size)
        self._shown = Progress(self._steps, self._batch_size, label=label)
        self._heartbeat, self._on_leave_loop = heartbeat, on_leave_loop
        # Whether the loop has state that is worth saving, and looks at signals often.
        self.stepping = False

    def start(self, step: int) -> None:
        self._heartbeat.at(step, self._steps, self._batch_size)
        self._heartbeat.pause()
        self._heartbeat.beat_soon()
        self._shown.start(step)

    def update(self, step: int, loss: float | None = None) -> None:
        self.stepping = True
        self._heartbeat.at(step, self._steps, self._batch_size)
        self._shown.update(step, loss)

    def message(self, text: str) -> None:
        self._heartbeat.pause()
        self._shown.message(text)

    def finish(self) -> None:
        self.stepping = False
        self._shown.finish()
        self._on_leave_loop()


def job_name(environ: Mapping[str, str]) -> str | None:
    """SLURM's name for the job of a process with these environment variables.

    Example:
      >>> job_name({"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"})
      '7_3'
    """
    if array := environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{environ.get('SLURM_ARRAY_TASK_ID', '')}"
    return environ.get("SLURM_JOB_ID")
