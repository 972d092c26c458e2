"""sCM: continuous-time consistency training and distillation as one loss (Alg. 1)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scm_jax import trigflow
from scm_jax.objectives import base
from scm_jax.trigflow import Time, expand
from scm_jax.types import Batch, Cond, NetFn, check_choice

_CHOICES = {
    "dx_dt": ("data", "teacher"),
    "tangent": ("exact", "finite_difference"),
    "tangent_pass": ("shared", "separate"),
    "tangent_normalization": base.NORMALIZATIONS,
    "tangent_warmup_form": ("bracket", "rcm"),
    "prior_weighting": ("inverse_sigma", "none", "inverse_sigma_twice"),
}


@dataclasses.dataclass(frozen=True)
class Consistency:
    """``E[e^w / D ||F - F^- - g||^2 - w]`` with ``g = cos(t) df^-/dt`` (Eq. 8, Alg. 1).

    sCT and sCD differ in ``dx_dt`` alone. Every stabilizer of the paper is a field with
    the paper's default, so that an ablation is a config entry.

    Attributes:
      dx_dt: source of the velocity: ``data`` (sCT, ``cos t z - sin t x0``) or
        ``teacher`` (sCD, ``sigma_data F_teacher``).
      sigma_data: standard deviation of the data.
      P_mean: mean of the log noise level.
      P_std: its standard deviation.
      tangent: ``exact`` by ``jax.jvp``, or ``finite_difference``: a central difference
        along the ODE with step ``finite_difference_step`` in ``t``.
      tangent_pass: ``shared``: one dual-number pass gives ``F``, which carries the
        gradient, and the tangent, which does not. ``separate``: a stopped pass for the
        tangent and another for ``F`` with the same dropout key, as in most public
        implementations; same result, one more forward.
      tangent_dtype: compute dtype of the network in the tangent's pass, such as
        ``float32`` for a network in bfloat16; empty is the network's own. Needs
        ``tangent_pass`` separate or finite differences.
      finite_difference_step: ``h`` of the central difference, in radians.
      tangent_normalization: ``l2``: ``g / (||g|| + c)`` over the sample, as the paper
        writes; ``rms``: the same with ``||g||/sqrt(D)``; ``clip``: elements to
        ``[-1, 1]``; ``none``.
      tangent_norm_eps: ``c``.
      tangent_warmup_steps: ``H`` of ``r = min(1, step/H)``; 0 switches warmup off.
      tangent_warmup_form: ``bracket``: ``r`` scales the whole second bracket of ``g``
        (Alg. 1); ``rcm``: ``r`` scales ``x_t`` alone, not the derivative, and ``cos``
        before the first bracket becomes ``sqrt(1 - r^2 sin^2)``. This is rCM's code
        since January 2026; its text (arXiv 2510.08431) and first release scale the
        whole bracket (NVlabs/rcm issue 18). All are equal at ``r = 1``.
      learned_weighting: learn ``w(t)``; off means weight 1.
      prior_weighting: the factor ``w(t)`` of the continuous-time gradient.
        ``inverse_sigma`` is ``1/(sigma_data tan t)``, which makes ``g = cos(t) df/dt``
        and stands nowhere else; ``none`` is 1, so ``g = sigma_data sin(t) df/dt``;
        ``inverse_sigma_twice`` multiplies the loss by it once more, as some public
        implementations do.
      label_dropout: probability with which an example loses its condition, the class
        or the whole caption.
      first_frames: of clips that a third of the examples are told, at most; 0: none.
      guidance_range: the student takes a guidance scale as an input, drawn uniformly
        from this range per example, and the teacher is guided by the same scale.
      segments: ``M`` equal parts of ``[0, pi/2]`` (multistep sCD, Sec. 5; arXiv
        2403.06807): the student maps ``x_t`` to the lower end ``t_k`` of its segment,
        and every sine and cosine of ``t`` in ``g`` becomes that of ``t - t_k``. With 1
        it maps to the data. Sample with ``sampler = "map"`` in ``M`` steps.
    """

    dx_dt: str = "data"
    sigma_data: float = 0.5
    P_mean: float = -1.0
    P_std: float = 1.4
    tangent: str = "exact"
    tangent_pass: str = "shared"
    tangent_dtype: str = ""
    finite_difference_step: float = 1e-2
    tangent_normalization: str = "l2"
    tangent_norm_eps: float = 0.1
    tangent_warmup_steps: int = 10_000
    tangent_warmup_form: str = "bracket"
    learned_weighting: bool = True
    prior_weighting: str = "inverse_sigma"
    label_dropout: float = 0.0
    first_frames: int = 0
    guidance_range: tuple[float, float] | None = None
    segments: int = 1

    needs_critic = False
    init = base.init_weights

    def __post_init__(self):
        for field, legal in _CHOICES.items():
            check_choice(getattr(self, field), legal, f"objective.{field}")
        if self.segments < 1:
            raise ValueError(f"objective.segments = {self.segments}: at least 1")
        one_pass = self.tangent == "exact" and self.tangent_pass == "shared"
        if self.tangent_dtype and one_pass:
            raise ValueError(
                f"objective.tangent_dtype = {self.tangent_dtype!r} needs "
                "objective.tangent_pass = 'separate': value and tangent of one pass "
                "have one dtype"
            )
        if self.guidance_range is not None and not self.needs_teacher:
            raise ValueError(
                "objective.guidance_range needs objective.dx_dt = 'teacher': "
                "consistency training has no guided velocity"
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
        """See ``Objective``; the numbered comments are the lines of Alg. 1."""
        key_t, key_z, key_label, key_s, key_dropout = jax.random.split(key, 5)
        x0, sd = batch.x, self.sigma_data
        # 1. A point of the forward process.
        time = trigflow.lognormal_proposal(
            key_t, x0.shape[:1], self.P_mean, self.P_std, sd
        )
        z = sd * jax.random.normal(key_z, x0.shape, x0.dtype)
        x_t = trigflow.interpolate(x0, z, time)
        guidance = base.guidance_scales(self, key_s, time.t)
        inputs = {"t": time.t, "guidance": guidance}
        cond = base.condition(self, key_label, batch, **inputs)
        # 2. Its velocity.
        dx_dt = base.velocity(self, x0, z, x_t, time, cond, teacher_fn)

        local = self.in_segment(time)
        floor = self.floor(time)

        def net(x: jax.Array, t: jax.Array, **dtype: str) -> jax.Array:
            at = dataclasses.replace(cond, t=t, dt=t - floor)
            return net_fn(params["net"], x, at, train=True, key=key_dropout, **dtype)

        # 3.-4. Value and tangent of one function at one point.
        F, F_tangent, q_dF_dt = self.value_and_tangent(net, x_t, dx_dt, local)
        r = base.warmup(step, self.tangent_warmup_steps)
        raw = self.raw_tangent(F_tangent, q_dF_dt, x_t, dx_dt, local, r)
        # 5. The target holds no gradient, its normalization included: the gradient of
        # g / (norm(g) + c) at g = 0 is NaN.
        kind, eps = self.tangent_normalization, self.tangent_norm_eps
        g = jax.lax.stop_gradient(base.normalize(raw, kind, eps))
        # 6. Prior factor and learned weight.
        residual = F - jax.lax.stop_gradient(F) - g
        error = base.per_example_mean(jnp.square(residual))
        if self.prior_weighting == "inverse_sigma_twice":
            error = error * local.cos / (sd * local.sin)
        raw_norm = base.per_example_norm(raw)
        return base.output(
            self,
            params,
            time,
            error,
            bins={"tangent_norm": raw_norm},
            tangent_norm=jnp.mean(raw_norm),
            tangent_warmup=r,
        )

    def validation_error(
        self,
        net: Callable[[jax.Array, Cond], jax.Array],
        x0: jax.Array,
        z: jax.Array,
        time: Time,
        cond: Cond,
        teacher_fn: Callable[[jax.Array, Cond], jax.Array] | None = None,
    ) -> jax.Array:
        """``||cos(t) df/dt||^2 / D`` along the objective's ODE; see ``Objective``.

        The exact tangent without warmup and normalization: 0 for the teacher's
        consistency function. With ``dx_dt`` of the data it is positive even for the
        best ``f``, because the velocity of a single pair is not the mean velocity.
        """
        exact = dataclasses.replace(
            self,
            tangent="exact",
            tangent_pass="shared",
            tangent_dtype="",
            tangent_warmup_form="bracket",
            prior_weighting="inverse_sigma",
        )
        x_t = trigflow.interpolate(x0, z, time)
        cond = dataclasses.replace(cond, t=time.t)
        dx_dt = base.velocity(self, x0, z, x_t, time, cond, teacher_fn)

        local, floor = self.in_segment(time), self.floor(time)

        def at(x: jax.Array, t: jax.Array) -> jax.Array:
            return net(x, dataclasses.replace(cond, t=t, dt=t - floor))

        _, F, q_dF_dt = exact.value_and_tangent(at, x_t, dx_dt, local)
        g = exact.raw_tangent(F, q_dF_dt, x_t, dx_dt, local, jnp.ones(()))
        return base.per_example_mean(jnp.square(g))

    def floor(self, time: Time) -> jax.Array:
        """``t_k``, the lower end of the segment that ``t`` is in; a constant.

        A time on a boundary belongs to the segment below, which ends there.
        """
        width = np.float32(np.pi / 2 / self.segments)
        return jax.lax.stop_gradient(
            width * jnp.clip(jnp.ceil(time.t / width) - 1, 0, self.segments - 1)
        )

    def in_segment(self, time: Time) -> Time:
        """``t`` with the cosine and sine of ``t - t_k``; ``time`` for one segment."""
        if self.segments == 1:
            return time
        _, cos, sin = trigflow.between(time, self.floor(time))
        return Time(time.t, cos, sin)

    def value_and_tangent(
        self,
        net: Callable[..., jax.Array],
        x_t: jax.Array,
        dx_dt: jax.Array,
        time: Time,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """``F``, and without gradient ``F`` of the tangent's pass and ``q dF/dt``.

        ``q = p sin(t)`` with ``p`` of ``prior_factor`` (``cos(t) sin(t)`` for the
        paper's weighting) multiplies the *input* tangents ``(dx_dt/sigma_data, 1)``, so
        that ``dF/dt`` is never formed where it overflows (Sec. 5.1).
        """
        x = x_t / self.sigma_data
        q = self.prior_factor(time) * time.sin
        dx = dx_dt / self.sigma_data
        tangents = (expand(q, x) * dx, q)

        dtype = {"dtype": self.tangent_dtype} if self.tangent_dtype else {}
        other = functools.partial(net, **dtype)
        if self.tangent == "finite_difference":
            h = self.finite_difference_step
            F = net(x, time.t)
            F_tangent = other(x, time.t) if dtype else F
            ahead = other(x + h * dx, time.t + h)
            behind = other(x - h * dx, time.t - h)
            q_dF_dt = expand(q, x) * (ahead - behind) / (2 * h)
        elif self.tangent_pass == "shared":
            F, q_dF_dt = jax.jvp(net, (x, time.t), tangents)
            F_tangent = F
        else:
            F = net(x, time.t)
            F_tangent, q_dF_dt = jax.jvp(other, (x, time.t), tangents)
        return F, jax.lax.stop_gradient(F_tangent), jax.lax.stop_gradient(q_dF_dt)

    def prior_factor(self, time: Time) -> jax.Array:
        """``p`` of ``g = p df/dt``: ``sigma_data sin(t)`` times the prior weight."""
        if self.prior_weighting == "none":
            return self.sigma_data * time.sin
        return time.cos

    def raw_tangent(
        self,
        F_tangent: jax.Array,
        q_dF_dt: jax.Array,
        x_t: jax.Array,
        dx_dt: jax.Array,
        time: Time,
        r: jax.Array,
    ) -> jax.Array:
        """``g = -p cos (sd F^- - dx_dt) - r p sin (x_t + sd dF^-/dt)``, Alg. 1 l. 4.

        With ``p = cos t`` and ``r = 1`` this is ``cos(t) df/dt`` of Eq. 6. The form
        ``rcm`` is ``-p sqrt(1 - r^2 sin^2) (sd F^- - dx_dt) - p sin (r x_t + sd
        dF^-/dt)``: a student equal to its teacher has a target other than 0 at once.
        """
        factors = time.cos, time.sin, self.prior_factor(time)
        cos, sin, p = (expand(a, x_t) for a in factors)
        difference = self.sigma_data * F_tangent - dx_dt
        if self.tangent_warmup_form == "rcm":
            cos = jnp.sqrt(1.0 - jnp.square(r * sin))
            second = r * p * sin * x_t + self.sigma_data * q_dF_dt
        else:
            second = r * (p * sin * x_t + self.sigma_data * q_dF_dt)
        return -p * cos * difference - second
