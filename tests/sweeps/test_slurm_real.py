"""A real SLURM runs real trainings: preempted, killed, lost, and resubmitted."""

import os
import pathlib
import signal
import sys
import tempfile

import jax
import pytest

from benchmarks import sweep_kills
from experiments import mixture
from scm_jax import config as config_lib
from scm_jax.files.jsonl import read_rows
from scm_jax.runs.directory import run_configs
from scm_jax.sweeps import submissions
from scm_jax.sweeps.launchers import slurm
from scm_jax.sweeps.launchers.options import Options
from scm_jax.sweeps.plan.planned import read_run, write_run
from scm_jax.sweeps.state import journal, states
from scm_jax.training import seal
from tests.sweeps import planted, slurm_cluster
from tests.sweeps.slurm_cluster import HOST, SECOND, wait_for

BATCH, STEPS = 64, 120
PROFILE = f"""
[slurm]
partition = "low"
python = "{sys.executable}"
signal_seconds = 1800
max_array_size = 3  # four runs are two arrays

[resources.pair]
nodes = 2

[resources.hour]
time = "01:00:00"
"""

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    # Orbax, of arrays that are read without a mesh.
    pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning"),
    pytest.mark.skipif(
        bool(slurm_cluster.missing_programs()) or os.geteuid() != 0,
        reason="needs root and the packages slurm-wlm and munge",
    ),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster, which all commands of SLURM in this process talk to."""
    jax.devices()  # the tests that follow in this process keep its own flags
    with pytest.MonkeyPatch.context() as patch:
        # What jobs inherit.
        patch.setenv("PYTHONPATH", str(planted.ROOT))
        given = os.environ.get("XLA_FLAGS", "")
        patch.setenv("XLA_FLAGS", f"{given} --xla_backend_optimization_level=0")
        for name, value in planted.one_cache(tmp_path_factory.mktemp("cache")).items():
            patch.setenv(name, value)
        # Sockets lie there, and their paths may not be long.
        with tempfile.TemporaryDirectory(prefix="slurm") as folder:
            with slurm_cluster.running_cluster(pathlib.Path(folder)) as running:
                patch.setenv("SLURM_CONF", running.environ["SLURM_CONF"])
                yield running


@pytest.fixture
def options(tmp_path):
    profile = tmp_path / "profile.toml"
    profile.write_text(PROFILE)
    return Options(profile=str(profile))


def tiny_run(seed, steps=STEPS, resources=""):
    """Some seconds of training; a checkpoint every twenty steps."""
    config = mixture.get_config("sct,quick")
    config.seed = seed
    config.train.batch_size = BATCH
    config.train.duration_images = steps * BATCH
    config.log.every_images = config.checkpoint.every_images = 20 * BATCH
    config.log.writers = ("jsonl",)
    config.eval.evaluators = ()
    plain = config_lib.to_dict(config)
    name = f"sct-{run_configs.config_hash(plain)}"
    return planted.plan_run(name, config=plain, resources=resources)


def state(root, run):
    return states.read_state(root / run, queue=slurm.queue(root)).state


def has_saved(root, run):
    return bool(seal.list_steps(root / run / "checkpoints"))


def running(root, cluster):
    """Run -> node, of the jobs that run."""
    runs_of = {job: run for run, job in journal.sent_jobs(root, "slurm").items()}
    lines = cluster.call("squeue", "-h", "-r", "-t", "RUNNING", "-o", "%i %N")
    return {runs_of[job]: node for job, node in map(str.split, lines.splitlines())}


def test_preempted_killed_and_lost_runs_end_as_if_undisturbed(
    cluster, options, tmp_path
):
    root = tmp_path / "sweep"
    sent = [tiny_run(seed) for seed in range(4)]
    ids = [run.id for run in sent]
    assert submissions.submit(root, sent, "slurm", options) == 0
    wait_for(lambda: len(running(root, cluster)) == 3, "three runs to start")
    first = running(root, cluster)
    # Frozen as soon as they have saved, they cannot end before their turn comes.
    for run in first:
        wait_for(lambda run=run: has_saved(root, run), f"{run} to save")
        os.kill(states.read_state(root / run).pid, signal.SIGSTOP)
    lost = next(run for run, node in first.items() if node == SECOND)
    others = [run for run in first if run != lost]

    # A more important job comes: SLURM wakes a run, asks it to leave and requeues it.
    urgent = ("--partition=urgent", f"--nodelist={HOST}", "--output=/dev/null")
    cluster.call("sbatch", *urgent, "--wrap=sleep 1")
    wait_for(lambda: any(outcomes(root, run) for run in others), "a preemption")
    preempted, killed = sorted(others, key=lambda run: not outcomes(root, run))
    # A process is killed: its job has failed, and stays away until it is sent again.
    os.kill(states.read_state(root / killed).pid, signal.SIGKILL)
    wait_for(lambda: state(root, killed) == "stale", f"{killed} to be stale")
    # A node goes down: SLURM requeues its run.
    cluster.lose_node(SECOND)
    wait_for(lambda: state(root, lost) == "queued", f"{lost} to be requeued")
    cluster.restore_node(SECOND)

    assert submissions.resubmit(root, "slurm", options) == 0
    wait_for(lambda: {state(root, run) for run in ids} == {"done"}, "all to be done")
    again = {run: len(read_rows(root / run / "submissions.jsonl")) for run in ids}
    assert again == {run: 4 if run == killed else 2 for run in ids}
    for run in first:
        end = "preempted" if run == preempted else "lost"
        assert outcomes(root, run) == [end, "done"]
        assert has_resumed(root, run), f"{run} began again at the beginning"
        write_run(tmp_path / "undisturbed", read_run(root / run))
    # Every array of the last checkpoint equals that of an undisturbed run.
    sweep_kills.train(tmp_path / "undisturbed", list(first))
    assert sweep_kills.differences(root, tmp_path / "undisturbed", list(first)) == []


def outcomes(root, run):
    rows = read_rows(root / run / "attempts.jsonl")
    return [row["outcome"] for row in rows if row["event"] == "ended"]


def has_resumed(root, run):
    """Whether an attempt went on where another had saved."""
    rows = read_rows(root / run / "metrics.jsonl")
    return any(row.get("resume_step", 0) > 0 for row in rows)


def test_the_time_limit_and_a_cancelled_run_save_first(cluster, options, tmp_path):
    run = tiny_run(7, steps=1_000_000, resources="hour")
    submissions.submit(tmp_path, [run], "slurm", options)
    job = journal.sent_jobs(tmp_path, "slurm")[run.id]
    wait_for(lambda: has_saved(tmp_path, run.id), "the run to train")
    # Less than half an hour is left: SLURM looks every 30 s whom to signal. Until it
    # wakes the run with that, it sleeps, rather than training at the cost of others.
    os.kill(states.read_state(tmp_path / run.id).pid, signal.SIGSTOP)
    cluster.call("scontrol", "update", f"jobid={job}", "timelimit=30")
    show = ("scontrol", "show", "job", job)
    wait_for(lambda: "Restarts=1 " in cluster.call(*show), "the run to be requeued")
    assert outcomes(tmp_path, run.id) == ["preempted"]
    assert state(tmp_path, run.id) == "queued"
    cluster.call("scontrol", "update", f"jobid={job}", "timelimit=60")
    wait_for(lambda: has_resumed(tmp_path, run.id), "the run to train again")

    assert submissions.cancel(tmp_path) == [run.id]
    wait_for(lambda: not slurm.queue(tmp_path), "the job to be gone")
    assert outcomes(tmp_path, run.id) == ["preempted", "preempted"]
    assert state(tmp_path, run.id) == "preempted"


def test_two_nodes_train_one_run(cluster, options, tmp_path):
    run = tiny_run(8, steps=10, resources="pair")
    submissions.submit(tmp_path, [run], "slurm", options)
    wait_for(lambda: not slurm.queue(tmp_path), "the run to end")
    log = (tmp_path / run.id / "logs" / "slurm.log").read_text()
    assert state(tmp_path, run.id) == "done", log
    started = read_rows(tmp_path / run.id / "attempts.jsonl")[0]
    assert started["environment"]["process_count"] == 2, started


@pytest.mark.parametrize(
    ("search", "replace", "message"),
    [
        ('"low"', '"lwo"', r"'lwo' does not exist.*'low', 'urgent'"),
        ("max_array_size = 3", "max_array_size = 9", "Invalid job array specification"),
    ],
)
def test_what_slurm_would_refuse_is_not_sent(
    cluster, options, tmp_path, search, replace, message
):
    pathlib.Path(options.profile).write_text(PROFILE.replace(search, replace))
    with pytest.raises(ValueError, match=message):
        submissions.submit(tmp_path, [tiny_run(s) for s in range(9)], "slurm", options)
    assert slurm.queue(tmp_path) == {}
    assert not list(tmp_path.glob("*/submissions.jsonl"))
