"""Trainings by several real processes, through the command that users type."""

import functools
import json
import os
import shutil
import signal
import socket

import numpy as np
import pytest

from scm_jax.runs import train
from scm_jax.training import checkpoint, seal
from tests.multidevice import mixture
from tests.multidevice.processes import ROOT, Processes, free_port
from tests.sweeps import planted
from tests.training import toy

CONFIG = "tests/multidevice/mixture.py"
# One kernel is cut in two, so that no process has all parameters.
SHARDED = ("--config.mesh.data=1", "--config.mesh.fsdp=2", "--config.mesh.tensor=1")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Environment with one compilation cache for all processes of this file."""
    given = os.environ.get("XLA_FLAGS", "")
    faster = {"XLA_FLAGS": f"{given} --xla_backend_optimization_level=0"}  # to compile
    shared = planted.one_cache(tmp_path_factory.mktemp("cache"))
    return {"PYTHONPATH": str(ROOT), **faster, **shared}


def start(env, workdir, *flags, each=lambda i: ()):
    """Two processes of one training, one device each."""
    flags = (
        f"--workdir={workdir}",
        "--join_timeout=200",  # on a busy machine they start far apart
        f"--coordinator=127.0.0.1:{free_port()}",
        "--num_processes=2",
        *flags,
    )
    command = ("scm_jax", "train", *flags)
    return Processes(
        [(*command, f"--process_id={i}", *each(i)) for i in range(2)], **env
    )


def train_here(workdir):
    train.train_and_evaluate(mixture.get_config(), workdir)


def rows(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def averages(workdir):
    """Name -> array: both averages of the last checkpoint."""
    load = functools.partial(checkpoint.load_ema, workdir / "checkpoints")
    return toy.leaves({profile: load(profile) for profile in ("0.05", "0.1")})


def assert_same_training(a, b):
    """Equal but for the order of float32 sums."""
    a, b = averages(a), averages(b)
    assert a.keys() == b.keys()
    for name in a:
        close = {"rtol": 0, "atol": 1e-5 * np.abs(b[name]).max()}
        np.testing.assert_allclose(a[name], b[name], **close, err_msg=name)


def files(workdir):
    return sorted(
        str(p.relative_to(workdir))
        for p in workdir.rglob("*")
        if p.is_file() and "checkpoints" not in p.parts
    )


# --- Training ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone") / "run"
    train_here(workdir)
    return workdir


@pytest.fixture(scope="module")
def two(cache, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two") / "hosts=[0,1]"  # a pattern to Orbax
    with start(cache, workdir, f"--config={CONFIG}", *SHARDED) as processes:
        outputs = processes.finish(0, 0)
    assert "steps" in outputs[0] and "images" not in outputs[1], "one shows progress"
    return workdir


def test_two_processes_train_like_one(alone, two):
    assert_same_training(two, alone)


def test_two_processes_write_the_files_of_one(alone, two):
    assert files(two) == files(alone)
    assert [sorted(r) for r in rows(two)] == [sorted(r) for r in rows(alone)]
    for a, b in zip(rows(two), rows(alone), strict=True):
        names = {"step", "images", "loss", "eval/1_steps/consistency_rmse"} & a.keys()
        for name in names:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4, err_msg=name)
    results = [(w / "results.jsonl").read_text().splitlines() for w in (two, alone)]
    assert len(results[0]) == len(results[1]) == 1
    summary = json.loads((two / "summary.json").read_text())
    assert summary["environment"]["process_count"] == 2
    assert seal.list_steps(two / "checkpoints") == [6, 12]


def test_one_process_resumes_what_two_have_saved(alone, two, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(two, workdir)
    shutil.rmtree(workdir / "checkpoints" / "12")
    (workdir / "summary.json").unlink()
    train_here(workdir)
    assert {"resume_step"} < set().union(*rows(workdir))
    assert_same_training(workdir, alone)


# --- What goes wrong ---------------------------------------------------------------


LONG = (f"--config={CONFIG}:long", "--config.eval.every_images=0")


@pytest.fixture(scope="module")
def preempted(cache, tmp_path_factory):
    """A run of which one process got SIGTERM; and the outputs."""
    workdir = tmp_path_factory.mktemp("preempted") / "run"
    with start(cache, workdir, *LONG) as processes:
        metrics = workdir / "metrics.jsonl"
        processes.wait_for(lambda: metrics.exists() and "loss" in metrics.read_text())
        processes.running[1].send_signal(signal.SIGTERM)
        return workdir, processes.finish(75, 75)


def test_preemption_of_one_saves_all_at_one_step(preempted):
    workdir, outputs = preempted
    step = seal.newest_whole(workdir / "checkpoints")[0]
    assert f"saved step {step:,}" in outputs[0]
    assert toy.metadata(workdir / "checkpoints", step)["step"] == step


def test_a_killed_process_ends_the_others(cache, preempted):
    workdir, _ = preempted
    before = len(rows(workdir))
    with start(cache, workdir, *LONG, *SHARDED) as processes:
        # what was saved on one mesh, others resume on another
        processes.wait_for(lambda: len(rows(workdir)) > before + 2)
        processes.running[1].kill()
        outputs = processes.finish(1, -signal.SIGKILL)
    assert f"process 1 ({socket.gethostname()}) died" in outputs[0]
    assert "start all processes with the same command to resume" in outputs[0]


def test_other_configs_are_named_by_all_and_nothing_is_written(cache, tmp_path):
    def rate(i):
        return (f"--config.optimizer.learning_rate={1e-3 * (i + 1)}",)

    flag = f"--config={CONFIG}"
    with start(cache, tmp_path / "run", flag, each=rate) as processes:
        outputs = processes.finish(1, 1)
    for output in outputs:
        assert "config.optimizer.learning_rate: 0.002 on process 1" in output
        assert "0.001 on process 0" in output and "Traceback" not in output
    assert not list(tmp_path.iterdir())
