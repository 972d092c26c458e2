"""MeanFlow, improved MeanFlow and Eulerian distillation: maps by ``dX_{t->s}/dt``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from scm_jax.objectives import base, two_times
from scm_jax.objectives.two_times import MapFn, Rows
from scm_jax.trigflow import Time, expand
from scm_jax.types import Batch, Cond, NetFn, check_choice, without_condition


@dataclasses.dataclass(frozen=True)
class MeanFlow:
    """``E||U - U^- - g||^2``, ``g = cos(dt) dX^-_{t->s}/dt``: the Eulerian identity.

    MeanFlow (arXiv 2505.13447) with the velocity of the data, Eulerian distillation
    (AYF-EMD, 2506.14603) with a teacher's. Its residual is sCM's with ``t - s`` for
    ``t``; the gradient is MeanFlow's times ``cos(dt)^2``. The network takes ``dt``.

    Attributes:
      dx_dt: source of the velocity: ``data`` or ``teacher``.
      sigma_data: standard deviation of the data.
      P_mean: mean of what ``two_times.draw_pairs`` draws.
      P_std: its standard deviation.
      pairs: law of ``(t, s)``; see ``two_times.draw_pairs``.
      diagonal_share: probability of ``s = t``, where the loss is the diffusion loss.
      tangent_velocity: along which the network is differentiated: ``same`` as in the
        target, or the network's ``own``, ``U(x_t, t, 0)``: improved MeanFlow
        (2512.02012), with less variance and one more forward pass.
      tangent_normalization: see ``Consistency``; ``l2`` is AYF's.
      tangent_norm_eps: its constant.
      tangent_warmup_steps: the second bracket of ``g`` grows to its end over so many.
      tangent_warmup_end: its last factor; AYF's is 0.99.
      adaptive_power: ``p`` of the loss ``e / stop(e + c)^p`` with the sum of squares
        ``e``: 1 for MeanFlow, 0 for none. The loss is then about 1 always: watch
        ``squared_error``.
      adaptive_eps: ``c``.
      learned_weighting: learn ``w(t)``; off means weight 1.
      omega: weight of the data's velocity ``v`` in the guided target
        ``omega v + kappa U(c) + (1 - omega - kappa) U(null)``, of the own diagonal. The
        fixed point has the guidance scale ``omega / (1 - kappa)``.
      kappa: weight of the own conditional velocity.
      guidance_range: the network takes the guidance scale ``w`` as an input, drawn per
        example: log-uniformly with ``kappa = 1 - omega/w`` and ``U(null)`` at scale 1
        for ``data`` (improved MeanFlow); uniformly, for a teacher guided by it.
      label_dropout: probability with which an example loses its condition.
      first_frames: of clips that a third of the examples are told, at most; 0: none.
    """

    dx_dt: str = "data"
    sigma_data: float = 0.5
    P_mean: float = -1.09
    P_std: float = 1.0
    pairs: str = "sorted"
    diagonal_share: float = 0.75
    tangent_velocity: str = "same"
    tangent_normalization: str = "none"
    tangent_norm_eps: float = 0.1
    tangent_warmup_steps: int = 0
    tangent_warmup_end: float = 1.0
    adaptive_power: float = 1.0
    adaptive_eps: float = 1e-2
    learned_weighting: bool = False
    omega: float = 1.0
    kappa: float = 0.0
    guidance_range: tuple[float, float] | None = None
    label_dropout: float = 0.0
    first_frames: int = 0

    needs_critic = False
    init = base.init_weights
    validation_error = base.validation_error

    def __post_init__(self):
        two_times.check(self)
        check_choice(self.dx_dt, ("data", "teacher"), "objective.dx_dt")
        legal = ("same", "own")
        check_choice(self.tangent_velocity, legal, "objective.tangent_velocity")
        kinds = base.NORMALIZATIONS
        name = "objective.tangent_normalization"
        check_choice(self.tangent_normalization, kinds, name)
        if self.needs_teacher and (self.omega != 1.0 or self.kappa):
            raise ValueError(
                "objective.omega and objective.kappa mix the data's velocity and need "
                "objective.dx_dt = 'data'. Guide a teacher by teacher.guidance"
            )
        if not 0 <= self.kappa < 1:
            raise ValueError(f"objective.kappa = {self.kappa}: must be in [0, 1)")

    @property
    def needs(self) -> frozenset[str]:
        """Fields of ``Cond`` that a network must consume."""
        return base.needs(self, "dt")

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
        key, key_diagonal, key_dropout = jax.random.split(key, 3)
        rows = two_times.draw_rows(self, batch, key)
        share = self.diagonal_share
        diagonal = jax.random.bernoulli(key_diagonal, share, rows.t.t.shape)
        s = Time(
            *(jnp.where(diagonal, a, b) for a, b in zip(rows.t, rows.s, strict=True))
        )
        rows = rows._replace(s=s)
        at = two_times.bind(net_fn, params["net"], key_dropout)
        target, along = self._velocities(at, rows, teacher_fn)
        r = self.tangent_warmup_end * base.warmup(step, self.tangent_warmup_steps)
        U, raw = self.raw_tangent(at(rows.cond), rows, target, along, r)
        kind, eps = self.tangent_normalization, self.tangent_norm_eps
        g = jax.lax.stop_gradient(base.normalize(raw, kind, eps))
        error = base.per_example_mean(jnp.square(U - jax.lax.stop_gradient(U) - g))
        return base.output(
            self,
            params,
            rows.t,
            error,
            base.adaptive(error, U[0].size, self.adaptive_power, self.adaptive_eps),
            tangent_norm=jnp.mean(base.per_example_norm(raw)),
        )

    def _velocities(
        self, at: Callable[[Cond], MapFn], rows: Rows, teacher_fn: Any
    ) -> tuple[jax.Array, jax.Array]:
        """What the map follows, guided or not, and along what it is differentiated."""
        pair = rows.x0, rows.z, rows.x_t, rows.t, rows.cond
        v = base.velocity(self, *pair, teacher_fn)
        x, t = rows.x_t / self.sigma_data, rows.t.t
        w, kappa = rows.cond.guidance, jnp.asarray(self.kappa)[None]
        by_input = w is not None and not self.needs_teacher

        def diagonal(cond: Cond) -> jax.Array:
            own = self.sigma_data * at(cond)(x, t, jnp.zeros_like(t))
            return jax.lax.stop_gradient(own)

        is_own = self.tangent_velocity == "own"
        needed = is_own or bool(self.kappa) or by_input
        own = diagonal(rows.cond) if needed else v
        target = v
        if by_input or self.kappa or self.omega != 1.0:
            null = without_condition(rows.cond)
            if w is not None:
                kappa = 1.0 - self.omega / w
                null = dataclasses.replace(null, guidance=jnp.ones_like(w))
            v_null = diagonal(null)
            # An example without condition has own = null, and its mean target is v.
            target = v + (self.omega - 1.0) * (v - v_null)
            if needed:
                target = target + expand(kappa, v) * (own - v_null)
        return target, own if is_own else target

    def raw_tangent(
        self, fn: MapFn, rows: Rows, v: jax.Array, along: jax.Array, r: Any
    ) -> tuple[jax.Array, jax.Array]:
        """``U`` and ``g = -cos^2 (sd U^- - v) - r cos sin (x_t + sd dU^-/dt)`` of dt.

        ``cos sin`` multiplies the input tangents ``(along/sd, 1, 1)`` of
        ``(x_t/sd, t, dt)``: ``dt`` grows with ``t``, since ``s`` stays.
        """
        x_t, dt, sd = rows.x_t, rows.dt, self.sigma_data
        q = dt.cos * dt.sin
        tangents = (expand(q, x_t) * along / sd, q, q)
        U, q_dU = jax.jvp(fn, (x_t / sd, rows.t.t, dt.t), tangents)
        stopped, q_dU = jax.lax.stop_gradient((U, q_dU))
        cos, q = expand(dt.cos, x_t), expand(q, x_t)
        second = r * (q * x_t + sd * q_dU)
        return U, -jnp.square(cos) * (sd * stopped - v) - second
