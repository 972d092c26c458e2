"""Small trained runs as files for a repository: config, vocabulary, float16 weights."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from scm_jax import config as config_lib
from scm_jax.datasets import storage
from scm_jax.files.tensors import check_tensors, tensors_sha256
from scm_jax.runs.directory.layout import RunDir
from scm_jax.runs.directory.linked_runs import IMPORTED_FILE
from scm_jax.runs.sample import load_generate
from scm_jax.runs.setup import experiment as experiment_lib
from scm_jax.runs.setup import parts
from scm_jax.training import checkpoint

WEIGHTS = "weights.npz"
_ABOUT_DATA = ("manifest.json", "dataset_info.json", "features.json")


def pack(run: str | os.PathLike, folder: str | os.PathLike, ema: str = "") -> str:
    """Writes an EMA of a run into ``folder``; returns ``tensors_sha256`` of it.

    The folder has ``config.json``, ``text.json`` where the run reads captions, what a
    prepared dataset says of itself, and the network's weights in 16 bits. Paths of
    other runs and of data are left out of the config.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    loaded, run_dir = load_generate(run, ema), RunDir(run)
    flat = traverse_util.flatten_dict(loaded.params, sep="/")
    weights = {name: np.asarray(a, np.float16) for name, a in flat.items()}
    np.savez_compressed(folder / WEIGHTS, **dict[str, Any](weights))
    config = run_dir.read_config()
    if prepared := config["dataset"].get("prepared"):
        source = storage.prepared_folder(prepared, config["dataset"]["root"] or None)
        target = folder / "data" / prepared / source.name
        target.mkdir(parents=True, exist_ok=True)
        for name in _ABOUT_DATA:  # without the path of the machine
            text = (source / name).read_text()
            (target / name).write_text(text.replace(f"{source.parents[1]}/", ""))
    config["init"]["run"] = config["teacher"]["run"] = config["dataset"]["root"] = ""
    text = json.dumps(config, indent=1, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text)
    if run_dir.text_path.exists():
        shutil.copy(run_dir.text_path, folder)
    return tensors_sha256(weights)


def unpack(folder: str | os.PathLike, workdir: str | os.PathLike) -> None:
    """Makes a run directory of what ``pack`` wrote, ready to sample and to measure.

    Raises:
      ValueError: the weights are not those of the config's network.
    """
    folder, run_dir = Path(folder), RunDir(workdir)
    config = config_lib.from_dict(json.loads((folder / "config.json").read_text()))
    if (folder / "data").is_dir():
        place = run_dir.path / "data"
        shutil.copytree(folder / "data", place, dirs_exist_ok=True)
        config.dataset.root = str(place)
    experiment = experiment_lib.build(config, taught=False)
    abstract = parts.abstract_init(experiment.network)
    shapes = jax.tree.map(lambda a: a.shape, abstract)
    flat = traverse_util.flatten_dict(shapes, sep="/")
    with np.load(folder / WEIGHTS) as stored:
        weights = check_tensors(str(folder / WEIGHTS), dict(stored), flat)
    run_dir.write_config(config_lib.to_dict(config))
    if (folder / "text.json").exists():
        shutil.copy(folder / "text.json", run_dir.text_path)
    params = traverse_util.unflatten_dict(weights, sep="/")
    found = {"weights": str(folder.name), "sha256": tensors_sha256(weights)}
    average = experiment.sampling_ema
    checkpoint.save_average(run_dir.checkpoints_dir, average, params, metadata=found)
    (run_dir.path / IMPORTED_FILE).write_text(json.dumps(found, indent=1))
