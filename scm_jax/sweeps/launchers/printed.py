"""Prints the commands of the runs, for xargs, GNU parallel or another tool to start.

Nothing is recorded as sent, because nothing could be asked for its status later.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from scm_jax.sweeps.launchers.options import Options, Root, Runs, in_order, job_command


def submit(root: Root, runs: Runs, options: Options) -> int:
    """Prints ``script``."""
    print(script(root, runs, options), end="")
    return 0


def queue(root: Root) -> Mapping[str, str]:
    """Nothing: printed commands are not followed."""
    return {}


def cancel(root: Root, run_ids: Sequence[str]) -> Sequence[str]:
    """Nothing: printed commands are not followed."""
    return []


def script(root: Root, runs: Runs, options: Options) -> str:
    """One command per line, each after the commands of the runs that it waits for."""
    lines = []
    for run in in_order(runs):
        command = job_command(Path(root) / run.id, "python")
        lines.append(shlex.join(command + ["--wait"] * bool(run.depends_on)))
    return "".join(f"{line}\n" for line in lines)
