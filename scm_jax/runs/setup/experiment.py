"""From a locked config to frozen objects."""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from scm_jax import config as config_lib
from scm_jax import networks, objectives, sampling
from scm_jax.datasets.pipeline import Dataset
from scm_jax.networks import Network
from scm_jax.objectives import Objective
from scm_jax.runs.directory import linked_runs
from scm_jax.runs.directory.run_configs import sampling_ema
from scm_jax.runs.setup import config_values, parts
from scm_jax.runs.setup.parts import Teacher, build_teacher
from scm_jax.training import ema
from scm_jax.training import state as state_lib
from scm_jax.types import Batch, lookup

if TYPE_CHECKING:
    from scm_jax.training.sharding import Placement
    from scm_jax.training.step import CriticStep, TrainStep, Weights
    from scm_jax.training.width_rules import WidthRules


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The objects that a config stands for. Nothing in it holds parameters."""

    config: ConfigDict
    dataset: Dataset
    network: Network
    objective: Objective
    optimizer: optax.GradientTransformation
    ema_profiles: dict[str, ema.EmaProfile]
    teacher: Teacher | None
    placement: Placement | None = None
    critic: Network | None = None  # of objectives that train a second network

    @property
    def sampling_ema(self) -> str:
        """Name of the EMA that samples."""
        return sampling_ema(self.config.ema)

    def place(self, mesh: Mesh) -> Experiment:
        """The same experiment, trained on ``mesh``."""
        if mesh.size == 1:
            return self
        from scm_jax.runs.setup.start import mesh_rules
        from scm_jax.training.sharding import Placement

        placement = Placement(mesh, mesh_rules(self.config), self.config.mesh.sequence)
        network, teacher = self.network.place(placement), self.teacher
        if teacher is not None and teacher.network is not None:
            placed = teacher.network.place(placement)
            teacher = dataclasses.replace(teacher, network=placed)
        critic = self.critic and self.critic.place(placement)
        changed: Any = {"network": network, "teacher": teacher, "critic": critic}
        return dataclasses.replace(self, placement=placement, **changed)

    def train_step(self) -> TrainStep:
        """The pure training step."""
        from scm_jax.training.step import make_train_step

        return make_train_step(
            self.objective,
            self.network.apply,
            self.optimizer,
            self.ema_profiles,
            teacher_fn=self.teacher.fn if self.teacher else None,
            weights=self._around(self.network),
            critic=self._critic_step(),
            num_microbatches=self.config.train.microbatches,
        )

    def _around(self, network: Network) -> Weights:
        from scm_jax.training.step import Weights

        return Weights(network.fold, self._keep, network.project)

    def _critic_step(self) -> CriticStep | None:
        from scm_jax.training.step import CriticStep

        if self.critic is None:
            return None
        settings, averaged = self.config.critic, None
        if settings.half_life_images:
            averaged = ema.HalfLifeEma(settings.half_life_images)
        around, every = self._around(self.critic), settings.student_every
        optimizer = self.critic_optimizer
        return CriticStep(self.critic.apply, optimizer, around, every, averaged)

    @property
    def critic_optimizer(self) -> optax.GradientTransformation:
        """That of the student, with the critic's own learning rate."""
        assert self.critic is not None
        settings = state_lib.OptimizerConfig(**self.config.optimizer)
        if rate := self.config.critic.learning_rate:
            settings = dataclasses.replace(settings, learning_rate=rate)
        size = self.config.train.batch_size
        return build_optimizer(settings, size, self.critic)

    def _keep(self, folded: networks.Folded) -> networks.Folded:
        # Weights, or their gradient, in the pieces that devices store.
        if self.placement is None:
            return folded
        return networks.Folded(self.placement.keep(folded.weights))

    def init_state(
        self, params: dict[str, Any] | None = None, critic: Any = None
    ) -> state_lib.TrainState:
        """A fresh state; traceable.

        ``params`` and ``critic`` replace random parameters of the two networks.
        """
        params = self.init_params() if params is None else params
        key = jax.random.key(self.config.seed)
        names, player = tuple(self.ema_profiles), None
        if self.critic is not None:
            if critic is None:
                critic = self._fresh(self.critic, jax.random.fold_in(key, 2**31 - 2))
            averaged = self.config.critic.half_life_images > 0
            player = state_lib.init_critic(critic, self.critic_optimizer, averaged)
        return state_lib.init_state(params, self.optimizer, names, key, player)

    def init_params(self) -> dict[str, Any]:
        """Fresh parameters of network and objective; traceable."""
        key = jax.random.fold_in(jax.random.key(self.config.seed), 2**31 - 1)
        key_net, key_objective = jax.random.split(key)
        return {
            "net": self._fresh(self.network, key_net),
            "objective": self.objective.init(key_objective),
        }

    def _fresh(self, network: Network, key: jax.Array) -> Any:
        params, settings = network.init(key), self.config.optimizer
        if not settings.base_width:
            return params
        rules = network_rules(network, settings.base_width, settings.name)
        return jax.tree.map(lambda w, factor: factor * w, params, rules.start)

    def abstract_params(self) -> dict[str, Any]:
        """Shapes of the parameters; nothing is allocated."""
        return {
            "net": parts.abstract_init(self.network),
            "objective": jax.eval_shape(self.objective.init, jax.random.key(0)),
        }

    def example_batch(self, batch_size: int) -> Batch:
        """Shapes of a batch; nothing is allocated."""
        info = self.dataset.info
        x: Any = jax.ShapeDtypeStruct((batch_size, *info.sample_shape), jnp.float32)
        label: Any = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
        caption: Any = {}
        if info.text is not None:
            example = functools.partial(networks.example_caption, info.text, batch_size)
            caption = jax.eval_shape(example)
        return Batch(x=x, label=label if info.num_classes else None, **caption)


def build(config: ConfigDict, *, taught: bool = True) -> Experiment:
    """Builds and checks everything that ``config`` names.

    Without ``taught`` it can only sample: there is no teacher, whose directory may be
    gone by then, and no critic.

    Raises:
      ValueError: an unknown name, or settings that contradict each other; the message
        has the config path and the legal values.
      FileNotFoundError: the run directory of a teacher or of ``init.run`` is missing.
    """
    config = config_values.checked(config)
    dataset = parts.build_dataset(config)
    _check_sampling(config, dataset.info.sigma_data)
    objective = build_objective(config, dataset.info.sigma_data)
    network = parts.build_network(config, dataset)
    missing = objective.needs - network.consumes
    if missing:
        raise ValueError(
            f"the objective needs a network that takes {sorted(missing)} as input; set "
            + ", ".join(f"network.use_{name} = True" for name in sorted(missing))
        )
    # The schedule counts the updates of the student.
    every = config.critic.student_every if objective.needs_critic else 1
    settings = state_lib.OptimizerConfig(**config.optimizer)
    optimizer = build_optimizer(settings, config.train.batch_size * every, network)
    profiles = parts.ema_profiles(config)
    lookup(profiles, sampling_ema(config.ema), "ema.sampling")
    found = config, dataset, network, objective, optimizer, profiles
    experiment = Experiment(*found, teacher=None)
    if not taught or not objective.needs_teacher:
        return experiment
    return _with_teacher(experiment, build_teacher(config, dataset))


def _with_teacher(experiment: Experiment, teacher: Teacher) -> Experiment:
    """The experiment with a teacher, and with a critic where it trains one.

    The critic has the teacher's network, or that of the student without its further
    inputs for a teacher in closed form.
    """
    critic = None
    if experiment.objective.needs_critic:
        critic = teacher.network or unguided(experiment).network
    return dataclasses.replace(experiment, teacher=teacher, critic=critic)


def build_optimizer(
    settings: state_lib.OptimizerConfig, batch_size: int, network: Network
) -> optax.GradientTransformation:
    """The optimizer of a network's group of parameters, and of others beside it."""
    optimizer = state_lib.build_optimizer(settings, batch_size, network.looped)
    if not settings.base_width:
        return optimizer
    from scm_jax.training.width_rules import scaled

    rules = network_rules(network, settings.base_width, settings.name)
    return scaled(optimizer, rules.rate)


def network_rules(network: Network, base_width: int, optimizer: str) -> WidthRules:
    """``width_rules`` of a network."""
    from scm_jax.training.width_rules import width_rules

    module = network.module
    wide = dataclasses.replace(network, module=module.clone(width=2 * module.width))
    return width_rules(
        parts.abstract_init(network),
        parts.abstract_init(wide),
        base_width / module.width,
        optimizer=optimizer,
        looped=network.looped,
        normalized=hasattr(module, "normalize"),
    )


def build_objective(config: ConfigDict, sigma_data: float) -> Objective:
    """What ``config.objective`` and ``config.matching`` describe."""
    settings = config_lib.objective_settings(config)
    name = config.objective.name
    main = objectives.build(name, sigma_data=sigma_data, **settings)
    if not config.matching.weight:
        return main
    if main.needs_critic:
        raise ValueError(
            f"matching.weight = {config.matching.weight} adds a second term to "
            f"objective.name = {name!r}, which is that term: set one of the two"
        )
    from scm_jax.objectives.matching import Matching, Sum

    term = Matching(sigma_data=sigma_data, **config_lib.matching_settings(config))
    return Sum(main, term, config.matching.weight)


def with_moved_runs(config: ConfigDict, directory: str | os.PathLike) -> ConfigDict:
    """The config of a run, with the current places of its other runs."""
    moved = linked_runs.find_moved(directory, config.to_dict())
    config = config.copy_and_resolve_references()
    for key, place in moved.items():
        config_values.set_value(config, key, place)
    return config


def _check_sampling(config: ConfigDict, sigma_data: float) -> None:
    sampler = config.sampling.sampler
    lookup(dict.fromkeys(sampling.SAMPLERS), sampler, "sampling.sampler")
    asked = [("sampling.steps", config.sampling.steps, None)]
    asked += [("eval.steps", steps, None) for steps in config.eval.steps]
    asked += [("eval.times", len(times) + 1, times) for times in config.eval.times]
    for key, steps, times in asked:
        try:
            shift = config.sampling.shift
            sampling.make_grid(sampler, steps, sigma_data, times, shift)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error


def build_abstract(
    config: ConfigDict, teacher_config: ConfigDict | None = None
) -> Experiment:
    """``build`` before the teacher has been trained.

    A teacher without a run directory has the network of ``teacher_config``, by default
    the student's.
    """
    experiment = build(config, taught=False)
    if not experiment.objective.needs_teacher:
        return experiment
    dataset = experiment.dataset
    if teacher_config is None:
        stand_in = unguided(experiment).network
    else:
        stand_in = parts.build_network(teacher_config, dataset)
    return _with_teacher(experiment, build_teacher(config, dataset, stand_in))


def unguided(experiment: Experiment) -> Experiment:
    """The experiment with a teacher's network: no guidance scale, no second time."""
    config = experiment.config.copy_and_resolve_references()
    with config.unlocked():
        config.network.update({"use_guidance": False, "use_dt": False})
    network = parts.build_network(config, experiment.dataset)
    return dataclasses.replace(experiment, network=network)
