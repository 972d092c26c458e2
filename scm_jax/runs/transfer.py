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
from scm_jax.networks.external import edm, mmdit, transformers
from scm_jax.runs import conditions
from scm_jax.runs.directory import layout
from scm_jax.runs.directory.linked_runs import IMPORTED_FILE
from scm_jax.runs.directory.run_configs import read_object
from scm_jax.runs.sample import load_generate
from scm_jax.runs.setup import experiment as experiment_lib
from scm_jax.training import checkpoint

EXTRAS = "imported_extras.npz"
FILE_LAYOUT = "file_layout"
# What a file's names tell of its network's parameterization.
_PUBLISHED = {"mmdit": "rectified_flow", "unet": "edm", "ddpmpp": "edm"}
_PUBLISHED |= {"sana": "sana_sprint", "wan": "rectified_flow"}


def import_run(
    config: ConfigDict,
    weights: str | os.PathLike,
    workdir: str | os.PathLike,
    *,
    key: str = "",
    parameterization: str = "",
) -> dict[str, Any]:
    """Makes a run directory of a published checkpoint; executes no code in it.

    The run can be sampled, measured, and used as ``teacher.run`` or ``init.run``. The
    network's settings in the file replace those of the config.

    Args:
      config: an experiment on the data that the weights were trained on.
      weights: torch file or pickle, safetensors or npz.
      workdir: the run directory; must not hold another run.
      key: entry of the file, such as ``ema``; empty chooses.
      parameterization: of the network, a key of ``trigflow.PARAMETERIZATIONS``; empty
        is that of the published ones, except for ``dit`` and ``sit``, whose files
        have the same names.

    Returns:
      What was read: network, settings, parameters, sha256 of the file.

    Raises:
      ValueError: not such a file, or its shapes do not fit the data of the config.
      state_dict.UnsafePickleError: the file would have run code.
    """
    state = state_dict.read_state_dict(weights, key=key)
    own = [family for family in (transformers, mmdit) if family.recognizes(state)]
    name, settings = (own or [edm])[0].infer_network(state)
    parameterization = parameterization or _PUBLISHED.get(name, "")
    if not parameterization:
        raise ValueError(
            "DiT and SiT write the same names: give the parameterization, dit or sit"
        )
    config = _with_network(config, name, settings, parameterization)
    run_dir = layout.RunDir(workdir)
    experiment = experiment_lib.build(config, taught=False)
    module: Any = experiment.network.module
    params, extras, layout_of_file = _read_weights(module, state)
    run_dir.write_config(config_lib.to_dict(config))
    conditions.write_text(run_dir, experiment.dataset.info.text)
    found = {
        "weights": Path(weights).name,
        "sha256": atomic.file_sha256(weights),
        "network": name,
        **{k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()},
        "parameterization": parameterization,
        "parameters": counts.parameter_count(params),
        "extras": sorted(extras),
        **layout_of_file,
    }
    checkpoint.save_average(
        run_dir.checkpoints_dir, experiment.sampling_ema, params, metadata=found
    )
    wide: Any = {n: np.asarray(a, np.float32) for n, a in extras.items()}
    np.savez(run_dir.path / EXTRAS, **wide)
    (run_dir.path / IMPORTED_FILE).write_text(json.dumps(found, indent=1))
    return found


def _read_weights(module: Any, state: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Parameters, tensors that are none, and what an export must know of the file."""
    if isinstance(module, mmdit.MMDiT):
        params = mmdit.import_weights(module, state)
        return params, {}, {FILE_LAYOUT: mmdit.file_layout(state)}
    if not isinstance(module, transformers.Transformer):
        return *edm.import_weights(module, state), {}
    dtypes = {n: a.dtype.name for n, a in state.items() if a.dtype != np.float32}
    layout_of_file = {"naming": transformers.naming(state), "dtypes": dtypes}
    return *transformers.import_weights(module, state), {FILE_LAYOUT: layout_of_file}


def _with_network(
    config: ConfigDict, name: str, settings: dict[str, Any], parameterization: str
) -> ConfigDict:
    # What the file leaves open stays.
    old = config.network
    fresh = config_lib.base_config(name, config.objective.name).network
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.network = fresh
        config.network.update({k: v for k, v in old.items() if k in fresh})
        config.network.update({"name": name, "use_guidance": False, **settings})
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
    """Writes an EMA of a run's weights under the names of the published files.

    Args:
      run: the run directory of a U-Net, DDPM++, MMDiT, SANA or published DiT.
      out: ``.safetensors`` or ``.npz``.
      ema: name of the EMA; empty is the one that samples.
      step: step of the checkpoint; default is the newest.

    Returns:
      The number of tensors.

    Raises:
      ValueError: another network, or parameters that such files cannot hold.
    """
    loaded = load_generate(run, ema, step)
    module = loaded.experiment.network.module
    imported = read_object(Path(run) / IMPORTED_FILE).get(FILE_LAYOUT)
    extras = {}
    if (path := Path(run) / EXTRAS).is_file():
        with np.load(path, allow_pickle=False) as stored:
            extras = dict(stored)
    if isinstance(module, mmdit.MMDiT):
        state = mmdit.export_weights(module, loaded.params, imported)
    elif isinstance(module, transformers.Transformer):
        as_read = imported or {"naming": "original", "dtypes": {}}
        state = transformers.export_weights(
            module, loaded.params, extras, as_read["naming"]
        )
        state |= {n: state[n].astype(np.dtype(d)) for n, d in as_read["dtypes"].items()}
    elif isinstance(module, (edm.UNet, edm.DDPMpp)):
        state = edm.export_weights(module, loaded.params, extras)
    else:
        raise ValueError(
            f"network.name = {loaded.experiment.config.network.name!r} has no "
            "published file format; ddpmpp, dit, mmdit, sana and unet have one"
        )
    state_dict.write_state_dict(out, state)
    return len(state)
