"""Guidance: wrappers of the callable ``fn(x_t / sigma_data, cond) -> F``."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from scm_jax.trigflow import expand
from scm_jax.types import Cond, conditions, without_condition

Fn = Callable[[jax.Array, Cond], jax.Array]


def with_guidance(fn: Fn, scale: float | None = None) -> Fn:
    """Classifier-free guidance ``F(null) + s (F(cond) - F(null))``.

    ``s`` is ``scale``, or ``cond.guidance`` per sample when ``scale`` is None. Both
    branches run as one batch; the scale 1 is the conditional model and runs no other.
    A network that takes the guidance scale as an input gets 1 (unguided) in both. An
    encoded ``cond`` brings its encoded null condition as ``cond.null``.
    """

    def guided(x: jax.Array, cond: Cond) -> jax.Array:
        s = cond.guidance if scale is None else jnp.full_like(cond.t, scale)
        if s is None:
            raise ValueError("guidance needs a scale, or a Cond with guidance")
        one = None if cond.guidance is None else jnp.ones_like(s)
        unguided = dataclasses.replace(cond, guidance=one, null=None)
        if _is_one(scale):
            return fn(x, unguided)
        if cond.null is not None:
            null = dataclasses.replace(cond.null, t=cond.t, dt=cond.dt, guidance=one)
        elif conditions(cond):
            null = without_condition(unguided)
        else:
            raise ValueError("guidance needs class labels or captions")
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), unguided, null)
        F_cond, F_null = jnp.split(fn(jnp.concatenate([x, x]), both), 2)
        return F_null + expand(s, x) * (F_cond - F_null)

    return guided


def with_autoguidance(fn: Fn, weak_fn: Fn, scale: float) -> Fn:
    """Autoguidance (arXiv 2406.02507): ``F_weak + scale (F - F_weak)``; at 1 ``fn``."""
    if _is_one(scale):
        return fn

    def guided(x: jax.Array, cond: Cond) -> jax.Array:
        F_weak = weak_fn(x, cond)
        return F_weak + scale * (fn(x, cond) - F_weak)

    return guided


def with_interval(fn: Fn, guided_fn: Fn, t_low: float, t_high: float) -> Fn:
    """Guidance in ``t_low < t <= t_high`` only (arXiv 2404.07724), ``fn`` elsewhere."""
    if guided_fn is fn:
        return fn

    def chosen(x: jax.Array, cond: Cond) -> jax.Array:
        inside = (cond.t > t_low) & (cond.t <= t_high)
        return jnp.where(expand(inside, x), guided_fn(x, cond), fn(x, cond))

    return chosen


def _is_one(scale: Any) -> bool:
    """Whether a scale is known to be 1 before anything is traced."""
    return isinstance(scale, numbers.Real) and scale == 1
