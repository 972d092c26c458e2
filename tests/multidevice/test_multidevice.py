"""Several devices, several processes: each in processes of their own."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from scm_jax.training import checkpoint
from tests.hang import HANG
from tests.training import toy

ROOT = pathlib.Path(__file__).parents[2]


def start(num_devices, command, *args):
    flag = f"--xla_force_host_platform_device_count={num_devices}"
    environment = {**os.environ, "XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.multidevice.program", command, *map(str, args)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes):
    """Their outputs, when all have ended well."""
    try:
        outputs = [p.communicate(timeout=HANG)[0] for p in processes]
    finally:
        for p in processes:
            p.kill()  # a process that hangs in a collective ignores SIGTERM
            p.wait()
            p.stdout.close()
    assert [p.returncode for p in processes] == [0] * len(processes), outputs
    return outputs


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """Steps 0-6 on eight devices, 6-12 on one, 12-18 on eight with another mesh."""
    directory = tmp_path_factory.mktemp("story")
    finish(start(8, "train_here", directory, 6, 2, 2, 2))
    finish(start(1, "train_here", directory, 12, 1, 1, 1))
    finish(start(8, "train_here", directory, 18, 1, 4, 2))
    return directory


def assert_files_equal(a, b, rtol=0.0):
    a, b = np.load(a), np.load(b)
    assert a.files == b.files
    for name in a.files:
        np.testing.assert_allclose(a[name], b[name], rtol=rtol, err_msg=name)


def test_saved_on_eight_restored_on_one(story):
    assert_files_equal(story / "trained_6.npz", story / "restored_6_on_1.npz")


def test_saved_on_one_restored_on_eight(story):
    assert_files_equal(story / "trained_12.npz", story / "restored_12_on_8.npz")


def test_changing_devices_does_not_change_the_training(story):
    step, data, state = jax.jit(toy.train_step), toy.ToyData(), toy.init()
    for _ in range(18):
        state, _ = step(state, toy.place(next(data)))
    got = np.load(story / "trained_18.npz")
    for name, x in toy.leaves(state).items():
        # sums over eight devices round differently
        np.testing.assert_allclose(got[name], x, rtol=2e-4, atol=1e-6, err_msg=name)


def test_everything_lies_where_the_rules_say(story):
    finish(start(8, "check_mesh", story))


def test_attention_with_split_batch_and_heads_is_the_same(tmp_path):
    finish(start(4, "compare_attention", tmp_path))


def test_batches_made_on_several_devices_are_the_same(tmp_path):
    finish(start(4, "compare_batches", tmp_path))


def test_two_processes_leave_at_the_same_step(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    processes = [start(2, "train_together", tmp_path, address, i) for i in range(2)]
    steps = [o.split("left at ")[1].split()[0] for o in finish(*processes)]
    assert steps[0] == steps[1] and 5 <= int(steps[0]) < 4000
    # what two processes wrote, one process reads
    with checkpoint.Checkpointer(tmp_path / "checkpoints") as checkpointer:
        restored = checkpointer.restore_latest(jax.eval_shape(toy.init))
    assert restored.step == int(steps[0]) == restored.data["next_index"]
