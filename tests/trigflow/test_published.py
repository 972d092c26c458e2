"""Published processes in TrigFlow: exact predictors of Gaussian data give exact F."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import trigflow
from scm_jax.trigflow.exact import Gaussian
from scm_jax.types import Cond

MEAN, STD = np.array([0.3, -0.4, 0.1]), 0.8


def schedule():
    """``log(sigma / alpha)`` of the 1000 steps, by the definition of the process."""
    signal, table = 1.0, []
    for i in range(1000):
        signal *= 1 - (1e-4 + (0.02 - 1e-4) * i / 999)
        table.append(0.5 * np.log((1 - signal) / signal))
    return np.array(table)


def posterior(y, alpha, sigma, scale=1.0):
    """``E[x0 | y]`` and ``E[eps | y]`` for ``y = alpha scale x0 + sigma eps``."""
    alpha, sigma, mean, std = alpha[:, None], sigma[:, None], scale * MEAN, scale * STD
    residual = (y - alpha * mean) / (alpha**2 * std**2 + sigma**2)
    return mean + std**2 * alpha * residual, sigma * residual


def says(name, sigma_data, y, t):
    """What the network of each project is trained to say at its own time."""
    y, t = np.asarray(y), np.asarray(t)
    if name == "dit":
        ratio = np.exp(np.interp(t, np.arange(1000), schedule()))
        alpha = 1 / np.hypot(1, ratio)
        return posterior(y, alpha, ratio * alpha)[1]
    if name == "sit":
        x0, eps = posterior(y, t, 1 - t)
        return x0 - eps
    x0, eps = posterior(y, 1 - t, t, 1 / sigma_data)
    return eps - x0


@pytest.mark.parametrize("sigma_data", [0.5, 1.7])
@pytest.mark.parametrize("name", ["dit", "sana_sprint", "sit"])
def test_exact_predictors_become_the_exact_velocity(name, sigma_data, float64_islands):
    # DiT has no steps nearer to the ends.
    t = np.array([0.03, 0.3, 1.1, 1.5, 1.559] + [0, 1.5707] * (name != "dit"))
    x_t = jnp.asarray(np.random.default_rng(0).normal(size=(len(t), 3)))

    def net(params, y, cond):
        return says(name, sigma_data, y, cond.t)

    fn = trigflow.PARAMETERIZATIONS[name](net, sigma_data)
    F = fn({}, x_t / sigma_data, Cond(t=jnp.asarray(t)))
    data = Gaussian(mean=tuple(MEAN), std=STD)
    expected = data.velocity(x_t, jnp.asarray(t), sigma_data) / sigma_data
    np.testing.assert_allclose(F, expected, rtol=1e-9, atol=1e-9)


def test_steps_of_dit_are_those_of_its_schedule(float64_islands):
    """Also between two steps, and at the ends beyond the range."""
    seen, table, x = [], schedule(), jnp.ones((5, 2))
    assert np.exp(table[[0, -1]]) == pytest.approx([0.0100005, 157.407], rel=1e-4)
    logs = np.array([table[0] - 1, table[7], (table[7] + table[8]) / 2, table[-1]])
    t = jnp.asarray(np.append(np.arctan(np.exp(logs) / 0.5), np.pi / 2))
    fn = trigflow.from_dit(lambda params, y, cond: seen.append(cond.t) or y, 0.5)
    F = fn({}, x, Cond(t=t))
    np.testing.assert_allclose(seen[0], [0, 7, 7.5, 999, 999], atol=1e-9)
    np.testing.assert_allclose(F[4], F[3], rtol=1e-9)
    slope = jax.jvp(lambda t: fn({}, x, Cond(t=t)), (t,), (jnp.ones(5),))[1]
    assert np.isfinite(slope).all() and np.abs(slope[2]).min() > 0.1
