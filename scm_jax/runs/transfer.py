"""Published weights as run directories, and run directories as published weights."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from scm_jax import config as config_lib
from scm_jax.cost import counts
from scm_jax.files import atomic, state_dict
from scm_jax.networks.external import edm
from scm_jax.runs.directory import layout
from scm_jax.runs.directory.linked_runs import IMPORTED_FILE
from scm_jax.runs.sample import load_generate, without_teacher
from scm_jax.runs.setup import experiment as experiment_lib
from scm_jax.training import checkpoint

EXTRAS = "imported_extras.npz"


def import_run(
    config: ConfigDict,
    weights: str | os.PathLike,
    workdir: str | os.PathLike,
    *,
    key: str = "",
    parameterization: str = "edm",
) -> dict[str, Any]:
    """Makes a run directory of a published checkpoint; no code in it is executed.

    The directory can be sampled, measured, and taken as a teacher (``teacher.run``) or
    as the start of a training (``init.run``). What the file says of the network goes
    before what the config says.

    Args:
      config: an experiment on the data that the weights were trained on.
      weights: torch file or pickle, safetensors or npz.
      workdir: the run directory; must not hold another run.
      key: entry of the file, such as ``ema``; empty chooses.
      parameterization: of the network, ``edm`` or ``trigflow``.

    Returns:
      What was read: network, settings, parameters, sha256 of the file.

    Raises:
      ValueError: not such a file, or its shapes do not fit the data of the config.
      state_dict.UnsafePickleError: the file would have run code.
    """
    state = state_dict.read_state_dict(weights, key=key)
    name, settings = edm.infer_network(state)
    config = _with_network(config, name, settings, parameterization)
    run_dir = layout.RunDir(workdir)
    experiment = experiment_lib.build(without_teacher(config))
    module: Any = experiment.network.module
    params, extras = edm.import_weights(module, state)
    run_dir.write_config(config_lib.to_dict(config))
    found = {
        "weights": Path(weights).name,
        "sha256": atomic.file_sha256(weights),
        "network": name,
        **{k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()},
        "parameterization": parameterization,
        "parameters": counts.parameter_count(params),
        "extras": sorted(extras),
    }
    checkpoint.save_average(
        run_dir.checkpoints_dir, experiment.sampling_ema, params, metadata=found
    )
    arrays: dict[str, Any] = extras
    np.savez(run_dir.path / EXTRAS, **arrays)
    (run_dir.path / IMPORTED_FILE).write_text(json.dumps(found, indent=1))
    return found


def _with_network(
    config: ConfigDict, name: str, settings: dict[str, Any], parameterization: str
) -> ConfigDict:
    """``config`` with the network of a file; what the file leaves open stays."""
    old = config.network
    fresh = config_lib.base_config(name, config.objective.name).network
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.network = fresh
        for field, value in old.items():
            if field in fresh:
                config.network[field] = value
        config.network.update({"name": name, **settings, "use_guidance": False})
        config.parameterization = parameterization
        config.init.run = ""
    return config


def export_run(
    run: str | os.PathLike,
    out: str | os.PathLike,
    *,
    ema: str = "",
    step: int | None = None,
) -> int:
    """Writes an EMA of a run's weights under the names of the EDM family.

    Args:
      run: the run directory of a U-Net or DDPM++.
      out: ``.safetensors`` or ``.npz``.
      ema: which EMA; empty is the one that samples.
      step: which checkpoint; default is the newest.

    Returns:
      The number of tensors.

    Raises:
      ValueError: another network, or parameters that such files have no place for.
    """
    loaded = load_generate(run, ema, step)
    module = loaded.experiment.network.module
    if not isinstance(module, (edm.UNet, edm.DDPMpp)):
        raise ValueError(
            f"network.name = {loaded.experiment.config.network.name!r} has no "
            "published file format; 'unet' has EDM2's and 'ddpmpp' EDM's"
        )
    extras = {}
    if (path := Path(run) / EXTRAS).is_file():
        with np.load(path, allow_pickle=False) as stored:
            extras = dict(stored)
    state = edm.export_weights(module, loaded.params, extras)
    state_dict.write_state_dict(out, state)
    return len(state)
