"""TrigFlow: the algebra of ``x_t = cos(t) x0 + sin(t) z`` (arXiv 2410.11081v2, Sec. 3).

Conventions, everywhere in this package:

* ``t`` in ``[0, pi/2]`` has shape ``(b,)``; samples have shape ``(b, ..., c)``.
* ``z`` has the standard deviation of the data, ``sigma_data``; a unit normal is
  ``eps = z / sigma_data``.
* A network sees ``x_t / sigma_data`` and ``t`` and returns ``F``; the velocity of the
  probability-flow ODE is ``dx_t/dt = sigma_data F``.

Functions that take a time accept an array ``t`` or a ``Time``. Near ``t = pi/2``
float32 keeps few digits of ``cos(t)``, so a ``Time`` that was drawn as a noise level
carries the sine and cosine computed from that level.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Sec. 4.2 and Alg. 1: sampling starts at this noise level; the second step is at T_MID.
SIGMA_MAX = 80.0
SIGMA_MIN = 0.002
T_MID = 1.1


class Time(NamedTuple):
    """TrigFlow time with its sine and cosine, all of one shape (usually ``(b,)``)."""

    t: jax.Array
    cos: jax.Array
    sin: jax.Array


TimeLike = Time | jax.typing.ArrayLike


def time_from_t(t: jax.typing.ArrayLike) -> Time:
    """``Time`` of an angle ``t`` in ``[0, pi/2]``."""
    t = jnp.asarray(t)
    return Time(t, jnp.cos(t), jnp.sin(t))


def time_from_sigma(sigma: jax.typing.ArrayLike, sigma_data: float) -> Time:
    """``t = arctan(sigma / sigma_data)``, exact at both ends in float32.

    ``cos t = sigma_data / sqrt(sigma^2 + sigma_data^2)`` keeps full relative precision
    where ``jnp.cos(t)`` has lost it. ``sigma`` is EDM's noise level.
    """
    sigma = jnp.asarray(sigma)
    if not jnp.issubdtype(sigma.dtype, jnp.floating):
        sigma = sigma.astype(jnp.float32)
    scale = jnp.asarray(sigma_data, sigma.dtype)
    norm = jnp.hypot(sigma, scale)  # no overflow for sigma near the largest float
    return Time(jnp.arctan2(sigma, scale), scale / norm, sigma / norm)


def time_from_tau(tau: jax.typing.ArrayLike, sigma_data: float) -> Time:
    """``t = arctan(e^tau / sigma_data)`` (Alg. 1): ``tau`` is the log noise level."""
    return time_from_sigma(jnp.exp(jnp.asarray(tau)), sigma_data)


def as_time(t: TimeLike) -> Time:
    """``t`` itself if it is a ``Time``, else ``time_from_t(t)``."""
    return t if isinstance(t, Time) else time_from_t(t)


def log_sigma(t: TimeLike, sigma_data: float) -> jax.Array:
    """``tau = log(sigma_data tan t)``, the inverse of ``time_from_tau``."""
    t = as_time(t)
    return jnp.log(t.sin) - jnp.log(t.cos) + np.log(sigma_data)


def expand(a: jax.Array, like: jax.Array) -> jax.Array:
    """Append axes of size 1 to ``a`` of shape ``(b,)`` until it has ``like``'s rank."""
    return a.reshape(a.shape + (1,) * (like.ndim - a.ndim))


def cos_sin(t: TimeLike, like: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of ``t``, expanded to the rank of ``like``."""
    time = as_time(t)
    return expand(time.cos, like), expand(time.sin, like)


def interpolate(x0: jax.Array, z: jax.Array, t: TimeLike) -> jax.Array:
    """``x_t = cos(t) x0 + sin(t) z`` with ``z`` of standard deviation ``sigma_data``.

    Example:
      >>> import jax.numpy as jnp
      >>> interpolate(jnp.ones((1, 2)), jnp.zeros((1, 2)), jnp.zeros(1))
      Array([[1., 1.]], dtype=float32)
    """
    cos, sin = cos_sin(t, x0)
    return cos * x0 + sin * z


def velocity(x0: jax.Array, z: jax.Array, t: TimeLike) -> jax.Array:
    """``dx_t/dt = cos(t) z - sin(t) x0`` along one straight pair ``(x0, z)``."""
    cos, sin = cos_sin(t, x0)
    return cos * z - sin * x0


def f_from_F(x_t: jax.Array, F: jax.Array, t: TimeLike, sigma_data: float) -> jax.Array:
    """Consistency function ``f = cos(t) x_t - sin(t) sigma_data F`` (Eq. 5)."""
    cos, sin = cos_sin(t, x_t)
    return cos * x_t - sin * sigma_data * F


# The denoiser of a diffusion network and the consistency function share one formula.
D_from_F = f_from_F


def z_from_F(x_t: jax.Array, F: jax.Array, t: TimeLike, sigma_data: float) -> jax.Array:
    """Predicted noise ``z = sin(t) x_t + cos(t) sigma_data F``, std ``sigma_data``."""
    cos, sin = cos_sin(t, x_t)
    return sin * x_t + cos * sigma_data * F


def F_from_x0_z(
    x0: jax.Array, z: jax.Array, t: TimeLike, sigma_data: float
) -> jax.Array:
    """``F = (cos(t) z - sin(t) x0) / sigma_data``: no division by a small number."""
    return velocity(x0, z, t) / sigma_data


def F_from_f(x_t: jax.Array, f: jax.Array, t: TimeLike, sigma_data: float) -> jax.Array:
    """``F = (cos(t) x_t - f) / (sigma_data sin(t))``, the inverse of ``f_from_F``.

    Ill-conditioned near ``t = 0``, where ``f`` holds no information on ``F``; use
    ``F_from_x0_z`` whenever a noise prediction is at hand.
    """
    cos, sin = cos_sin(t, x_t)
    return (cos * x_t - f) / (sigma_data * sin)


def between(t: TimeLike, s: TimeLike) -> Time:
    """``t - s`` with its sine and cosine, which keep the precision of both times.

    Example:
      >>> d = between(jnp.full((1,), 1.25), jnp.full((1,), 0.75))
      >>> round(float(d.t[0]), 4), round(float(d.sin[0]), 4)
      (0.5, 0.4794)
    """
    t, s = as_time(t), as_time(s)
    cos = t.cos * s.cos + t.sin * s.sin
    return Time(t.t - s.t, cos, t.sin * s.cos - t.cos * s.sin)


def ddim_step(
    x_s: jax.Array, F: jax.Array, s: TimeLike, t: TimeLike, sigma_data: float
) -> jax.Array:
    """First-order exponential step from ``s`` to ``t`` (Eq. 26, with ``x_s``).

    ``x_t = cos(s - t) x_s - sin(s - t) sigma_data F``; valid at ``s = pi/2`` as well.
    """
    cos, sin = cos_sin(between(s, t), x_s)
    return cos * x_s - sin * sigma_data * F


# --- Two times ------------------------------------------------------------------------

# A network with a second time, ``U = U(x_t / sigma_data, t, dt)`` with ``dt = t - s``
# and ``0 <= s <= t <= pi/2``, parameterizes the map from ``x_t`` to ``x_s``,
#     X_{t->s}(x) = cos(dt) x - sin(dt) sigma_data U.
# At ``s = 0`` it is the consistency function; at ``s = t`` the network is the diffusion
# model. The exact map makes each residual below zero; they hold for any ``U``.


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


# --- Proposals and grids --------------------------------------------------------------


def lognormal_proposal(
    key: jax.Array,
    shape: tuple[int, ...],
    P_mean: float,
    P_std: float,
    sigma_data: float,
) -> Time:
    """``log(sigma_data tan t) ~ N(P_mean, P_std^2)`` (Alg. 1)."""
    tau = P_mean + P_std * jax.random.normal(key, shape, jnp.float32)
    return time_from_tau(tau, sigma_data)


def t_max(sigma_data: float, sigma_max: float = SIGMA_MAX) -> float:
    """Where sampling starts: ``arctan(sigma_max / sigma_data)`` (1.564546 for 0.5)."""
    return float(np.arctan2(sigma_max, sigma_data))


def edm_grid(
    num_steps: int,
    sigma_data: float,
    sigma_min: float = SIGMA_MIN,
    sigma_max: float = SIGMA_MAX,
    rho: float = 7.0,
) -> np.ndarray:
    """``num_steps`` times of EDM's grid (arXiv 2206.00364, Eq. 5), then 0; float64.

    ``t_i = arctan(sigma_i / sigma_data)`` with ``sigma_i = (a + i/(N-1) (b - a))^rho``,
    ``a = sigma_max^(1/rho)`` and ``b = sigma_min^(1/rho)``.

    Example:
      >>> [round(t, 3) for t in edm_grid(3, 0.5).tolist()]
      [1.565, 1.375, 0.004, 0.0]
    """
    if num_steps < 1:
        raise ValueError(f"num_steps = {num_steps}: must be at least 1")
    ramp = np.linspace(0.0, 1.0, num_steps)
    ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigma = (ends[0] + ramp * (ends[1] - ends[0])) ** rho
    return np.append(np.arctan2(sigma, sigma_data), 0.0)


def flow_grid(num_steps: int, sigma_data: float, shift: float = 1.0) -> np.ndarray:
    """The grid of rectified flows: ``num_steps`` times from ``pi/2``, then 0; float64.

    ``s`` falls evenly from 1 to 0, and ``s' = shift s / (1 + (shift - 1) s)`` (arXiv
    2403.03206, Eq. 23) is the share of noise, ``sigma / (1 + sigma)``: EDM's noise
    level is ``sigma = s' / (1 - s')``. DDIM on this grid is Euler's method there.
    """
    if num_steps < 1 or shift <= 0:
        raise ValueError(f"num_steps = {num_steps}, shift = {shift}: must be positive")
    s = np.linspace(1.0, 0.0, num_steps + 1)
    s = shift * s / (1 + (shift - 1) * s)
    return np.arctan2(s, (1 - s) * sigma_data)


# Times after t_max. One intermediate time is the paper's (1.1 for every dataset); three
# are those of rCM (arXiv 2510.08431) for four steps.
_CONSISTENCY_TIMES = {1: (), 2: (T_MID,), 3: (1.3, 0.8), 4: (1.3, 1.0, 0.6)}


def consistency_grid(
    num_steps: int, sigma_data: float, sigma_max: float = SIGMA_MAX
) -> np.ndarray:
    """Times at which a consistency model is called, from ``t_max`` downwards; float64.

    One and two steps are the paper's; more than four are spread evenly in ``t``.

    Example:
      >>> consistency_grid(2, 0.5).round(4).tolist()
      [1.5645, 1.1]
    """
    if num_steps < 1:
        raise ValueError(f"num_steps = {num_steps}: must be at least 1")
    start = t_max(sigma_data, sigma_max)
    if num_steps in _CONSISTENCY_TIMES:
        return np.array((start, *_CONSISTENCY_TIMES[num_steps]))
    return np.linspace(start, 0.0, num_steps + 1)[:-1]


def map_grid(
    num_steps: int, sigma_data: float, sigma_max: float = SIGMA_MAX
) -> np.ndarray:
    """Times of a chain of maps: ``t_max``, ``k pi/(2 n)`` for k = n-1..1, 0; float64.

    The times between are the boundaries of ``num_steps`` equal segments of
    ``[0, pi/2]``.

    Example:
      >>> map_grid(2, 0.5).round(4).tolist()
      [1.5645, 0.7854, 0.0]
    """
    if num_steps < 1:
        raise ValueError(f"num_steps = {num_steps}: must be at least 1")
    grid = np.arange(num_steps, -1, -1) * (np.pi / 2 / num_steps)
    grid[0] = t_max(sigma_data, sigma_max)
    return grid
