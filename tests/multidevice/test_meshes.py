"""A consistency step is the same on every mesh."""

import os
import pathlib
import subprocess
import sys

import pytest

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
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("gradient") == len(MESHES[name])
    # What the partitioner says when it must guess how activations lie.
    assert "Involuntary full rematerialization" not in done.stderr
