"""Proposals of training times, and the grids of sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import trigflow

SD = 0.5
NUM = 400_000


@pytest.mark.parametrize(
    ("P_mean", "P_std", "median", "above"),
    [
        (-1.0, 1.4, 0.634, 0.241),
        (-1.0, 1.6, 0.634, 0.270),
        (-0.8, 1.6, 0.732, 0.312),
        (-0.4, 1.0, 0.930, None),
        (-1.2, 1.4, 0.542, None),
    ],
)
def test_lognormal_proposal(P_mean, P_std, median, above):
    """Alg. 1: ``log(sigma_data tan t)`` is normal, not ``log tan t`` or ``tan t``."""
    key = jax.random.key(3)
    time = trigflow.lognormal_proposal(key, (NUM,), P_mean, P_std, SD)
    assert time.t.shape == (NUM,) and time.t.dtype == jnp.float32
    tau = np.asarray(trigflow.log_sigma(time, SD))
    spread = P_std / np.sqrt(NUM)
    assert abs(tau.mean() - P_mean) < 5 * spread
    assert abs(tau.std() - P_std) < 5 * spread
    assert np.median(time.t) == pytest.approx(median, abs=3e-3)
    if above is not None:
        assert np.mean(np.asarray(time.t) > 1.1) == pytest.approx(above, abs=4e-3)
    np.testing.assert_allclose(time.cos**2 + time.sin**2, 1.0, rtol=1e-6)


def test_a_wide_proposal_goes_beyond_the_start_of_sampling():
    time = trigflow.lognormal_proposal(jax.random.key(4), (NUM,), -1.0, 1.8, SD)
    beyond = np.asarray(time.t) > trigflow.t_max(SD)
    assert beyond.mean() == pytest.approx(1.4e-3, abs=3e-4)
    assert np.asarray(time.cos).min() > 0


# --- Grids ----------------------------------------------------------------------------


def test_ddim_on_the_grid_of_a_flow_is_eulers_method_there():
    """The path ``y = (1 - s) x0 + s eps`` of SD3, at its shifted times."""
    num, shift, sigma_data = 4, 3.0, 1.7
    grid = trigflow.flow_grid(num, sigma_data, shift)
    s = np.array([1.0, 0.9, 0.75, 0.5, 0.0])  # 3 u / (1 + 2 u), u = 1, 3/4, ... 0
    np.testing.assert_allclose(np.tan(grid[1:]) * sigma_data, s[1:] / (1 - s[1:]))
    assert grid[0] == np.pi / 2
    x0, eps = np.random.default_rng(0).normal(size=(2, 3, 5))
    v = np.random.default_rng(1).normal(size=(3, 5))  # what a network says of eps - x0
    for i in range(1, num):
        y = (1 - s[i]) * x0 + s[i] * eps
        denoised, noise = y - s[i] * v, y + (1 - s[i]) * v
        scale = np.hypot(s[i] / sigma_data, 1 - s[i])
        t = jnp.full(3, grid[i], float)
        F = trigflow.F_from_x0_z(denoised, noise * sigma_data, t, sigma_data)
        x = (y / scale).astype(np.float32)
        stepped = trigflow.ddim_step(x, F, t, jnp.full(3, grid[i + 1]), sigma_data)
        expected = y + (s[i + 1] - s[i]) * v
        scale = np.hypot(s[i + 1] / sigma_data, 1 - s[i + 1])
        np.testing.assert_allclose(stepped * scale, expected, rtol=2e-5, atol=2e-6)


def test_edm_grid_of_18_steps():
    grid = trigflow.edm_grid(18, SD)
    assert grid.shape == (19,) and grid.dtype == np.float64 and grid[-1] == 0.0
    assert np.all(np.diff(grid) < 0)
    sigma = SD * np.tan(grid)
    # The noise levels that EDM's own code prints for its default grid.
    np.testing.assert_allclose(
        sigma[[0, 1, 2]], [80.0, 57.585998, 40.785574], rtol=1e-6
    )
    np.testing.assert_allclose(sigma[17], 0.002, rtol=1e-9)
    # The middle of an odd grid is the power mean of its ends, of exponent 1/7.
    middle = ((80.0 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7
    np.testing.assert_allclose(SD * np.tan(trigflow.edm_grid(3, SD)[1]), middle)


def test_edm_grid_settings_are_used():
    grid = trigflow.edm_grid(3, 1.0, sigma_min=0.1, sigma_max=10.0, rho=1.0)
    np.testing.assert_allclose(np.tan(grid), [10.0, 5.05, 0.1, 0.0])
    np.testing.assert_allclose(trigflow.edm_grid(1, SD), [trigflow.t_max(SD), 0.0])


def test_consistency_grids_of_the_papers():
    start = trigflow.t_max(SD)
    np.testing.assert_array_equal(trigflow.consistency_grid(1, SD), [start])
    np.testing.assert_array_equal(trigflow.consistency_grid(2, SD), [start, 1.1])
    # 1.1 is a time, not a noise level: sigma is 0.982.
    assert SD * np.tan(trigflow.consistency_grid(2, SD)[1]) == pytest.approx(
        0.98238, abs=1e-5
    )
    four = trigflow.consistency_grid(4, SD)
    np.testing.assert_array_equal(four, [start, 1.3, 1.0, 0.6])


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 5, 9])
def test_consistency_grids_decrease_and_never_reach_0(num_steps):
    grid = trigflow.consistency_grid(num_steps, 0.7)
    assert grid.shape == (num_steps,) and grid.dtype == np.float64
    assert np.all(np.diff(grid) < 0) and grid[-1] > 0
    assert grid[0] == trigflow.t_max(0.7)


@pytest.mark.parametrize("make", [trigflow.edm_grid, trigflow.consistency_grid])
def test_no_steps_is_an_error(make):
    with pytest.raises(ValueError, match="num_steps = 0: must be at least 1"):
        make(0, SD)
