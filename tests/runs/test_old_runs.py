"""A run directory of an earlier version loads, resumes and samples.

``interrupted_run.tar.gz`` was written by the version before run directories knew their
data and their linked runs: ``experiments/mixture.py:sct,quick`` with a network of width
16, stopped by SIGTERM at step 2,113 of 8,000.
"""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

import scm_jax
from scm_jax import config as config_lib

GOLDEN = Path(__file__).parents[1] / "golden" / "interrupted_run.tar.gz"


@pytest.fixture
def run_dir(tmp_path):
    with tarfile.open(GOLDEN) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "mixture_sct"


def test_it_loads_and_samples(run_dir):
    run = scm_jax.load_run(run_dir)
    assert run.state == "started" and list(run.metrics["step"])[-1] == 2113
    x = run.sample(64, steps=2).x
    assert x.shape == (64, 1) and np.isfinite(x).all()
    # Another width is reconstructed from its snapshot and its checkpoint.
    assert np.isfinite(run.sample(4, steps=1, ema="0.07").x).all()


def test_it_resumes_where_it_was_stopped(run_dir):
    saved = json.loads((run_dir / "config.json").read_text())
    assert "changed" not in saved["dataset"]  # a key of a later version
    status = scm_jax.train_and_evaluate(config_lib.as_saved(saved), run_dir)
    assert status == "done"
    summary = scm_jax.load_run(run_dir).summary
    assert summary["resumed_at_step"] == 2113
    assert summary["results"][0]["consistency_rmse"] == pytest.approx(0.046, abs=0.01)
