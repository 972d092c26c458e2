"""What a config names, built one by one: dataset, network, EMAs, teacher."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from scm_jax import config as config_lib
from scm_jax import networks, sampling, trigflow
from scm_jax.datasets import make_dataset
from scm_jax.datasets.pipeline import Dataset
from scm_jax.networks import Network
from scm_jax.runs.directory.layout import RunDir
from scm_jax.runs.directory.run_configs import ema_names, sampling_ema
from scm_jax.training import ema
from scm_jax.types import Cond, lookup


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
    shape = info.sample_shape
    network = networks.build(name, shape, info.num_classes, info.text, **settings)
    legal = trigflow.PARAMETERIZATIONS
    adapter = lookup(legal, config.parameterization, "parameterization")
    if adapter is None:
        return network
    adapter = functools.partial(adapter, sigma_data=info.sigma_data)
    return dataclasses.replace(network, adapter=adapter)


def same_convention(a: Network, b: Network) -> bool:
    """Whether both networks read time and input, and mean their output, alike."""

    def convention(network: Network) -> Any:
        adapter: Any = network.adapter
        return adapter and (adapter.func, adapter.keywords)

    return bool(convention(a) == convention(b))


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


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Where a student's velocity comes from: a network of a run, or a closed form.

    ``guidance`` is the scale of classifier-free guidance: 1 for none, None for the one
    that each example is conditioned on. A closed form is ``F = closed_form(x, cond)``.
    """

    network: Network | None = None
    run: str | None = None
    ema: str = ""
    guidance: float | None = 1.0
    closed_form: Callable[[jax.Array, Cond], jax.Array] | None = None

    def fn(self, params: Any, x: jax.Array, cond: Cond) -> jax.Array:
        """``F`` of the teacher with its parameters, folded or not."""
        fn = self.closed_form or functools.partial(self._apply, params)
        if self.guidance != 1.0:
            fn = sampling.with_guidance(fn, self.guidance)
        return fn(x, cond)

    def _apply(self, params: Any, x: jax.Array, cond: Cond) -> jax.Array:
        assert self.network is not None
        # A teacher knows only what it was trained with; dropout is off.
        known = {k: getattr(cond, k) for k in self.network.consumes}
        if "dt" in known:  # a velocity is the diagonal of a map
            known["dt"] = jnp.zeros_like(cond.t)
        return self.network.apply(params, x, Cond(**known))


def build_teacher(
    config: ConfigDict, dataset: Dataset, stand_in: Network | None = None
) -> Teacher:
    """The velocity of ``config.teacher``, guided where the config says so.

    ``stand_in`` is the network to assume where the teacher's run does not exist yet,
    for a cost estimate before the training.

    Raises:
      ValueError: no teacher where one is needed, or no closed form where one is named.
    """
    settings = config.teacher
    legal = dict.fromkeys(("none", "run", "exact"))
    lookup(legal, settings.source, "teacher.source")
    if settings.source == "none":
        raise ValueError(
            "this objective (objective.dx_dt = 'teacher', or a matching term) needs "
            "teacher.source = 'run' with teacher.run set to a run directory, or "
            "teacher.source = 'exact' for data in closed form"
        )
    if settings.source == "exact":
        teacher = exact_teacher(dataset)
    elif not settings.run:
        raise ValueError("teacher.run is empty: set it to the teacher's run directory")
    elif stand_in is not None and not RunDir(settings.run).config_path.exists():
        teacher = Teacher(stand_in, settings.run, settings.ema)
    else:
        network, name = saved_network(settings.run, settings.ema, dataset)
        teacher = Teacher(network, settings.run, name)
    per_sample = config.objective.get("guidance_range") is not None
    guidance = None if per_sample else settings.guidance
    return dataclasses.replace(teacher, guidance=guidance)


def exact_teacher(dataset: Dataset) -> Teacher:
    """The exact velocity of data in closed form."""
    exact, sigma_data = dataset.closed_form, dataset.info.sigma_data
    if exact is None:
        raise ValueError(
            f"teacher.source = 'exact' needs data in closed form; dataset.name = "
            f"{dataset.info.name!r} has none"
        )

    def closed_form(x: jax.Array, cond: Cond) -> jax.Array:
        return exact.velocity(x * sigma_data, cond.t, sigma_data) / sigma_data

    return Teacher(closed_form=closed_form)
