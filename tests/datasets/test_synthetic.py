"""Closed forms against published numbers, densities and ODE integration."""

import functools
import itertools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from scm_jax.datasets import make_dataset
from scm_jax.datasets.synthetic import Gaussian, GaussianMixture

SD = 0.5
T_MAX = math.atan(80 / SD)
GAUSSIAN = Gaussian(mean=(0.25, -0.15, 0.4), std=0.3)
MIXTURE = make_dataset("mixture").closed_form
MIXTURE_2D = GaussianMixture((0.3, 0.7), ((-0.5, 0.2), (0.4, -0.1)), (0.1, 0.25))
ALL = [GAUSSIAN, MIXTURE, MIXTURE_2D]

# Working note on sCM, closed forms for s = 0.3, sigma_data = 0.5: coefficients of y in
# V, v, f, df/dt of a student that equals its teacher; and of x in the exact student's
# sigma_data F for mean 0.
TABLE = [
    (0.5, 0.12677582, 0.53099780, 0.84256429, -0.67116740, 0.07304215),
    (1.1, 0.21708009, 0.29795322, 0.64388938, -0.42552130, -0.21352298),
    (1.3, 0.23855110, 0.17287747, 0.61422932, -0.38097600, -0.35984385),
    (T_MAX, 0.24999375, 0.00399994, 0.60000750, -0.36001097, -0.59376922),
]


@pytest.fixture(params=["float32", "float64"])
def precision(request):
    """``(dtype, relative tolerance)``, with float64 switched on for float64."""
    with jax.enable_x64(request.param == "float64"):
        dtype = np.dtype(request.param)
        yield dtype, 16 * float(np.finfo(dtype).eps)


QUICK = {"xla_backend_optimization_level": 0}


@functools.cache
def _compiled(function):
    return jax.jit(lambda *args: function(*args, SD), compiler_options=QUICK)


def call(distribution, name, *args):
    """A method with sigma_data 0.5, compiled once for all tests."""
    return _compiled(getattr(distribution, name))(*args)


def points(distribution, t, num=64, seed=0):
    """Draws of ``x_t`` at the times ``t`` (num,), in float64."""
    rng = np.random.default_rng(seed)
    x0 = distribution.sample(rng, num).astype(np.float64)
    z = SD * rng.standard_normal(x0.shape)
    return np.cos(t)[:, None] * x0 + np.sin(t)[:, None] * z


def times(num=64, seed=1):
    return np.random.default_rng(seed).uniform(0.02, T_MAX, num)


def as_mixture(distribution):
    if isinstance(distribution, GaussianMixture):
        return distribution
    return GaussianMixture((1.0,), (distribution.mean,), (distribution.std,))


def log_density(distribution, x, t):
    """Log density of ``x_t``, written down independently, in numpy."""
    d = as_mixture(distribution)
    terms = []
    for weight, mean, std in zip(d.weights, d.means, d.stds, strict=True):
        variance = (std * np.cos(t)) ** 2 + (SD * np.sin(t)) ** 2
        y = x - np.cos(t)[:, None] * np.asarray(mean)
        exponent = -0.5 * (y**2).sum(1) / variance
        terms.append(np.log(weight) + exponent - 0.5 * d.dim * np.log(variance))
    return np.logaddexp.reduce(terms)


def integrate(distribution, x, start, stop, steps=800):
    """The probability-flow ODE by classical Runge-Kutta, ``start`` -> ``stop`` (b,)."""
    h = (stop - start) / steps

    def velocity(x, t):
        return distribution.velocity(x, t, SD)

    def step(i, x):
        t = start + i * h
        k1 = velocity(x, t)
        k2 = velocity(x + h[:, None] / 2 * k1, t + h / 2)
        k3 = velocity(x + h[:, None] / 2 * k2, t + h / 2)
        k4 = velocity(x + h[:, None] * k3, t + h)
        return x + h[:, None] / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    run = functools.partial(jax.lax.fori_loop, 0, steps, step)
    return jax.jit(run, compiler_options=QUICK)(x)


def test_gaussian_numbers(precision):
    dtype, eps = precision
    t, variance, v, f, df_dt, student = np.array(TABLE).T[:, :, None]
    mean = np.asarray(GAUSSIAN.mean)
    x = np.tile([0.7, -0.2, 0.1], (4, 1))
    y = x - np.cos(t) * mean
    # cos of a float32 angle near pi/2 is off by 1e-5; the pair is not.
    pair = tuple(jnp.asarray(a[:, 0], dtype) for a in (np.cos(t), np.sin(t)))
    centred = Gaussian((0.0, 0.0, 0.0), 0.3)
    for distribution, name, expected in [
        (GAUSSIAN, "velocity", v * y - np.sin(t) * mean),
        (GAUSSIAN, "consistency", mean + f * y),
        (GAUSSIAN, "tangent", df_dt * y),
        (centred, "consistency_velocity", student * x),
    ]:
        found = call(distribution, name, jnp.asarray(x, dtype), pair)
        # The table has eight digits; v at t_max has six.
        close = {"rtol": max(eps, 1e-6), "atol": 5e-9 + eps, "err_msg": name}
        np.testing.assert_allclose(found, expected, **close)
    found = GAUSSIAN.variance(pair, SD)
    np.testing.assert_allclose(found, variance[:, 0], rtol=max(eps, 1e-6))


# f of the mixture at x and t, and dx_t/dt.
F = [(-0.7, 1.3, -0.586961483), (0.05, 1.3, 0.244715214), (0.6, 1.3, 0.570225604)]
V = [(0.05, 0.6, -0.159364407), (-0.2, 0.3, 0.503225939), (0.05, 1.3, -0.040409696)]


@pytest.mark.parametrize("name, rows", [("consistency", F), ("velocity", V)])
def test_mixture_numbers(name, rows, precision):
    dtype, eps = precision
    x, t, expected = np.array(rows).T
    found = call(MIXTURE, name, x.astype(dtype)[:, None], t.astype(dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(found[:, 0], expected, rtol=0, atol=1e-9 + eps)


@pytest.mark.parametrize("distribution", ALL)
def test_velocity_is_that_of_the_score(distribution, float64):
    """score = -(cos t v + sin t x) / (sigma_data^2 sin t), density differentiated."""
    t = times()
    x, h = points(distribution, t), 1e-6
    v = np.asarray(call(distribution, "velocity", x, t))
    below, above = (
        [
            log_density(distribution, x + s * step, t)
            for step in np.eye(distribution.dim)
        ]
        for s in (-h, h)
    )
    score = np.subtract(above, below).T / (2 * h)
    cos, sin = np.cos(t)[:, None], np.sin(t)[:, None]
    expected = -(SD**2) * sin * score - sin * x
    np.testing.assert_allclose(cos * v, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("distribution", ALL)
def test_denoiser_and_velocity_agree(distribution, float64):
    t = times()
    x = points(distribution, t)
    v = call(distribution, "velocity", x, t)
    expected = np.cos(t)[:, None] * x - np.sin(t)[:, None] * v
    found = call(distribution, "denoiser", x, t)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("distribution", [GAUSSIAN, MIXTURE])
def test_flow_and_consistency_follow_the_ode(distribution, float64):
    t, u = times(seed=1), times(seed=2)
    x = points(distribution, t)
    there = call(distribution, "flow", x, t, u)
    np.testing.assert_allclose(there, integrate(distribution, x, t, u), atol=1e-8)
    back = call(distribution, "flow", there, u, t)
    np.testing.assert_allclose(back, x, atol=1e-12)
    end = integrate(distribution, x, t, np.zeros_like(t))
    f = call(distribution, "consistency", x, t)
    np.testing.assert_allclose(f, end, atol=1e-8)


@pytest.mark.parametrize("distribution", [GAUSSIAN, MIXTURE])
def test_consistency_is_constant_along_the_ode(distribution, float64):
    t = times()
    x = points(distribution, t)

    def derivatives(x, t, sigma_data):
        def f(x, t):
            return distribution.consistency(x, t, sigma_data)

        v = distribution.velocity(x, t, sigma_data)
        _, df_dt = jax.jvp(f, (x, t), (v, jnp.ones_like(t)))
        return df_dt, jax.grad(lambda x: f(x, t).sum())(x)

    df_dt, slope = _compiled(derivatives)(x, t)
    np.testing.assert_allclose(df_dt, jnp.zeros_like(x), atol=1e-10)
    # Reverse mode agrees with a difference quotient.
    above, below = (call(distribution, "consistency", x + h, t) for h in (1e-6, -1e-6))
    np.testing.assert_allclose(slope, (above - below) / 2e-6, rtol=1e-5, atol=1e-7)


def test_gaussian_tangent_is_the_derivative_of_the_denoiser(float64):
    """A student that equals its teacher has f = D, and df/dt runs along the ODE."""
    t = jnp.asarray(times())
    x = jnp.asarray(points(GAUSSIAN, np.asarray(t)))
    tangents = (call(GAUSSIAN, "velocity", x, t), jnp.ones_like(t))
    _, df_dt = jax.jvp(functools.partial(call, GAUSSIAN, "denoiser"), (x, t), tangents)
    np.testing.assert_allclose(call(GAUSSIAN, "tangent", x, t), df_dt, atol=1e-12)


def test_exact_student(float64):
    t = times()
    x = points(GAUSSIAN, t)
    student = call(GAUSSIAN, "consistency_velocity", x, t)
    f = np.cos(t)[:, None] * x - np.sin(t)[:, None] * student
    np.testing.assert_allclose(f, call(GAUSSIAN, "consistency", x, t), atol=1e-12)
    at_zero = call(GAUSSIAN, "consistency_velocity", x, np.zeros_like(t))
    np.testing.assert_array_equal(at_zero, 0)


@pytest.mark.parametrize("distribution", [GAUSSIAN, MIXTURE])
def test_ends_of_time(distribution, precision):
    dtype, eps = precision
    x = np.linspace(-1.5, 1.5, 3 * distribution.dim, dtype=dtype).reshape(3, -1)
    x = np.concatenate([x, x])
    data = np.repeat([1, 0], 3).astype(dtype)  # the first three rows are data
    t = (data, 1 - data)
    for name in ("consistency", "denoiser"):
        found = call(distribution, name, x, t)
        np.testing.assert_allclose(found[:3], x[:3], rtol=eps, atol=eps)
    d = as_mixture(distribution)
    mean = np.asarray(d.weights) @ np.asarray(d.means)
    pure_noise = call(distribution, "denoiser", x, t)[3:]
    np.testing.assert_allclose(pure_noise, np.tile(mean, (3, 1)), atol=4 * eps)
    assert np.isfinite(call(distribution, "velocity", x, t)).all()


def test_transport_is_exact_in_tails_and_gaps():
    """Far out and between well separated components a float32 CDF is constant."""
    far = GaussianMixture((0.5, 0.5), ((-1.0,), (1.0,)), (0.02, 0.02))
    t = np.full(64, 1.2)
    x = np.linspace(-8, 8, 64)[:, None]  # not 0, where the map is infinitely steep
    for distribution in (far, MIXTURE):
        single = call(distribution, "consistency", np.float32(x), np.float32(t))
        assert single.dtype == np.float32
        with jax.enable_x64(True):
            double = np.asarray(call(distribution, "consistency", x, t))
        np.testing.assert_allclose(single, double, rtol=1e-5, atol=1e-5)
        assert (np.diff(double[:, 0]) > 0).all()


def test_mixture_of_one_component_is_a_gaussian(precision):
    dtype, eps = precision
    gaussian = Gaussian((0.4,), 0.3)
    t = jnp.asarray(times(), dtype)
    x = jnp.asarray(points(gaussian, np.asarray(t)), dtype)
    for name in ("velocity", "denoiser", "consistency"):
        one = getattr(as_mixture(gaussian), name)(x, t, SD)
        other = getattr(gaussian, name)(x, t, SD)
        np.testing.assert_allclose(one, other, rtol=8 * eps, atol=8 * eps)


def test_transport_keeps_quantiles(float64):
    """Against scipy, at moderate quantiles where a plain CDF is good enough."""
    t = times()
    x = points(MIXTURE, t)

    def cdf(x, t):
        scale = np.sqrt(
            (np.asarray(MIXTURE.stds) * np.cos(t)) ** 2 + (SD * np.sin(t)) ** 2
        )
        z = (x - np.cos(t) * np.asarray(MIXTURE.means)[:, 0]) / scale
        return ndtr(z) @ np.asarray(MIXTURE.weights)

    f = np.asarray(MIXTURE.consistency(x, t, SD))
    before, after = cdf(x, t[:, None]), cdf(f, np.zeros_like(t)[:, None])
    assert np.abs(ndtri(before) - ndtri(after)).max() < 1e-9


def test_sampler_with_the_exact_map_gives_the_data():
    """One step from N(0, sigma_data^2) at t_max: mean and std of working note 7.1."""
    gaussian = Gaussian((0.4,), 0.3)
    zero, one = gaussian.consistency(np.array([[0.0], [1.0]], np.float32), T_PAIR, SD)
    assert float(zero[0]) == pytest.approx(0.4 * 0.99625003, rel=1e-6)
    assert float(one[0] - zero[0]) * SD == pytest.approx(0.30000375, rel=1e-6)


T_PAIR = tuple(np.full(2, a, np.float32) for a in (np.cos(T_MAX), np.sin(T_MAX)))


def test_default_mixture_samples_follow_its_distribution():
    """Kolmogorov distance of 50,000 draws: below 0.0087 with probability 0.999."""
    x = np.sort(
        MIXTURE.sample(np.random.default_rng(1), 50_000)[:, 0].astype(np.float64)
    )
    z = (x[:, None] - np.asarray(MIXTURE.means)[:, 0]) / np.asarray(MIXTURE.stds)
    cdf = ndtr(z) @ np.asarray(MIXTURE.weights)
    assert np.abs(cdf - (np.arange(x.size) + 0.5) / x.size).max() < 0.0087


def test_time_in_all_its_forms():
    t = jnp.asarray(times(2), jnp.float32)
    x = jnp.asarray(points(GAUSSIAN, np.asarray(t), 2), jnp.float32)
    by_angle = GAUSSIAN.velocity(x, t, SD)
    pair = (jnp.cos(t), jnp.sin(t))
    both = types.SimpleNamespace(cos=pair[0], sin=pair[1])
    for form in (pair, both):
        np.testing.assert_array_equal(GAUSSIAN.velocity(x, form, SD), by_angle)


@pytest.mark.parametrize("distribution", ALL)
def test_samples_have_the_moments_of_the_closed_form(distribution):
    x = distribution.sample(np.random.default_rng(0), 200_000)
    d = as_mixture(distribution)
    assert x.dtype == np.float32 and x.shape == (200_000, d.dim)
    mean = np.asarray(d.weights) @ np.asarray(d.means)
    np.testing.assert_allclose(x.mean(0, dtype=np.float64), mean, atol=0.005)
    per_element = np.sqrt(x.var(0, dtype=np.float64).mean())
    assert per_element == pytest.approx(distribution.element_std(), rel=0.005)


def test_streams_of_splits_and_batches_differ():
    batches = list(itertools.islice(make_dataset("mixture").iterator(16, seed=0), 3))
    other = next(make_dataset("mixture", "test").iterator(16, seed=0))
    drawn = np.concatenate([batch.x for batch in [*batches, other]])
    assert len(np.unique(drawn)) == 64


def test_own_parameters_reach_the_distribution():
    given = {"weights": [1.0], "means": [[0.0, 1.0]], "stds": [0.5]}
    mixture = make_dataset("mixture", **given, sigma_data=0.7)
    assert mixture.closed_form == GaussianMixture((1.0,), ((0.0, 1.0),), (0.5,))
    assert mixture.info.sample_shape == (2,) and mixture.info.sigma_data == 0.7
    gaussian = make_dataset("gaussian", mean=(1.0,), std=0.1)
    assert gaussian.closed_form == Gaussian((1.0,), 0.1)


def mixture(weights, means, stds):
    return lambda: GaussianMixture(weights, means, stds)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (mixture((0.5, 0.6), ((0.0,), (1.0,)), (1.0, 1.0)), "with sum 1"),
        (mixture((0.5, 0.5), ((0.0,), (1.0,)), (1.0, 0.0)), "stds must"),
        (mixture((0.5, 0.5), ((0.0,), (1.0, 2.0)), (1.0, 1.0)), "length"),
        (mixture((1.0,), ((0.0,), (1.0,)), (1.0,)), "equally many"),
        (lambda: Gaussian((0.0,), 0.0), "positive std"),
        (lambda: make_dataset("mixture", "nope"), "split of dataset 'mixture' = 'no"),
        (lambda: make_dataset("gaussian", sigma_data=0.0), "must be positive"),
        (lambda: MIXTURE.velocity(np.ones((2, 2)), np.ones(2), SD), r"\(b, 1\)"),
        (lambda: MIXTURE_2D.consistency(np.ones((2, 2)), 0.5, SD), "needs d = 1"),
    ],
)
def test_bad_parameters(build, message):
    with pytest.raises(ValueError, match=message):
        build()
