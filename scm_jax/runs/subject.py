"""A set of parameters as the callables that evaluators need."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scm_jax import sampling, trigflow
from scm_jax.datasets import front_ends
from scm_jax.evaluation.features.extraction import FeatureNet
from scm_jax.evaluation.subject import Subject
from scm_jax.objectives import Diffusion, two_times
from scm_jax.runs import reference_stats
from scm_jax.runs.conditions import asked
from scm_jax.runs.sample import Generator
from scm_jax.runs.setup import parts, start
from scm_jax.runs.setup.experiment import Experiment
from scm_jax.runs.setup.parts import Teacher
from scm_jax.trigflow import Time
from scm_jax.types import Cond, conditions


def make_subject(
    experiment: Experiment,
    net_params: Any,
    generate: Generator | None = None,
) -> Subject:
    """The callables and the real data."""
    dataset, info = experiment.dataset, experiment.dataset.info
    network, sigma_data = experiment.network, info.sigma_data

    @jax.jit
    def f(x_t: jax.Array, t: jax.Array, given: Cond | None) -> jax.Array:
        cond = _condition(experiment, given, t)
        F = network.apply(net_params, x_t / sigma_data, cond)
        return trigflow.f_from_F(x_t, F, t, sigma_data)

    generator = generate or Generator(experiment, net_params)
    return Subject(
        sigma_data=sigma_data,
        generate=generator,
        f=f,
        reference=functools.cache(dataset.arrays) if info.num_items else None,
        to_pixels=info.to_pixels,
        to_sound=info.to_sound,
        sample_rate=info.sample_rate,
        sample_shape=info.sample_shape,
        spectrograms=functools.partial(front_ends.spectrograms, rate=info.sample_rate),
        **_two_times(experiment, net_params),
        closed_form=dataset.closed_form,
        batch=functools.partial(_held_out_batch, experiment),
        validation_error=_validation_error(experiment, net_params),
        teacher_paths=functools.partial(_teacher_paths, experiment),
        quantization=lambda: generator.quantization,
        dataset=info.name,
        questions=info.questions,
        reference_file=functools.partial(_reference_file, experiment),
    )


def _reference_file(experiment: Experiment, net: FeatureNet) -> Path:
    dataset, root = experiment.dataset, experiment.config.dataset.root
    path = reference_stats.default_path(dataset, net, root)
    reference_stats.measure(dataset, net, path)
    return path


def _condition(experiment: Experiment, given: Cond | None, t: jax.Array) -> Cond:
    guidance = None
    if "guidance" in experiment.network.consumes:
        guidance = jnp.full_like(t, experiment.config.sampling.guidance)
    # ``f`` of a map ends at time 0, where a denoiser's is the velocity at ``t``.
    denoises = isinstance(experiment.objective, Diffusion)
    dt = jnp.zeros_like(t) if denoises else t
    return dataclasses.replace(given or Cond(t=t), t=t, dt=dt, guidance=guidance)


def _held_out_batch(
    experiment: Experiment, num: int, seed: int
) -> tuple[jax.Array, Cond]:
    """``num`` items of ``eval.split``, or of the training split if it is empty."""
    config = experiment.config
    dataset = experiment.dataset
    if config.eval.split:
        dataset = parts.build_dataset(config, config.eval.split)
    batch = jax.jit(dataset.to_batch)(next(dataset.iterator(num, seed)))
    return batch.x, Cond(t=jnp.zeros((num,)), **conditions(batch))


def _validation_error(
    experiment: Experiment, net_params: Any
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Errors of the run's own objective, and of ``f`` against the data."""
    sigma_data, objective = experiment.dataset.info.sigma_data, experiment.objective
    teacher = functools.cache(functools.partial(reference_teacher, experiment))

    @jax.jit
    def errors(
        params: Any, weights: Any, x0: Any, z: Any, time: Any, given: Any
    ) -> Any:
        net = functools.partial(experiment.network.apply, params, dtype="float32")
        cond = _condition(experiment, given, time.t)
        teacher_fn = None
        if objective.needs_teacher:
            teacher_fn = functools.partial(teacher()[0].fn, weights)
        error = objective.validation_error(net, x0, z, time, cond, teacher_fn)
        x_t = trigflow.interpolate(x0, z, time)
        f = trigflow.f_from_F(x_t, net(x_t / sigma_data, cond), time, sigma_data)
        squares = jnp.square(f - x0).reshape(len(x0), -1)
        return error, squares.mean(axis=-1)

    def call(x0: Any, z: Any, time: Any, given: Any) -> tuple[jax.Array, jax.Array]:
        weights = teacher()[1] if objective.needs_teacher else None
        return errors(net_params, weights, x0, z, time, given)

    return call


# --- Two times ------------------------------------------------------------------------


def _two_times(experiment: Experiment, net_params: Any) -> dict[str, Any]:
    """``flow_map`` and ``map_residuals`` of a network that takes a second time."""
    network, sigma_data = experiment.network, experiment.dataset.info.sigma_data
    if "dt" not in network.consumes:
        return {}
    teacher = functools.cache(functools.partial(_velocity, experiment))

    @jax.jit
    def X(x_t: jax.Array, t: Time, s: Time, given: Cond | None) -> jax.Array:
        cond = _condition(experiment, given, t.t)
        cond = dataclasses.replace(cond, dt=trigflow.between(t, s).t)
        U = network.apply(net_params, x_t / sigma_data, cond)
        return trigflow.flow_map(x_t, U, t, s, sigma_data)

    @jax.jit
    def errors(params: Any, weights: Any, *given: Any) -> dict[str, jax.Array]:
        x0, z, t, s, cond = given
        net = functools.partial(network.apply, params, dtype="float32")
        fn = (
            net if (own := teacher()[0]) is None else functools.partial(own.fn, weights)
        )
        rows = two_times.Rows(x0, z, t, s, _condition(experiment, cond, t.t))
        return two_times.residuals(net, fn, rows, sigma_data)

    return {
        "flow_map": X,
        "map_residuals": lambda *given: errors(net_params, teacher()[1], *given),
    }


def _velocity(experiment: Experiment) -> tuple[Teacher | None, Any]:
    """That of ``reference_teacher``; None where the run has none."""
    config = experiment.config
    if config.teacher.run or config.init.run or experiment.dataset.closed_form:
        return reference_teacher(experiment)
    return None, None


# --- The teacher of a run that is measured --------------------------------------------


def reference_teacher(experiment: Experiment) -> tuple[Teacher, Any]:
    """The teacher that a run is measured against, and its parameters.

    It is ``teacher.run``, else the run that this one started from, else the exact
    velocity of data in closed form.

    Raises:
      ValueError: there is none of these.
      FileNotFoundError: its directory is gone.
    """
    config, dataset = experiment.config, experiment.dataset
    scale = config.teacher.guidance
    if "guidance" in experiment.network.consumes:
        scale = config.sampling.guidance
    source = config.teacher if config.teacher.run else config.init
    if source.run:
        network, name = parts.saved_network(source.run, source.ema, dataset)
        abstract = parts.abstract_init(network)
        params = start.load_average(source.run, name, abstract)
        return Teacher(network, source.run, name, scale), params
    if dataset.closed_form is None:
        raise ValueError(
            "this evaluator needs a teacher: the run's config has neither "
            "teacher.run nor init.run, and its data no closed form"
        )
    return parts.exact_teacher(dataset), None


def _teacher_paths(
    experiment: Experiment, num: int, steps: int, seed: int
) -> tuple[np.ndarray, jax.Array, Cond]:
    """Heun paths of the teacher from the noise of ``generate``'s samples."""
    info = experiment.dataset.info
    teacher, params = reference_teacher(experiment)
    grid = sampling.make_grid("heun", steps, info.sigma_data)
    t, fields = jnp.zeros((num,)), asked(info, num)
    rows: dict[str, Any] = {name: jnp.asarray(a) for name, a in fields.items()}
    given = Cond(t=t, **rows)

    @jax.jit
    def run(params: Any, keys: jax.Array, cond: Cond) -> jax.Array:
        fn = functools.partial(teacher.fn, params)
        problem = (fn, keys, cond, grid, info.sample_shape, info.sigma_data)
        return sampling.heun_path(sampling.Problem(*problem))

    keys = sampling.sample_keys(seed, np.arange(num))
    return grid, run(params, keys, _condition(experiment, given, t)), given
