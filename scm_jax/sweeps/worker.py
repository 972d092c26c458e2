"""Trains one run of a sweep, and records in its directory whatever happens."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scm_jax.runs.directory import layout, locks
from scm_jax.runs.directory.layout import RunDir
from scm_jax.sweeps.plan import planned
from scm_jax.sweeps.state import signals, states
from scm_jax.sweeps.state.heartbeat import Heartbeat, ReportedProgress
from scm_jax.types import EXIT_PREEMPTED

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from scm_jax.training.processes.peers import Peers

EXIT_DONE, EXIT_FAILED = 0, 1
_WAIT_SECONDS = 5.0
_LOCK_SECONDS = 60.0

Processes = Callable[["ConfigDict"], AbstractContextManager["Peers | None"]]


def work(
    run_dir: str | os.PathLike,
    heartbeat_seconds: float = 10.0,
    *,
    wait: bool = False,
    processes: Processes = lambda config: contextlib.nullcontext(),
) -> int:
    """Trains the run, or resumes it; the main program of a job.

    SIGTERM, SIGINT and SIGUSR1 ask it to save and leave. The first of several processes
    of one run (``processes``) locks the directory and writes its status.

    Args:
      run_dir: directory of a planned run.
      heartbeat_seconds: interval between two writes of ``status.json``.
      wait: wait for the runs that this one depends on, instead of leaving with 75.
      processes: config -> context of the other processes of this training.

    Returns:
      The exit code: 0 done, or another worker has the run; 75 saved and preempted, or a
      run that this one depends on is not done yet; 1 failed.

    Raises:
      FileNotFoundError: there is no run; nothing is written.
      ValueError: its config cannot be read by this version.
    """
    run_dir = Path(run_dir)
    worker = _Worker(run_dir, heartbeat_seconds)
    with signals.watched(worker.on_signal):
        if RunDir(run_dir).is_done:
            _say(f"{run_dir} is done")
            return EXIT_DONE
        facts = planned.read_facts(run_dir)
        if not facts:
            raise FileNotFoundError(
                f"{run_dir} is not a run of a sweep: it has no {planned.RUN_FILE}"
            )
        if (code := _wait_for(run_dir, facts["depends_on"], wait)) is not None:
            return code
        config = worker.read_config()
        with processes(config) as worker.peers:
            if worker.peers is None or worker.peers.cluster.process_id == 0:
                return worker.lead(config)
            return worker.follow(config)


def explain(error: BaseException) -> tuple[str, bool]:
    """An error as text that begins with what matters, and whether a retry can help.

    What the config or the data causes would happen again. Everything else may be the
    machine, and comes with its traceback.
    """
    from scm_jax.training.loop import NonFiniteError

    text = f"{type(error).__name__}: {error}"
    if isinstance(error, NonFiniteError):
        return text, False
    retry = not isinstance(error, ValueError | FileNotFoundError)
    frames = "".join(traceback.format_tb(error.__traceback__)[-8:])
    return f"{text}\n\n{frames}", retry


def _wait_for(run_dir: Path, run_ids: Sequence[str], wait: bool) -> int | None:
    """None when all runs are done, else the exit code."""
    said = False
    while True:
        found = [states.read_state(run_dir.parent / run_id) for run_id in run_ids]
        left = [state for state in found if state.state != states.DONE]
        if not left:
            return None
        for state in left:
            if states.is_final(run_dir.parent / state.id, state):
                _say(
                    f"{run_dir} depends on {state.id}, which has failed: {state.error}"
                )
                return EXIT_FAILED
        text = ", ".join(f"{state.id} ({state.state})" for state in left)
        if not wait:
            _say(f"{run_dir} depends on runs that are not done yet: {text}")
            return EXIT_PREEMPTED
        if not said:
            _say(f"{run_dir} waits for {text}")
            said = True
        time.sleep(_WAIT_SECONDS)


class _Worker:
    def __init__(self, run_dir: Path, heartbeat_seconds: float):
        self._run_dir, self._seconds = run_dir, heartbeat_seconds
        self._heartbeat: Heartbeat | None = None
        self._progress: ReportedProgress | None = None
        self._asked = False
        self.peers: Any = None  # the other processes of this training

    def on_signal(self, signum: int = 0) -> None:
        """Ends this process, from any thread, unless the loop will do so."""
        self._asked = True
        if self._progress is not None and self._progress.stepping:
            return
        _say("asked to leave, and nothing is left to save")
        if self._heartbeat is not None:
            self._heartbeat.end(states.PREEMPTED, EXIT_PREEMPTED)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_PREEMPTED)  # whatever the main thread waits for

    def read_config(self) -> ConfigDict:
        from scm_jax import config as config_lib

        run = RunDir(self._run_dir)
        try:
            return config_lib.as_saved(run.read_config())
        except ValueError as error:
            # A config that this version cannot read is a failed attempt.
            with contextlib.suppress(locks.HeldError), locks.hold(self._run_dir):
                heartbeat = Heartbeat(self._run_dir, self._seconds)
                heartbeat.end(states.FAILED, EXIT_FAILED, *explain(error))
            raise ValueError(f"{run.config_path}: {error}") from error

    def lead(self, config: ConfigDict) -> int:
        """The process that writes: locks, trains, records the outcome."""
        try:
            with locks.hold(self._run_dir):
                if RunDir(self._run_dir).is_done:
                    self._tell(EXIT_DONE)
                    return EXIT_DONE  # another worker ended it just now
                heartbeat = Heartbeat(self._run_dir, self._seconds)
                heartbeat.start()
                self._heartbeat = heartbeat
                self._tell(None)
                return self._attempt(config, heartbeat)
        except locks.HeldError as error:
            _say(str(error))
            self._tell(EXIT_DONE)
            return EXIT_DONE

    def follow(self, config: ConfigDict) -> int:
        """Another process of the same run: trains along, and writes nothing itself."""
        code = self.peers.exchange("lock", None, _LOCK_SECONDS)[0]
        return self._train(config) if code is None else code

    def _attempt(self, config: ConfigDict, heartbeat: Heartbeat) -> int:
        try:
            heartbeat.started(layout.environment())
            self._progress = ReportedProgress(
                config.train, self._run_dir.name, heartbeat, self._after_the_loop
            )
            code = self._train(config)
        except KeyboardInterrupt:  # the second SIGINT: the last checkpoint must do
            code = EXIT_PREEMPTED
        except Exception as error:
            text, retry = explain(error)
            heartbeat.end(states.FAILED, EXIT_FAILED, text, retry)
            if self.peers is not None:
                raise  # the others must hear of it
            _say(text)
            return EXIT_FAILED
        heartbeat.end(states.PREEMPTED if code else states.DONE, code)
        return code

    def _train(self, config: ConfigDict) -> int:
        from scm_jax.runs import train
        from scm_jax.training.processes import multihost

        multihost.check_shared(self.peers, self._run_dir)
        outcome = train.train_and_evaluate(
            config, self._run_dir, progress=self._progress
        )
        return EXIT_PREEMPTED if outcome == states.PREEMPTED else EXIT_DONE

    def _after_the_loop(self) -> None:
        if self._asked:  # by a signal that the loop saw too late
            self.on_signal()

    def _tell(self, code: int | None) -> None:
        """Tells the other processes to go on, or the code to leave with."""
        if self.peers is not None:
            self.peers.exchange("lock", code, _LOCK_SECONDS)


def _say(text: str) -> None:
    print(f"scm sweep work: {text}", file=sys.stderr, flush=True)
