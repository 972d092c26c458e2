"""Networks of rectified flow behind TrigFlow: exact for any data and sigma_data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import networks, trigflow
from scm_jax.runs.setup import parts
from scm_jax.trigflow.exact import Gaussian
from scm_jax.types import Cond

SCALE = 1000.0
MEAN = np.array([0.7, -0.4, 0.1])
TIMES = np.array([1e-6, 1e-3, 0.3, 0.9, 1.3, 1.55, np.pi / 2 - 1e-6])


def optimal(std):
    """``E[eps - x0 | y]`` of Gaussian data, with ``y = (1 - s) x0 + s eps``."""

    def v(params, y, cond, **kwargs):
        s, mean = cond.t[:, None] / SCALE, jnp.asarray(MEAN, y.dtype)[None]
        variance = (1 - s) ** 2 * std**2 + s**2
        slope = (s - (1 - s) * std**2) / variance
        return params * (slope * (y - (1 - s) * mean) - mean)

    return v


@pytest.mark.parametrize("std", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("sigma_data", [0.27, 0.5, 1.0])
def test_the_optimal_velocity_of_a_flow_is_that_of_trigflow(std, sigma_data, float64):
    x_t = jnp.asarray(np.random.default_rng(0).normal(size=(7, 3)))
    fn = trigflow.from_rectified_flow(optimal(std), sigma_data, SCALE)
    F = fn(1.0, x_t / sigma_data, Cond(t=jnp.asarray(TIMES)))
    data = Gaussian(mean=tuple(MEAN), std=std)
    exact = data.velocity(x_t, jnp.asarray(TIMES), sigma_data) / sigma_data
    np.testing.assert_allclose(F, exact, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("sigma_data", [0.27, 0.5, 1.0])
def test_each_sample_s_own_velocity_is_exact(sigma_data, float64):
    """``eps - x0`` becomes ``cos t eps - sin t x0 / sigma_data``."""
    rng = np.random.default_rng(1)
    x0, eps = rng.normal(size=(2, 7, 3)) + 0.3
    cos, sin = np.cos(TIMES)[:, None], np.sin(TIMES)[:, None]
    seen = {}

    def net(params, y, cond, **kwargs):
        seen.update(y=y, time=cond.t)
        return jnp.asarray(eps - x0)

    x = (cos * x0 + sin * sigma_data * eps) / sigma_data
    fn = trigflow.from_rectified_flow(net, sigma_data)
    F = fn(None, jnp.asarray(x), Cond(t=jnp.asarray(TIMES)))
    np.testing.assert_allclose(F, cos * eps - sin * x0 / sigma_data, rtol=1e-12)
    s = np.arctan2(sigma_data * sin, cos)  # of s/(1-s) = sigma_data tan t
    s = np.tan(s) / (1 + np.tan(s))
    np.testing.assert_allclose(seen["y"], (1 - s) * x0 + s * eps, rtol=1e-9)
    np.testing.assert_allclose(seen["time"], 1000 * s[:, 0], rtol=1e-9)


def test_unit_sigma_data_is_the_form_of_sana_sprint(float64):
    """Prop. 3.1 of arXiv 2503.09641."""
    y, v = np.random.default_rng(2).normal(size=(2, 7, 3))
    s = (np.sin(TIMES) / (np.sin(TIMES) + np.cos(TIMES)))[:, None]
    norm = np.sqrt(s**2 + (1 - s) ** 2)
    fn = trigflow.from_rectified_flow(lambda *a, **k: jnp.asarray(v), 1.0)
    F = fn(None, jnp.asarray(y / norm), Cond(t=jnp.asarray(TIMES)))
    expected = ((1 - 2 * s) * y + (1 - 2 * s + 2 * s**2) * v) / norm
    np.testing.assert_allclose(F, expected, rtol=1e-11)


@pytest.mark.parametrize("sigma_data", [0.27, 1.0])
def test_value_and_tangent_in_float32_hold_at_both_ends(sigma_data):
    """float32(pi/2) lies above pi/2; the reference is the same in float64."""
    t = np.array([0.0, 1e-7, 1e-4, 0.7, 1.5645, np.pi / 2])
    x = np.random.default_rng(3).normal(size=(6, 3))

    def run(dtype):
        fn = trigflow.from_rectified_flow(optimal(0.3), sigma_data)
        args = jnp.asarray(x, dtype), jnp.asarray(t, dtype)
        one = (jnp.ones_like(args[0]), jnp.ones_like(args[1]))
        return jax.jvp(lambda x, t: fn(1.0, x, Cond(t=t)), args, one)

    found = run(jnp.float32)
    with jax.enable_x64(True):
        exact = run(jnp.float64)
    for a, b in zip(map(np.asarray, found), map(np.asarray, exact), strict=True):
        assert a.dtype == np.float32
        scale = np.abs(b).max()
        np.testing.assert_allclose(a / scale, b / scale, rtol=0, atol=1e-5)


def test_logit_normal_times_and_their_shift_are_a_proposal():
    """In numbers: the times of both have the same quantiles."""
    sigma_data, shift = 0.5, 3.0
    normal = np.random.default_rng(4).normal(size=1000)
    s = 1 / (1 + np.exp(-(0.2 + 0.8 * normal)))
    s = shift * s / (1 + (shift - 1) * s)
    P_mean, P_std = trigflow.logit_normal_proposal(0.2, 0.8, shift)
    time = trigflow.time_from_tau(jnp.asarray(P_mean + P_std * normal), sigma_data)
    np.testing.assert_allclose(time.t, np.arctan2(s, sigma_data * (1 - s)), rtol=1e-5)


def test_networks_of_all_parameterizations_are_told_apart():
    bare = networks.build("mlp", (2,), 0)
    made = {}
    for name, adapter in trigflow.PARAMETERIZATIONS.items():
        adapted = None if adapter is None else parts.functools.partial(adapter, 0.5)
        made[name] = parts.dataclasses.replace(bare, adapter=adapted)
    for a in made:
        assert [b for b in made if parts.same_convention(made[a], made[b])] == [a]
