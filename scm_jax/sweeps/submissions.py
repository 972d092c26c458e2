"""Sends runs to a launcher, and never those that are done, running or sent already."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from scm_jax.sweeps import launchers
from scm_jax.sweeps.launchers.options import Options, Root, Runs
from scm_jax.sweeps.plan import planned
from scm_jax.sweeps.plan.planned import PlannedRun
from scm_jax.sweeps.state import states
from scm_jax.sweeps.state.states import RunState

# So many of the digits of an id stand in tables, and are enough to name a run.
SHOWN_DIGITS = 6


def submit(
    root: Root, runs: Runs, launcher: str, options: Options, *, force: bool = False
) -> int:
    """Writes the directories of the runs and sends those that need to run.

    Args:
      root: directory of the sweep; made if it is not there.
      runs: all runs of the sweep; the first of equal ones counts.
      launcher: a key of ``LAUNCHERS``.
      options: its options.
      force: also send runs that failed for good: too often, or by their config.

    Returns:
      The exit code of the launcher; 0 where there was nothing to send.

    Raises:
      ValueError: an unknown launcher, or a directory that belongs to another config;
        nothing has been sent then. Where the launcher fails, ``submissions.jsonl`` of
        each run tells what was sent.
    """
    launchers.get(launcher)
    by_id: dict[str, PlannedRun] = {}
    for run in runs:
        by_id.setdefault(run.id, run)
    for run in by_id.values():
        planned.write_run(Path(root), run)
    return _send(root, list(by_id.values()), launcher, options, force)


def resubmit(
    root: Root,
    launcher: str,
    options: Options,
    *,
    only: Iterable[str] = (),
    force: bool = False,
) -> int:
    """Sends the runs of ``root`` that are missing, stale, preempted or failed.

    ``only`` are ids, by default all; for the others see ``submit``.

    Raises:
      FileNotFoundError: there are no runs, or none of one of these ids.
    """
    launchers.get(launcher)
    runs = [planned.read_run(path) for path in run_dirs(root, only)]
    return _send(root, runs, launcher, options, force)


def cancel(root: Root, only: Iterable[str] = ()) -> list[str]:
    """Takes back the jobs of runs, whichever launcher sent them; the ids that had one.

    Runs that are training are asked to save.
    """
    ids = [path.name for path in run_dirs(root, only)]
    every = launchers.LAUNCHERS.values()
    return [run_id for launcher in every for run_id in launcher.cancel(root, ids)]


def selection(
    root: Root, runs: Runs, *, force: bool = False
) -> tuple[list[PlannedRun], list[RunState]]:
    """The planned runs that are to be sent, and the states of the others."""
    jobs, send, rest = queue(root), [], []
    for run in runs:
        state = states.read_state(Path(root) / run.id, queue=jobs)
        again = force and state.state in (states.STALE, states.FAILED)
        if again or states.retryable(state, run.max_attempts):
            send.append(run)
        else:
            rest.append(state)
    return send, rest


def queue(root: Root) -> dict[str, str]:
    """Run id -> job state, from every launcher that has sent runs of ``root``."""
    jobs: dict[str, str] = {}
    for launcher in launchers.LAUNCHERS.values():
        jobs.update(launcher.queue(root))
    return jobs


def run_dirs(root: Root, only: Iterable[str] = ()) -> list[Path]:
    """The directories of a sweep's runs, or of those with these ids or digits.

    Raises:
      FileNotFoundError: there are none; the message names an unknown id.
    """
    found = planned.sweep_runs(Path(root))
    if not found:
        raise FileNotFoundError(f"no runs of a sweep in {root}")
    chosen: dict[Path, None] = {}
    for name in only:
        paths = [p for p in found if _is_called(p.name, name)]
        if not paths:
            raise FileNotFoundError(f"no run {name!r} in {root}")
        if len(paths) > 1:
            ids = ", ".join(path.name for path in paths)
            raise FileNotFoundError(f"{name!r} in {root} may be each of {ids}")
        chosen[paths[0]] = None
    return list(chosen) or found


def _is_called(run_id: str, name: str) -> bool:
    # By its id, or by six or more of the digits at its end.
    _, dash, digits = run_id.rpartition("-")
    by_digits = dash and len(name) >= SHOWN_DIGITS and digits.startswith(name)
    return bool(name == run_id or by_digits)


def _send(root: Root, runs: Runs, launcher: str, options: Options, force: bool) -> int:
    send, rest = selection(root, runs, force=force)
    if rest:
        print(f"not sent: {count_states(rest)}", file=sys.stderr)
    if not send:
        print("nothing to send", file=sys.stderr)
        return 0
    for run in send if force else ():
        states.forgive(Path(root) / run.id)
    return launchers.get(launcher).submit(root, send, options)


def count_states(found: Iterable[RunState]) -> str:
    """How many runs are in each state."""
    names = [state.state for state in found]
    return ", ".join(
        f"{names.count(name)} {name}" for name in states.STATES if name in names
    )
