"""Distribution matching with a critic: DMD2 and (adaptive) VSD, alone or as a term."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from scm_jax import trigflow
from scm_jax.objectives import base
from scm_jax.objectives.base import Objective
from scm_jax.objectives.diffusion import Diffusion
from scm_jax.trigflow import Time, expand
from scm_jax.types import Batch, Cond, NetFn, check_choice


@dataclasses.dataclass(frozen=True)
class Matching:
    """The student's samples ``G`` follow the difference of two scores.

    ``x_t`` is a sample ``G = f(z, t_max)`` with new noise. The teacher is a diffusion
    model of the data, the critic one of the samples; ``G`` moves along
    ``sd (F_critic - F_teacher)`` at ``x_t``, the direction in which the samples'
    distribution comes nearer to the data's. The critic is trained on the samples by the
    diffusion loss at the same time.

    Attributes:
      form: ``vsd``: ``E[e^w / D ||G - G^- + sd (F_teacher - F_critic)||^2 - w]`` with a
        learned ``w(t)`` (App. C of arXiv 2410.11081); ``dmd``:
        ``E[1/2D ||G - G^- + (D_critic - D_teacher) / mean|G - D_teacher|||^2]``
        (DMD2, 2405.14867).
      sigma_data: standard deviation of the data.
      P_mean: mean of the log noise level of ``x_t``.
      P_std: its standard deviation.
      critic_P_mean: mean of the log noise level in the critic's loss.
      critic_P_std: its standard deviation.
      simulated: ``G`` ends a random one of so many steps of consistency sampling,
        of which the last alone has a gradient (backward simulation, rCM, 2510.08431).
      learned_weighting: learn ``w(t)``; off means weight 1.
      guidance_range: as in ``Consistency``.
      label_dropout: probability with which an example loses its condition.
      first_frames: of clips that a third of the examples are told, at most; 0: none.
    """

    form: str = "vsd"
    sigma_data: float = 0.5
    P_mean: float = 0.4
    P_std: float = 2.0
    critic_P_mean: float = -0.8
    critic_P_std: float = 1.6
    simulated: int = 1
    learned_weighting: bool = True
    guidance_range: tuple[float, float] | None = None
    label_dropout: float = 0.0
    first_frames: int = 0

    needs_teacher = True
    needs_critic = True
    init = base.init_weights
    validation_error = base.validation_error

    def __post_init__(self):
        check_choice(self.form, ("vsd", "dmd"), "matching.form")
        if self.simulated < 1:
            steps = self.simulated
            raise ValueError(f"matching.simulated = {steps}: at least 1")

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
        critic_fn: Any = None,
    ) -> base.LossOutput:
        """See ``Objective``; ``F = critic_fn(x, cond)`` is the critic's."""
        del step
        if teacher_fn is None or critic_fn is None:
            raise ValueError(
                "distribution matching needs a teacher and a critic: set "
                "teacher.source = 'run' and teacher.run, or teacher.source = 'exact'"
            )
        key, key_t, key_noise, key_dropout = jax.random.split(key, 4)
        G, cond = self.generate(net_fn, params["net"], batch, key, key_dropout)
        sd, fixed = self.sigma_data, jax.lax.stop_gradient(G)
        law = (len(fixed),), self.P_mean, self.P_std, sd
        t = trigflow.lognormal_proposal(key_t, *law)
        noise = sd * jax.random.normal(key_noise, G.shape, G.dtype)
        x_t = trigflow.interpolate(fixed, noise, t)
        at = dataclasses.replace(cond, t=t.t, dt=jnp.zeros_like(t.t))
        F_teacher, F_critic = (fn(x_t / sd, at) for fn in (teacher_fn, critic_fn))
        direction = sd * (F_teacher - F_critic)
        if self.form == "dmd":
            D_teacher = trigflow.D_from_F(x_t, F_teacher, t, sd)
            scale = base.per_example_mean(jnp.abs(fixed - D_teacher))
            direction = direction * expand(t.sin / scale, direction)
        residual = G - fixed + jax.lax.stop_gradient(direction)
        error = base.per_example_mean(jnp.square(residual))
        loss = 0.5 * error if self.form == "dmd" else error
        return base.output(
            self,
            params,
            t,
            error,
            loss,
            generated_mean=jnp.mean(fixed),
            generated_std=jnp.std(fixed),
        )

    def generate(
        self,
        net_fn: NetFn,
        params: Any,
        batch: Batch,
        key: jax.Array,
        key_dropout: jax.Array | None = None,
    ) -> tuple[jax.Array, Cond]:
        """Samples ``G`` of the student for the conditions of a batch, and these.

        The gradient runs through the last step alone. Without ``key_dropout``, dropout
        is off.
        """
        key_cond, key_scale, key_end, key_start, key_noise = jax.random.split(key, 5)
        x0, sd, steps = batch.x, self.sigma_data, self.simulated
        grid = trigflow.time_from_t(trigflow.consistency_grid(steps, sd))
        grid = jax.tree.map(lambda a: a.astype(jnp.float32), grid)
        rows = jnp.zeros((len(x0),), jnp.int32)
        t = Time(*(a[rows] for a in grid))
        guidance = base.guidance_scales(self, key_scale, t.t)
        cond = base.condition(self, key_cond, batch, t=t.t, guidance=guidance)

        def f(x: jax.Array, time: Time, **options: Any) -> jax.Array:
            at = dataclasses.replace(cond, t=time.t, dt=time.t)
            F = net_fn(params, x / sd, at, **options)
            return trigflow.f_from_F(x, F, time, sd)

        def simulate(x: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
            now, later = (Time(*(a[rows + j] for a in grid)) for j in (i, i + 1))
            z = jax.random.normal(jax.random.fold_in(key_noise, i), x.shape, x.dtype)
            new = trigflow.interpolate(f(x, now), sd * z, later)
            return new, new

        x = sd * jax.random.normal(key_start, x0.shape, x0.dtype)
        if steps > 1:
            end = jax.random.randint(key_end, rows.shape, 0, steps)
            _, later = jax.lax.scan(simulate, x, jnp.arange(steps - 1))
            states = jnp.concatenate([x[None], later])
            x = jax.lax.stop_gradient(states[end, jnp.arange(len(x0))])
            t = Time(*(a[end] for a in grid))
        return f(x, t, train=key_dropout is not None, key=key_dropout), cond

    def critic_loss(
        self,
        net_fn: NetFn,
        params: dict[str, Any],
        critic_net_fn: NetFn,
        critic_params: Any,
        batch: Batch,
        *,
        key: jax.Array,
        step: jax.Array,
    ) -> jax.Array:
        """The diffusion loss of the critic on samples of the student, a scalar.

        It has no gradient for the student's ``params``.
        """
        key, key_loss = jax.random.split(key)
        G, _ = self.generate(net_fn, params["net"], batch, key)
        samples = dataclasses.replace(batch, x=jax.lax.stop_gradient(G))
        law = self.critic_P_mean, self.critic_P_std
        diffusion = Diffusion(self.sigma_data, *law, learned_weighting=False)
        both = {"net": critic_params, "objective": {}}
        return diffusion(critic_net_fn, both, samples, key=key_loss, step=step).loss


@dataclasses.dataclass(frozen=True)
class Sum:
    """``main + weight * matching``: sCD + VSD (App. C), or rCM with ``form = "dmd"``.

    Both terms have their own noise and their own learned weight. Metrics of the second
    are called ``matching/...``; bins by time are those of the first.
    """

    main: Objective
    matching: Matching
    weight: float = 1.0

    needs_teacher = True
    needs_critic = True

    @property
    def needs(self) -> frozenset[str]:
        """Fields of ``Cond`` that a network must consume."""
        return self.main.needs | self.matching.needs

    def init(self, key: jax.Array) -> Any:
        """Parameters of both weight networks."""
        return {"main": self.main.init(key), "matching": self.matching.init(key)}

    def __call__(
        self,
        net_fn: NetFn,
        params: dict[str, Any],
        batch: Batch,
        *,
        key: jax.Array,
        step: jax.Array,
        teacher_fn: Any = None,
        critic_fn: Any = None,
    ) -> base.LossOutput:
        """See ``Objective``."""
        key, other = jax.random.split(key)
        own, teacher = params["objective"], {"teacher_fn": teacher_fn}
        first, second = (
            {"net": params["net"], "objective": own[k]} for k in ("main", "matching")
        )
        a = self.main(net_fn, first, batch, key=key, step=step, **teacher)
        teacher["critic_fn"] = critic_fn
        b = self.matching(net_fn, second, batch, key=other, step=step, **teacher)
        per_example = a.per_example + self.weight * b.per_example
        named = {f"matching/{k}": v for k, v in b.metrics.items() if k != "bins"}
        return base.LossOutput(
            jnp.mean(per_example), per_example, {**a.metrics, **named}
        )

    def critic_loss(self, *args: Any, **kwargs: Any) -> jax.Array:
        """See ``Matching``."""
        return self.matching.critic_loss(*args, **kwargs)

    def validation_error(self, *args: Any, **kwargs: Any) -> jax.Array:
        """That of the first term."""
        return self.main.validation_error(*args, **kwargs)
