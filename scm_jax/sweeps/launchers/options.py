"""What all launchers have in common: their options and what they must be able to do."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from scm_jax.sweeps.plan.planned import PlannedRun

Root = str | os.PathLike  # directory of a sweep
Runs = Sequence[PlannedRun]


@dataclasses.dataclass(frozen=True)
class Options:
    """How to launch; every launcher reads what concerns it."""

    max_parallel: int = 0  # runs at once; 0 is the launcher's choice
    # Accelerators for each run of the local launcher; 0 pins none, None divides all.
    devices_per_run: int | None = None
    profile: str = ""  # file that describes a cluster


@runtime_checkable
class Launcher(Protocol):
    """A module of this package, or anything else with these four functions.

    The directories of the ``runs`` exist in ``root``, with ``config.json`` and
    ``run.json``. A job runs ``job_command``.
    """

    def submit(self, root: Root, runs: Runs, options: Options) -> int:
        """Sends the runs, each within ``journal.sending``; returns an exit code.

        Raises:
          ValueError: a setting that cannot work, before anything is sent.
        """

    def queue(self, root: Root) -> Mapping[str, str]:
        """Run id -> state of the jobs of ``journal.sent_jobs`` that still exist.

        ``states.QUEUED`` (also held, suspended or about to be requeued) or ``RUNNING``;
        ``UNKNOWN`` for all of them where the scheduler cannot be asked.
        """

    def cancel(self, root: Root, run_ids: Sequence[str]) -> Sequence[str]:
        """Takes back the jobs of these runs and records it; the ids that had one.

        A run that is training is asked to save (SIGTERM), not killed.
        """

    def script(self, root: Root, runs: Runs, options: Options) -> str:
        """Exactly what ``submit`` would send, as text; writes and sends nothing."""


def job_command(run_dir: str | os.PathLike, python: str) -> list[str]:
    """The command of a job: trains one run, or resumes it."""
    return [python, "-m", "scm_jax", "sweep", "work", f"--run={os.fspath(run_dir)}"]


def in_order(runs: Runs) -> list[PlannedRun]:
    """The runs in the given order, but each after those that it depends on.

    Raises:
      ValueError: runs depend on each other in a circle.
    """
    left, ordered = {run.id: run for run in runs}, []
    while left:
        ready = [r for r in left.values() if not any(d in left for d in r.depends_on)]
        if not ready:
            raise ValueError(f"runs depend on each other in a circle: {sorted(left)}")
        ordered += ready
        for run in ready:
            del left[run.id]
    return ordered
