"""Moving averages of the weights, and any width of them after training.

The power-function EMA of EDM2 (arXiv 2312.02696, section 3 and appendix C) weighs the
parameters of time tau by ``tau ** gamma``: its width is a fixed fraction of the
training so far, it never remembers the initialization, and any width at any time is a
linear combination of a few stored snapshots. Time may be counted in updates or images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

# A flat profile (gamma = 0); gamma < 0 would weigh the beginning of the training most.
MAX_REL_STD = 1 / np.sqrt(12)


def rel_std_to_gamma(rel_std: float) -> float:
    """Exponent of the profile of relative width ``rel_std``.

    The width is the profile's standard deviation over t,
    s = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)) (arXiv 2312.02696, Eq. 123);
    gamma is the largest root of gamma^3 + 7 gamma^2 + (16 - 1/s^2) gamma + (12 -
    1/s^2), which is Eq. 123 squared (Eq. 126 and Alg. 2).

    Raises:
      ValueError: ``rel_std`` is outside (0, 1/sqrt(12)].

    Example:
      >>> round(rel_std_to_gamma(0.05), 2), round(rel_std_to_gamma(0.10), 2)
      (16.97, 6.94)
    """
    if not 0 < rel_std <= MAX_REL_STD:
        raise ValueError(
            f"ema rel_std={rel_std}: legal are values in (0, {MAX_REL_STD:.4f}], the "
            "width of the EMA as a fraction of the training so far"
        )
    precision = float(rel_std) ** -2
    roots = np.roots([1.0, 7.0, 16.0 - precision, 12.0 - precision])
    return float(roots.real.max())


def profile_dot(
    time_a: ArrayLike, gamma_a: ArrayLike, time_b: ArrayLike, gamma_b: ArrayLike
) -> np.ndarray:
    """Inner product of two power profiles; broadcasts.

    For time_a <= time_b it is (gamma_a + 1)(gamma_b + 1) / (gamma_a + gamma_b + 1)
    (time_a / time_b)^gamma_b / time_b, and symmetric; arXiv 2312.02696, Eq. 151.
    """
    time_a, gamma_a, time_b, gamma_b = (
        np.asarray(v, np.float64) for v in (time_a, gamma_a, time_b, gamma_b)
    )
    later = np.maximum(time_a, time_b)
    ratio = np.minimum(time_a, time_b) / later
    gamma_of_later = np.where(time_a < time_b, gamma_b, gamma_a)
    factor = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return factor * ratio**gamma_of_later / later


def posthoc_coefficients(
    times: Sequence[float], rel_stds: Sequence[float], time: float, rel_std: float
) -> np.ndarray:
    """Coefficients of the stored EMAs that come closest to the wanted one.

    Least squares between profiles: A c = b with the inner products of the stored
    profiles with each other and with the target; arXiv 2312.02696, Alg. 3. The
    solution is divided by its sum, as in EDM2's code: weights that do not move come
    back exactly.

    Args:
      times: ``(n,)`` when the snapshots were taken, above 0.
      rel_stds: ``(n,)`` their relative widths.
      time: the moment to reconstruct, at most ``max(times)``.
      rel_std: the relative width to reconstruct.

    Returns:
      ``(n,)`` float64 coefficients, which add up to 1.
    """
    if not len(times) or len(times) != len(rel_stds):
        raise ValueError(
            f"ema snapshots: {len(times)} times and {len(rel_stds)} widths; needed "
            "are as many of both, and at least one"
        )
    if min(times) <= 0 or not 0 < time <= max(times):
        raise ValueError(
            f"ema snapshots at {sorted(set(times))} cannot give the EMA at {time}: "
            "all times must be above 0 and the wanted one at most the newest"
        )
    t = np.asarray(times, np.float64)
    gamma = np.array([rel_std_to_gamma(s) for s in rel_stds])
    gram = profile_dot(t[:, None], gamma[:, None], t[None, :], gamma[None, :])
    target = profile_dot(t, gamma, time, rel_std_to_gamma(rel_std))
    # Not solve: near-equal snapshots make the matrix singular.
    coefficients = np.linalg.lstsq(gram, target, rcond=None)[0]
    return coefficients / coefficients.sum()


def weighted_sum(coefficients: Iterable[float], trees: Iterable[Any]) -> Any:
    """``sum_i c_i tree_i``, one tree at a time, so that ``trees`` may load lazily.

    Numpy leaves of the dtype of the first tree.
    """
    total, dtypes = None, None  # in float64: the coefficients alternate in sign
    for coefficient, tree in zip(coefficients, trees, strict=True):
        scaled = jax.tree.map(lambda x, c=coefficient: c * np.float64(x), tree)
        if total is None:
            total, dtypes = scaled, jax.tree.map(lambda x: np.asarray(x).dtype, tree)
        else:
            total = jax.tree.map(np.add, total, scaled)
    return jax.tree.map(lambda s, dtype: s.astype(dtype), total, dtypes)


@dataclasses.dataclass(frozen=True)
class PowerEma:
    """Power-function average: its width is ``rel_std`` of the training so far.

    beta = (1 - 1 / (step + 1)) ** (gamma + 1) is how much of the old average survives
    an update; arXiv 2312.02696, Eq. 127. The weight of the initialization is exactly 0.

    Example:
      >>> float(PowerEma(0.05).update_weight(0, 128))
      1.0
    """

    rel_std: float

    def __post_init__(self):
        rel_std_to_gamma(self.rel_std)

    def update_weight(self, step: jax.Array, images_per_step: int) -> jax.Array:
        """1 - beta: the share of the new parameters; ``step`` counts from 0."""
        del images_per_step  # the profile depends on the ratio of times only
        # The subtraction 1 - beta would lose two of float32's digits at step 1e6.
        exponent = rel_std_to_gamma(self.rel_std) + 1
        time = jnp.asarray(step, jnp.float32) + 1
        return -jnp.expm1(exponent * jnp.log1p(-1 / time))


@dataclasses.dataclass(frozen=True)
class HalfLifeEma:
    """Exponential average: a parameter's weight halves every ``half_life_images``.

    beta = 0.5 ** (images_per_step / half_life). While the training is young the
    half-life is at most ``rampup_ratio`` of the images seen, as in EDM (arXiv
    2206.00364, appendix F.3, their training code: 0.05); None switches that off. In
    both cases beta is 0 at the first update, so that the initialization is forgotten.

    Example:
      >>> float(HalfLifeEma(500_000).update_weight(10**6, 500_000))
      0.5
    """

    half_life_images: float
    rampup_ratio: float | None = 0.05

    def __post_init__(self):
        for name in ("half_life_images", "rampup_ratio"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"ema {name}={value}: must be above 0")

    def update_weight(self, step: jax.Array, images_per_step: int) -> jax.Array:
        """1 - beta: the share of the new parameters; ``step`` counts from 0."""
        images = jnp.asarray(step, jnp.float32) * images_per_step
        half_life = jnp.float32(self.half_life_images)
        if self.rampup_ratio is not None:
            half_life = jnp.minimum(half_life, images * self.rampup_ratio)
        rate = jnp.log(2.0) * images_per_step / half_life
        return jnp.where(images > 0, -jnp.expm1(-rate), 1.0)


EmaProfile = PowerEma | HalfLifeEma
