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
    """Multiply-adds of loss and gradient, per image of a batch of at most 16.

    Those of a critic's step are among them; see ``train_macs_by_role``.
    """
    batch_size = batch_size or min(experiment.config.train.batch_size, 16)
    loss, args = training_loss(experiment, batch_size)
    macs = counts.count_macs(jax.value_and_grad(loss), *args)
    macs //= batch_size * student_every(experiment)
    return macs + critic_macs(experiment, batch_size)


def train_macs_by_role(experiment: Experiment, total: int) -> dict[str, int]:
    """Multiply-adds of a step by what they are for, per image; ``total`` of them.

    ``forward`` are the student's passes, tangents and targets among them; ``backward``
    is their gradient; ``teacher`` and ``critic`` are evaluations of these networks for
    the student; ``critic_training`` is the critic's own step, with the samples that it
    is made of. Work that is not done in every step is a mean.
    """
    batch_size = min(experiment.config.train.batch_size, 16)
    loss, args = training_loss(experiment, batch_size)
    every, whole = student_every(experiment), counts.count_macs(loss, *args)
    roles = {}
    for role in ("teacher", "critic"):
        if getattr(experiment, role) is not None:
            without, others = training_loss(experiment, batch_size, free=(role,))
            roles[role] = whole - counts.count_macs(without, *others)
    roles["forward"] = whole - sum(roles.values())
    per_image = {k: v // (batch_size * every) for k, v in roles.items()}
    per_image["critic_training"] = critic_macs(experiment, batch_size)
    per_image["backward"] = total - sum(per_image.values())
    return {k: v for k, v in per_image.items() if v}


def student_every(experiment: Experiment) -> int:
    """Steps in which a critic is updated, for one of the student."""
    return experiment.config.critic.student_every if experiment.critic else 1


def critic_macs(experiment: Experiment, batch_size: int) -> int:
    """Multiply-adds of the critic's loss and gradient, per image; 0 without one."""
    if experiment.critic is None:
        return 0
    loss, args = critic_loss(experiment, batch_size)
    return counts.count_macs(jax.value_and_grad(loss), *args) // batch_size


def training_loss(
    experiment: Experiment, batch_size: int, free: tuple[str, ...] = ()
) -> tuple[Callable[..., jax.Array], tuple[Any, ...]]:
    """``loss(params, ...)`` of a training step, and shapes to trace it with.

    The evaluations of the networks in ``free``, teacher or critic, cost nothing.
    """
    critic, teacher = experiment.critic, experiment.teacher
    taught = teacher.network if teacher is not None else None
    abstract = [None if n is None else parts.abstract_init(n) for n in (taught, critic)]

    def nothing(x: jax.Array, cond: Any) -> jax.Array:
        return jnp.zeros_like(x)

    def loss(
        params: Any, weights: Any, critic_params: Any, batch: Any, key: Any, step: Any
    ) -> jax.Array:
        bound: dict[str, Any] = {"teacher_fn": None}
        if teacher is not None:
            bound["teacher_fn"] = functools.partial(teacher.fn, weights)
        if critic is not None:
            bound["critic_fn"] = functools.partial(critic.apply, critic_params)
        bound |= {f"{role}_fn": nothing for role in free if f"{role}_fn" in bound}
        apply = experiment.network.apply
        return experiment.objective(
            apply, params, batch, key=key, step=step, **bound
        ).loss

    return loss, (
        experiment.abstract_params(),
        *abstract,
        *_given(experiment, batch_size),
    )


def critic_loss(
    experiment: Experiment, batch_size: int
) -> tuple[Callable[..., jax.Array], tuple[Any, ...]]:
    """``loss(critic_params, ...)`` of the critic's step, and shapes for it."""
    critic = experiment.critic
    objective: Any = experiment.objective  # has a critic_loss
    assert critic is not None

    def loss(critic_params: Any, params: Any, batch: Any, key: Any, step: Any) -> Any:
        players = experiment.network.apply, params, critic.apply, critic_params
        return objective.critic_loss(*players, batch, key=key, step=step)

    both = parts.abstract_init(critic), experiment.abstract_params()
    return loss, (*both, *_given(experiment, batch_size))


def _given(experiment: Experiment, batch_size: int) -> tuple[Any, ...]:
    return (
        experiment.example_batch(batch_size),
        jax.eval_shape(lambda: jax.random.key(0)),
        jax.ShapeDtypeStruct((), jnp.int32),
    )
