"""What objectives share: their protocol, the learned weight, the reductions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from scm_jax import trigflow
from scm_jax.trigflow import Time, expand, log_sigma
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

    @property
    def needs_critic(self) -> bool:
        """Whether calls need ``critic_fn``, and a step also minimizes ``critic_loss``.

        A critic is a second network, a diffusion model of the samples that the first
        one makes; see ``distribution.Matching``.
        """

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


def normalize(g: jax.Array, kind: str, eps: float) -> jax.Array:
    """Tangent normalization, per sample (Sec. 4.2): see ``Consistency``."""
    match kind:
        case "l2":
            return g / (expand(per_example_norm(g), g) + eps)
        case "rms":
            rms = per_example_norm(g) / (g[0].size ** 0.5)
            return g / (expand(rms, g) + eps)
        case "clip":
            return jnp.clip(g, -1.0, 1.0)
    return g


NORMALIZATIONS = ("l2", "rms", "clip", "none")


def warmup(step: jax.Array, steps: int) -> jax.Array:
    """``min(1, step/steps)``; 1 for 0 steps."""
    if not steps:
        return jnp.ones((), jnp.float32)
    return jnp.minimum(1.0, step.astype(jnp.float32) / steps)


def init_log_weight() -> dict[str, jax.Array]:
    """Parameters of ``log_weight``; it starts at 0 for every ``t``."""
    return {"kernel": jnp.zeros((WEIGHT_FEATURES,)), "bias": jnp.zeros(())}


def init_weights(objective: Any, key: jax.Array) -> Any:
    """Parameters of an objective: those of the weight network, if it learns one."""
    del key
    return {"log_weight": init_log_weight()} if objective.learned_weighting else {}


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


def adaptive(error: jax.Array, size: int, power: float, eps: float) -> jax.Array:
    """``e / stop(e + eps)^power`` of sums of squares ``e = size error``, ``(b,)``.

    Power 1/2 and eps 0 is L2 tangent normalization; power 0 changes nothing.
    """
    if not power:
        return error
    e = size * error
    return e / jax.lax.stop_gradient(jnp.power(e + eps, power))


def velocity(
    objective: Any,
    x0: jax.Array,
    z: jax.Array,
    x_t: jax.Array,
    time: Time,
    cond: Cond,
    teacher_fn: Callable[[jax.Array, Cond], jax.Array] | None,
) -> jax.Array:
    """``dx_t/dt``: of the pair ``(x0, z)``, or of the teacher's ODE."""
    if not objective.needs_teacher:
        return trigflow.velocity(x0, z, time)
    return teacher_velocity(objective, x_t, time, cond, teacher_fn)


def teacher_velocity(
    objective: Any, x: jax.Array, time: Time, cond: Cond, teacher_fn: Any
) -> jax.Array:
    """``sigma_data F_teacher(x / sigma_data, t)``, without gradient."""
    if teacher_fn is None:
        raise ValueError(
            "objective.dx_dt = 'teacher' needs a teacher: set teacher.run to its "
            "run directory, or objective.dx_dt = 'data'"
        )
    F = teacher_fn(x / objective.sigma_data, dataclasses.replace(cond, t=time.t))
    return jax.lax.stop_gradient(objective.sigma_data * F)


def guidance_scales(objective: Any, key: jax.Array, t: jax.Array) -> jax.Array | None:
    """Scales of ``objective.guidance_range`` per example; None without one.

    Uniform where a teacher is guided by them, log-uniform where the student's own
    velocity is (arXiv 2512.02012).
    """
    if (scales := objective.guidance_range) is None:
        return None
    if objective.needs_teacher:
        return jax.random.uniform(key, t.shape, t.dtype, *scales)
    low, high = np.log(scales)
    return jnp.exp(jax.random.uniform(key, t.shape, t.dtype, low, high))


def output(
    objective: Any,
    params: dict[str, Any],
    time: Time,
    error: jax.Array,
    weighted: jax.Array | None = None,
    bins: dict[str, jax.Array] | None = None,
    **metrics: jax.Array,
) -> LossOutput:
    """The result of an objective with ``error``, ``||residual||^2 / D``: ``(b,)``.

    The learned weight is a function of ``time``, where there is one; it multiplies
    ``weighted``, by default the error. ``bins`` are further values per example.
    """
    loss, sd = error if weighted is None else weighted, objective.sigma_data
    per_example, w = weighted_loss(params["objective"], time, loss, sd)
    metrics["squared_error"] = jnp.mean(error)
    values = {"loss": per_example, "log_weight": w, **(bins or {})}
    found = {**metrics, "bins": time_bins(time.t, **values)}
    return LossOutput(jnp.mean(per_example), per_example, found)


def time_bins(t: jax.Array, **values: jax.Array) -> dict[str, jax.Array]:
    """Sums of per-example values over ``NUM_TIME_BINS`` equal bins of ``[0, pi/2]``."""
    index = jnp.clip(t / (np.pi / 2) * NUM_TIME_BINS, 0, NUM_TIME_BINS - 1)
    one_hot = jax.nn.one_hot(index.astype(jnp.int32), NUM_TIME_BINS, dtype=t.dtype)
    sums = {name: a @ one_hot for name, a in values.items()}
    return {"count": jnp.sum(one_hot, axis=0), **sums}


def validation_error(
    objective: Any,
    net: Callable[[jax.Array, Cond], jax.Array],
    x0: jax.Array,
    z: jax.Array,
    time: Time,
    cond: Cond,
    teacher_fn: Any = None,
) -> jax.Array:
    """``||cos(t) df/dt||^2 / D`` of ``f = X_{t->0}``: that of ``Consistency``.

    So runs of all methods compare that follow the same velocity, data or teacher.
    """
    from scm_jax.objectives.consistency import Consistency  # which imports this file

    source = "teacher" if objective.needs_teacher else "data"
    plain = Consistency(dx_dt=source, sigma_data=objective.sigma_data)
    return plain.validation_error(net, x0, z, time, cond, teacher_fn)


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
    found = {"t", *names}
    if objective.first_frames:
        found.add("frames")
    if getattr(objective, "guidance_range", None) is not None:
        found.add("guidance")
    return frozenset(found)
