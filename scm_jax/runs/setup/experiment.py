"""From a locked config to frozen objects: the one place that knows every room."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from scm_jax import config as config_lib
from scm_jax import networks, objectives, sampling, trigflow
from scm_jax.datasets import make_dataset
from scm_jax.datasets.pipeline import Dataset
from scm_jax.networks import Network
from scm_jax.objectives import Objective
from scm_jax.runs.directory import linked_runs
from scm_jax.runs.directory.layout import RunDir
from scm_jax.runs.setup import config_values
from scm_jax.training import checkpoint, ema, sharding
from scm_jax.training import state as state_lib
from scm_jax.training.step import TrainStep, make_train_step
from scm_jax.types import Batch, Cond, lookup


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Where a student's velocity comes from.

    Attributes:
      network: the teacher's network, None for a closed form.
      run: its run directory, None for a closed form.
      ema: the average that is read from there.
      guidance: scale of classifier-free guidance; 1 for none, None for the one that
        each example is conditioned on.
      closed_form: ``F = closed_form(x, cond)``, in place of a network.
    """

    network: Network | None = None
    run: str | None = None
    ema: str = ""
    guidance: float | None = 1.0
    closed_form: Callable[[jax.Array, Cond], jax.Array] | None = None

    def fn(self, params: Any, x: jax.Array, cond: Cond) -> jax.Array:
        """``F`` of the teacher; ``params`` are its parameters, folded or not."""
        fn = self.closed_form or functools.partial(self._apply, params)
        if self.guidance != 1.0:
            fn = sampling.with_guidance(fn, self.guidance)
        return fn(x, cond)

    def _apply(self, params: Any, x: jax.Array, cond: Cond) -> jax.Array:
        # A teacher knows only what it was trained with; dropout is off.
        known = {k: getattr(cond, k) for k in self.network.consumes}
        return self.network.apply(params, x, Cond(**known))


@functools.lru_cache(maxsize=8)
def abstract_init(network: Network) -> Any:
    """Shapes of a network's parameters; nothing is allocated."""
    # Tracing the initialization of a large network takes a second or two.
    return jax.eval_shape(network.init, jax.random.key(0))


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
    placement: sharding.Placement | None = None

    @property
    def sampling_ema(self) -> str:
        """Name of the average that samples."""
        return sampling_average(self.config)

    def place(self, mesh: Mesh) -> Experiment:
        """The same experiment, trained on ``mesh``."""
        if mesh.size == 1:
            return self
        placement = sharding.Placement(mesh, mesh_rules(self.config))
        teacher = self.teacher
        if teacher is not None and teacher.network is not None:
            network = teacher.network.place(placement)
            teacher = dataclasses.replace(teacher, network=network)
        return dataclasses.replace(
            self,
            network=self.network.place(placement),
            teacher=teacher,
            placement=placement,
        )

    def train_step(self) -> TrainStep:
        """The pure training step."""
        return make_train_step(
            self.objective,
            self.network.apply,
            self.optimizer,
            self.ema_profiles,
            teacher_fn=self.teacher.fn if self.teacher else None,
            fold=self.network.fold,
            keep=self._keep,
            project=self.network.project,
            num_microbatches=self.config.train.microbatches,
        )

    def _keep(self, folded: networks.Folded) -> networks.Folded:
        """Folded weights, or their gradient, in the pieces that devices store."""
        if self.placement is None:
            return folded
        return folded.replace(weights=self.placement.keep(folded.weights))

    def init_state(self, params: dict[str, Any] | None = None) -> state_lib.TrainState:
        """A fresh state; traceable. ``params`` replaces random parameters."""
        key = jax.random.key(self.config.seed)
        return state_lib.init_state(
            self.init_params() if params is None else params,
            self.optimizer,
            tuple(self.ema_profiles),
            key,
        )

    def init_params(self) -> dict[str, Any]:
        """Fresh parameters of network and objective; traceable."""
        key_net, key_objective = jax.random.split(
            jax.random.fold_in(jax.random.key(self.config.seed), 2**31 - 1)
        )
        return {
            "net": self.network.init(key_net),
            "objective": self.objective.init(key_objective),
        }

    def abstract_params(self) -> dict[str, Any]:
        """Shapes of the parameters; nothing is allocated."""
        return {
            "net": abstract_init(self.network),
            "objective": jax.eval_shape(self.objective.init, jax.random.key(0)),
        }

    def example_batch(self, batch_size: int) -> Batch:
        """Shapes of a batch; nothing is allocated."""
        info = self.dataset.info
        label = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
        return Batch(
            x=jax.ShapeDtypeStruct((batch_size, *info.sample_shape), jnp.float32),
            label=label if info.num_classes else None,
        )


def build(config: ConfigDict) -> Experiment:
    """Builds and checks everything that ``config`` names.

    Raises:
      ValueError: an unknown name, or settings that contradict each other; the message
        has the config path and the legal values.
      FileNotFoundError: the run directory of a teacher or of ``init.run`` is missing.
    """
    config = config_values.checked(config)
    dataset = build_dataset(config)
    _check_sampling(config, dataset.info.sigma_data)
    objective = objectives.build(
        config.objective.name,
        sigma_data=dataset.info.sigma_data,
        **config_lib.objective_settings(config),
    )
    network = build_network(config, dataset)
    missing = objective.needs - network.consumes
    if missing:
        raise ValueError(
            f"the objective needs a network that takes {sorted(missing)} as input; set "
            + ", ".join(f"network.use_{name} = True" for name in sorted(missing))
        )
    teacher = build_teacher(config, dataset) if objective.needs_teacher else None
    experiment = Experiment(
        config=config,
        dataset=dataset,
        network=network,
        objective=objective,
        optimizer=state_lib.build_optimizer(
            state_lib.OptimizerConfig(**config.optimizer), config.train.batch_size
        ),
        ema_profiles=ema_profiles(config),
        teacher=teacher,
    )
    lookup(experiment.ema_profiles, experiment.sampling_ema, "ema.sampling")
    return experiment


def with_moved_runs(config: ConfigDict, directory: str | os.PathLike) -> ConfigDict:
    """``config`` of the run in ``directory``, with its other runs where they are now.

    A teacher that is gone from its place is looked for beside ``directory``.
    """
    moved = linked_runs.find_moved(directory, config.to_dict())
    config = config.copy_and_resolve_references()
    for key, place in moved.items():
        config_values.set_value(config, key, place)
    return config


def _check_sampling(config: ConfigDict, sigma_data: float) -> None:
    """Raises ValueError for steps or times that the sampler cannot take."""
    sampler = config.sampling.sampler
    lookup(dict.fromkeys(sampling.SAMPLERS), sampler, "sampling.sampler")
    asked = {"sampling.steps": [(config.sampling.steps, None)]}
    asked["eval.steps"] = [(steps, None) for steps in config.eval.steps]
    asked["eval.times"] = [(len(times) + 1, times) for times in config.eval.times]
    for key, points in asked.items():
        for steps, times in points:
            try:
                sampling.make_grid(sampler, steps, sigma_data, times)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error


def build_dataset(config: ConfigDict, split: str = "train") -> Dataset:
    """The dataset of ``config.dataset``, prepared where that needs no network."""
    settings = dict(config.dataset)
    name, root = settings.pop("name"), settings.pop("root") or None
    settings.pop("changed", None)  # for ``training_data``
    return make_dataset(name, split, root=root, prepare=True, **settings)


def build_network(config: ConfigDict, dataset: Dataset) -> Network:
    """The network of ``config.network`` for the samples of ``dataset``."""
    settings = dict(config.network)
    network = networks.build(
        settings.pop("name"),
        dataset.info.sample_shape,
        dataset.info.num_classes,
        **settings,
    )
    legal = dict.fromkeys(trigflow.PARAMETERIZATIONS)
    lookup(legal, config.parameterization, "parameterization")
    if config.parameterization == "edm":
        adapter = functools.partial(
            trigflow.from_edm, sigma_data=dataset.info.sigma_data
        )
        network = dataclasses.replace(network, adapter=adapter)
    return network


def ema_profiles(config: ConfigDict) -> dict[str, ema.EmaProfile]:
    """The averages that a config keeps, by name, in its order."""
    profiles: dict[str, ema.EmaProfile] = {}
    for rel_std in config.ema.rel_std:
        profiles[f"{rel_std:g}"] = ema.PowerEma(rel_std)
    for images in config.ema.half_life_images:
        profiles[f"half_life_{images:g}"] = ema.HalfLifeEma(images)
    if not profiles:
        raise ValueError("ema.rel_std and ema.half_life_images are both empty")
    return profiles


def sampling_average(config: ConfigDict) -> str:
    """Name of the average that samples: ``ema.sampling``, or the first."""
    return config.ema.sampling or next(iter(ema_profiles(config)))


# --- Teachers and other runs ----------------------------------------------------------


def build_teacher(
    config: ConfigDict, dataset: Dataset, stand_in: Network | None = None
) -> Teacher:
    """The velocity of ``config.teacher``, guided where the config says so.

    ``stand_in`` is the network to assume where the teacher's run does not exist yet,
    for accounts before the training.

    Raises:
      ValueError: no teacher where one is needed, or the closed form of data without
        one.
    """
    settings = config.teacher
    kinds = {"none": None, "run": _run_teacher, "exact": _exact_teacher}
    make = lookup(kinds, settings.source, "teacher.source")
    if make is None:
        raise ValueError(
            "objective.dx_dt = 'teacher' needs teacher.source = 'run' with teacher.run "
            "set to a run directory, or teacher.source = 'exact' for data in closed "
            "form"
        )
    teacher = make(config, dataset, stand_in)
    per_sample = config.objective.guidance_range is not None
    return dataclasses.replace(
        teacher, guidance=None if per_sample else settings.guidance
    )


def _run_teacher(
    config: ConfigDict, dataset: Dataset, stand_in: Network | None
) -> Teacher:
    directory = config.teacher.run
    if not directory:
        raise ValueError("teacher.run is empty: set it to the teacher's run directory")
    if stand_in is not None and not RunDir(directory).config_path.exists():
        return Teacher(stand_in, directory, config.teacher.ema)
    network, name = saved_network(directory, config.teacher.ema, dataset)
    return Teacher(network, directory, name)


def _exact_teacher(
    config: ConfigDict, dataset: Dataset, stand_in: Network | None
) -> Teacher:
    del stand_in
    if dataset.closed_form is None:
        raise ValueError(
            f"teacher.source = 'exact' needs data in closed form; dataset.name = "
            f"{config.dataset.name!r} has none"
        )
    return exact_teacher(dataset)


def exact_teacher(dataset: Dataset) -> Teacher:
    """The exact velocity of data in closed form."""
    exact, sigma_data = dataset.closed_form, dataset.info.sigma_data

    def closed_form(x: jax.Array, cond: Cond) -> jax.Array:
        return exact.velocity(x * sigma_data, cond.t, sigma_data) / sigma_data

    return Teacher(closed_form=closed_form)


def saved_network(
    directory: str | os.PathLike, average: str, dataset: Dataset
) -> tuple[Network, str]:
    """The network of a run, and which of its averages to read."""
    saved = config_lib.from_dict(RunDir(directory).read_config())
    return build_network(saved, dataset), average or sampling_average(saved)


def average_name(text: str) -> str:
    """An average as runs name it, a relative width without needless digits.

    >>> average_name("0.10"), average_name("half_life_500000")
    ('0.1', 'half_life_500000')
    """
    try:
        return f"{float(text):g}"
    except ValueError:
        return text


def load_average(
    directory: str | os.PathLike, name: str, abstract: Any, step: int | None = None
) -> Any:
    """An average of a run, on the devices and in the shapes of ``abstract``."""
    return checkpoint.load_ema(RunDir(directory).checkpoints_dir, name, step, abstract)


def load_teacher(experiment: Experiment, mesh: Mesh) -> Any:
    """The teacher's weights, folded, sharded over ``mesh``; None for closed forms."""
    teacher = experiment.teacher
    if teacher is None or teacher.network is None:
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


def abstract_net(network: Network, mesh: Mesh, config: ConfigDict) -> Any:
    """Shapes of a network's parameters, sharded over ``mesh`` by the config's rules."""
    # The rules see the paths of a train state, which begin with the group.
    tree = {"net": abstract_init(network)}
    shardings = sharding.tree_shardings(tree, mesh, mesh_rules(config))
    return sharding.abstract_like(tree, shardings)["net"]


def load_init(experiment: Experiment, mesh: Mesh) -> dict[str, Any] | None:
    """Parameters that ``init.run`` prescribes, or None for a random start.

    The network starts at an average of that run (Alg. 1, for sCT as well). Inputs that
    the student takes and that run's network does not, such as the guidance scale, keep
    their fresh layers.
    """
    settings = experiment.config.init
    if not settings.run:
        return None
    network, name = saved_network(settings.run, settings.ema, experiment.dataset)
    if (network.adapter is None) != (experiment.network.adapter is None):
        raise ValueError(
            f"init.run = {settings.run!r} was trained with another parameterization "
            f"than this config's {experiment.config.parameterization!r}: its network "
            "reads the time differently"
        )
    abstract = abstract_net(network, mesh, experiment.config)
    loaded = load_average(settings.run, name, abstract)
    fresh = jax.jit(
        experiment.init_params,
        out_shardings=sharding.tree_shardings(
            experiment.abstract_params(), mesh, mesh_rules(experiment.config)
        ),
    )()
    loaded = _with_new_inputs(
        loaded, fresh["net"], experiment.network.consumes - network.consumes
    )
    checkpoint.check_shapes(f"init.run = {settings.run}", loaded, fresh["net"])
    return {**fresh, "net": loaded}


def _with_new_inputs(
    loaded: dict[str, Any], fresh: dict[str, Any], inputs: frozenset[str]
) -> dict[str, Any]:
    """``loaded`` with the fresh layers, named after their input, that it lacks."""
    filled = dict(loaded)
    for key, value in fresh.items():
        if key in loaded and isinstance(value, dict):
            filled[key] = _with_new_inputs(loaded[key], value, inputs)
        elif key not in loaded and any(name in key.split("_") for name in inputs):
            filled[key] = value
    return filled


def mesh_rules(config: ConfigDict) -> tuple:
    """Sharding rules: those of the config, then the defaults."""
    return (*config.mesh.rules, *sharding.DEFAULT_RULES)
