"""Lagrangian distillation and self-distillation: maps by ``dX_{t->s}/ds = v(X, s)``."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from scm_jax import trigflow
from scm_jax.objectives import base, two_times
from scm_jax.objectives.two_times import MapFn, Rows
from scm_jax.trigflow import expand
from scm_jax.types import Batch, NetFn, check_choice


@dataclasses.dataclass(frozen=True)
class Lagrangian:
    """``E||v(X, s) - dX_{t->s}/ds||^2``: the end of the map moves with the velocity.

    Self-distillation (LSD, arXiv 2505.18825) takes the velocity from the network's own
    diagonal, which the other rows of the batch train; distillation (AYF-LMD,
    2506.14603; FreeFlow, 2511.19428, with ``pairs = "start"`` and no data) takes a
    teacher's. The network takes ``dt``.

    Attributes:
      dx_dt: source of the velocity at ``X``: ``own`` or ``teacher``.
      sigma_data: standard deviation of the data.
      P_mean: mean of what ``two_times.draw_pairs`` draws.
      P_std: its standard deviation.
      pairs: law of ``(t, s)``; see ``two_times.draw_pairs``.
      map_every: one example in so many trains the map, the others the diagonal; 1 for
        a teacher's, 4 for LSD.
      differentiate: the gradient runs through ``dX/ds`` (LSD); else ``U`` is regressed
        on a stopped target (LMD), which costs less and can be normalized.
      tangent_normalization: of the stopped residual; see ``Consistency``.
      tangent_norm_eps: its constant.
      adaptive_power: ``p`` of the loss ``e / stop(e + c)^p``; 0 for none.
      adaptive_eps: ``c``.
      learned_weighting: learn ``w(t)``; off means weight 1.
      guidance_range: as in ``Consistency``, for a teacher.
      label_dropout: probability with which an example loses its condition.
      first_frames: of clips that a third of the examples are told, at most; 0: none.
    """

    dx_dt: str = "own"
    sigma_data: float = 0.5
    P_mean: float = -0.8
    P_std: float = 1.0
    pairs: str = "uniform"
    map_every: int = 4
    differentiate: bool = True
    tangent_normalization: str = "none"
    tangent_norm_eps: float = 0.1
    adaptive_power: float = 0.0
    adaptive_eps: float = 1e-2
    learned_weighting: bool = True
    guidance_range: tuple[float, float] | None = None
    label_dropout: float = 0.0
    first_frames: int = 0

    needs_critic = False
    init = base.init_weights
    validation_error = base.validation_error

    def __post_init__(self):
        two_times.check(self)
        check_choice(self.dx_dt, ("own", "teacher"), "objective.dx_dt")
        kinds, name = base.NORMALIZATIONS, "objective.tangent_normalization"
        check_choice(self.tangent_normalization, kinds, name)
        if self.dx_dt == "own" and (self.map_every == 1 or self.guidance_range):
            raise ValueError(
                "objective.dx_dt = 'own' needs objective.map_every above 1, as nothing "
                "else trains the diagonal, and no objective.guidance_range"
            )
        if self.differentiate and self.tangent_normalization != "none":
            raise ValueError(
                "objective.differentiate = True leaves no stopped target to normalize: "
                "set objective.tangent_normalization = 'none'"
            )

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
        """See ``Objective``; ``step`` is not used."""
        del step
        key, key_dropout = jax.random.split(key)
        at = two_times.bind(net_fn, params["net"], key_dropout)
        rows = two_times.draw_rows(self, batch, key)
        diagonal, mapped = two_times.split(rows, self.map_every)
        error = self._map_error(at(mapped.cond), mapped, teacher_fn)
        return two_times.output(self, params, at, diagonal, mapped, error)

    def _map_error(self, fn: MapFn, rows: Rows, teacher_fn: Any) -> jax.Array:
        x_t, dt, sd = rows.x_t, rows.dt, self.sigma_data
        zero = jnp.zeros_like(dt.t)
        tangents = (jnp.zeros_like(x_t), zero, zero - 1.0)
        U, dU = jax.jvp(fn, (x_t / sd, rows.t.t, dt.t), tangents)
        X = jax.lax.stop_gradient(trigflow.flow_map(x_t, U, rows.t, rows.s, sd))
        if self.needs_teacher:
            v = base.teacher_velocity(self, X, rows.s, rows.cond, teacher_fn)
        else:
            v = jax.lax.stop_gradient(sd * fn(X / sd, rows.s.t, zero))
        if self.differentiate:
            residual = trigflow.lagrangian(x_t, U, dU, v, dt, sd)
        else:
            stopped = jax.lax.stop_gradient(U)
            raw = trigflow.lagrangian(x_t, stopped, dU, v, dt, sd)
            kind, eps = self.tangent_normalization, self.tangent_norm_eps
            g = base.normalize(expand(dt.cos, x_t) * raw, kind, eps)
            residual = U - stopped - jax.lax.stop_gradient(g)
        return base.per_example_mean(jnp.square(residual))
