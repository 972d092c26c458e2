"""Errors at fixed data, fixed noise and fixed times: no sampler and no features.

They change with the parameters alone, so that small differences are seen: the y axis of
scaling laws.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtri

from scm_jax import trigflow
from scm_jax.evaluation.subject import Subject, require_positive, require_seeds
from scm_jax.trigflow import Time
from scm_jax.trigflow.exact import Gaussian, GaussianMixture

ClosedForm = Gaussian | GaussianMixture

SHARES = (0.0, 0.25, 0.5, 0.75)  # s / t


def _proposal_times(P_mean: float, P_std: float, num_times: int) -> np.ndarray:
    """``sigma_i = exp(P_mean + P_std Phi^-1((i + 1/2) / num_times))``: quantiles."""
    levels = (np.arange(num_times) + 0.5) / num_times
    return np.exp(P_mean + P_std * ndtri(levels))


def _fixed_time(sigma: float, num: int, sigma_data: float) -> Time:
    return trigflow.time_from_sigma(np.full((num,), sigma, np.float32), sigma_data)


def _fixed_noise(
    rng: np.random.Generator, shape: tuple[int, ...], sigma_data: float
) -> jax.Array:
    return sigma_data * jnp.asarray(rng.standard_normal(shape, np.float32))


@dataclasses.dataclass(frozen=True)
class Validation:
    """What the objective makes small, with weight 1, at fixed data, noise and times.

    ``validation_error`` is the mean of ``Objective.validation_error`` over noise levels
    of the evaluator's own: it compares between all runs of one objective and dataset,
    whatever their proposal, weighting or normalization. ``denoising_error``, the mean
    of ``||f(x_t, t) - x0||^2 / D`` at the same points, compares between objectives that
    use ``f`` alike: in a diffusion model it is the denoiser, in a consistency model the
    end of the path, which is farther from ``x0``.

    Attributes:
      log_sigma_mean: mean of the log noise level.
      log_sigma_std: its standard deviation.
      num_times: quantiles of it.
      num_points: data per time; the same for all times.
      batch_size: how many of them go through the network at once.
      seed: of the choice of data and of the noise.
    """

    log_sigma_mean: float = -1.0
    log_sigma_std: float = 1.4
    num_times: int = 16
    num_points: int = 256
    batch_size: int = 256
    held_out: typing.ClassVar[bool] = True  # reads ``eval.split``
    seed: int = 0

    def __post_init__(self):
        require_positive(self, "num_times", "num_points", "batch_size")
        require_seeds(self)

    def __call__(self, subject: Subject) -> dict[str, float | list[float]]:
        """``validation_error``, ``denoising_error`` and the first one by time.

        Raises:
          ValueError: the subject lacks a part, or an error is not finite.
        """
        batch = subject.need("batch", "the validation error")
        error = subject.need("validation_error", "the validation error")
        part = min(self.batch_size, self.num_points)
        parts = self.num_points // part
        x0, cond = batch(self.num_points, self.seed)
        rng = np.random.default_rng(self.seed)
        # One draw for all times: differences between times are not those of the noise.
        z = _fixed_noise(rng, x0.shape, subject.sigma_data)
        errors = []
        proposal = self.log_sigma_mean, self.log_sigma_std, self.num_times
        for sigma in _proposal_times(*proposal):
            time = _fixed_time(sigma, part, subject.sigma_data)
            for start in range(0, parts * part, part):
                rows = slice(start, start + part)
                given = jax.tree.map(lambda a, rows=rows: a[rows], cond)
                both = error(x0[rows], z[rows], time, given)
                errors.append([np.asarray(e, np.float64).mean() for e in both])
        by_time = np.reshape(errors, (self.num_times, parts, 2)).mean(axis=1)
        if not np.isfinite(by_time).all():
            raise ValueError("validation errors are not finite")
        return {
            "validation_error": float(by_time[:, 0].mean()),
            "denoising_error": float(by_time[:, 1].mean()),
            "validation_error_by_time": by_time[:, 0].tolist(),
            "validation_points": self.num_times * parts * part,
        }


@dataclasses.dataclass(frozen=True)
class TeacherTrajectory:
    """Distance of the student's ``f`` from the ends of its teacher's paths.

    The teacher solves its ODE by Heun's method from fixed noise; a perfect student maps
    every point of a path to its end.

    Attributes:
      teacher_steps: Heun steps of the teacher.
      num_paths: fixed draws of noise, with the classes in turn.
      seed: of the noise.
    """

    teacher_steps: int = 32
    num_paths: int = 256
    seed: int = 0

    def __post_init__(self):
        require_positive(self, "teacher_steps", "num_paths")
        require_seeds(self)

    def __call__(self, subject: Subject) -> dict[str, float]:
        """Root mean square distances, in units of the data.

        ``trajectory_rmse`` is over all times of the paths, each alike,
        ``trajectory_one_step_rmse`` from the noise alone.
        """
        f = subject.need("f", "the trajectory error")
        paths = subject.need("teacher_paths", "the trajectory error")
        times, states, cond = paths(self.num_paths, self.teacher_steps, self.seed)
        end = np.asarray(states[-1], np.float64)
        squares = []
        # At the last time, 0, f is the identity.
        for t, x_t in zip(times[:-1], states[:-1], strict=True):
            t = jnp.full((self.num_paths,), t, jnp.float32)
            difference = np.asarray(f(x_t, t, cond), np.float64) - end
            squares.append(np.mean(difference**2))
        return {
            "trajectory_rmse": float(np.sqrt(np.mean(squares))),
            "trajectory_one_step_rmse": float(np.sqrt(squares[0])),
        }


@dataclasses.dataclass(frozen=True)
class MixtureConsistency:
    """Distance of a student's ``f`` from the exact map.

    ``consistency_rmse`` is the root mean square, per element, of ``f - f*`` over the
    proposal of Alg. 1: quantiles of ``tau ~ N(P_mean, P_std^2)``, at each of them fixed
    draws of ``x_t = cos(t) x0 + sin(t) z``. ``one_step_rmse`` is the same at the only
    points that one-step sampling sees, ``x_t = z`` at ``t_max``. A network with a
    second time has ``map_rmse`` besides, of ``X_{t->s}`` at ``s = t/4, t/2, 3t/4`` in
    turn.

    Attributes:
      P_mean: mean of the log noise level; that of the objective.
      P_std: its standard deviation.
      num_times: quantiles of ``tau``.
      num_points: draws of ``x_t`` at each.
      seed: of the draws, which are the same at every call.
    """

    P_mean: float = -1.0
    P_std: float = 1.4
    num_times: int = 64
    num_points: int = 256
    seed: int = 0

    def __post_init__(self):
        require_positive(self, "num_times", "num_points")
        require_seeds(self)

    def __call__(self, subject: Subject) -> dict[str, float]:
        """``consistency_rmse`` and ``one_step_rmse`` of ``f``; see the class."""
        f = subject.need("f", "consistency error")
        closed_form = subject.need("closed_form", "consistency error")
        squares, of_maps, sd = [], [], subject.sigma_data
        for i, (x_t, time) in enumerate(self._points(closed_form, sd)):
            if subject.flow_map is not None:
                s = trigflow.time_from_t(time.t * SHARES[1 + i % 3])
                found = subject.flow_map(x_t, time, s, None)
                gap = np.asarray(found) - np.asarray(
                    exact_flow(closed_form, x_t, time, s, sd)
                )
                of_maps.append(np.mean(gap.astype(np.float64) ** 2))
            exact = exact_consistency(closed_form, x_t, time, subject.sigma_data)
            difference = np.asarray(f(x_t, time.t, None)) - np.asarray(exact)
            squares.append(np.mean(difference.astype(np.float64) ** 2))
        return {
            "consistency_rmse": float(np.sqrt(np.mean(squares[:-1]))),
            "one_step_rmse": float(np.sqrt(squares[-1])),
            **({"map_rmse": float(np.sqrt(np.mean(of_maps[:-1])))} if of_maps else {}),
            "num_samples": self.num_times * self.num_points,
            "seed": self.seed,
        }

    def _points(
        self, closed_form: ClosedForm, sigma_data: float
    ) -> Iterator[tuple[jax.Array, Time]]:
        """``num_times`` batches ``(x_t, t)`` of the proposal, then one at ``t_max``."""
        rng = np.random.default_rng(self.seed)
        for sigma in _proposal_times(self.P_mean, self.P_std, self.num_times):
            time = _fixed_time(sigma, self.num_points, sigma_data)
            x0 = closed_form.sample(rng, self.num_points)
            z = _fixed_noise(rng, x0.shape, sigma_data)
            yield trigflow.interpolate(jnp.asarray(x0), z, time), time
        z = _fixed_noise(rng, x0.shape, sigma_data)
        yield z, _fixed_time(trigflow.SIGMA_MAX, self.num_points, sigma_data)


@dataclasses.dataclass(frozen=True)
class MapResiduals:
    """What the exact map makes zero, at fixed data, noise and pairs of times.

    ``eulerian_error``, ``lagrangian_error`` and ``semigroup_error`` are the means of
    ``objectives.two_times.residuals`` over noise levels of ``t``, each with ``s`` at 0,
    t/4, t/2 and 3t/4. The velocity is that of the run's teacher, of the run that it
    started from or of data in closed form; else of its own diagonal. All methods with a
    second time compare that have one velocity.

    Attributes:
      log_sigma_mean: mean of the log noise level of ``t``.
      log_sigma_std: its standard deviation.
      num_times: quantiles of it.
      num_points: data per pair of times.
      seed: of the choice of data and of the noise.
    """

    log_sigma_mean: float = -1.0
    log_sigma_std: float = 1.4
    num_times: int = 8
    num_points: int = 128
    held_out: typing.ClassVar[bool] = True  # reads ``eval.split``
    seed: int = 0

    def __post_init__(self):
        require_positive(self, "num_times", "num_points")
        require_seeds(self)

    def __call__(self, subject: Subject) -> dict[str, float]:
        """The three errors; see the class."""
        residuals = subject.need("map_residuals", "map residuals")
        batch = subject.need("batch", "map residuals")
        x0, cond = batch(self.num_points, self.seed)
        z = _fixed_noise(np.random.default_rng(self.seed), x0.shape, subject.sigma_data)
        proposal = self.log_sigma_mean, self.log_sigma_std, self.num_times
        found: dict[str, list[float]] = {}
        for sigma in _proposal_times(*proposal):
            t = _fixed_time(sigma, self.num_points, subject.sigma_data)
            for share in SHARES:
                s = trigflow.time_from_t(t.t * share)
                for name, error in residuals(x0, z, t, s, cond).items():
                    mean = float(np.asarray(error, np.float64).mean())
                    found.setdefault(f"{name}_error", []).append(mean)
        return {name: float(np.mean(errors)) for name, errors in found.items()}


@functools.partial(jax.jit, static_argnames=("closed_form", "sigma_data"))
def exact_flow(
    closed_form: ClosedForm, x_t: jax.Array, t: Time, s: Time, sigma_data: float
) -> jax.Array:
    """``closed_form.flow``, compiled once per distribution and shape."""
    return closed_form.flow(x_t, t, s, sigma_data)


@functools.partial(jax.jit, static_argnames=("closed_form", "sigma_data"))
def exact_consistency(
    closed_form: ClosedForm, x_t: jax.Array, time: Time, sigma_data: float
) -> jax.Array:
    """``closed_form.consistency``, compiled once per distribution and shape."""
    return closed_form.consistency(x_t, time, sigma_data)
