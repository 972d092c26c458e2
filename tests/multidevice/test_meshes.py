"""A consistency step is the same on every mesh."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

from tests.hang import HANG
from tests.multidevice.meshes import MESHES

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("name", sorted(MESHES))
def test_loss_and_gradient_are_those_of_one_device(name):
    """With dropout, loops, rematerialization and microbatches, to 1e-5."""
    flag = "--xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.multidevice.meshes", name],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("gradient") == len(MESHES[name])
    # What the partitioner says when it must guess how activations lie.
    assert "Involuntary full rematerialization" not in done.stderr


@pytest.mark.parametrize("count", [2, 4])
def test_processes_together_compute_what_one_does(count):
    """With real collectives between them, parameters in as many pieces."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    command = [sys.executable, "-m", "tests.multidevice.meshes", "dit", address]
    running = [
        subprocess.Popen(
            [*command, str(count), str(index)],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=HANG)[0] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert [process.returncode for process in running] == [0] * count, outputs
    assert all("gradient" in output for output in outputs)
