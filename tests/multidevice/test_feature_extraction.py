"""Features do not depend on how many devices compute them."""

import os
import pathlib
import subprocess
import sys

import numpy as np

from tests.hang import HANG
from tests.multidevice import feature_extraction

ROOT = pathlib.Path(__file__).parents[2]


def test_four_devices_give_the_features_of_one(tmp_path):
    path = tmp_path / "four.npz"
    flag = "--xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-m", "tests.multidevice.feature_extraction", str(path)],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected, _ = feature_extraction.outputs()
    with np.load(path) as got:
        assert sorted(got.files) == sorted(expected)
        for name, x in expected.items():
            assert len(x) == feature_extraction.IMAGES
            np.testing.assert_allclose(got[name], x, rtol=1e-5, atol=1e-6)
