"""The bytes of a sharded training step, as XLA's partitioner plans them."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.hang import HANG
from tests.multidevice.step_collectives import DEVICES, SETTINGS

ROOT = pathlib.Path(__file__).parents[2]


def read(network, method):
    done = subprocess.run(
        [sys.executable, "-m", "tests.multidevice.step_collectives", network, method],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("network", sorted(SETTINGS))
def test_consistency_training_moves_the_bytes_of_diffusion(network):
    """Weights are gathered in 16 bits, once for each direction; nothing else moves."""
    found, diffusion = read(network, "sct"), read(network, "diffusion")

    def received(rows, kind):
        return sum(row["received_bytes"] for row in rows if row["kind"] == kind)

    whole = found["parameters"] * (DEVICES - 1) / DEVICES
    gathered = received(found["rows"], "all-gather") / whole
    assert gathered == pytest.approx(4.0, rel=0.02)
    assert gathered == received(diffusion["rows"], "all-gather") / whole
    scattered = received(found["rows"], "reduce-scatter") / whole
    assert 2.0 <= scattered <= 4.0  # 16 bits, 32 for what multiplies in float32
    assert scattered == received(diffusion["rows"], "reduce-scatter") / whole
    kinds = {row["kind"] for row in found["rows"]}
    assert kinds <= {"all-gather", "reduce-scatter", "all-reduce"}
    # Metrics, norms, and the gradients of what is too small to cut.
    assert received(found["rows"], "all-reduce") < 0.02 * whole
