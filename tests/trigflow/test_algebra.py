"""The identities of TrigFlow, with sigma_data = 0.5 and data of non-zero mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import trigflow
from scm_jax.trigflow.exact import Gaussian

SD = 0.5
TIMES = (1e-4, 0.3, 0.8, 1.1, 1.3, trigflow.t_max(SD), np.pi / 2)
GAUSSIAN = Gaussian(mean=(0.7, -0.4), std=0.3)


@pytest.fixture
def pair(float64):
    """``x0`` of mean 0.7, ``z`` of standard deviation 0.5 and a time for each row."""
    rng = np.random.default_rng(0)
    shape = (len(TIMES), 3, 2)
    x0 = jnp.asarray(0.7 + 0.3 * rng.normal(size=shape))
    z = jnp.asarray(SD * rng.normal(size=shape))
    return x0, z, jnp.asarray(TIMES)


def close(actual, expected, tolerance=1e-12):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def test_velocity_is_the_time_derivative_of_the_interpolation(pair):
    x0, z, t = pair
    _, dx_dt = jax.jvp(
        lambda t: trigflow.interpolate(x0, z, t), (t,), (jnp.ones_like(t),)
    )
    close(trigflow.velocity(x0, z, t), dx_dt)


def test_interpolation_keeps_the_variance_and_has_the_right_ends(pair):
    x0, z, t = pair
    one, zero = jnp.ones_like(x0), jnp.zeros_like(x0)
    close(
        trigflow.interpolate(one, zero, t) ** 2
        + trigflow.interpolate(zero, one, t) ** 2,
        1.0,
    )
    close(trigflow.interpolate(x0, z, 0 * t), x0)
    close(trigflow.interpolate(x0, z, 0 * t + np.pi / 2), z)


def test_F_holds_x0_and_z(pair):
    x0, z, t = pair
    x_t = trigflow.interpolate(x0, z, t)
    F = trigflow.F_from_x0_z(x0, z, t, SD)
    close(SD * F, trigflow.velocity(x0, z, t))
    close(trigflow.f_from_F(x_t, F, t, SD), x0)
    close(trigflow.D_from_F(x_t, F, t, SD), x0)
    close(trigflow.z_from_F(x_t, F, t, SD), z)
    # F_from_f divides by sin(t): its error grows as 1/t.
    close(trigflow.F_from_f(x_t, x0, t, SD)[1:], F[1:])


def test_f_is_the_identity_at_time_0_whatever_F_is(pair):
    x_t, F, t = pair
    np.testing.assert_array_equal(trigflow.f_from_F(x_t, F, 0 * t, SD), x_t)


def test_ddim_follows_a_straight_pair_exactly_from_any_time(pair):
    x0, z, s = pair
    x_s = trigflow.interpolate(x0, z, s)
    F = trigflow.F_from_x0_z(x0, z, s, SD)
    for target in (0.0, 0.2, 0.9, 1.5):
        t = jnp.full_like(s, target)
        x_t = trigflow.ddim_step(x_s, F, s, t, SD)
        close(x_t, trigflow.interpolate(x0, z, t))
    np.testing.assert_allclose(
        trigflow.ddim_step(x_s, F, s, 0 * s, SD), trigflow.f_from_F(x_s, F, s, SD)
    )


def test_ddim_is_first_order_towards_the_exact_flow(float64):
    x = jnp.asarray([[0.3, -0.8]])
    s = jnp.asarray([1.0])
    F = GAUSSIAN.velocity(x, s, SD) / SD
    errors = []
    for h in (1e-2, 5e-3):
        step = trigflow.ddim_step(x, F, s, s - h, SD)
        errors.append(float(jnp.abs(step - GAUSSIAN.flow(x, s, s - h, SD)).max()))
    # The local error is O(h^2), with a coefficient of order 1.
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.05)
    assert errors[0] < 1e-4


def test_score_of_gaussian_data(pair):
    x, _, t = pair
    x, t = x[:-1, 0], t[:-1]
    F = GAUSSIAN.velocity(x, t, SD) / SD
    V = GAUSSIAN.variance(t, SD)[:, None]
    score = -(x - jnp.cos(t)[:, None] * jnp.asarray([GAUSSIAN.mean])) / V
    close(trigflow.score_from_F(x, F, t, SD), score, 1e-9)


def test_a_time_and_its_angle_give_the_same(pair):
    x0, z, t = pair
    time = trigflow.time_from_t(t)
    assert trigflow.as_time(time) is time
    for function in (trigflow.interpolate, trigflow.velocity):
        np.testing.assert_array_equal(function(x0, z, t), function(x0, z, time))
    for function in (trigflow.f_from_F, trigflow.z_from_F, trigflow.score_from_F):
        np.testing.assert_array_equal(function(x0, z, t, SD), function(x0, z, time, SD))


def test_times_belong_to_rows():
    x = jnp.ones((3, 4, 4, 2))
    x_t = trigflow.interpolate(x, 0 * x, jnp.asarray([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(x_t[:, 2, 1, 0], np.cos([0.0, 0.5, 1.0]), rtol=1e-6)
    assert trigflow.expand(jnp.ones(3), x).shape == (3, 1, 1, 1)


# --- Times ----------------------------------------------------------------------------


def test_anchors():
    assert trigflow.t_max(SD) == pytest.approx(1.564546408, abs=1e-9)
    assert np.cos(trigflow.t_max(SD)) == pytest.approx(0.006249878, abs=1e-9)
    time = trigflow.time_from_sigma(jnp.asarray([0.002, 0.982380, 80.0]), SD)
    np.testing.assert_allclose(time.t, [0.00399998, 1.1, 1.564546408], rtol=1e-6)
    np.testing.assert_allclose(time.cos[2], 0.006249878, rtol=1e-6)
    # The t of sigma = 1.1, which is easily mistaken for t = 1.1.
    assert float(trigflow.time_from_sigma(1.1, SD).t) == pytest.approx(1.144, abs=5e-4)


@pytest.mark.parametrize("sigma", [80, 80.0, np.float32(80), np.array([80])])
def test_a_noise_level_may_be_of_any_number_type(sigma):
    time = trigflow.time_from_sigma(sigma, SD)
    np.testing.assert_allclose(time.t, trigflow.t_max(SD), rtol=1e-6)
    np.testing.assert_allclose(time.cos, 0.006249878, rtol=1e-6)


@pytest.mark.parametrize("sd", [0.5, 1.7])
def test_float32_keeps_all_digits_at_both_ends(sd):
    # Far beyond sigma = 80: 5e-4 of the draws of a proposal of P_std = 1.6 are there.
    tau = np.log(np.geomspace(1e-5, 1e5, 201)).astype(np.float32)
    time = trigflow.time_from_tau(jnp.asarray(tau), sd)
    sigma = np.exp(tau.astype(np.float64))
    # exp itself errs by |tau| epsilons; nothing may be added to that but a few.
    tolerance = 20 * np.finfo(np.float32).eps
    np.testing.assert_allclose(time.t, np.arctan(sigma / sd), rtol=tolerance)
    np.testing.assert_allclose(time.cos, sd / np.hypot(sigma, sd), rtol=tolerance)
    np.testing.assert_allclose(time.sin, sigma / np.hypot(sigma, sd), rtol=tolerance)
    np.testing.assert_allclose(trigflow.log_sigma(time, sd), tau, rtol=1e-6, atol=1e-5)


def test_float32_cosine_of_the_angle_has_lost_digits():
    """Why ``Time`` exists."""
    time = trigflow.time_from_sigma(jnp.asarray([5000.0]), SD)
    exact = SD / np.hypot(5000.0, SD)
    assert abs(float(time.cos[0]) / exact - 1) < 1e-6
    assert abs(float(jnp.cos(time.t)[0]) / exact - 1) > 1e-4


def test_noise_levels_near_the_largest_float_do_not_overflow():
    time = trigflow.time_from_sigma(jnp.asarray([1e30, 1e37]), SD)
    np.testing.assert_allclose(time.sin, 1.0)
    np.testing.assert_allclose(time.cos, [5e-31, 5e-38], rtol=1e-6)


def test_no_implicit_promotion_of_dtypes():
    x = jnp.ones((2, 3))
    with jax.numpy_dtype_promotion("strict"):
        time = trigflow.time_from_tau(jnp.asarray([-1.0, 2.0]), SD)
        for t in (time, time.t):
            F = trigflow.F_from_x0_z(x, x, t, SD)
            out = (
                trigflow.interpolate(x, x, t),
                trigflow.F_from_f(x, trigflow.f_from_F(x, F, t, SD), t, SD),
                trigflow.score_from_F(x, F, t, SD),
                trigflow.ddim_step(x, F, t, trigflow.time_from_t(time.t * 0.5), SD),
                trigflow.prediction_from_F(
                    F, "v", x, *trigflow.vp_coefficients(t, SD), SD
                ),
            )
            assert {a.dtype for a in out} == {jnp.dtype("float32")}
