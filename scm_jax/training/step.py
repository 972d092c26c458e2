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
from scm_jax.training.state import Player, TrainState
from scm_jax.types import Batch, NetFn

TrainStep = Callable[[TrainState, Batch, Any], tuple[TrainState, dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Weights:
    """What happens to a network's parameters around a pass and an update.

    Attributes:
      fold: parameters -> what ``net_fn`` takes, such as normalized weights in the
        compute dtype; differentiated once, after the sum over microbatches.
      keep: constrains such weights, and their gradient, to where they are stored.
      project: what an update is followed by, such as forced weight normalization; every
        EMA is taken of what it returns.
    """

    fold: Callable[[Any], Any] = lambda params: params
    keep: Callable[[Any], Any] = lambda weights: weights
    project: Callable[[Any], Any] = lambda params: params

    def gradient(
        self, grad_fn: Callable[..., Any], params: dict[str, Any], *args: Any
    ) -> tuple[dict[str, Any], Any]:
        """Mean gradient of ``params`` over parts of a batch, and its metrics.

        ``grad_fn(params, batch, key)`` differentiates by folded ``params["net"]``;
        ``args`` are the batch, the key and the number of parts.
        """
        weights, pull = jax.vjp(self.fold, params["net"])
        folded = {**params, "net": self.keep(weights)}

        def kept(batch: Batch, key: jax.Array) -> Any:
            grads, metrics = grad_fn(folded, batch, key)
            return {**grads, "net": self.keep(grads["net"])}, metrics

        grads, metrics = _over_parts(kept, self.keep, *args)
        like = jax.tree.map(lambda w, g: g.astype(w.dtype), weights, grads["net"])
        return {**grads, "net": pull(like)[0]}, metrics

    def update(
        self,
        optimizer: optax.GradientTransformation,
        grads: Any,
        state: Any,
        params: Any,
    ) -> tuple[dict[str, Any], Any]:
        """New parameters and the optimizer's new state."""
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return {**params, "net": self.project(params["net"])}, state


@dataclasses.dataclass(frozen=True)
class CriticStep:
    """How the second network of an objective is trained: an update in every step.

    Attributes:
      net_fn: the critic's network.
      optimizer: over ``{"net": params}``.
      weights: of the critic.
      student_every: the student is updated in one step of so many, the last of them.
      ema: the EMA that scores the student's samples; None for the parameters.
    """

    net_fn: NetFn
    optimizer: optax.GradientTransformation
    weights: Weights = Weights()
    student_every: int = 1
    ema: EmaProfile | None = None


def make_train_step(
    objective: Objective,
    net_fn: NetFn,
    optimizer: optax.GradientTransformation,
    ema_profiles: Mapping[str, EmaProfile],
    *,
    teacher_fn: Callable[..., jax.Array] | None = None,
    weights: Weights = Weights(),
    critic: CriticStep | None = None,
    num_microbatches: int = 1,
) -> TrainStep:
    """``step(state, batch, teacher_params) -> (state, metrics)``, pure and traceable.

    Args:
      objective: what is minimized.
      net_fn: the network.
      optimizer: over ``state.params``.
      ema_profiles: the profile of each name of ``state.ema``.
      teacher_fn: ``F = teacher_fn(teacher_params, x, cond)``, or None.
      weights: of the network.
      critic: for an objective that needs one. Both networks are updated from the state
        before the step.
      num_microbatches: parts of a batch whose gradients are averaged before one update;
        must divide the batch.

    Returns:
      The step. ``metrics["finite"]`` says whether the data, the losses and the
      gradients were finite; the loop refuses an update that was not.
    """

    def loss_fn(
        params: Any, batch: Batch, key: jax.Array, step: jax.Array, bound: Any
    ) -> tuple[jax.Array, dict[str, Any]]:
        out = objective(net_fn, params, batch, key=key, step=step, **bound)
        return out.loss, {"loss": out.loss, **out.metrics}

    def update_student(
        state: TrainState, batch: Batch, key: jax.Array, bound: Any
    ) -> tuple[Any, ...]:
        def grad_fn(params: Any, batch: Batch, key: jax.Array) -> Any:
            grad = jax.grad(loss_fn, has_aux=True)
            return grad(params, batch, key, state.step, bound)

        args = state.params, batch, key, num_microbatches
        grads, metrics = weights.gradient(grad_fn, *args)
        metrics["grad_norm"] = optax.tree.norm(grads)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        old = state.opt_state, state.params
        return *weights.update(optimizer, grads, *old), metrics, finite

    def step(
        state: TrainState, batch: Batch, teacher_params: Any = None
    ) -> tuple[TrainState, dict[str, Any]]:
        key = jax.random.fold_in(state.key, state.step)
        fn: Any = teacher_fn and functools.partial(teacher_fn, teacher_params)
        bound: dict[str, Any] = {"teacher_fn": fn}
        found: dict[str, Any] = {}
        finite, player = jnp.all(jnp.isfinite(batch.x)), state.critic
        student: Any = functools.partial(update_student, state, batch, key, bound)
        if critic is not None and player is not None:
            bound["critic_fn"] = _scorer(critic, player)
            args = objective, critic, net_fn, weights, num_microbatches
            player, found = _update_critic(*args, state, batch, key)
            finite &= jnp.isfinite(found["critic_loss"] + found["critic_grad_norm"])
            student = functools.partial(_sometimes, student, state, critic)
        params, opt_state, metrics, good = student()
        ema = {}
        for name, profile in ema_profiles.items():
            w = profile.update_weight(state.step, batch.x.shape[0])  # 1 - beta
            ema[name] = _averaged(state.ema[name], params["net"], w)
        new = TrainState(state.step + 1, params, opt_state, ema, state.key, player)
        return new, {**metrics, **found, "finite": finite & good}

    return step


def _averaged(ema: Any, params: Any, w: jax.Array) -> Any:
    return jax.tree.map(lambda e, p: e + w * (p - e), ema, params)


def _scorer(critic: CriticStep, player: Player) -> Callable[..., jax.Array]:
    """``F = fn(x, cond)`` of the critic; no gradient reaches its parameters."""
    params = player.params if critic.ema is None else player.ema
    folded = critic.weights.keep(critic.weights.fold(params))
    return functools.partial(critic.net_fn, jax.lax.stop_gradient(folded))


def _update_critic(
    objective: Any,
    critic: CriticStep,
    net_fn: NetFn,
    weights: Weights,
    parts: int,
    state: TrainState,
    batch: Batch,
    key: jax.Array,
) -> tuple[Player, dict[str, Any]]:
    """The critic after an update on samples of the student as it is."""
    player, step = state.critic, state.step
    assert player is not None
    folded = weights.keep(weights.fold(state.params["net"]))
    student = {**state.params, "net": jax.lax.stop_gradient(folded)}

    def loss_fn(params: Any, batch: Batch, key: jax.Array) -> Any:
        players = net_fn, student, critic.net_fn, params["net"]
        loss = objective.critic_loss(*players, batch, key=key, step=step)
        return loss, {"critic_loss": loss}

    grad_fn, params = jax.grad(loss_fn, has_aux=True), {"net": player.params}
    key = jax.random.fold_in(key, 1)
    grads, metrics = critic.weights.gradient(grad_fn, params, batch, key, parts)
    metrics["critic_grad_norm"] = optax.tree.norm(grads)
    old = player.opt_state, params
    new, opt_state = critic.weights.update(critic.optimizer, grads, *old)
    ema = player.ema
    if critic.ema is not None:
        w = critic.ema.update_weight(step, batch.x.shape[0])
        ema = _averaged(ema, new["net"], w)
    return Player(new["net"], opt_state, ema), metrics


def _sometimes(
    student: Callable[[], tuple[Any, ...]], state: TrainState, critic: CriticStep
) -> tuple[Any, ...]:
    """The student's update in the last of every ``student_every`` steps.

    Its metrics are multiplied by that number, and 0 in the other steps: means over
    whole cycles are those of the updates.
    """
    if (every := critic.student_every) == 1:
        return student()
    shapes = jax.eval_shape(student)[2]

    def skip() -> tuple[Any, ...]:
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        return state.params, state.opt_state, zeros, jnp.asarray(True)

    def update() -> tuple[Any, ...]:
        params, opt_state, metrics, finite = student()
        return params, opt_state, jax.tree.map(lambda a: a * every, metrics), finite

    return jax.lax.cond(state.step % every == every - 1, update, skip)


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
    bins = {k: metrics.pop(k) for k in ("bins",) if k in metrics}  # sums, not means
    grads, metrics = jax.tree.map(lambda a: a / parts, (grads, metrics))
    return grads, {**metrics, **bins}


def _split(a: jax.Array, parts: int) -> jax.Array:
    if a.shape[0] % parts:
        raise ValueError(
            f"train.microbatches = {parts} does not divide the batch of {a.shape[0]}"
        )
    # Each part takes every parts-th example: no device hands examples to another.
    return a.reshape(a.shape[0] // parts, parts, *a.shape[1:]).swapaxes(0, 1)
