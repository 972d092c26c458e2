"""TrigFlow diffusion: the objective that trains teachers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from scm_jax import trigflow
from scm_jax.objectives import base
from scm_jax.trigflow import Time
from scm_jax.types import Batch, Cond, NetFn


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """``E[e^w / D ||sigma_data F(x_t/sigma_data, t) - v_t||^2 - w]`` (Sec. 3, App. B).

    Attributes:
      sigma_data: standard deviation of the data.
      P_mean: mean of the log noise level.
      P_std: its standard deviation.
      learned_weighting: learn ``w(t)``; off means weight 1.
      label_dropout: probability with which an example loses its condition, the class
        or the whole caption; a teacher for guidance needs about 0.1.
      first_frames: of clips that a third of the examples are told, at most; 0: none.
    """

    sigma_data: float = 0.5
    P_mean: float = -0.8
    P_std: float = 1.6
    learned_weighting: bool = True
    label_dropout: float = 0.0
    first_frames: int = 0

    needs_teacher = False
    needs_critic = False
    init = base.init_weights

    @property
    def needs(self) -> frozenset[str]:
        """Fields of ``Cond`` that a network must consume."""
        return base.needs(self)

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
        key_t, key_z, key_label, key_dropout = jax.random.split(key, 4)
        x0 = batch.x
        time = trigflow.lognormal_proposal(
            key_t, x0.shape[:1], self.P_mean, self.P_std, self.sigma_data
        )
        z = self.sigma_data * jax.random.normal(key_z, x0.shape, x0.dtype)
        x_t = trigflow.interpolate(x0, z, time)
        v_t = trigflow.velocity(x0, z, time)
        # The second time is 0: a diffusion model is the diagonal of a map.
        cond = base.condition(
            self, key_label, batch, t=time.t, dt=jnp.zeros_like(time.t)
        )
        F = net_fn(
            params["net"],
            x_t / self.sigma_data,
            cond,
            train=True,
            key=key_dropout,
        )
        error = self._squared_error(F, v_t)
        return base.output(self, params, time, error, bins={"squared_error": error})

    def validation_error(
        self,
        net: Callable[[jax.Array, Cond], jax.Array],
        x0: jax.Array,
        z: jax.Array,
        time: Time,
        cond: Cond,
        teacher_fn: Any = None,
    ) -> jax.Array:
        """``||sigma_data F(x_t/sigma_data, t) - v_t||^2 / D``; see ``Objective``."""
        del teacher_fn
        x_t = trigflow.interpolate(x0, z, time)
        cond = dataclasses.replace(cond, t=time.t, dt=jnp.zeros_like(time.t))
        F = net(x_t / self.sigma_data, cond)
        v_t = trigflow.velocity(x0, z, time)
        return self._squared_error(F, v_t)

    def _squared_error(self, F: jax.Array, v_t: jax.Array) -> jax.Array:
        return base.per_example_mean(jnp.square(self.sigma_data * F - v_t))
