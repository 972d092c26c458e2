"""Discrete consistency models: CD, CT with iCT's improvements, ECT."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from scm_jax import trigflow
from scm_jax.objectives import base
from scm_jax.trigflow import SIGMA_MAX, SIGMA_MIN, Time
from scm_jax.types import Batch, Cond, NetFn, check_choice

RHO = 7.0  # of the Karras grid


@dataclasses.dataclass(frozen=True)
class Discrete:
    """``E[d(f(x_t, t), f^-(x_r, r)) / (sigma_t - sigma_r)]`` for neighbours ``r < t``.

    Consistency training takes ``x_r`` from the pair ``(x0, z)`` of ``x_t`` (CT and its
    improvements, arXiv 2303.01469, 2310.14189; ECT, 2406.14548), distillation (CD) from
    a step of a teacher's ODE. The target is the online network's, whose dropout is that
    of ``f``. A finite step has a bias: on Gaussian data, training from pairs shrinks
    the standard deviation by the product of ``cos(phi_t - phi_r)`` over the ladder of
    times, ``tan phi = sigma_data tan(t) / std``.

    Attributes:
      dx_dt: source of ``x_r``: ``data`` or ``teacher``.
      sigma_data: standard deviation of the data.
      P_mean: mean of the log noise level.
      P_std: its standard deviation.
      grid: ``karras``: neighbours on EDM's grid of ``N`` levels and 0, drawn with the
        probability that the log-normal law gives their interval; ``ratio`` (ECT):
        ``sigma_r = max(0, sigma (1 - q^-(a+1) (1 + 8 sigmoid(-sigma))))``, where the
        sigmoid's ``sigma`` is for data of standard deviation 1/2.
      intervals: ``N`` at the start and at the end of the curriculum, doubled in equal
        parts of it.
      ratio: ``q``.
      stages: stages of ``a``, from 0, in equal parts of the curriculum.
      curriculum_steps: its length; 0 is its last stage from the start.
      solver: of the teacher's step: ``euler`` (DDIM) or ``heun``.
      huber: ``c`` of the distance ``sqrt(||d||^2 + c^2 D) - c sqrt(D)`` over the sample
        of ``D`` elements: 0.00054 in iCT, about 0 in ECT; 0: the mean square.
      gap_weighting: divide by ``sigma_t - sigma_r``.
      learned_weighting: learn ``w(t)``; off means weight 1.
      guidance_range: as in ``Consistency``, for a teacher.
      label_dropout: probability with which an example loses its condition.
      first_frames: of clips that a third of the examples are told, at most; 0: none.
    """

    dx_dt: str = "data"
    sigma_data: float = 0.5
    P_mean: float = -1.1
    P_std: float = 2.0
    grid: str = "karras"
    intervals: tuple[int, int] = (10, 1280)
    ratio: float = 2.0
    stages: int = 8
    curriculum_steps: int = 0
    solver: str = "euler"
    huber: float = 0.00054
    gap_weighting: bool = True
    learned_weighting: bool = False
    guidance_range: tuple[float, float] | None = None
    label_dropout: float = 0.0
    first_frames: int = 0

    needs_critic = False
    init = base.init_weights
    validation_error = base.validation_error

    def __post_init__(self):
        check_choice(self.dx_dt, ("data", "teacher"), "objective.dx_dt")
        check_choice(self.grid, ("karras", "ratio"), "objective.grid")
        check_choice(self.solver, ("euler", "heun"), "objective.solver")
        first, last = self.intervals
        if not 2 <= first <= last:
            raise ValueError(
                f"objective.intervals = {self.intervals}: must be two whole numbers, "
                "the first at least 2 and the second at least the first"
            )
        if self.guidance_range is not None and not self.needs_teacher:
            raise ValueError(
                "objective.guidance_range needs objective.dx_dt = 'teacher'"
            )

    @property
    def needs(self) -> frozenset[str]:
        """Fields of ``Cond`` that a network must consume."""
        return base.needs(self)

    @property
    def needs_teacher(self) -> bool:
        """Whether calls need ``teacher_fn``."""
        return self.dx_dt == "teacher"

    def __call__(
        self,
        net_fn: NetFn,
        params: dict[str, Any],
        batch: Batch,
        *,
        key: jax.Array,
        step: jax.Array,
        teacher_fn: Any = None,
    ) -> base.LossOutput:
        """See ``Objective``."""
        key_t, key_z, key_label, key_scale, key_dropout = jax.random.split(key, 5)
        x0, sd = batch.x, self.sigma_data
        t, r = self.neighbours(key_t, len(x0), step)
        z = sd * jax.random.normal(key_z, x0.shape, x0.dtype)
        x_t = trigflow.interpolate(x0, z, t)
        guidance = base.guidance_scales(self, key_scale, t.t)
        cond = base.condition(self, key_label, batch, t=t.t, guidance=guidance)
        x_r = trigflow.interpolate(x0, z, r)
        if self.needs_teacher:
            x_r = self._solved(x_t, t, r, cond, teacher_fn)

        def f(x: jax.Array, time: Time) -> jax.Array:
            at = dataclasses.replace(cond, t=time.t, dt=time.t)
            F = net_fn(params["net"], x / sd, at, train=True, key=key_dropout)
            return trigflow.f_from_F(x, F, time, sd)

        difference = f(x_t, t) - jax.lax.stop_gradient(f(x_r, r))
        error = base.per_example_mean(jnp.square(difference))
        loss = error
        if self.huber:
            c = self.huber * math.sqrt(x0[0].size)
            loss = jnp.sqrt(x0[0].size * error + c**2) - c
        gap = sd * (t.sin / t.cos - r.sin / r.cos)
        if self.gap_weighting:
            loss = loss / gap
        mean_gap = jnp.mean(gap)
        return base.output(self, params, t, error, loss, sigma_gap=mean_gap)

    def neighbours(
        self, key: jax.Array, num: int, step: jax.Array
    ) -> tuple[Time, Time]:
        """Times ``t`` and ``r < t`` of ``num`` examples at an optimizer step."""
        sd = self.sigma_data
        if self.grid == "ratio":
            a = self._stage(step, self.stages)
            t = trigflow.lognormal_proposal(key, (num,), self.P_mean, self.P_std, sd)
            sigma = sd * t.sin / t.cos
            shrink = self.ratio ** -(a + 1.0)
            in_units = jax.nn.sigmoid(-sigma * (0.5 / sd))
            sigma_r = jnp.maximum(0.0, sigma * (1.0 - shrink * (1.0 + 8.0 * in_units)))
            return t, trigflow.time_from_sigma(sigma_r, sd)
        first, last = self.intervals
        doublings = max(0, math.ceil(math.log2(last / first)))
        n = jnp.minimum(first * 2.0 ** self._stage(step, doublings + 1), last)
        levels = self._levels(jnp.arange(1, last + 1), n)  # of sigma_1..sigma_n
        edges = jnp.log(levels) - self.P_mean
        cdf = jax.scipy.special.erf(edges / (self.P_std * math.sqrt(2.0)))
        # The lowest level, whose neighbour is 0, has all below it.
        mass = jnp.diff(cdf, prepend=-1.0)
        mass = jnp.where(jnp.arange(last, dtype=jnp.float32) < n, mass, 0.0)
        index = jax.random.categorical(key, jnp.log(mass), shape=(num,)) + 1
        sigma = self._levels(index, n)
        sigma_r = jnp.where(index == 1, 0.0, self._levels(index - 1, n))
        t, r = (trigflow.time_from_sigma(a, sd) for a in (sigma, sigma_r))
        return t, r

    def _stage(self, step: jax.Array, stages: int) -> jax.Array:
        """The part of the curriculum that ``step`` is in, from 0, as a float."""
        if not self.curriculum_steps:
            return jnp.float32(stages - 1)
        part = step.astype(jnp.float32) * stages / self.curriculum_steps
        return jnp.minimum(jnp.floor(part), stages - 1.0)

    @staticmethod
    def _levels(index: jax.Array, n: jax.Array) -> jax.Array:
        """``sigma_i``, ``i`` in 1..n, of EDM's grid with ``n`` levels."""
        low, high = SIGMA_MIN ** (1 / RHO), SIGMA_MAX ** (1 / RHO)
        part = (index.astype(jnp.float32) - 1.0) / (n - 1.0)
        return jnp.maximum(low + part * (high - low), low) ** RHO

    def _solved(
        self, x_t: jax.Array, t: Time, r: Time, cond: Cond, teacher_fn: Any
    ) -> jax.Array:
        """``x_r`` of a step of the teacher's ODE from ``x_t``."""
        sd = self.sigma_data
        v = base.teacher_velocity(self, x_t, t, cond, teacher_fn)
        ddim = trigflow.ddim_step(x_t, v / sd, t, r, sd)
        if self.solver == "euler":
            return ddim
        # Heun's in t: the trapezoid of both ends' velocities, turned back to t's frame.
        v_r = base.teacher_velocity(self, ddim, r, cond, teacher_fn)
        z_t = trigflow.z_from_F(x_t, v / sd, t, sd)
        z_r = trigflow.z_from_F(ddim, v_r / sd, r, sd)
        gap = trigflow.between(t, r)
        factor = trigflow.expand(gap.sin / (2.0 * t.cos), x_t)
        return ddim - factor * (z_r - z_t)
