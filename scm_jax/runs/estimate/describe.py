"""What a config costs before it runs: parameters, multiply-adds, bytes."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from scm_jax import config as config_lib
from scm_jax import objectives, sampling
from scm_jax.cost import counts
from scm_jax.runs import evaluate
from scm_jax.runs import train as training_run
from scm_jax.runs.directory import layout
from scm_jax.runs.sample import without_teacher
from scm_jax.runs.setup import experiment as experiment_lib
from scm_jax.runs.setup.experiment import Experiment
from scm_jax.training import sharding


def describe(config: ConfigDict) -> dict[str, Any]:
    """Accounts of a config as plain data; no weights are allocated.

    Multiply-adds are counted on the jaxpr (``scaling.count_macs``), not estimated. A
    teacher whose run directory does not exist yet is taken to have the student's
    network.

    Returns:
      ``parameters`` of the network; ``forward_macs_per_image``;
      ``train_macs_per_image`` of loss and gradient; ``train_macs_ratio_to_diffusion``:
      the same over a diffusion step of this network and batch; ``total_train_macs`` of
      the whole training; ``effective_sampling_compute``, billions of parameters times
      network evaluations of ``config.sampling``; ``state_bytes`` of parameters, moments
      and averages; ``steps`` and ``images`` of the training.
    """
    experiment = build_abstract(config)
    batch_size = min(config.train.batch_size, 16)
    forward = training_run.forward_macs(experiment)
    train = training_run.train_macs(experiment, batch_size)
    diffusion = training_run.train_macs(_as_diffusion(experiment), batch_size)
    parameters = counts.parameter_count(experiment.abstract_params()["net"])
    steps = -(-config.train.duration_images // config.train.batch_size)
    sampled = config.sampling
    consumes = experiment.network.consumes
    nfe = sampling.nfe(sampled.sampler, sampled.steps, sampled.guidance, consumes)
    return {
        "name": config.name,
        "network": config.network.name,
        "objective": config.objective.name,
        "parameters": parameters,
        "forward_macs_per_image": forward,
        "train_macs_per_image": train,
        "train_macs_ratio_to_diffusion": train / diffusion,
        "total_train_macs": train * steps * config.train.batch_size,
        "nfe": nfe,
        "effective_sampling_compute": counts.effective_sampling_compute(
            parameters, nfe
        ),
        "state_bytes": counts.tree_bytes(
            jax.eval_shape(experiment.init_state, experiment.abstract_params())
        ),
        "steps": steps,
        "images": steps * config.train.batch_size,
    }


def build_abstract(
    config: ConfigDict, teacher_config: ConfigDict | None = None
) -> Experiment:
    """As ``experiment.build``, also before the teacher has been trained.

    A teacher without a run directory has the network of ``teacher_config``, or without
    that the student's.
    """
    experiment = experiment_lib.build(without_teacher(config))
    if "dx_dt" not in config.objective or config.objective.dx_dt != "teacher":
        return experiment
    objective = objectives.build(
        config.objective.name,
        sigma_data=experiment.dataset.info.sigma_data,
        **config_lib.objective_settings(config),
    )
    if teacher_config is None:
        stand_in = _unguided(experiment).network
    else:
        stand_in = experiment_lib.build_network(teacher_config, experiment.dataset)
    teacher = experiment_lib.build_teacher(config, experiment.dataset, stand_in)
    return dataclasses.replace(experiment, objective=objective, teacher=teacher)


def _as_diffusion(experiment: Experiment) -> Experiment:
    objective = objectives.Diffusion(sigma_data=experiment.dataset.info.sigma_data)
    experiment = _unguided(experiment)
    return dataclasses.replace(experiment, objective=objective, teacher=None)


def _unguided(experiment: Experiment) -> Experiment:
    """With the network of a teacher: it takes no guidance scale."""
    config = experiment.config.copy_and_resolve_references()
    with config.unlocked():
        config.network.use_guidance = False
    network = experiment_lib.build_network(config, experiment.dataset)
    return dataclasses.replace(experiment, network=network)


def dry_run(config: ConfigDict) -> str:
    """The resolved config, accounts, and where each parameter would lie."""
    experiment = build_abstract(config)
    evaluate.check(experiment.config, files=False)
    mesh = sharding.make_mesh(
        sharding.MeshSpec(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    )
    sharding.check_batch_size(config.train.batch_size, mesh)
    state = jax.eval_shape(experiment.init_state)
    shardings = sharding.state_shardings(state, mesh, experiment_lib.mesh_rules(config))
    rows = []
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    for (path, leaf), where in zip(
        leaves, jax.tree.leaves(shardings.params), strict=True
    ):
        rows.append(
            {
                "parameter": sharding.path_name(path),
                "shape": str(leaf.shape),
                "sharding": str(where.spec),
            }
        )
    per_device = bytes_per_device(state, shardings)
    from scm_jax.runs.directory import report

    accounts = {**describe(config), "state_bytes_per_device": per_device}
    return "\n\n".join(
        [
            layout.canonical_json(config_lib.to_dict(config)).rstrip(),
            report.format_table(rows, ["parameter", "shape", "sharding"]),
            f"mesh: {dict(mesh.shape)}",
            json.dumps(accounts, indent=1),
        ]
    )


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
        rules = experiment_lib.mesh_rules(config)
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
            experiment_lib.abstract_teacher(experiment, mesh),
        )


def _itemsize(leaf: Any) -> int:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.eval_shape(jax.random.key_data, leaf).size * 4
    return leaf.dtype.itemsize
