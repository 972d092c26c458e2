"""Looks into a consistency objective through its public call.

A student ``F = F0(x, cond) + shift`` with one trainable vector per example shows the
regression target as its gradient: at ``shift = 0`` the residual is ``-g``, so the
gradient of the summed loss is ``-2/D e^w g``.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scm_jax import trigflow
from scm_jax.trigflow.exact import Gaussian
from scm_jax.types import Batch, Cond

SD = 0.5
DATA = Gaussian(mean=(0.7, -0.4), std=0.3)


class Seen(NamedTuple):
    """What an objective did with one batch; arrays of ``(b, ...)``."""

    g: jax.Array  # the target after normalization, with its sign
    x_t: jax.Array
    cond: Cond  # of the student; its t is the time
    teacher_cond: Cond | None
    loss: jax.Array  # per example
    metrics: dict[str, Any]


def look(objective, F0, x0, *, label=None, step=10**9, teacher=None, seed=0) -> Seen:
    """Runs the objective once on the student ``F0(x, cond)``.

    ``teacher(x, cond) -> F``. Without one the objective must make separate passes, so
    that the student is called outside of the tangent.
    """
    run = _compiled(objective, F0, teacher)
    g, per_example, metrics, seen = run(
        x0, label, jax.random.key(seed), jnp.int32(step)
    )
    x, cond = seen["student"]
    teacher_cond = seen["teacher"][1] if teacher else None
    return Seen(g, x * objective.sigma_data, cond, teacher_cond, per_example, metrics)


@functools.cache
def _compiled(objective, F0, teacher):
    @jax.jit
    def run(x0, label, key, step):
        seen = {}

        def teacher_fn(x, cond):
            seen["teacher"] = (x, cond)
            return teacher(x, cond)

        def net_fn(params, x, cond, *, train, key):
            assert train
            seen.setdefault("student", (x, cond))
            return F0(x, cond) + params["shift"]

        def loss(shift):
            out = objective(
                net_fn,
                {"net": {"shift": shift}, "objective": objective.init(key)},
                Batch(x=x0, label=label),
                key=key,
                step=step,
                teacher_fn=teacher_fn if teacher else None,
            )
            # Under the shared pass the student only ever sees tracers of its jvp.
            if objective.tangent_pass == "shared":
                seen["student"] = seen["teacher"]
            return jnp.sum(out.per_example), (out.per_example, out.metrics, seen)

        grad, aux = jax.grad(loss, has_aux=True)(jnp.zeros_like(x0))
        return -x0[0].size / 2 * grad, *aux

    return run


def exact_teacher(x, cond):
    """``F`` of a perfect diffusion network of ``DATA``."""
    return DATA.velocity(x * SD, cond.t, SD) / SD


def consistent_student(x, cond):
    """``F`` of the exact consistency function of ``DATA``."""
    return DATA.consistency_velocity(x * SD, cond.t, SD) / SD


def bent_student(x, cond):
    """Some smooth non-linear network that mixes elements and knows the time."""
    t = trigflow.expand(cond.t, x)
    mixed = jnp.roll(x, 1, axis=-1)
    return jnp.sin(1.3 * x + 0.4 * mixed * t + 0.2) - 0.5 * jnp.cos(2 * t) * x + 0.3
