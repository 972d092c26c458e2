"""A training step lowered for a mesh, and the bytes of its devices."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from scm_jax.runs.setup import start
from scm_jax.runs.setup.experiment import Experiment
from scm_jax.training import sharding


def bytes_per_device(tree: Any, shardings: Any) -> int:
    """Bytes of one device's shards of an abstract tree."""
    return sum(
        int(np.prod(where.shard_shape(leaf.shape))) * _itemsize(leaf)
        for leaf, where in zip(
            jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True
        )
    )


def lower_step(experiment: Experiment, mesh: jax.sharding.Mesh) -> jax.stages.Lowered:
    """The training step of ``config.train.batch_size`` images, lowered for a mesh.

    Nothing is allocated: state, batch and teacher are shapes with shardings.

    Raises:
      ValueError: a batch that the mesh does not divide, or a parameter that the rules
        cannot place.
    """
    config = experiment.config
    sharding.check_batch_size(config.train.batch_size, mesh)
    with jax.set_mesh(mesh):
        state = jax.eval_shape(experiment.init_state)
        rules = start.mesh_rules(config)
        shardings = sharding.state_shardings(state, mesh, rules)
        batch = experiment.example_batch(config.train.batch_size)
        step = jax.jit(
            experiment.place(mesh).train_step(),
            donate_argnums=0,
            out_shardings=(shardings, None),
        )
        return step.lower(
            sharding.abstract_like(state, shardings),
            sharding.abstract_like(
                batch, jax.tree.map(lambda _: sharding.batch_sharding(mesh), batch)
            ),
            start.abstract_teacher(experiment, mesh),
        )


def _itemsize(leaf: Any) -> int:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.eval_shape(jax.random.key_data, leaf).size * 4
    return leaf.dtype.itemsize
