"""What objectives of maps ``X_{t->s}`` share: pairs of times, rows, residuals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scm_jax import trigflow
from scm_jax.objectives import base
from scm_jax.trigflow import Time
from scm_jax.types import Batch, Cond, NetFn, check_choice

# Laws of (t, s); see ``draw_pairs``.
PAIRS = ("sorted", "gap", "zero", "uniform", "dyadic", "start")
DYADIC_LEVELS = 7  # the shortest step of ``dyadic`` is pi/2 over 2^7

# ``U = fn(x_t / sigma_data, t, dt)``: a network with its parameters and conditions.
MapFn = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class Rows(NamedTuple):
    """Examples of a batch at their times; all arrays have the same first axis."""

    x0: jax.Array
    z: jax.Array
    t: Time
    s: Time
    cond: Cond  # its times are not read

    @property
    def x_t(self) -> jax.Array:
        return trigflow.interpolate(self.x0, self.z, self.t)

    @property
    def dt(self) -> Time:
        return trigflow.between(self.t, self.s)

    @property
    def dx_dt(self) -> jax.Array:
        """Velocity of the pair ``(x0, z)``."""
        return trigflow.velocity(self.x0, self.z, self.t)


def check(objective: Any) -> None:
    """Raises ValueError for settings that no objective with two times can use."""
    check_choice(objective.pairs, PAIRS, "objective.pairs")
    for name in ("map_every", "P_std"):
        if getattr(objective, name, 1) <= 0:
            value = getattr(objective, name)
            raise ValueError(f"objective.{name} = {value}: must be above 0")


def draw_pairs(objective: Any, key: jax.Array, num: int) -> tuple[Time, Time]:
    """Times ``t >= s`` of ``num`` examples by the law ``objective.pairs``.

    With ``n ~ N(P_mean, P_std^2)``:

    - ``sorted``: the larger and the smaller of two log noise levels ``n`` (MeanFlow,
      whose logit-normal times are this law for data of standard deviation 1).
    - ``gap``: in shares of noise ``a = tan t / (1 + tan t)``: the gap is
      ``sigmoid(n)``, and ``s`` is uniform in what is left (AYF, TVM).
    - ``zero``: a log noise level ``n``, and ``s = 0``: a consistency model.
    - ``uniform``: both uniform in ``[0, pi/2]``, sorted (arXiv 2505.18825).
    - ``dyadic``: ``t - s`` is ``pi/2`` over a power of 2 and ``t`` a multiple of it
      (shortcut models, arXiv 2410.12557).
    - ``start``: ``t = pi/2``, noise alone, and ``s`` a log noise level (FreeFlow).
    """
    sd, law = objective.sigma_data, objective.pairs
    key_t, key_s = jax.random.split(key)
    normal = [
        objective.P_mean + objective.P_std * jax.random.normal(k, (num,), jnp.float32)
        for k in (key_t, key_s)
    ]
    zero = trigflow.time_from_t(jnp.zeros((num,), jnp.float32))
    match law:
        case "sorted":
            order = jnp.maximum(*normal), jnp.minimum(*normal)
            t, s = (trigflow.time_from_tau(tau, sd) for tau in order)
            return t, s
        case "gap":
            gap = jax.nn.sigmoid(normal[0])
            low = (1.0 - gap) * jax.random.uniform(key_s, (num,), jnp.float32)
            # A share of 1 is pi/2, where no noise level is finite.
            shares = jnp.minimum(low + gap, 1.0 - 1e-6), low
            t, s = (trigflow.time_from_sigma(sd * a / (1 - a), sd) for a in shares)
            return t, s
        case "zero":
            return trigflow.time_from_tau(normal[0], sd), zero
        case "start":
            one = jnp.ones_like(zero.t)
            half_turn = Time(np.float32(np.pi / 2) * one, 0.0 * one, one)
            return half_turn, trigflow.time_from_tau(normal[0], sd)
        case "dyadic":
            level = jax.random.randint(key_t, (num,), 0, DYADIC_LEVELS)
            steps = 2**level
            k = jax.random.randint(key_s, (num,), 0, steps) + 1
            step = np.float32(np.pi / 2) / steps.astype(jnp.float32)
            ends = (a.astype(jnp.float32) * step for a in (k, k - 1))
            t, s = (trigflow.time_from_t(a) for a in ends)
            return t, s
    a = jax.random.uniform(key_t, (2, num), jnp.float32, 0.0, np.pi / 2)
    return trigflow.time_from_t(a.max(axis=0)), trigflow.time_from_t(a.min(axis=0))


def draw_rows(objective: Any, batch: Batch, key: jax.Array) -> Rows:
    """A batch at its times, with noise and conditions."""
    key_pairs, key_z, key_label, key_scale = jax.random.split(key, 4)
    x0, sd = batch.x, objective.sigma_data
    t, s = draw_pairs(objective, key_pairs, len(x0))
    z = sd * jax.random.normal(key_z, x0.shape, x0.dtype)
    guidance = base.guidance_scales(objective, key_scale, t.t)
    inputs = {"t": t.t, "guidance": guidance}
    return Rows(x0, z, t, s, base.condition(objective, key_label, batch, **inputs))


def bind(net_fn: NetFn, params: Any, key: jax.Array) -> Callable[[Cond], MapFn]:
    """The network as a function of its conditions, then of input and both times."""

    def at(cond: Cond) -> MapFn:
        def fn(x: jax.Array, t: jax.Array, dt: jax.Array) -> jax.Array:
            given = dataclasses.replace(cond, t=t, dt=dt)
            return net_fn(params, x, given, train=True, key=key)

        return fn

    return at


def split(rows: Rows, every: int) -> tuple[Rows | None, Rows]:
    """Rows of the diagonal, and one in ``every`` that trains the map.

    The others get ``s = t``. Both kinds are spread over the batch, so that no device
    hands examples to another.
    """
    if every == 1:
        return None, rows
    if len(rows.x0) % every:
        raise ValueError(
            f"objective.map_every = {every} does not divide the batch of "
            f"{len(rows.x0)} examples of a device's part"
        )

    def part(a: jax.Array, which: slice) -> jax.Array:
        groups = a.reshape(-1, every, *a.shape[1:])[:, which]
        return groups.reshape(-1, *a.shape[1:])

    mapped = jax.tree.map(lambda a: part(a, slice(0, 1)), rows)
    diagonal = jax.tree.map(lambda a: part(a, slice(1, None)), rows)
    return diagonal._replace(s=diagonal.t), mapped


def join(diagonal: jax.Array | None, mapped: jax.Array, every: int) -> jax.Array:
    """Numbers ``(b,)`` of both kinds of rows, in the order of the batch."""
    if diagonal is None:
        return mapped
    groups = [mapped.reshape(-1, 1), diagonal.reshape(-1, every - 1)]
    return jnp.concatenate(groups, axis=1).reshape(-1)


def diagonal_error(fn: MapFn, rows: Rows, sigma_data: float) -> jax.Array:
    """``||sigma_data U(x_t, t, 0) - v_t||^2 / D``: the diffusion loss, ``(b,)``."""
    U = fn(rows.x_t / sigma_data, rows.t.t, jnp.zeros_like(rows.t.t))
    return base.per_example_mean(jnp.square(sigma_data * U - rows.dx_dt))


def output(
    objective: Any,
    params: dict[str, Any],
    at: Callable[[Cond], MapFn],
    diagonal: Rows | None,
    mapped: Rows,
    error: jax.Array,
) -> base.LossOutput:
    """The result of both kinds of rows; ``error`` is that of the ``mapped`` ones."""
    mean, time, every = jnp.mean(error), mapped.t, objective.map_every
    if diagonal is not None:
        both = zip(diagonal.t, mapped.t, strict=True)
        time = Time(*(join(*ab, every) for ab in both))
        other = diagonal_error(at(diagonal.cond), diagonal, objective.sigma_data)
        error = join(other, error, every)
    law = mapped.x0[0].size, objective.adaptive_power, objective.adaptive_eps
    weighted = base.adaptive(error, *law)
    return base.output(objective, params, time, error, weighted, map_error=mean)


def residuals(
    net: Callable[[jax.Array, Cond], jax.Array],
    velocity: Callable[[jax.Array, Cond], jax.Array],
    rows: Rows,
    sigma_data: float,
) -> dict[str, jax.Array]:
    """Mean squares, per element, of what the exact map makes zero: ``(b,)`` each.

    ``eulerian`` is ``dX_{t->s}/dt``, ``lagrangian`` is ``v(X, s) - dX_{t->s}/ds``, and
    ``semigroup`` is ``X_{t->s} - X_{u->s} X_{t->u}`` with ``u = (t + s)/2``, all per
    radian where they are derivatives. They compare between all methods.

    Args:
      net: ``U = net(x_t / sigma_data, cond)``, in float32, dropout off.
      velocity: ``F = velocity(x_t / sigma_data, cond)`` of the ODE.
      rows: data, noise, times and conditions.
      sigma_data: standard deviation of the data.
    """
    x_t, t, s, dt, sd = rows.x_t, rows.t, rows.s, rows.dt, sigma_data

    def at(x: jax.Array, t: jax.Array, dt: jax.Array) -> jax.Array:
        return net(x, dataclasses.replace(rows.cond, t=t, dt=dt))

    def v(x: jax.Array, time: Time) -> jax.Array:
        zero = jnp.zeros_like(time.t)
        return sd * velocity(x / sd, dataclasses.replace(rows.cond, t=time.t, dt=zero))

    one, zero = jnp.ones_like(t.t), jnp.zeros_like(t.t)
    v_t, point = v(x_t, t), (x_t / sd, t.t, dt.t)
    U, dU = jax.jvp(at, point, (v_t / sd, one, one))
    X = trigflow.flow_map(x_t, U, t, s, sd)
    _, dU_ds = jax.jvp(at, point, (jnp.zeros_like(x_t), zero, -one))
    u = trigflow.time_from_t(0.5 * (t.t + s.t))
    tu, us = trigflow.between(t, u), trigflow.between(u, s)
    X_u = trigflow.flow_map(x_t, at(x_t / sd, t.t, tu.t), t, u, sd)
    X_us = trigflow.flow_map(X_u, at(X_u / sd, u.t, us.t), u, s, sd)
    found = {
        "eulerian": trigflow.eulerian(x_t, U, dU, v_t, dt, sd),
        "lagrangian": trigflow.lagrangian(x_t, U, dU_ds, v(X, s), dt, sd),
        "semigroup": X - X_us,
    }
    return {k: base.per_example_mean(jnp.square(a)) for k, a in found.items()}
