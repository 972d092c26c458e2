"""The identities of maps between two times, in float64, with sigma_data = 0.5.

A network with any weights must fulfil what relates ``U`` and its derivatives to the map
and its derivatives; the exact map of Gaussian data must make every residual zero.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import trigflow
from scm_jax.trigflow.exact import Gaussian

SD = 0.5
DATA = Gaussian(mean=(0.7, -0.4), std=0.3)
T, S, MIDDLE = 1.1, 0.4, 0.8


@pytest.fixture
def x(float64):
    return jnp.asarray(np.random.default_rng(0).normal(0.3, 0.6, (5, 2)))


def full(t):
    return jnp.full((5,), t)


def net(x, t, dt):
    """Some smooth network with weights drawn once, fed ``dt``."""
    rng = np.random.default_rng(1)
    w = [jnp.asarray(rng.normal(size=shape)) for shape in ((2, 8), (2, 8), (8, 2))]
    times = jnp.stack([t, dt], axis=1)
    return jnp.tanh(x @ w[0] + times @ w[1]) @ w[2] + jnp.sin(dt)[:, None] * x


def exact(x, t, dt):
    """``U`` of the exact map of Gaussian data."""
    X = DATA.flow(x * SD, t, t - dt, SD)
    return (jnp.cos(dt)[:, None] * x * SD - X) / (jnp.sin(dt)[:, None] * SD)


def X_of(fn, x, t, s):
    return trigflow.flow_map(x, fn(x / SD, t, t - s), t, s, SD)


def close(a, b, tolerance=1e-12):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def eulerian(fn, x, t, s, v):
    one = jnp.ones_like(t)
    U, dU = jax.jvp(fn, (x / SD, t, t - s), (v / SD, one, one))
    return trigflow.eulerian(x, U, dU, v, trigflow.between(t, s), SD)


def lagrangian(fn, x, t, s, v):
    tangents = (jnp.zeros_like(x), jnp.zeros_like(t), -jnp.ones_like(t))
    U, dU = jax.jvp(fn, (x / SD, t, t - s), tangents)
    return trigflow.lagrangian(x, U, dU, v, trigflow.between(t, s), SD)


def composed(fn, x, t, u, s):
    U_tu = fn(x / SD, t, t - u)
    X_u = trigflow.flow_map(x, U_tu, t, u, SD)
    halves = trigflow.between(t, u), trigflow.between(u, s)
    return trigflow.semigroup(x, U_tu, fn(X_u / SD, u, u - s), *halves, SD), X_u


def test_the_exact_map_is_that_of_the_flow_and_begins_with_the_velocity(x):
    """Rows B1 and B1': the closed form of U, and its limit, to first order."""
    t, s = full(T), full(S)
    delta, V_t, V_s = T - S, DATA.variance(t, SD)[0], DATA.variance(s, SD)[0]
    mean = jnp.asarray(DATA.mean)[None]
    slope = (jnp.cos(delta) - jnp.sqrt(V_s / V_t)) / jnp.sin(delta)
    closed = -jnp.sin(T) * mean + slope * (x - jnp.cos(T) * mean)
    close(SD * exact(x / SD, t, t - s), closed)
    close(X_of(exact, x, t, s), DATA.flow(x, t, s, SD))
    F = DATA.velocity(x, t, SD) / SD
    errors = [jnp.abs(exact(x / SD, t, full(h)) - F).max() for h in (1e-2, 1e-3, 1e-4)]
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize("fn", [net, exact])
def test_eulerian_is_the_derivative_by_the_start(x, fn):
    """Row B2, for any network; zero for the exact map along its own velocity."""
    t, s, v = full(T), full(S), DATA.velocity(x, full(T), SD)
    _, dX = jax.jvp(lambda x, t: X_of(fn, x, t, s), (x, t), (v, jnp.ones_like(t)))
    close(eulerian(fn, x, t, s, v), dX)
    if fn is exact:
        close(dX, 0.0)


def test_eulerian_at_time_0_is_eq_6_and_over_cos_is_mean_flows(x):
    """Row B2: the paper's df/dt, and MeanFlow's target without its prediction."""
    t, zero, v = full(T), full(0.0), DATA.velocity(x, full(T), SD)
    one = jnp.ones_like(t)
    F, dF = jax.jvp(lambda x, t: net(x, t, t), (x / SD, t), (v / SD, one))
    eq6 = -jnp.cos(T) * (SD * F - v) - jnp.sin(T) * (x + SD * dF)
    close(eulerian(net, x, t, zero, v), eq6)
    s, tan = full(S), jnp.tan(T - S)
    U, dU = jax.jvp(net, (x / SD, t, t - s), (v / SD, one, one))
    target = v - tan * (x + SD * dU)
    close(eulerian(net, x, t, s, v) / jnp.cos(T - S), target - SD * U)


@pytest.mark.parametrize("fn", [net, exact])
def test_lagrangian_is_the_derivative_by_the_end(x, fn):
    """Row B3: what the end does, against the velocity where it is."""
    t, s = full(T), full(S)
    X, dX = jax.jvp(lambda s: X_of(fn, x, t, s), (s,), (jnp.ones_like(s),))
    v = DATA.velocity(X, s, SD)
    close(lagrangian(fn, x, t, s, v), v - dX)
    if fn is exact:
        close(v, dX)


def test_semigroup_is_the_composition_and_no_plain_mean(x):
    """Row B4, for any network; with equal halves the mean of both outputs is off."""
    t, u, s = full(T), full(MIDDLE), full(S)
    U, X_u = composed(net, x, t, u, s)
    close(trigflow.flow_map(x, U, t, s, SD), X_of(net, X_u, u, s))
    U, _ = composed(exact, x, t, u, s)
    close(U, exact(x / SD, t, t - s))
    half = full((T + S) / 2)
    U, X_u = composed(net, x, t, half, s)
    U1, U2 = net(x / SD, t, t - half), net(X_u / SD, half, half - s)
    h = (T - S) / 2
    close(U, (jnp.cos(h) * U1 + U2 - jnp.sin(h) * x / SD) / (2 * jnp.cos(h)))
    assert jnp.abs(U - (U1 + U2) / 2).max() > 0.05


def test_a_network_fed_dt_needs_its_own_tangents(x):
    """Row B29: dt grows with t and shrinks with s."""
    t, s, v = full(T), full(S), DATA.velocity(x, full(T), SD)
    one = jnp.ones_like(t)
    _, right = jax.jvp(net, (x / SD, t, t - s), (v / SD, one, one))
    tangents = (v / SD, one, 0 * one)
    _, same = jax.jvp(lambda x, t, s: net(x, t, t - s), (x / SD, t, s), tangents)
    _, wrong = jax.jvp(net, (x / SD, t, t - s), (v / SD, one, 0 * one))
    close(right, same)
    assert jnp.abs(right - wrong).max() > 0.5


def test_score_difference_of_gaussians(float64):
    """Row B13: the gradients of two log densities at one point, and of denoisers."""
    other = Gaussian(mean=(0.1, 0.2), std=0.45)
    x, t = jnp.asarray([[0.3, -0.8]]), jnp.asarray([0.9])
    F_q, F_p = (d.velocity(x, t, SD) / SD for d in (DATA, other))

    def score(data):
        mean = jnp.cos(t)[:, None] * jnp.asarray(data.mean)[None]
        return -(x - mean) / data.variance(t, SD)[:, None]

    time = trigflow.time_from_t(t)
    found = trigflow.score_difference(F_q, F_p, time, SD)
    close(found, score(DATA) - score(other))
    D = [trigflow.D_from_F(x, F, t, SD) for F in (F_q, F_p)]
    close(D[0] - D[1], -jnp.sin(0.9) * SD * (F_q - F_p))


def test_times_keep_their_precision_near_pi_2():
    """Sine and cosine of ``t - s`` from noise levels of 80 and 79.9, in float32."""
    t, s = (trigflow.time_from_sigma(jnp.float32(a), SD) for a in (80.0, 79.9))
    angle = np.arctan2(80.0, SD) - np.arctan2(np.float64(np.float32(79.9)), SD)
    assert float(trigflow.between(t, s).sin) == pytest.approx(angle, rel=1e-3)
    assert float(jnp.sin(t.t - s.t)) != pytest.approx(angle, rel=1e-3)
