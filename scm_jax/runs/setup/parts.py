"""What a config names, built one by one: dataset, network, EMAs of a run, shapes."""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

import jax
from ml_collections import ConfigDict

from scm_jax import config as config_lib
from scm_jax import networks, trigflow
from scm_jax.datasets import make_dataset
from scm_jax.datasets.pipeline import Dataset
from scm_jax.networks import Network
from scm_jax.runs.directory.layout import RunDir
from scm_jax.runs.directory.run_configs import ema_names, sampling_ema
from scm_jax.training import ema
from scm_jax.types import lookup


@functools.lru_cache(maxsize=8)
def abstract_init(network: Network) -> Any:
    """Shapes of a network's parameters; nothing is allocated."""
    # Tracing the initialization of a large network takes a second or two.
    return jax.eval_shape(network.init, jax.random.key(0))


def build_dataset(config: ConfigDict, split: str = "train") -> Dataset:
    """The dataset of ``config.dataset``, prepared where that needs no download."""
    settings = dict(config.dataset)
    name, root = settings.pop("name"), settings.pop("root") or None
    settings.pop("changed", None)  # read by ``training_data``
    return make_dataset(name, split, root=root, prepare=True, **settings)


def build_network(config: ConfigDict, dataset: Dataset) -> Network:
    """The network of ``config.network`` for the samples of ``dataset``."""
    settings = dict(config.network)
    info, name = dataset.info, settings.pop("name")
    network = networks.build(name, info.sample_shape, info.num_classes, **settings)
    legal = dict.fromkeys(trigflow.PARAMETERIZATIONS)
    lookup(legal, config.parameterization, "parameterization")
    if config.parameterization != "edm":
        return network
    adapter = functools.partial(trigflow.from_edm, sigma_data=info.sigma_data)
    return dataclasses.replace(network, adapter=adapter)


def ema_profiles(config: ConfigDict) -> dict[str, ema.EmaProfile]:
    """The EMAs that a config keeps, by name, in its order."""
    profiles: list[ema.EmaProfile] = [*map(ema.PowerEma, config.ema.rel_std)]
    profiles += map(ema.HalfLifeEma, config.ema.half_life_images)
    if not profiles:
        raise ValueError("ema.rel_std and ema.half_life_images are both empty")
    return dict(zip(ema_names(config.ema), profiles, strict=True))


def saved_network(
    directory: str | os.PathLike, average: str, dataset: Dataset
) -> tuple[Network, str]:
    """The network of a run, and the name of the EMA to read."""
    saved = config_lib.from_dict(RunDir(directory).read_config())
    return build_network(saved, dataset), average or sampling_ema(saved.ema)


def average_name(text: str) -> str:
    """The name of an EMA as runs write it.

    Example:
      >>> average_name("0.10"), average_name("half_life_500000")
      ('0.1', 'half_life_500000')
    """
    try:
        return f"{float(text):g}"
    except ValueError:
        return text
