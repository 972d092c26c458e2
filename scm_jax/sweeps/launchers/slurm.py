"""Sends runs to SLURM as job arrays, and asks it for their status.

In ``ROOT/submissions``, ``ID.sh`` is the script of an array, ``ID.txt`` lists its run
directories, and ``ID.log`` has what the script said before it knew its run.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from scm_jax.files.atomic import write_atomically
from scm_jax.runs.directory.layout import RunDir
from scm_jax.sweeps.launchers import slurm_arrays
from scm_jax.sweeps.launchers.options import Options, Root, Runs, in_order
from scm_jax.sweeps.launchers.profiles import Profile, load_profile, seconds
from scm_jax.sweeps.launchers.slurm_arrays import Array
from scm_jax.sweeps.state import journal
from scm_jax.sweeps.state.states import QUEUED, RUNNING, UNKNOWN

NAME = "slurm"
FOLDER = "submissions"
_TIMEOUT = 120  # a busy slurmctld answers late; it is no error to wait


class SlurmError(ValueError):
    """A command of SLURM failed; the message has its output."""


def submit(root: Root, runs: Runs, options: Options) -> int:
    """Sends the runs as job arrays, after SLURM has accepted all scripts in a test.

    Returns:
      0, also where the site's limit on queued jobs left runs behind; it says so.

    Raises:
      ValueError: a setting or a partition that does not exist, before anything is
        sent; or SLURM refuses an array after all: what was sent before stays sent, and
        is recorded.
    """
    profile = load_profile(options.profile)
    earlier = {run_id: job for run_id, job, _ in _list_jobs(root)}
    sent, left = _within_limit(runs, profile.slurm.max_submit)
    arrays = _arrays(root, sent, options, profile, earlier)
    _check(root, arrays, profile)
    jobs: list[str] = []
    for array in arrays:
        jobs.append(_send(root, array, profile, jobs))
        print(f"job {jobs[-1]}: {len(array.runs)} runs{_waits(array, jobs)}")
    if left:
        print(
            f"{len(left)} runs were not sent, as slurm.max_submit is "
            f"{profile.slurm.max_submit}: resubmit when some of these are done"
        )
    return 0


def script(root: Root, runs: Runs, options: Options) -> str:
    """The commands and scripts of ``submit``; SUBMISSION stands for ids to come."""
    profile = load_profile(options.profile)
    arrays = _arrays(root, runs, options, profile, {})
    jobs = [f"JOB{number}" for number in range(len(arrays))]
    parts = []
    for number, (array, job) in enumerate(zip(arrays, jobs, strict=True)):
        name = f"SUBMISSION{number}"
        command = ["sbatch", *slurm_arrays.dependency(array, jobs), f"{name}.sh"]
        parts.append(
            f"# {job}: {shlex.join(command)}\n"
            + "".join(f"# {i}: {run_id}\n" for i, run_id in array.runs.items())
            + slurm_arrays.render(array, profile, root, name)
        )
    return "\n".join(parts)


def queue(root: Root) -> Mapping[str, str]:
    """Run id -> QUEUED or RUNNING, as squeue says; UNKNOWN where it cannot be asked."""
    try:
        listed = _list_jobs(root)
    except SlurmError:
        return dict.fromkeys(journal.sent_jobs(root, NAME), UNKNOWN)
    # RUNNING comes last, and counts where a run has several jobs.
    return dict(sorted((run_id, state) for run_id, _, state in listed))


def cancel(root: Root, run_ids: Sequence[str]) -> Sequence[str]:
    """Takes the jobs of these runs back; none is requeued.

    A run that is training gets SIGTERM and has the site's KillWait (30 s by default) to
    save.
    """
    jobs = [(run_id, job) for run_id, job, _ in _list_jobs(root) if run_id in run_ids]
    for start in range(0, len(jobs), 100):  # a command line has an end
        _call("scancel", *(job for _, job in jobs[start : start + 100]))
    journal.record_end(root, NAME, dict(jobs))
    return list(dict(jobs))


def _arrays(
    root: Root, runs: Runs, options: Options, profile: Profile, jobs: Mapping[str, str]
) -> list[Array]:
    needed = {run_id for run in runs for run_id in run.depends_on}
    return slurm_arrays.plan_arrays(
        runs,
        profile.slurm.max_array_size,
        max_parallel=options.max_parallel,
        done={i for i in needed if RunDir(Path(root) / i).is_done},
        jobs=jobs,
    )


def _within_limit(runs: Runs, max_submit: int) -> tuple[Runs, Runs]:
    """The runs that the site's limit on queued jobs lets through, and the rest."""
    ordered = in_order(runs)  # none is sent without the runs that it depends on
    if not max_submit:
        return ordered, []
    user = _call("squeue", "--me", "-h", "-r", "-o", "%i").split()
    room = max(0, max_submit - len(user))
    return ordered[:room], ordered[room:]


def _check(root: Root, arrays: Sequence[Array], profile: Profile) -> None:
    """Raises ValueError for what SLURM would refuse; nothing has been sent then."""
    for array in arrays:
        _check_time(array.resources, profile)
    if shutil.which("sbatch") is None:
        raise SlurmError("sbatch was not found: is this a login node of the cluster?")
    partitions = sorted(set(_call("sinfo", "-h", "-o", "%R").split()))
    if profile.slurm.partition and profile.slurm.partition not in partitions:
        raise SlurmError(
            f"slurm.partition = {profile.slurm.partition!r} does not exist; "
            f"legal: {partitions}"
        )
    for array in arrays:
        text = slurm_arrays.render(array, profile, root, "test")
        _call("sbatch", "--test-only", text=text)


def _check_time(resources: str, profile: Profile) -> None:
    time = profile.resources_of(resources).time
    # SLURM looks every 30 s whom to signal, and asks up to a minute early: a job that
    # is asked to save as soon as it starts would never get anywhere.
    least = profile.slurm.signal_seconds + 60
    if time and profile.slurm.signal_seconds and seconds(time) <= least:
        raise ValueError(
            f"resources {resources or 'default'!r}: time = {time!r} must be more than "
            f"{least} s, as slurm.signal_seconds = {profile.slurm.signal_seconds}"
        )


def _send(root: Root, array: Array, profile: Profile, jobs: Sequence[str]) -> str:
    """Sends one array; returns its job."""
    folder = Path(root) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with journal.sending(root, NAME, list(array.runs.values())) as batch:
        stem = folder / batch.submission
        text = slurm_arrays.render(array, profile, root, batch.submission)
        write_atomically(stem.with_suffix(".sh"), text)
        write_atomically(stem.with_suffix(".txt"), slurm_arrays.list_text(array, root))
        wait = slurm_arrays.dependency(array, jobs)
        answer = _call("sbatch", "--parsable", *wait, str(stem.with_suffix(".sh")))
        job = answer.strip().partition(";")[0]  # JOB;CLUSTER in a federation
        batch.sent({run_id: f"{job}_{i}" for i, run_id in array.runs.items()})
    return job


def _waits(array: Array, jobs: Sequence[str]) -> str:
    options = slurm_arrays.dependency(array, jobs)
    return f", {options[0].removeprefix('--dependency=')}" if options else ""


def _list_jobs(root: Root) -> list[tuple[str, str, str]]:
    """(run id, job, QUEUED or RUNNING) of every element that runs of ``root`` have."""
    # Jobs are named after their submission, so that squeue alone tells which runs have
    # one, also where the submitting process died before it could write that down.
    lists = {
        slurm_arrays.job_name(path.stem): path
        for path in (Path(root) / FOLDER).glob("*.txt")
    }
    if not lists:
        return []  # nothing was ever sent from here: SLURM may not even be there
    listed = []
    for line in _call("squeue", "--me", "-h", "-r", "-o", "%i %T %j").splitlines():
        job, state, name = line.split(maxsplit=2)
        index = job.partition("_")[2]
        if name in lists and index.isdigit():
            run_dir = lists[name].read_text(encoding="utf-8").splitlines()[int(index)]
            runs = state in ("RUNNING", "COMPLETING", "STOPPED")
            listed.append((Path(run_dir).name, job, RUNNING if runs else QUEUED))
    return listed


def _call(*command: str, text: str | None = None) -> str:
    """The output of a command of SLURM; SlurmError if it fails or does not answer."""
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=_TIMEOUT
        )
    except FileNotFoundError:
        raise SlurmError(f"{command[0]} was not found") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} did not answer in {_TIMEOUT} s") from None
    if done.returncode:
        raise SlurmError(f"{shlex.join(command)}: {done.stderr.strip()}")
    return done.stdout
