"""The weights that a training begins with: its own and its teacher's."""

from __future__ import annotations

import os
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from scm_jax import networks
from scm_jax.networks import Network
from scm_jax.runs.directory.layout import RunDir
from scm_jax.runs.setup.experiment import Experiment
from scm_jax.runs.setup.parts import abstract_init, same_convention, saved_network
from scm_jax.training import checkpoint, sharding


def load_teacher(experiment: Experiment, mesh: Mesh) -> Any:
    """The teacher's weights, folded, sharded over ``mesh``; None for closed forms."""
    teacher = experiment.teacher
    if teacher is None or teacher.network is None or teacher.run is None:
        return None
    abstract = abstract_net(teacher.network, mesh, experiment.config)
    params = load_average(teacher.run, teacher.ema, abstract)
    where = jax.tree.map(lambda a: a.sharding, abstract_teacher(experiment, mesh))
    return jax.jit(teacher.network.fold, out_shardings=where)(params)


def abstract_teacher(experiment: Experiment, mesh: Mesh) -> Any:
    """Shapes of what ``load_teacher`` returns, sharded over ``mesh``."""
    teacher = experiment.teacher
    if teacher is None or teacher.network is None:
        return None
    params = abstract_net(teacher.network, mesh, experiment.config)
    folded = jax.eval_shape(teacher.network.fold, params)
    where = networks.Folded(jax.tree.map(lambda a: a.sharding, params))
    return sharding.abstract_like(folded, where)


def abstract_state(experiment: Experiment, mesh: Mesh) -> Any:
    """Shapes of a train state, sharded over ``mesh`` by the config's rules."""
    state = jax.eval_shape(experiment.init_state)
    rules = mesh_rules(experiment.config)
    return sharding.abstract_like(state, sharding.state_shardings(state, mesh, rules))


def load_critic(experiment: Experiment, mesh: Mesh) -> Any:
    """Parameters of the critic at the teacher's EMA; None for random ones."""
    teacher, critic = experiment.teacher, experiment.critic
    if critic is None or teacher is None or teacher.run is None:
        return None
    abstract = abstract_net(critic, mesh, experiment.config)
    return load_average(teacher.run, teacher.ema, abstract)


def load_init(experiment: Experiment, mesh: Mesh) -> dict[str, Any] | None:
    """Parameters at an EMA of ``init.run`` (Alg. 1), or None for a random start.

    Inputs that only the student takes, such as the guidance scale, keep fresh layers.
    """
    settings = experiment.config.init
    if not settings.run:
        return None
    network, name = saved_network(settings.run, settings.ema, experiment.dataset)
    if not same_convention(network, experiment.network):
        raise ValueError(
            f"init.run = {settings.run!r} has another parameterization than this "
            f"config's {experiment.config.parameterization!r}: its network reads the "
            "time differently"
        )
    abstract = abstract_net(network, mesh, experiment.config)
    loaded = load_average(settings.run, name, abstract)
    where = sharding.tree_shardings(
        experiment.abstract_params(), mesh, mesh_rules(experiment.config)
    )
    fresh = jax.jit(experiment.init_params, out_shardings=where)()
    new = experiment.network.consumes - network.consumes
    loaded = _with_new_inputs(loaded, fresh["net"], new)
    checkpoint.check_shapes(f"init.run = {settings.run}", loaded, fresh["net"])
    return {**fresh, "net": loaded}


def _with_new_inputs(
    loaded: dict[str, Any], fresh: dict[str, Any], inputs: frozenset[str]
) -> dict[str, Any]:
    """``loaded`` with the ``fresh`` layers of ``inputs``, known by their names."""
    filled = dict(loaded)
    for key, value in fresh.items():
        if key in loaded and isinstance(value, dict):
            filled[key] = _with_new_inputs(loaded[key], value, inputs)
        elif key not in loaded and any(name in key.split("_") for name in inputs):
            filled[key] = value
    return filled


def load_average(
    directory: str | os.PathLike, name: str, abstract: Any, step: int | None = None
) -> Any:
    """An EMA of a run with the shapes and shardings of ``abstract``."""
    return checkpoint.load_ema(RunDir(directory).checkpoints_dir, name, step, abstract)


def abstract_net(network: Network, mesh: Mesh, config: ConfigDict) -> Any:
    """Shapes of a network's parameters, sharded over ``mesh`` by the config's rules."""
    # The rules see the paths of a train state, which begin with the group.
    tree = {"net": abstract_init(network)}
    shardings = sharding.tree_shardings(tree, mesh, mesh_rules(config))
    return sharding.abstract_like(tree, shardings)["net"]


def mesh_rules(config: ConfigDict) -> tuple:
    """Sharding rules: those of the config, then the defaults."""
    sequence = config.mesh.sequence
    rules = sharding.SEQUENCE_RULES if sequence else sharding.DEFAULT_RULES
    return (*config.mesh.rules, *rules)
