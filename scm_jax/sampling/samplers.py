"""Samplers over a callable ``fn(x_t / sigma_data, cond) -> F``, each one jitted call.

A sampler starts from noise of standard deviation ``sigma_data`` at ``grid[0]``. The
noise of a sample depends on the seed and the sample's index only: never on the batch
size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scm_jax import trigflow
from scm_jax.sampling.guidance import Fn
from scm_jax.trigflow import Time
from scm_jax.types import Cond, check_seed, lookup


def sample_keys(seed: int | jax.Array, indices: jax.typing.ArrayLike) -> jax.Array:
    """One key per sample: ``fold_in(key(seed), index)``, shape ``(n,)``."""
    if not isinstance(seed, jax.Array):
        check_seed(seed)
    key = jax.random.key(seed)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(indices))


def sample_noise(
    keys: jax.Array, draw: Any, sample_shape: tuple[int, ...], sigma_data: float
) -> jax.Array:
    """Draw number ``draw`` of each sample's noise, ``(n, *sample_shape)``."""

    def one(key: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(key, draw), sample_shape)

    return sigma_data * jax.vmap(one)(keys)


@dataclasses.dataclass(frozen=True)
class Problem:
    """What a sampler solves: a network, and the samples that are drawn from it.

    ``keys`` ``(n,)`` and ``cond`` have one row for each sample; ``cond.t`` is not read.
    """

    fn: Fn  # F = fn(x_t / sigma_data, cond)
    keys: jax.Array
    cond: Cond
    grid: np.ndarray  # decreasing times, static
    sample_shape: tuple[int, ...]
    sigma_data: float
    gamma: float = 0.0  # of ``map_sample``

    def time(self, i: Any) -> Time:
        """Time number ``i`` in float32, with sine and cosine from float64."""
        grid = np.asarray(self.grid, np.float64)
        columns = (grid, np.cos(grid), np.sin(grid))
        return Time(*(jnp.asarray(a, jnp.float32)[i] for a in columns))

    def noise(self, draw: int | jax.Array) -> jax.Array:
        """Draw number ``draw`` of the noise of all samples."""
        return sample_noise(self.keys, draw, self.sample_shape, self.sigma_data)

    def F(self, x_t: jax.Array, time: Time, to: Time | None = None) -> jax.Array:
        """The network's output at ``x_t``, of the map to the time ``to``.

        By default the map ends where it starts: the velocity of the ODE.
        """
        t = jnp.full(x_t.shape[:1], time.t)
        dt = jnp.zeros_like(t) if to is None else t - to.t
        cond = dataclasses.replace(self.cond, t=t, dt=dt)
        return self.fn(x_t / self.sigma_data, cond)


# Traceable; returns ``x0`` of shape ``(n, *sample_shape)``.
Sampler = Callable[[Problem], jax.Array]


def consistency_sample(problem: Problem) -> jax.Array:
    """One-step and multistep consistency sampling (Sec. 2.1); NFE = ``len(grid)``.

    ``x0 = f(x, grid[0])``; then for each later time fresh noise
    ``x = cos(t) x0 + sin(t) z`` and ``x0 = f(x, t)``.
    """

    def body(x0: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        time, z = problem.time(i), problem.noise(i)
        # There is no x0 at the first time: the start is noise alone.
        x_t = jnp.where(i == 0, z, trigflow.interpolate(x0, z, time))
        F = problem.F(x_t, time, trigflow.time_from_t(0.0))
        return trigflow.f_from_F(x_t, F, time, problem.sigma_data), None

    start = jnp.zeros((problem.keys.shape[0], *problem.sample_shape))
    return jax.lax.scan(body, start, jnp.arange(len(problem.grid)))[0]


def map_sample(problem: Problem) -> jax.Array:
    """A chain of maps ``X_{t->s}`` along the grid; NFE = ``len(grid) - 1``.

    With ``gamma`` above 0 each map but the last goes further down, to the noise level
    ``sqrt(1 - gamma^2) sigma_s``, and new noise brings it back to ``s`` (CTM, arXiv
    2310.02279): at 1 this is consistency sampling. A network without a second time was
    trained for its own ends, those of ``Consistency.segments``.
    """
    gamma = problem.gamma

    def body(x: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        t, s = problem.time(i), problem.time(i + 1)
        sigma = np.sqrt(1.0 - gamma**2) * s.sin / s.cos  # in units of sigma_data
        to = trigflow.time_from_sigma(sigma, 1.0) if gamma else s
        X = trigflow.flow_map(x, problem.F(x, t, to), t, to, problem.sigma_data)
        if not gamma:
            return X, None
        return s.cos / to.cos * X + gamma * s.sin * problem.noise(i + 1), None

    return jax.lax.scan(body, problem.noise(0), jnp.arange(len(problem.grid) - 1))[0]


def ddim_sample(problem: Problem) -> jax.Array:
    """First-order exponential steps along the ODE (Eq. 26); NFE = ``len(grid) - 1``."""

    def body(x: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        s, t = problem.time(i), problem.time(i + 1)
        return trigflow.ddim_step(x, problem.F(x, s), s, t, problem.sigma_data), None

    return jax.lax.scan(body, problem.noise(0), jnp.arange(len(problem.grid) - 1))[0]


def heun_sample(problem: Problem) -> jax.Array:
    """EDM's Heun (DPM-Solver-2S at the endpoint); NFE = ``2 (len(grid) - 1) - 1``.

    ``x_t = DDIM - sin(s - t)/(2 cos s) (e(x~_t, t) - e(x_s, s))`` with
    ``e = sin(t) x + cos(t) sigma_data F``; the last step, to ``t = 0``, is DDIM.
    Second order. ``grid`` must end at 0.
    """
    return _heun_states(problem)[0]


def heun_path(problem: Problem) -> jax.Array:
    """``x_t`` of ``heun_sample`` at every time of ``grid``: ``(len(grid), n, ...)``."""
    end, before = _heun_states(problem)
    return jnp.concatenate([before, end[None]])


def _heun_states(problem: Problem) -> tuple[jax.Array, jax.Array]:
    """The end of Heun's path, and its states at all times before."""
    if problem.grid[-1] != 0.0:
        raise ValueError(f"the grid of heun must end at 0, not {problem.grid[-1]}")
    sigma_data = problem.sigma_data

    def body(x: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
        s, t = problem.time(i), problem.time(i + 1)
        F = problem.F(x, s)
        ddim = trigflow.ddim_step(x, F, s, t, sigma_data)
        F_t = problem.F(ddim, t)
        z_t = trigflow.z_from_F(ddim, F_t, t, sigma_data)
        z_s = trigflow.z_from_F(x, F, s, sigma_data)
        factor = (s.sin * t.cos - s.cos * t.sin) / (2 * s.cos)
        return ddim - factor * (z_t - z_s), x

    steps = jnp.arange(len(problem.grid) - 2)
    x, before = jax.lax.scan(body, problem.noise(0), steps)
    s, t = problem.time(-2), problem.time(-1)
    end = trigflow.ddim_step(x, problem.F(x, s), s, t, sigma_data)
    return end, jnp.concatenate([before, x[None]])


def multistep_sample(problem: Problem) -> jax.Array:
    """DPM-Solver++(2M) in TrigFlow time; NFE = ``len(grid) - 1``.

    ``x_t = DDIM + sin(s - t)/(2 r sin s) (D(x_s', s') - D(x_s, s))`` with the previous
    time ``s' > s`` and ``r = (ln tan s - ln tan s')/(ln tan s - ln tan t)``, which is
    negative. The first step and a step to ``t = 0`` are DDIM. Second order.
    """
    grid = np.asarray(problem.grid, np.float64)
    log_tan = np.full(len(grid), -np.inf)
    log_tan[grid > 0] = np.log(np.tan(grid[grid > 0]))
    factors = np.zeros(len(grid) - 1)
    for i in range(1, len(grid) - 1):
        if np.isfinite(log_tan[i + 1]):
            r = (log_tan[i] - log_tan[i - 1]) / (log_tan[i] - log_tan[i + 1])
            factors[i] = np.sin(grid[i] - grid[i + 1]) / (2 * r * np.sin(grid[i]))
    change = jnp.asarray(factors, jnp.float32)

    def body(carry: tuple[jax.Array, ...], i: jax.Array) -> tuple[Any, None]:
        x, D_before = carry
        s, t = problem.time(i), problem.time(i + 1)
        F = problem.F(x, s)
        D = trigflow.D_from_F(x, F, s, problem.sigma_data)
        ddim = trigflow.ddim_step(x, F, s, t, problem.sigma_data)
        return (ddim + change[i] * (D_before - D), D), None

    start = problem.noise(0)
    carry = (start, jnp.zeros_like(start))
    return jax.lax.scan(body, carry, jnp.arange(len(grid) - 1))[0][0]


SAMPLERS: dict[str, Sampler] = {
    "consistency": consistency_sample,
    "map": map_sample,
    "ddim": ddim_sample,
    "heun": heun_sample,
    "2m": multistep_sample,
}


# Samplers with times of their own, and their default grids.
TIMED = {"consistency": trigflow.consistency_grid, "map": trigflow.map_grid}


def make_grid(
    sampler: str,
    num_steps: int,
    sigma_data: float,
    times: tuple[float, ...] | None = None,
    shift: float = 0.0,
) -> np.ndarray:
    """The grid of a sampler: consistency times, a map's, or EDM's grid down to 0.

    ``shift`` other than 0 asks for ``trigflow.flow_grid`` in place of EDM's; it starts
    at ``pi/2``, where Heun's method is not defined.

    ``times`` are intermediate times of samplers consistency and map, decreasing in
    ``(0, pi/2)``; None for the default. With one more, the first is where sampling
    starts, ``pi/2`` included. Times that do not fit are a ``ValueError``.
    """
    lookup(SAMPLERS, sampler, "sampler")
    if times is None:
        if sampler in TIMED:
            return TIMED[sampler](num_steps, sigma_data)
        if shift and sampler == "heun":
            raise ValueError(
                f"sampling.shift = {shift} is for samplers ddim and 2m: a rectified "
                "flow's grid starts at pi/2, where heun divides by zero"
            )
        if shift:
            return trigflow.flow_grid(num_steps, sigma_data, shift)
        return trigflow.edm_grid(num_steps, sigma_data)
    own_start = times and len(times) == num_steps
    grid = np.array(times if own_start else (trigflow.t_max(sigma_data), *times))
    if sampler not in TIMED or len(grid) != num_steps:
        raise ValueError(
            f"{len(times)} intermediate times are for samplers {' and '.join(TIMED)} "
            f"in {len(times) + 1} steps, not for sampler {sampler!r} in {num_steps}"
        )
    if (np.diff(grid) >= 0).any() or grid[-1] <= 0 or grid[0] > np.pi / 2:
        limit = "pi/2]" if own_start else f"{grid[0]:.4f})"
        raise ValueError(
            f"intermediate times {times}: must decrease within (0, {limit}"
        )
    return grid if sampler == "consistency" else np.append(grid, 0.0)


def nfe(
    sampler: str, num_steps: int, guidance: float = 1.0, consumes: Container[str] = ()
) -> int:
    """Network evaluations of a sampler with ``num_steps`` steps.

    A ``guidance`` scale other than 1 doubles them, unless the network ``consumes``
    ``"guidance"``, the scale, as an input.
    """
    lookup(SAMPLERS, sampler, "sampler")
    calls = 2 * num_steps - 1 if sampler == "heun" else num_steps
    return calls * (2 if guidance != 1.0 and "guidance" not in consumes else 1)


def make_sampler(
    make_fn: Callable[[Any], Fn],
    sampler: str,
    grid: np.ndarray,
    sample_shape: tuple[int, ...],
    sigma_data: float,
    decode: Callable[[Any, jax.Array], jax.Array] | None = None,
    encode: Callable[[Any, Cond], Cond] | None = None,
    gamma: float = 0.0,
) -> Callable[[Any, jax.Array, Cond], Any]:
    """The whole sampler as one compiled call ``(params, keys, cond) -> x0``.

    ``make_fn(params)`` gives the callable, guidance wrappers included. With
    ``decode(params, x0)`` the same call returns ``(x0, decoded)``. ``encode(params,
    cond)`` does once what all steps need of the condition. Known frames stay as told.
    ``gamma`` is that of ``map_sample``.
    """
    run = lookup(SAMPLERS, sampler, "sampler")

    @jax.jit
    def sample(params: Any, keys: jax.Array, cond: Cond) -> Any:
        cond = cond if encode is None else encode(params, cond)
        shape = sample_shape, sigma_data
        problem = Problem(make_fn(params), keys, cond, grid, *shape, gamma)
        x0 = run(problem)
        if cond.frames is not None:
            known = cond.frames[..., -1:] > 0
            x0 = jnp.where(known, sigma_data * cond.frames[..., :-1], x0)
        return x0 if decode is None else (x0, decode(params, x0))

    return sample
