"""Runs with random weights: ready to sample, in the time of no training."""

import jax
import numpy as np

from scm_jax.config import to_dict
from scm_jax.runs import conditions
from scm_jax.runs.directory.layout import RunDir
from scm_jax.runs.setup import experiment
from scm_jax.training import checkpoint


def write_run(path, config):
    """A run of ``config`` in the folder ``path``, which is returned."""
    built, run_dir = experiment.build(config), RunDir(path)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: rng.normal(size=a.shape).astype(np.float32) / a.shape[-1] ** 0.5,
        jax.eval_shape(built.network.init, jax.random.key(0)),
    )
    run_dir.write_config(to_dict(config))
    conditions.write_text(run_dir, built.dataset.info.text)
    checkpoint.save_average(run_dir.checkpoints_dir, built.sampling_ema, params)
    return path
