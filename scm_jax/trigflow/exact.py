"""Gaussian and Gaussian-mixture data, with closed forms for what sCM learns.

The noise is ``z ~ N(0, sigma_data^2 I)`` and ``x_t = cos(t) x0 + sin(t) z``
(arXiv 2410.11081v2, Sec. 3); ``sigma_data`` need not be the data's own standard
deviation. ``V_t = s^2 cos(t)^2 + sigma_data^2 sin(t)^2`` is a component's variance.

All maps take ``x`` of shape ``(b, d)`` and compute in its dtype. A time is an array
``(b,)`` of angles, a pair ``(cos, sin)`` of such arrays, or anything with attributes
``cos`` and ``sin``: the pair is exact where a float32 angle near pi/2 is not.
Nothing is divided by ``sin t`` or ``cos t``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr

# An array of angles, a pair (cos, sin), or an object with attributes cos and sin.
Times = Any


def _cos_sin(t: Times, dtype: Any = None) -> tuple[jax.Array, jax.Array]:
    """``(b, 1)`` cosine and sine of a time in any of its forms."""
    if hasattr(t, "cos") and hasattr(t, "sin"):
        cos, sin = t.cos, t.sin
    elif isinstance(t, tuple):
        cos, sin = t
    else:
        t = jnp.asarray(t, dtype)
        cos, sin = jnp.cos(t), jnp.sin(t)
    return jnp.asarray(cos, dtype)[:, None], jnp.asarray(sin, dtype)[:, None]


def _variance(std: Any, cos: Any, sin: Any, sigma_data: float) -> jax.Array:
    return (std * cos) ** 2 + (sigma_data * sin) ** 2


def _check_x(x: jax.Array, dim: int) -> jax.Array:
    x = jnp.asarray(x)
    if x.ndim != 2 or x.shape[1] != dim:
        raise ValueError(f"x must have shape (b, {dim}), not {x.shape}")
    return x


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Data ``N(mean, std^2 I)``: every map is affine in ``y = x - cos(t) mean``.

    Example:
      >>> g = Gaussian(mean=(0.0,), std=0.3)
      >>> f = g.consistency(jnp.ones((1, 1)), jnp.full((1,), 1.1), sigma_data=0.5)
      >>> round(float(f[0, 0]), 5)
      0.64389
    """

    mean: tuple[float, ...]  # d numbers
    std: float  # of each element, positive

    def __post_init__(self) -> None:
        if not self.mean or not self.std > 0:
            raise ValueError(f"need a mean and a positive std: {self}")

    @property
    def dim(self) -> int:
        """Number of elements of a sample."""
        return len(self.mean)

    def element_std(self) -> float:
        """Standard deviation per element, around each element's own mean."""
        return self.std

    def sample(self, rng: np.random.Generator, num: int) -> np.ndarray:
        """``num`` draws, ``(num, d)`` float32."""
        x = rng.standard_normal((num, self.dim)) * self.std + np.asarray(self.mean)
        return x.astype(np.float32)

    def variance(self, t: Times, sigma_data: float) -> jax.Array:
        """``V_t``, shape ``(b,)``: the variance of an element of ``x_t``."""
        return _variance(self.std, *_cos_sin(t), sigma_data)[:, 0]

    def _parts(
        self, x: jax.Array, t: Times, sigma_data: float
    ) -> tuple[jax.Array, ...]:
        """``cos, sin, V_t`` ``(b, 1)``, the mean ``(1, d)`` and ``y`` ``(b, d)``."""
        x = _check_x(x, self.dim)
        cos, sin = _cos_sin(t, x.dtype)
        mean = jnp.asarray(self.mean, x.dtype)[None]
        variance = _variance(self.std, cos, sin, sigma_data)
        return cos, sin, variance, mean, x - cos * mean

    def velocity(self, x: jax.Array, t: Times, sigma_data: float) -> jax.Array:
        """``dx_t/dt`` on the probability-flow ODE: ``sigma_data F`` of a perfect net.

        ``-sin(t) mean + (sigma_data^2 - s^2) sin(t) cos(t) / V_t y``
        """
        cos, sin, variance, mean, y = self._parts(x, t, sigma_data)
        slope = (sigma_data**2 - self.std**2) * sin * cos / variance
        return slope * y - sin * mean

    def denoiser(self, x: jax.Array, t: Times, sigma_data: float) -> jax.Array:
        """``E[x0 | x_t] = mean + s^2 cos(t) / V_t y``."""
        cos, _, variance, mean, y = self._parts(x, t, sigma_data)
        return mean + self.std**2 * cos / variance * y

    def flow(self, x: jax.Array, t: Times, u: Times, sigma_data: float) -> jax.Array:
        """Where the ODE has ``x_t`` at ``u``: ``cos(u) mean + sqrt(V_u / V_t) y``."""
        _, _, variance, mean, y = self._parts(x, t, sigma_data)
        cos_u, sin_u = _cos_sin(u, y.dtype)
        ratio = _variance(self.std, cos_u, sin_u, sigma_data) / variance
        return cos_u * mean + jnp.sqrt(ratio) * y

    def consistency(self, x: jax.Array, t: Times, sigma_data: float) -> jax.Array:
        """The exact consistency function, ``f = mean + s / sqrt(V_t) y``."""
        _, _, variance, mean, y = self._parts(x, t, sigma_data)
        return mean + self.std / jnp.sqrt(variance) * y

    def consistency_velocity(
        self, x: jax.Array, t: Times, sigma_data: float
    ) -> jax.Array:
        """``sigma_data F`` of the exact student, ``(cos(t) x - f) / sin(t)``.

        The quotient is expanded so that ``sin(t)`` cancels and t = 0 gives 0.
        """
        cos, sin, variance, mean, _ = self._parts(x, t, sigma_data)
        root = jnp.sqrt(variance)
        slope = (sigma_data * cos) ** 2 - self.std**2 * (1 + cos**2)
        slope = slope / (root * (root * cos + self.std))
        offset = sigma_data**2 / (root * (root + self.std * cos))
        return sin * (slope * x - offset * mean)

    def tangent(self, x: jax.Array, t: Times, sigma_data: float) -> jax.Array:
        """``df/dt`` along the ODE while the student still equals the perfect teacher.

        ``-s^2 sigma_data^2 sin(t) / V_t^2 y``: what Eq. 6 gives at initialization.
        """
        _, sin, variance, _, y = self._parts(x, t, sigma_data)
        return -((self.std * sigma_data / variance) ** 2) * sin * y


@dataclasses.dataclass(frozen=True)
class GaussianMixture:
    """Data ``sum_k weights_k N(means_k, stds_k^2 I)``.

    The consistency function is exact in one dimension, where the ODE keeps quantiles.
    """

    weights: tuple[float, ...]  # k positive numbers with sum 1
    means: tuple[tuple[float, ...], ...]  # k tuples of d numbers
    stds: tuple[float, ...]  # k positive numbers

    def __post_init__(self) -> None:
        if not len(self.weights) == len(self.means) == len(self.stds) > 0:
            raise ValueError(f"weights, means and stds must be equally many: {self}")
        if min(self.weights) <= 0 or abs(math.fsum(self.weights) - 1) > 1e-6:
            raise ValueError(f"weights must be positive with sum 1: {self.weights}")
        if len({len(mean) for mean in self.means}) != 1 or not self.means[0]:
            raise ValueError(f"means must have the same length: {self.means}")
        if not min(self.stds) > 0:
            raise ValueError(f"stds must be positive: {self.stds}")

    @property
    def dim(self) -> int:
        """Number of elements of a sample."""
        return len(self.means[0])

    def element_std(self) -> float:
        """Standard deviation per element, around each element's own mean."""
        weights, means = np.asarray(self.weights)[:, None], np.asarray(self.means)
        stds = np.asarray(self.stds)[:, None]
        second = (weights * (means**2 + stds**2)).sum(0)
        return float(np.sqrt((second - (weights * means).sum(0) ** 2).mean()))

    def sample(self, rng: np.random.Generator, num: int) -> np.ndarray:
        """``num`` draws, ``(num, d)`` float32."""
        component = rng.choice(len(self.weights), size=num, p=self.weights)
        std = np.asarray(self.stds)[component, None]
        x = rng.standard_normal((num, self.dim)) * std
        return (x + np.asarray(self.means)[component]).astype(np.float32)

    def _parts(
        self, x: jax.Array, t: Times, sigma_data: float
    ) -> tuple[jax.Array, ...]:
        """``cos, sin, V_k, p(k|x), mean_k, s_k^2, y_k``, of rank 3 ``(b, k, d)``."""
        x = _check_x(x, self.dim)
        cos, sin = (a[:, None] for a in _cos_sin(t, x.dtype))
        means = jnp.asarray(self.means, x.dtype)[None]
        stds = jnp.asarray(self.stds, x.dtype)[None, :, None]
        variance = _variance(stds, cos, sin, sigma_data)
        y = x[:, None] - cos * means
        logits = jnp.log(jnp.asarray(self.weights, x.dtype))[None, :, None]
        logits -= 0.5 * self.dim * jnp.log(variance)
        logits -= 0.5 * jnp.sum(y**2, axis=-1, keepdims=True) / variance
        weight = jax.nn.softmax(logits, axis=1)
        return cos, sin, variance, weight, means, stds**2, y

    def velocity(self, x: jax.Array, t: Times, sigma_data: float) -> jax.Array:
        """``dx_t/dt`` on the probability-flow ODE: ``sigma_data F`` of a perfect net.

        ``sum_k p(k|x) [(sigma_data^2 - s_k^2) sin t cos t / V_k y_k - sin t mean_k]``
        """
        cos, sin, variance, weight, means, s2, y = self._parts(x, t, sigma_data)
        slope = (sigma_data**2 - s2) * sin * cos / variance
        return jnp.sum(weight * (slope * y - sin * means), axis=1)

    def denoiser(self, x: jax.Array, t: Times, sigma_data: float) -> jax.Array:
        """``E[x0 | x_t] = sum_k p(k|x) [mean_k + s_k^2 cos(t) / V_k y_k]``."""
        cos, _, variance, weight, means, s2, y = self._parts(x, t, sigma_data)
        return jnp.sum(weight * (means + s2 * cos / variance * y), axis=1)

    def flow(self, x: jax.Array, t: Times, u: Times, sigma_data: float) -> jax.Array:
        """Where the ODE takes ``x_t`` at time ``u``, for one-dimensional data.

        In one dimension trajectories cannot cross, so each keeps its quantile:
        ``CDF_u(flow) = CDF_t(x)``. Differentiable in ``x``, ``t`` and ``u``.
        """
        if self.dim != 1:
            raise ValueError(f"quantile transport needs d = 1, not d = {self.dim}")
        x = _check_x(x, 1)
        loc_t, scale_t = self._marginal(t, sigma_data, x.dtype)
        loc_u, scale_u = self._marginal(u, sigma_data, x.dtype)
        log_weights = jnp.log(jnp.asarray(self.weights, x.dtype))[None]
        return _transport((x - loc_t) / scale_t, loc_u, scale_u, log_weights)

    def _marginal(
        self, t: Times, sigma_data: float, dtype: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Centres and standard deviations ``(b, k)`` of the components at ``t``."""
        cos, sin = _cos_sin(t, dtype)
        means = jnp.asarray(self.means, dtype)[:, 0][None]
        stds = jnp.asarray(self.stds, dtype)[None]
        return cos * means, jnp.sqrt(_variance(stds, cos, sin, sigma_data))

    def consistency(self, x: jax.Array, t: Times, sigma_data: float) -> jax.Array:
        """The exact consistency function ``CDF_0^{-1}(CDF_t(x))``; d = 1 only."""
        zero = jnp.zeros((jnp.shape(x)[0],), jnp.asarray(x).dtype)
        return self.flow(x, t, (jnp.ones_like(zero), zero), sigma_data)


@jax.jit  # or each call outside of jit would compile the loop anew
def _transport(
    z: jax.Array, loc: jax.Array, scale: jax.Array, log_weights: jax.Array
) -> jax.Array:
    """Solves ``sum_k w_k Phi((y - loc_k) / scale_k) = sum_k w_k Phi(z_k)`` for y.

    Bisection between bounds that are certain, then one Newton step that also carries
    the derivatives (implicit function theorem), so forward and reverse mode work.
    Standardized positions before ``z``, centres ``loc`` and standard deviations
    ``scale`` after are ``(b, k)``, ``log_weights`` is ``(1, k)``; returns ``(b, 1)``.
    """

    def excess(y, z, loc, scale):
        return _cdf_difference((y - loc) / scale, z, log_weights)

    fixed = jax.lax.stop_gradient((z, loc, scale))

    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        too_high = excess(middle, *fixed)[0] > 0
        return jnp.where(too_high, low, middle), jnp.where(too_high, middle, high)

    # The standard normal quantile of the common level lies within the range of z.
    low = fixed[1] + fixed[2] * fixed[0].min(axis=1, keepdims=True)
    high = fixed[1] + fixed[2] * fixed[0].max(axis=1, keepdims=True)
    bounds = low.min(axis=1, keepdims=True), high.max(axis=1, keepdims=True)
    num_halvings = jnp.finfo(z.dtype).nmant + 8
    low, high = jax.lax.fori_loop(0, num_halvings, halve, bounds)
    y = 0.5 * (low + high)

    difference, log_unit = excess(y, z, loc, scale)
    log_density = log_weights - 0.5 * ((y - loc) / scale) ** 2 - jnp.log(scale)
    density = jnp.exp(log_density - 0.5 * math.log(2 * math.pi) - log_unit)
    density = jax.lax.stop_gradient(density).sum(axis=1, keepdims=True)
    return y - difference / density


def _cdf_difference(
    a: jax.Array, z: jax.Array, log_weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """``sum_k w_k [Phi(a_k) - Phi(z_k)]`` in units that neither cancel nor underflow.

    Returns the difference divided by the unit, and the unit's logarithm, ``(b, 1)``.
    """
    # Each difference is taken between the tails on the side where they are small, and
    # all are divided by the largest. So the sign is right far out in a tail, and in a
    # gap between two components, where a plain CDF is constant in float32.
    sign = jnp.where(a + z > 0, -1, 1).astype(a.dtype)
    log_a = log_weights + log_ndtr(sign * a)
    log_z = log_weights + log_ndtr(sign * z)
    log_unit = jnp.maximum(log_a, log_z).max(axis=1, keepdims=True)
    log_unit = jax.lax.stop_gradient(log_unit)
    terms = sign * (jnp.exp(log_a - log_unit) - jnp.exp(log_z - log_unit))
    return terms.sum(axis=1, keepdims=True), log_unit
