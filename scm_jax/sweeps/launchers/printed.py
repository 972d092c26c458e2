"""Prints the commands of the runs, for xargs, GNU parallel or another tool to start.

Nothing is recorded as sent: nobody could be asked for its status later.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from scm_jax.sweeps.launchers.options import Options, in_order, worker_command
from scm_jax.sweeps.plan.planned import PlannedRun


def submit(
    root: str | os.PathLike, runs: Sequence[PlannedRun], options: Options
) -> int:
    """Prints ``script``."""
    print(script(root, runs, options), end="")
    return 0


def queue(root: str | os.PathLike) -> Mapping[str, str]:
    """Nothing: what was printed is not followed."""
    return {}


def cancel(root: str | os.PathLike, run_ids: Sequence[str]) -> Sequence[str]:
    """Nothing: what was printed is not followed."""
    return []


def script(
    root: str | os.PathLike, runs: Sequence[PlannedRun], options: Options
) -> str:
    """A command per line; a run that others depend on comes before them.

    A command waits until the runs that its own depends on are done.
    """
    lines = []
    for run in in_order(runs):
        command = worker_command(Path(root) / run.id, "python")
        lines.append(shlex.join(command + ["--wait"] * bool(run.depends_on)))
    return "".join(f"{line}\n" for line in lines)
