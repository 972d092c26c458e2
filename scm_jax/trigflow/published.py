"""Published networks of other processes as TrigFlow networks, exactly.

Each function takes ``net_fn(params, y, cond, ...)``, where ``cond.t`` is the network's
own time, and returns ``F(params, x_t / sigma_data, cond)``. ``sigma_data`` is free: the
data need not have it.

DiT and SiT were trained on latents of Stable Diffusion's autoencoder times 0.18215, one
factor for all channels, as the noise is. Latents that were whitened per channel are
data of another process; the whitening ``measured`` gives those of DiT where the
manifest records means of 0 and standard deviations of 0.5 / 0.18215 = 2.745.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scm_jax.trigflow.algebra import log_sigma
from scm_jax.trigflow.conversions import (
    F_from_prediction,
    from_rectified_flow,
    from_trigflow,
    vp_coefficients,
)

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


# By the name that a config gives the network's own convention.
ADAPTERS = {"dit": from_dit, "sit": from_sit, "sana_sprint": from_sana_sprint}
