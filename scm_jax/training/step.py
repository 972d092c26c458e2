"""One pure training step: loss, gradient, update, EMA."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from scm_jax.objectives.base import Objective
from scm_jax.training.ema import EmaProfile
from scm_jax.training.state import TrainState
from scm_jax.types import Batch, NetFn

TrainStep = Callable[[TrainState, Batch, Any], tuple[TrainState, dict[str, Any]]]


def make_train_step(
    objective: Objective,
    net_fn: NetFn,
    optimizer: optax.GradientTransformation,
    ema_profiles: Mapping[str, EmaProfile],
    *,
    teacher_fn: Callable[..., jax.Array] | None = None,
    fold: Callable[[Any], Any] = lambda params: params,
    keep: Callable[[Any], Any] = lambda weights: weights,
    project: Callable[[Any], Any] | None = None,
    num_microbatches: int = 1,
) -> TrainStep:
    """``step(state, batch, teacher_params) -> (state, metrics)``, pure and traceable.

    Args:
      objective: what is minimized.
      net_fn: the network.
      optimizer: over ``state.params``.
      ema_profiles: the profile of each name of ``state.ema``.
      teacher_fn: ``F = teacher_fn(teacher_params, x, cond)``, or None.
      fold: ``params["net"]`` -> what ``net_fn`` takes, such as normalized weights in
        the compute dtype; differentiated once, after the sum over microbatches.
      keep: constrains such weights, and their gradient, to where they are stored.
      project: what an update is followed by on ``params["net"]``, such as forced weight
        normalization; every EMA is taken of what it returns.
      num_microbatches: parts of a batch whose gradients are averaged before one update;
        must divide the batch.

    Returns:
      The step. ``metrics["finite"]`` says whether the data, the loss and the gradient
      were finite; the loop refuses an update that was not.
    """

    def loss_fn(
        params: Any, batch: Batch, key: jax.Array, step: jax.Array, teacher: Any
    ) -> tuple[jax.Array, dict[str, Any]]:
        bound = teacher_fn and functools.partial(teacher_fn, teacher)
        out = objective(net_fn, params, batch, key=key, step=step, teacher_fn=bound)
        return out.loss, {"loss": out.loss, **out.metrics}

    def gradients(state: TrainState, batch: Batch, key: jax.Array, teacher: Any) -> Any:
        weights, pull = jax.vjp(fold, state.params["net"])
        params = {**state.params, "net": keep(weights)}

        def grad_fn(batch: Batch, key: jax.Array) -> Any:
            grads, metrics = jax.grad(loss_fn, has_aux=True)(
                params, batch, key, state.step, teacher
            )
            return {**grads, "net": keep(grads["net"])}, metrics

        grads, metrics = _over_parts(grad_fn, keep, batch, key, num_microbatches)
        like = jax.tree.map(lambda w, g: g.astype(w.dtype), weights, grads["net"])
        return {**grads, "net": pull(like)[0]}, metrics

    def step(
        state: TrainState, batch: Batch, teacher_params: Any = None
    ) -> tuple[TrainState, dict[str, Any]]:
        key = jax.random.fold_in(state.key, state.step)
        grads, metrics = gradients(state, batch, key, teacher_params)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)
        finite &= jnp.all(jnp.isfinite(batch.x))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if project is not None:
            params = {**params, "net": project(params["net"])}
        ema = {}
        for name, profile in ema_profiles.items():
            w = profile.update_weight(state.step, batch.x.shape[0])  # 1 - beta
            ema[name] = jax.tree.map(
                lambda e, p, w=w: e + w * (p - e), state.ema[name], params["net"]
            )
        new = dataclasses.replace(
            state, step=state.step + 1, params=params, opt_state=opt_state, ema=ema
        )
        return new, {**metrics, "grad_norm": grad_norm, "finite": finite}

    return step


def _over_parts(
    grad_fn: Callable[[Batch, jax.Array], Any],
    keep: Callable[[Any], Any],
    batch: Batch,
    key: jax.Array,
    parts: int,
) -> Any:
    """Mean gradient and metrics over parts of a batch, one after the other."""
    if parts == 1:
        return grad_fn(batch, key)

    def body(total: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        new = jax.tree.map(lambda t, a: t + a.astype(t.dtype), total, grad_fn(*part))
        return new, None

    pieces = jax.tree.map(lambda a: _split(a, parts), batch)
    keys = jax.random.split(key, parts)
    shapes = jax.eval_shape(grad_fn, *jax.tree.map(lambda a: a[0], (pieces, keys)))
    # Sums stay in float32, whatever the parts have.
    zeros = jax.tree.map(
        lambda a: jnp.zeros(a.shape, jnp.promote_types(a.dtype, jnp.float32)), shapes
    )
    zeros = {**zeros[0], "net": keep(zeros[0]["net"])}, zeros[1]
    (grads, metrics), _ = jax.lax.scan(body, zeros, (pieces, keys))
    bins = metrics.pop("bins")  # sums over the batch, all else is a mean
    grads, metrics = jax.tree.map(lambda a: a / parts, (grads, metrics))
    return grads, {**metrics, "bins": bins}


def _split(a: jax.Array, parts: int) -> jax.Array:
    if a.shape[0] % parts:
        raise ValueError(
            f"train.microbatches = {parts} does not divide the batch of {a.shape[0]}"
        )
    # Each part takes every parts-th example: no device hands examples to another.
    return a.reshape(a.shape[0] // parts, parts, *a.shape[1:]).swapaxes(0, 1)
