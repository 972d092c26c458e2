"""Shortcut models and progressive self-distillation: one map equals two."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from scm_jax import trigflow
from scm_jax.objectives import base, two_times
from scm_jax.objectives.two_times import MapFn, Rows
from scm_jax.types import Batch, NetFn, check_choice


@dataclasses.dataclass(frozen=True)
class Semigroup:
    """``E||sd (U_{t,s} - U^-)||^2`` with ``U^-`` of ``X_{u->s} X_{t->u}``, s < u < t.

    Shortcut models (arXiv 2410.12557) take ``dyadic`` steps and their middle, PSD
    (2505.18825) any pair. The other rows of the batch train the diagonal. No
    derivative of the network is needed. The target is that of the online network,
    where the shortcut models' own code has an EMA. The network takes ``dt``.

    Attributes:
      sigma_data: standard deviation of the data.
      P_mean: mean of what ``two_times.draw_pairs`` draws.
      P_std: its standard deviation.
      pairs: law of ``(t, s)``; see ``two_times.draw_pairs``.
      middle: ``u``: ``half`` of the way, or ``uniform`` in ``[s, t]``.
      map_every: one example in so many trains the map, the others the diagonal.
      adaptive_power: ``p`` of the loss ``e / stop(e + c)^p``; 0 for none.
      adaptive_eps: ``c``.
      learned_weighting: learn ``w(t)``; off means weight 1.
      label_dropout: probability with which an example loses its condition.
      first_frames: of clips that a third of the examples are told, at most; 0: none.
    """

    sigma_data: float = 0.5
    P_mean: float = -0.8
    P_std: float = 1.6
    pairs: str = "dyadic"
    middle: str = "half"
    map_every: int = 8
    adaptive_power: float = 0.0
    adaptive_eps: float = 1e-2
    learned_weighting: bool = False
    label_dropout: float = 0.0
    first_frames: int = 0

    needs_teacher = False
    needs_critic = False
    init = base.init_weights
    validation_error = base.validation_error
    guidance_range = None

    def __post_init__(self):
        two_times.check(self)
        check_choice(self.middle, ("half", "uniform"), "objective.middle")
        if self.map_every == 1:
            raise ValueError(
                "objective.map_every = 1 leaves no example for the diagonal, which the "
                "shortest maps are learned from: set it to 2 or more"
            )

    @property
    def needs(self) -> frozenset[str]:
        """Fields of ``Cond`` that a network must consume."""
        return base.needs(self, "dt")

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
        """See ``Objective``; ``step`` and ``teacher_fn`` are not used."""
        del step, teacher_fn
        key, key_times, key_middle, key_dropout = jax.random.split(key, 4)
        at = two_times.bind(net_fn, params["net"], key_dropout)
        rows = two_times.draw_rows(self, batch, key)
        diagonal, mapped = two_times.split(rows, self.map_every)
        assert diagonal is not None
        # The diagonal needs times of its own where pairs are dyadic.
        sd, shape = self.sigma_data, diagonal.t.t.shape
        law = shape, self.P_mean, self.P_std, sd
        t = trigflow.lognormal_proposal(key_times, *law)
        diagonal = diagonal._replace(t=t, s=t)
        error = self._map_error(at(mapped.cond), mapped, key_middle)
        return two_times.output(self, params, at, diagonal, mapped, error)

    def _map_error(self, fn: MapFn, rows: Rows, key: jax.Array) -> jax.Array:
        x_t, t, s, sd = rows.x_t, rows.t, rows.s, self.sigma_data
        share: Any = 0.5
        if self.middle == "uniform":
            share = jax.random.uniform(key, t.t.shape, t.t.dtype)
        u = trigflow.time_from_t(s.t + share * (t.t - s.t))
        tu, us = trigflow.between(t, u), trigflow.between(u, s)
        U_tu = fn(x_t / sd, t.t, tu.t)
        X_u = trigflow.flow_map(x_t, U_tu, t, u, sd)
        U_us = fn(X_u / sd, u.t, us.t)
        target = trigflow.semigroup(x_t, U_tu, U_us, tu, us, sd)
        U = fn(x_t / sd, t.t, rows.dt.t)
        residual = sd * (U - jax.lax.stop_gradient(target))
        return base.per_example_mean(jnp.square(residual))
