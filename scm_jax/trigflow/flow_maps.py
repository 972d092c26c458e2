"""Two times: the map ``X_{t->s}`` from ``x_t`` to ``x_s`` and what it satisfies.

A network with a second time, ``U = U(x_t / sigma_data, t, dt)`` with ``dt = t - s``
and ``0 <= s <= t <= pi/2``, parameterizes

    X_{t->s}(x) = cos(dt) x - sin(dt) sigma_data U.

At ``s = 0`` it is the consistency function ``f``; at ``s = t`` the network is the
diffusion model: ``sigma_data U`` is the velocity ``v`` of the probability-flow ODE. The
exact map makes each residual of this file zero. The residuals hold for any network and
any ``U``; arrays of samples are ``(b, ..., c)``, times ``(b,)``.
"""

from __future__ import annotations

import jax

from scm_jax.trigflow.algebra import Time, TimeLike, cos_sin, ddim_step


def flow_map(
    x_t: jax.Array, U: jax.Array, t: TimeLike, s: TimeLike, sigma_data: float
) -> jax.Array:
    """``X_{t->s} = cos(dt) x_t - sin(dt) sigma_data U``; DDIM's step with a map's U."""
    return ddim_step(x_t, U, t, s, sigma_data)


def eulerian(
    x_t: jax.Array, U: jax.Array, dU: jax.Array, v: jax.Array, dt: Time, sd: float
) -> jax.Array:
    """``dX_{t->s}/dt = -cos(dt) (sd U - v) - sin(dt) (x_t + sd dU)``.

    The start moves with the velocity ``v = dx_t/dt`` while ``s`` stays; ``dU`` is the
    total derivative of ``U`` by ``t``: ``jax.jvp`` with the tangents ``(v/sd, 1, 1)``
    of ``(x_t/sd, t, dt)``. Zero for the map of the ODE with velocity ``v``. At
    ``s = 0`` it is ``df/dt`` of Eq. 6 (arXiv 2410.11081); divided by ``cos(dt)`` it is
    MeanFlow's target minus its prediction (arXiv 2505.13447, Eq. 6, in TrigFlow).
    """
    cos, sin = cos_sin(dt, x_t)
    return -cos * (sd * U - v) - sin * (x_t + sd * dU)


def lagrangian(
    x_t: jax.Array, U: jax.Array, dU: jax.Array, v: jax.Array, dt: Time, sd: float
) -> jax.Array:
    """``v(X, s) - dX/ds``, where ``dX/ds = sin(dt) x_t + sd (cos(dt) U - sin(dt) dU)``.

    The end moves while the start stays: ``dU`` is the derivative of ``U`` by ``s``
    (``jax.jvp`` with the tangents ``(0, 0, -1)`` of ``(x_t/sd, t, dt)``). ``v`` is the
    velocity of the ODE *at the end* ``X``; that of the pair ``(x0, z)`` at ``s`` is
    another vector, with which the exact map is no fixed point (arXiv 2506.14603,
    2505.18825).
    """
    cos, sin = cos_sin(dt, x_t)
    return v - (sin * x_t + cos * sd * U - sin * sd * dU)


def semigroup(
    x_t: jax.Array, U_tu: jax.Array, U_us: jax.Array, tu: Time, us: Time, sd: float
) -> jax.Array:
    """The ``U`` of ``X_{t->s}`` that equals the two maps ``X_{u->s} X_{t->u}``.

    ``sin(t-s) U = cos(u-s) sin(t-u) U_tu + sin(u-s) U_us - sin(t-u) sin(u-s) x_t/sd``
    with ``U_us`` at ``X_{t->u}(x_t)``. The plain mean of both outputs, which is right
    for straight paths and equal steps, is wrong here. ``t - s`` must be above 0.
    """
    (cos_us, sin_us), (cos_tu, sin_tu) = cos_sin(us, x_t), cos_sin(tu, x_t)
    sin = sin_tu * cos_us + cos_tu * sin_us
    # Shares in [0, 1]: nothing large cancels for a small t - s.
    first, second = sin_tu / sin, sin_us / sin
    return first * (cos_us * U_tu - sin_us * x_t / sd) + second * U_us


def score_difference(F_q: jax.Array, F_p: jax.Array, t: Time, sd: float) -> jax.Array:
    """``grad log q_t - grad log p_t = -cos(t) / (sd sin(t)) (F_q - F_p)`` at one point.

    ``F_q`` and ``F_p`` are the diffusion models of two distributions; at a sample of
    ``q`` it is the direction in which the divergence of ``q`` from ``p`` grows
    (arXiv 2405.14867; App. C of 2410.11081).
    """
    cos, sin = cos_sin(t, F_q)
    return -cos / (sd * sin) * (F_q - F_p)
