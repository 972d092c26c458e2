"""What objectives share: their protocol, the learned weight, the reductions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from scm_jax.trigflow import Time, log_sigma
from scm_jax.types import (
    Batch,
    Cond,
    NetFn,
    conditions,
    known_frames,
    without_condition,
)

NUM_TIME_BINS = 8
WEIGHT_FEATURES = 64


class LossOutput(NamedTuple):
    """Result of an objective.

    ``metrics`` are scalars, and under ``bins`` a dict of ``(NUM_TIME_BINS,)`` sums over
    the batch by time, with ``count`` among them.
    """

    loss: jax.Array  # scalar, the mean of per_example
    per_example: jax.Array  # (b,)
    metrics: dict[str, Any]


@runtime_checkable  # for checks of argument types in tests
class Objective(Protocol):
    """A frozen dataclass of hyperparameters with two pure functions."""

    @property
    def needs(self) -> frozenset[str]:
        """Fields of ``Cond`` that a network must consume."""

    @property
    def needs_teacher(self) -> bool:
        """Whether calls need ``teacher_fn``."""

    def init(self, key: jax.Array) -> Any:
        """Parameters of the objective itself (the weight network), maybe empty."""

    def __call__(
        self,
        net_fn: NetFn,
        params: dict[str, Any],
        batch: Batch,
        *,
        key: jax.Array,
        step: jax.Array,
        teacher_fn: Any = None,
    ) -> LossOutput:
        """Loss of one batch.

        Args:
          net_fn: ``F = net_fn(params["net"], x, cond, train=..., key=...)``.
          params: groups ``net`` and ``objective``.
          batch: data.
          key: key of noise, times, dropped labels and dropout.
          step: optimizer steps done so far, an int32 scalar.
          teacher_fn: ``F = teacher_fn(x, cond)`` where the objective needs one.
        """

    def validation_error(
        self,
        net: Callable[[jax.Array, Cond], jax.Array],
        x0: jax.Array,
        z: jax.Array,
        time: Time,
        cond: Cond,
        teacher_fn: Any = None,
    ) -> jax.Array:
        """What the objective minimizes, with weight 1 and without randomness: ``(b,)``.

        Two runs are comparable when data, noise ``z`` and times are the same, whatever
        their weighting, warmup or normalization.

        ``net`` is the network with its parameters, in float32, dropout off; ``z`` has
        the standard deviation ``sigma_data``; ``cond.t`` is not read.
        """


def per_example_mean(a: jax.Array) -> jax.Array:
    """Mean over all axes but the first: ``(b, ...) -> (b,)``."""
    return jnp.mean(a.reshape(a.shape[0], -1), axis=-1)


def per_example_norm(a: jax.Array) -> jax.Array:
    """L2 norm over all axes but the first: ``(b, ...) -> (b,)``."""
    return jnp.linalg.norm(a.reshape(a.shape[0], -1), axis=-1)


def init_log_weight() -> dict[str, jax.Array]:
    """Parameters of ``log_weight``; it starts at 0 for every ``t``."""
    return {"kernel": jnp.zeros((WEIGHT_FEATURES,)), "bias": jnp.zeros(())}


def log_weight(
    params: dict[str, jax.Array], time: Time, sigma_data: float
) -> jax.Array:
    """Learned log-weight ``w_phi(t)``, ``(b,) -> (b,)``; EDM2's ``logvar`` is ``-w``.

    A linear layer on 64 fixed features ``cos(k pi u), sin(k pi u)``, ``k = 0..31``, of
    ``u = (tau + 9)/18``, which maps noise levels from ``e^-9`` to ``e^9`` onto
    ``[0, 1]``. The paper says only that it follows EDM2 (fixed Fourier features of the
    noise level, one linear layer).
    """
    # Features of tau, unlike those of t, resolve both ends of [0, pi/2].
    tau = jnp.clip(log_sigma(time, sigma_data), -9.0, 9.0)
    u = (tau + 9.0) / 18.0
    k = np.arange(WEIGHT_FEATURES // 2, dtype=np.float32) * np.float32(np.pi)
    angles = u[:, None] * k[None, :]
    features = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return features @ params["kernel"] + params["bias"]


def weighted_loss(
    params: dict[str, Any], time: Time, squared_error: jax.Array, sigma_data: float
) -> tuple[jax.Array, jax.Array]:
    """``e^w squared_error - w`` per example (Eq. 8), and ``w``; ``(b,)`` each.

    ``squared_error`` is ``||residual||^2 / D``. Without ``log_weight`` among the
    objective's ``params``, ``w = 0``.
    """
    if "log_weight" not in params:
        return squared_error, jnp.zeros_like(squared_error)
    w = log_weight(params["log_weight"], time, sigma_data)
    return jnp.exp(w) * squared_error - w, w


def time_bins(t: jax.Array, **values: jax.Array) -> dict[str, jax.Array]:
    """Sums of per-example values over ``NUM_TIME_BINS`` equal bins of ``[0, pi/2]``."""
    index = jnp.clip(t / (np.pi / 2) * NUM_TIME_BINS, 0, NUM_TIME_BINS - 1)
    one_hot = jax.nn.one_hot(index.astype(jnp.int32), NUM_TIME_BINS, dtype=t.dtype)
    sums = {name: a @ one_hot for name, a in values.items()}
    return {"count": jnp.sum(one_hot, axis=0), **sums}


def condition(objective: Any, key: jax.Array, batch: Batch, **inputs: Any) -> Cond:
    """The conditions of a batch; with probability ``label_dropout`` there is none.

    With ``first_frames``, a third of the examples are told so many frames of their clip
    or fewer, but at least one. ``inputs`` are the other fields of ``Cond``.
    """
    cond, rate = Cond(**inputs, **conditions(batch)), objective.label_dropout
    if most := objective.first_frames:
        key, key_number = jax.random.split(key)
        number = jax.random.randint(key_number, (len(batch.x),), -2 * most, most) + 1
        frames = known_frames(batch.x / objective.sigma_data, number)
        cond = dataclasses.replace(cond, frames=frames)
    if not rate:
        return cond
    drop = jax.random.bernoulli(key, rate, (len(batch.x),))
    return without_condition(cond, drop)


def needs(objective: Any, *names: str) -> frozenset[str]:
    """Fields of ``Cond`` that a network must consume, those named among them."""
    return frozenset({"t", *names} | ({"frames"} if objective.first_frames else set()))
