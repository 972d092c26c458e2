"""What a config costs before it runs: parameters, multiply-adds, bytes."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
from ml_collections import ConfigDict

from scm_jax import config as config_lib
from scm_jax import objectives, sampling
from scm_jax.cost import counts
from scm_jax.files.jsonl import canonical_json
from scm_jax.runs.directory import report
from scm_jax.runs.estimate import accounts, work
from scm_jax.runs.setup import evaluators, start
from scm_jax.runs.setup import experiment as experiment_lib
from scm_jax.runs.setup.experiment import Experiment
from scm_jax.training import sharding
from scm_jax.types import num_steps


def describe(config: ConfigDict) -> dict[str, Any]:
    """The cost estimate of a config as plain data; no weights are allocated.

    Multiply-adds are counted on the jaxpr (``counts.count_macs``). A teacher whose run
    directory does not exist yet is taken to have the student's network.

    Returns:
      ``parameters`` of the network; ``forward_macs_per_image``;
      ``train_macs_per_image`` of loss and gradient; ``train_macs_ratio_to_diffusion``:
      the same over a diffusion step of this network and batch; ``total_train_macs`` of
      the whole training; ``effective_sampling_compute``, billions of parameters times
      network evaluations of ``config.sampling``; ``state_bytes`` of parameters, moments
      and EMAs; ``steps`` and ``images`` of the training.
    """
    experiment = experiment_lib.build_abstract(config)
    macs = work.macs_per_image(experiment)
    train = macs["train_macs_per_image"]
    diffusion = work.train_macs(_as_diffusion(experiment))
    parameters = counts.parameter_count(experiment.abstract_params()["net"])
    state = jax.eval_shape(experiment.init_state, experiment.abstract_params())
    steps = num_steps(config.train.duration_images, config.train.batch_size)
    sampled = config.sampling
    consumes = experiment.network.consumes
    nfe = sampling.nfe(sampled.sampler, sampled.steps, sampled.guidance, consumes)
    return {
        "name": config.name,
        "network": config.network.name,
        "objective": config.objective.name,
        "parameters": parameters,
        **macs,
        "train_macs_ratio_to_diffusion": train / diffusion,
        "total_train_macs": train * steps * config.train.batch_size,
        "nfe": nfe,
        "effective_sampling_compute": counts.effective_sampling_compute(
            parameters, nfe
        ),
        "state_bytes": counts.tree_bytes(state),
        "steps": steps,
        "images": steps * config.train.batch_size,
    }


def _as_diffusion(experiment: Experiment) -> Experiment:
    objective = objectives.Diffusion(sigma_data=experiment.dataset.info.sigma_data)
    experiment = experiment_lib.unguided(experiment)
    return dataclasses.replace(experiment, objective=objective, teacher=None)


def dry_run(config: ConfigDict) -> str:
    """The resolved config, its cost estimate, and where each parameter would lie."""
    experiment = experiment_lib.build_abstract(config)
    evaluators.check(experiment.config, files=False)
    mesh = sharding.make_mesh(
        sharding.MeshSpec(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    )
    sharding.check_batch_size(config.train.batch_size, mesh)
    params = experiment.abstract_params()
    shardings = sharding.tree_shardings(params, mesh, start.mesh_rules(config))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    rows = [
        {
            "parameter": sharding.path_name(path),
            "shape": str(leaf.shape),
            "sharding": str(where.spec),
        }
        for (path, leaf), where in zip(leaves, jax.tree.leaves(shardings), strict=True)
    ]
    per_device = accounts.state_bytes_per_device(experiment, mesh)
    estimate = {**describe(config), "state_bytes_per_device": per_device}
    return "\n\n".join(
        [
            canonical_json(config_lib.to_dict(config)).rstrip(),
            report.format_table(rows, ["parameter", "shape", "sharding"]),
            f"mesh: {dict(mesh.shape)}",
            json.dumps(estimate, indent=1),
        ]
    )
