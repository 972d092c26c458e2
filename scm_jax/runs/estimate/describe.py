"""The cost estimate of a config, as plain data and as text."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
from ml_collections import ConfigDict

from scm_jax import config as config_lib
from scm_jax import objectives, sampling
from scm_jax.cost import collectives, counts
from scm_jax.files.jsonl import canonical_json
from scm_jax.runs.directory import report
from scm_jax.runs.directory.labels import short_count
from scm_jax.runs.estimate import accounts, work
from scm_jax.runs.estimate.accounts import Accounts
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
      the same over a diffusion step of this network and batch; ``train_macs_by_role``,
      see ``work.train_macs_by_role``; ``total_train_macs`` of
      the whole training; ``effective_sampling_compute``, billions of parameters times
      network evaluations of ``config.sampling``; ``state_bytes`` of parameters, moments
      and EMAs; ``steps`` and ``images`` of the training.
    """
    experiment = experiment_lib.build_abstract(config)
    macs = work.macs_per_image(experiment)
    train = macs["train_macs_per_image"]
    roles = work.train_macs_by_role(experiment, train)
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
        "train_macs_by_role": roles,
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
    return dataclasses.replace(
        experiment, objective=objective, teacher=None, critic=None
    )


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


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _bytes(value: float) -> str:
    return f"{short_count(value, ' ')}B"


def _count(value: float) -> str:
    return short_count(value, " ").rstrip()


_MFU = "model_flops_utilization"
# Group, key, label, and how the value is written.
_LINES: tuple[tuple[str, str, str, Any], ...] = (
    ("stated", "batch_size", "images per step, all devices", str),
    ("modelled", "images_per_device", "images per step and device", "{:g}".format),
    ("stated", "microbatches", "microbatches", str),
    ("measured", "parameters", "parameters", _count),
    ("measured", "teacher_parameters", "parameters of the teacher", _count),
    ("measured", "forward_macs_per_image", "multiply-adds, forward, per image", _count),
    ("measured", "train_macs_per_image", "multiply-adds, step, per image", _count),
    ("measured", "state_bytes", "state, all devices without copies", _bytes),
    ("measured", "state_bytes_per_device", "state per device", _bytes),
    ("compiled", "argument_bytes_per_device", "state, teacher, batch", _bytes),
    ("measured", "saved_bytes_per_image", "kept for backward, per image", _bytes),
    ("compiled", "temporary_bytes_per_device", "peak temporaries per device", _bytes),
    ("modelled", "temporary_bytes_per_device", "peak temporaries per device", _bytes),
    ("modelled", "largest_images_per_device", "images that fit at once", str),
    ("modelled", "microbatches_needed", "microbatches needed", str),
    ("stated", "efficiency", "share of peak in matrix products", _percent),
    ("stated", "bandwidth_efficiency", "share of bandwidths reached", _percent),
    ("modelled", "compute_seconds", "roofline: compute", _seconds),
    ("modelled", "memory_seconds", "roofline: memory of products", _seconds),
    ("modelled", "update_seconds", "roofline: memory of the update", _seconds),
    ("modelled", "network_seconds", "roofline: network", _seconds),
    ("modelled", "network_seconds_analytic", "network by the FSDP model", _seconds),
    ("modelled", "step_seconds_overlapped", "step, network hidden", _seconds),
    ("modelled", "step_seconds_exposed", "step, network exposed", _seconds),
    ("modelled", f"{_MFU}_overlapped", "MFU, network hidden", _percent),
    ("modelled", f"{_MFU}_exposed", "MFU, network exposed", _percent),
    ("modelled", "device_hours", "device hours of the training", _count),
)


_LEGEND = """\
measured  counted on the traced program and its shapes, exact
compiled  read from XLA's program for simulated CPU devices; nothing was run
modelled  formulas of scm_jax/cost/roofline.py
stated    the config, a flag or a data sheet
Collectives are in bytes that one device receives in a step, in a ring."""


def format_accounts(estimate: Accounts) -> str:
    """The estimate as text of at most 80 columns."""
    groups = dataclasses.asdict(estimate)
    stated = estimate.stated
    mesh = ",".join(f"{axis}={n}" for axis, n in stated["mesh"].items())
    rows = [
        {"quantity": label, "value": write(value), "known": group}
        for group, key, label, write in _LINES
        if (value := groups[group].get(key)) is not None
    ]
    parts = [
        f"{stated['name']}: {mesh} of {stated['hardware']}, bound by "
        f"{estimate.modelled['bound']}",
        report.format_table(rows),
    ]
    if table := _collective_rows(estimate):
        parts.append(report.format_table(table))
    if stated["mesh"]["tensor"] > 1:
        parts.append("The FSDP model leaves out what the tensor axis exchanges.")
    return "\n\n".join([*parts, _LEGEND])


def _collective_rows(estimate: Accounts) -> list[dict[str, Any]]:
    model = {row["kind"]: row for row in estimate.modelled["collectives"]}
    compiled: dict[str, list[dict[str, Any]]] = {}
    for row in estimate.compiled.get("collectives", ()):
        compiled.setdefault(row["kind"], []).append(row)
    rows = []
    for kind in collectives.KINDS:
        received = model.get(kind, {}).get("received_bytes", 0.0)
        if kind not in compiled and not received:
            continue
        found = compiled.get(kind, [])
        rows.append(
            {
                "collective": kind,
                "times": str(sum(row["executions"] for row in found)),
                "compiled": _bytes(sum(row["received_bytes"] for row in found)),
                "FSDP model": _bytes(received),
                "dtypes": " ".join(row["dtype"] for row in found),
            }
        )
    return rows
