"""Multiply-adds of a forward pass and of a training step, counted on the jaxpr."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from scm_jax.cost import counts
from scm_jax.runs.setup import parts
from scm_jax.runs.setup.experiment import Experiment


def macs_per_image(experiment: Experiment) -> dict[str, int]:
    """Multiply-adds of a forward pass and of a training step, by their names."""
    x, cond = experiment.network.example(1)
    params = experiment.abstract_params()["net"]
    return {
        "forward_macs_per_image": counts.count_macs(
            experiment.network.apply, params, x, cond
        ),
        "train_macs_per_image": train_macs(experiment),
    }


def train_macs(experiment: Experiment, batch_size: int | None = None) -> int:
    """Multiply-adds of loss and gradient, per image of a batch of at most 16."""
    batch_size = batch_size or min(experiment.config.train.batch_size, 16)
    loss, args = training_loss(experiment, batch_size)
    return counts.count_macs(jax.value_and_grad(loss), *args) // batch_size


def training_loss(
    experiment: Experiment, batch_size: int
) -> tuple[Callable[..., jax.Array], tuple[Any, ...]]:
    """``loss(params, ...)`` of a training step, and shapes to trace it with."""

    teacher, weights = experiment.teacher, None
    if teacher is not None and teacher.network is not None:
        weights = parts.abstract_init(teacher.network)

    def loss(params: Any, weights: Any, batch: Any, key: Any, step: Any) -> jax.Array:
        fn = None if teacher is None else functools.partial(teacher.fn, weights)
        apply = experiment.network.apply
        return experiment.objective(
            apply, params, batch, key=key, step=step, teacher_fn=fn
        ).loss

    return loss, (
        experiment.abstract_params(),
        weights,
        experiment.example_batch(batch_size),
        jax.eval_shape(lambda: jax.random.key(0)),
        jax.ShapeDtypeStruct((), jnp.int32),
    )
