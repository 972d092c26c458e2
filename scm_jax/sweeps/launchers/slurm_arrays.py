"""Job arrays as plain data: who is in which, who waits for whom, and their script."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from scm_jax.sweeps.launchers.options import Root, Runs, in_order, job_command
from scm_jax.sweeps.launchers.profiles import Profile, Resources
from scm_jax.types import EXIT_PREEMPTED

# An array of this submission by its number, with one of its elements or with None for
# the element of one's own index; or a job that exists.
After = tuple[int, int | None] | str
# Runs may share an array if they need the same resources and wait for the same.
_Key = tuple[str, tuple[After, ...]]


@dataclasses.dataclass(frozen=True)
class Array:
    """Runs that are sent with one call of ``sbatch``."""

    runs: Mapping[int, str]  # index -> run id; indices may be missing
    resources: str = ""  # name in the profile
    after: tuple[After, ...] = ()  # what must have succeeded before an element starts
    max_parallel: int = 0  # elements that run at once; 0 is no limit


def plan_arrays(
    runs: Runs,
    max_array_size: int,
    *,
    max_parallel: int = 0,
    done: Container[str] = (),
    jobs: Mapping[str, str] | None = None,
) -> list[Array]:
    """The arrays of a submission, in the order in which they are sent.

    Runs that wait for nothing share arrays of ``max_array_size`` by their resources. A
    run that waits for one other of this submission takes that run's index in another
    array, so that SLURM can pair them (``aftercorr``) and a failure stops no other.
    Runs that wait for several, or for jobs sent before, share an array with those that
    wait for the same (``afterok``).

    ``max_parallel`` elements run at once (0 is no limit), which are divided among the
    arrays, at least 1 each. No run waits for the ids in ``done``; ``jobs`` (run id ->
    job) are those of runs that were sent before and are not done.

    Raises:
      ValueError: runs depend on each other in a circle.
    """
    arrays: list[tuple[_Key, dict[int, str]]] = []
    places: dict[str, tuple[int, int]] = {}
    for run in in_order(runs):
        waits = [d for d in run.depends_on if d not in done]
        here = [places[d] for d in waits if d in places]
        before = [jobs[d] for d in waits if jobs and d in jobs and d not in places]
        after: tuple[After, ...] = (*sorted(here), *sorted(before))
        index = None
        if len(here) == 1 and not before:
            index, after = here[0][1], ((here[0][0], None),)
        key = (run.resources, after)
        number, index = places[run.id] = _place(arrays, key, index, max_array_size)
        arrays[number][1][index] = run.id
    shares = _shares([len(members) for _, members in arrays], max_parallel)
    return [
        Array(members, resources, after, share)
        for ((resources, after), members), share in zip(arrays, shares, strict=True)
    ]


def _place(
    arrays: list[tuple[_Key, dict[int, str]]], key: _Key, index: int | None, size: int
) -> tuple[int, int]:
    """Number and index where a run fits; None takes the next index that is free."""
    for number, (other, members) in enumerate(arrays):
        at = len(members) if index is None else index
        if other == key and at < size and at not in members:
            return number, at
    arrays.append((key, {}))
    return len(arrays) - 1, index or 0


def _shares(sizes: Sequence[int], total: int) -> list[int]:
    """``total`` in proportion to ``sizes``, at least 1 each; 0 stays no limit."""
    shares, left, left_sizes = [], total, sum(sizes)
    for size in sizes:
        share = max(1, left * size // left_sizes) if total else 0
        shares.append(share)
        left, left_sizes = max(0, left - share), left_sizes - size
    return shares


def job_name(submission: str) -> str:
    """What squeue calls the jobs of a submission: found again without any record."""
    return f"scm-{submission}"


def list_text(array: Array, root: Root) -> str:
    """The directory of the run with index i in line i + 1; blank without one."""
    folders = {i: Path(root).absolute() / run_id for i, run_id in array.runs.items()}
    return "".join(f"{folders.get(i, '')}\n" for i in range(max(folders) + 1))


def render(array: Array, profile: Profile, root: Root, submission: str) -> str:
    """The batch script of an array."""
    site = profile.slurm
    folder = Path(root).absolute() / "submissions"
    lines = [f"#SBATCH {option}" for option in _options(array, profile)]
    lines += [
        f"#SBATCH --job-name={job_name(submission)}",
        f"#SBATCH --output={_pattern(folder / submission)}.log",
        "",
        'element="${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"',
        'run=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" '
        f"{shlex.quote(str(folder / submission))}.txt)",
        '[ -d "$run" ] || { echo "job $element: no run at \'$run\'"; exit 1; }',
        'mkdir -p "$run/logs" && exec >>"$run/logs/slurm.log" 2>&1',
        'echo "--- job $element on $SLURM_JOB_NODELIST, '
        'start ${SLURM_RESTART_COUNT:-0}, $(date)"',
        *site.setup,
        _srun(profile.resources_of(array.resources), profile),
        "code=$?",
        # Exit code 75 (saved and preempted) puts the element back into the queue.
        f"if [ $code -eq {EXIT_PREEMPTED} ] && "
        f'[ "${{SLURM_RESTART_COUNT:-0}}" -lt {site.max_requeues} ]; then',
        '  scontrol requeue "$element"',
        "fi",
        "exit $code",
    ]
    return "#!/bin/bash\n" + "".join(f"{line}\n" for line in lines)


def dependency(array: Array, jobs: Sequence[str]) -> list[str]:
    """Options of ``sbatch`` that make an array wait; ``jobs`` are those sent so far."""
    if not array.after:
        return []
    first = array.after[0]
    if isinstance(first, tuple) and first[1] is None:
        condition = f"aftercorr:{jobs[first[0]]}"
    else:
        condition = "afterok"
        for a in array.after:
            condition += f":{a}" if isinstance(a, str) else f":{jobs[a[0]]}_{a[1]}"
    # Else a job whose condition cannot come true any more would wait for ever.
    return [f"--dependency={condition}", "--kill-on-invalid-dep=yes"]


def _options(array: Array, profile: Profile) -> list[str]:
    site, need = profile.slurm, profile.resources_of(array.resources)
    limit = f"%{array.max_parallel}" if array.max_parallel else ""
    named = {
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "array": _ranges(sorted(array.runs)) + limit,
        "nodes": need.nodes,
        "ntasks-per-node": need.tasks,
        "cpus-per-task": need.cpus,
        "gpus-per-node": need.gpus,
        "mem": need.memory,
        "time": need.time,
        # To the steps only: the script itself must live on to requeue its element.
        "signal": f"USR1@{site.signal_seconds}" if site.signal_seconds else "",
        "open-mode": "append",
    }
    options = [f"--{name}={value}" for name, value in named.items() if value]
    return [*options, "--requeue", *site.options]


def _srun(need: Resources, profile: Profile) -> str:
    # A program that the script starts without srun would get no signal before it is
    # killed. Since SLURM 22.05 srun does not inherit --cpus-per-task from the job.
    *command, _ = job_command("", profile.slurm.python or sys.executable)
    options = [f"--cpus-per-task={need.cpus}", *profile.slurm.srun]
    options += ["--label"] * (need.nodes * need.tasks > 1)
    return shlex.join(["srun", *options, *command]) + ' --run="$run"'


def _ranges(indices: Sequence[int]) -> str:
    """SLURM's short form of ascending numbers: 0,1,2,5 is 0-2,5."""
    parts: list[list[int]] = []
    for index in indices:
        if parts and parts[-1][1] == index - 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(f"{a}-{b}" if b > a else f"{a}" for a, b in parts)


def _pattern(path: Path) -> str:
    text = str(path).replace("%", "%%")  # SLURM expects a pattern of a file name
    return f'"{text}"' if any(c.isspace() for c in text) else text
