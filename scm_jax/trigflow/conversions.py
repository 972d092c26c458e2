"""TrigFlow and other processes: EDM, variance preserving (VP), rectified flow.

A Gaussian process is ``x = alpha x0 + sigma eps`` with a unit normal ``eps``
(arXiv 2410.11081v2, App. B).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from scm_jax.trigflow.algebra import (
    F_from_f,
    F_from_x0_z,
    Time,
    TimeLike,
    as_time,
    cos_sin,
    expand,
    f_from_F,
    log_sigma,
    z_from_F,
)
from scm_jax.types import check_choice, lookup


def to_trigflow(
    x: jax.Array, alpha: ArrayLike, sigma: ArrayLike, sigma_data: float
) -> tuple[jax.Array, Time]:
    """``x_t`` and ``t`` of a point ``x = alpha x0 + sigma eps`` of a Gaussian process.

    ``t = arctan(sigma / (sigma_data alpha))`` and ``x_t = k x`` with
    ``k = sigma_data / sqrt(alpha^2 sigma_data^2 + sigma^2)`` (App. B). ``alpha`` and
    ``sigma`` have shape ``(b,)`` and are not both zero.
    """
    signal = sigma_data * jnp.asarray(alpha)
    noise = jnp.asarray(sigma)
    norm = jnp.hypot(signal, noise)
    time = Time(jnp.arctan2(noise, signal), signal / norm, noise / norm)
    return expand(sigma_data / norm, x) * x, time


def from_trigflow(
    x_t: jax.Array, alpha: ArrayLike, sigma: ArrayLike, sigma_data: float
) -> jax.Array:
    """``x = alpha x0 + sigma eps`` from ``x_t``: the inverse of ``to_trigflow``."""
    norm = jnp.hypot(sigma_data * jnp.asarray(alpha), jnp.asarray(sigma))
    return expand(norm / sigma_data, x_t) * x_t


def edm_coefficients(t: TimeLike, sigma_data: float) -> tuple[jax.Array, jax.Array]:
    """``(alpha, sigma) = (1, sigma_data tan t)`` of EDM and VE."""
    t = as_time(t)
    return jnp.ones_like(t.cos), sigma_data * t.sin / t.cos


def vp_coefficients(t: TimeLike, sigma_data: float) -> tuple[jax.Array, jax.Array]:
    """``(alpha, sigma)`` with ``alpha^2 + sigma^2 = 1`` at the same signal-to-noise."""
    t = as_time(t)
    norm = jnp.hypot(t.cos, sigma_data * t.sin)
    return t.cos / norm, sigma_data * t.sin / norm


def rectified_flow_coefficients(
    t: TimeLike, sigma_data: float
) -> tuple[jax.Array, jax.Array]:
    """``(alpha, sigma) = (1 - s, s)``; the flow's own time is ``s = sigma``."""
    t = as_time(t)
    total = t.cos + sigma_data * t.sin
    return t.cos / total, sigma_data * t.sin / total


PREDICTIONS = ("x0", "eps", "v", "flow", "edm")


def F_from_prediction(
    prediction: jax.Array,
    kind: str,
    x: jax.Array,
    alpha: ArrayLike,
    sigma: ArrayLike,
    sigma_data: float,
) -> jax.Array:
    """TrigFlow's ``F`` from what a network of another process predicts at ``x``.

    Args:
      prediction: the network's output at ``x = alpha x0 + sigma eps``.
      kind: ``x0``; ``eps`` (unit normal); ``v = alpha eps - sigma x0`` (needs
        ``alpha^2 + sigma^2 = 1``); ``flow = eps - x0`` (needs ``alpha + sigma = 1``);
        ``edm``, the raw network of EDM, whose sign alone differs.
      x: ``(b, ..., c)`` point of that process.
      alpha, sigma: ``(b,)`` coefficients of signal and noise.
      sigma_data: standard deviation of the data.

    Returns:
      ``F = (cos(t) sigma_data eps - sin(t) x0) / sigma_data``. ``v`` and ``flow`` never
      divide by ``alpha`` or ``sigma``; ``x0`` divides by ``sigma`` and ``eps`` by
      ``alpha``, as those predictions do not determine the other part.
    """
    check_choice(kind, PREDICTIONS, "prediction kind")
    x_t, time = to_trigflow(x, alpha, sigma, sigma_data)
    a, b = expand(jnp.asarray(alpha), x), expand(jnp.asarray(sigma), x)
    match kind:
        case "edm":
            return -prediction
        case "x0":
            return F_from_f(x_t, prediction, time, sigma_data)
        case "eps":
            cos, sin = cos_sin(time, x)
            return (sigma_data * prediction - sin * x_t) / (sigma_data * cos)
        case "v":
            x0, eps = a * x - b * prediction, b * x + a * prediction
        case _:  # flow
            x0, eps = x - b * prediction, x + a * prediction
    return F_from_x0_z(x0, sigma_data * eps, time, sigma_data)


def prediction_from_F(
    F: jax.Array,
    kind: str,
    x: jax.Array,
    alpha: ArrayLike,
    sigma: ArrayLike,
    sigma_data: float,
) -> jax.Array:
    """What a network of another process predicts at ``x``, given ``F`` there.

    The inverse of ``F_from_prediction``; never divides by ``alpha`` or ``sigma``.
    """
    x_t, time = to_trigflow(x, alpha, sigma, sigma_data)
    a, b = expand(jnp.asarray(alpha), x), expand(jnp.asarray(sigma), x)
    x0 = f_from_F(x_t, F, time, sigma_data)
    eps = z_from_F(x_t, F, time, sigma_data) / sigma_data
    predictions = {"x0": x0, "eps": eps, "flow": eps - x0, "edm": -F}
    return lookup({**predictions, "v": a * eps - b * x0}, kind, "prediction kind")


def edm_c_noise(t: jax.Array, sigma_data: float) -> jax.Array:
    """EDM's input for the noise level, ``log(sigma_data tan t) / 4``.

    Its derivative times ``sin t`` is ``1/(4 cos t)``, without bound towards ``pi/2``:
    one of the instabilities that TrigFlow's ``c_noise(t) = t`` removes (Sec. 4.1).
    """
    # float32(pi/2) lies above pi/2, where the cosine is negative.
    return log_sigma(jnp.clip(t, 1e-6, np.pi / 2 - 1e-6), sigma_data) / 4


def from_edm(net_fn: Any, sigma_data: float) -> Any:
    """A network in EDM's parameterization as a TrigFlow network, exactly.

    ``F(x_t/sigma_data, t) = -F_EDM(x_t/sigma_data, log(sigma_data tan t)/4)``: EDM
    scales its input to ``x_t / sigma_data``, too, so only the sign and the time change
    (Sec. 3; arXiv 2206.00364, Table 1). ``net_fn(params, x, cond, ...)`` reads
    ``cond.t`` as EDM's ``c_noise``.
    """

    def fn(params: Any, x: jax.Array, cond: Any, **kwargs: Any) -> jax.Array:
        cond = cond.replace(t=edm_c_noise(cond.t, sigma_data))
        return -net_fn(params, x, cond, **kwargs)

    return fn


def from_rectified_flow(
    net_fn: Any, sigma_data: float, time_scale: float = 1000.0
) -> Any:
    """A network that predicts ``v = eps - x0`` as a TrigFlow network, exactly.

    With ``D = cos t + sigma_data sin t``, its input is ``y = (1-s) x0 + s eps``:

        s = sigma_data sin t / D        y = x_t / D
        F = (v(y, time_scale s) + (cos t - sin t / sigma_data) x_t) / D

    Nothing is divided by ``sin t`` or ``cos t``, and ``D`` is at least
    ``min(1, sigma_data)``. ``sigma_data`` need not be the standard deviation of the
    data, which are in the flow's own units. ``net_fn(params, y, cond, ...)`` reads
    ``cond.t`` as ``time_scale s``; SD3, Flux and SANA have 1000 (arXiv 2403.03206).
    The case ``sigma_data = 1`` is Prop. 3.1 of SANA-Sprint (arXiv 2503.09641).
    """

    def fn(params: Any, x: jax.Array, cond: Any, **kwargs: Any) -> jax.Array:
        time = as_time(cond.t)
        total = time.cos + sigma_data * time.sin
        s = sigma_data * time.sin / total
        y = x * expand(sigma_data / total, x)
        v = net_fn(params, y, cond.replace(t=time_scale * s), **kwargs)
        slope = (sigma_data * time.cos - time.sin) / total
        return v * expand(1 / total, x) + x * expand(slope, x)

    return fn


# ``log(sigma / alpha)`` at the 1000 steps of the linear schedule of variances (arXiv
# 2006.11239): ``alpha^2 = prod (1 - beta)``, ``alpha^2 + sigma^2 = 1``.
_SIGNAL = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
DDPM_LOG_SIGMA = (np.log1p(-_SIGNAL) - np.log(_SIGNAL)) / 2


def from_dit(net_fn: Any, sigma_data: float) -> Any:
    """DiT (arXiv 2212.09748), which predicts ``eps`` at a step 0..999, in TrigFlow.

    With ``alpha, sigma`` of ``vp_coefficients`` and ``y = alpha x0 + sigma eps``:

        F = (eps(y, step) - sin(t) x_t / sigma_data) / cos(t)

    ``step`` is linear in ``log(sigma_data tan t)`` between the steps, which cover
    ``sigma_data tan t`` from 0.0100 to 157.4. Times beyond are taken for the nearest
    end: an error of ``eps`` is multiplied by ``1 / cos t``, 157.4 / sigma_data there.

    ``x0`` must be latents of Stable Diffusion times 0.18215, as for SiT: one factor for
    all channels, as the noise has. Latents whitened per channel are another process.
    """
    ends = np.arctan(np.exp(DDPM_LOG_SIGMA[[0, -1]]) / sigma_data)

    def fn(params: Any, x: jax.Array, cond: Any, **kwargs: Any) -> jax.Array:
        t = jnp.clip(cond.t, *ends.tolist())
        table = jnp.asarray(DDPM_LOG_SIGMA, t.dtype)
        steps = jnp.arange(len(table), dtype=t.dtype)
        step = jnp.interp(log_sigma(t, sigma_data), table, steps)
        alpha, sigma = vp_coefficients(t, sigma_data)
        y = from_trigflow(sigma_data * x, alpha, sigma, sigma_data)
        eps = net_fn(params, y, cond.replace(t=step), **kwargs)
        return F_from_prediction(eps, "eps", y, alpha, sigma, sigma_data)

    return fn


def from_sit(net_fn: Any, sigma_data: float) -> Any:
    """SiT (arXiv 2401.08740) with its linear path and velocity, in TrigFlow.

    Its time is 1 at the data: ``y = t x0 + (1 - t) eps`` and ``v = x0 - eps``, a
    rectified flow at ``s = 1 - t`` with the other sign.
    """

    def flow(params: Any, y: jax.Array, cond: Any, **kwargs: Any) -> jax.Array:
        return -net_fn(params, y, cond.replace(t=1 - cond.t), **kwargs)

    return from_rectified_flow(flow, sigma_data, time_scale=1.0)


def from_sana_sprint(net_fn: Any, sigma_data: float) -> Any:
    """SANA-Sprint (arXiv 2503.09641, Prop. 3.1): a rectified flow of unit-scale data.

    Its data are ``x0 / sigma_data``, latents of DC-AE times 0.41407, whatever
    ``sigma_data`` is; the paper has 0.5. The network reads ``s = sin/(sin + cos)``
    itself, from 0 at the data to 1.
    """
    return from_rectified_flow(net_fn, 1.0, time_scale=1.0)


# By the name that a config gives the network's own convention; None is TrigFlow's.
PARAMETERIZATIONS: dict[str, Callable[..., Any] | None] = {
    "trigflow": None,
    "edm": from_edm,
    "rectified_flow": from_rectified_flow,
    "dit": from_dit,
    "sit": from_sit,
    "sana_sprint": from_sana_sprint,
}


def logit_normal_proposal(
    mean: float, std: float, shift: float = 1.0
) -> tuple[float, float]:
    """``P_mean, P_std`` of the times that rectified flows are trained at.

    There ``logit s ~ N(mean, std^2)``, then ``s' = shift s / (1 + (shift - 1) s)``
    (arXiv 2403.03206, Eq. 19 and 23). As ``logit s = log sigma = log(sigma_data tan
    t)``, that is a proposal of TrigFlow's, and the shift adds ``log(shift)``. SD3 has
    ``(0, 1)`` and, from ``n`` to ``m`` pixels, ``shift = sqrt(m / n)``.

    Example:
      >>> P_mean, P_std = logit_normal_proposal(0.0, 1.0, shift=3.0)
      >>> round(P_mean, 3), P_std
      (1.099, 1.0)
    """
    return mean + float(np.log(shift)), std


def score_from_F(
    x_t: jax.Array, F: jax.Array, t: TimeLike, sigma_data: float
) -> jax.Array:
    """``grad log p_t(x_t) = -z / (sigma_data^2 sin t)`` with ``z`` of ``z_from_F``."""
    _, sin = cos_sin(t, x_t)
    return -z_from_F(x_t, F, t, sigma_data) / (sigma_data**2 * sin)
