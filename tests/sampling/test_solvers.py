"""The ODE solvers against exact flows, and against EDM in its own variables."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import sampling, trigflow
from scm_jax.trigflow.exact import Gaussian, GaussianMixture
from scm_jax.types import Cond

SD = 0.5
GAUSSIAN = Gaussian(mean=(0.7, -0.4), std=0.3)
MIXTURE = GaussianMixture(weights=(0.4, 0.6), means=((-0.5,), (0.4,)), stds=(0.1, 0.2))


def velocity_fn(data):
    """The perfect diffusion network of ``data``."""
    return lambda x, cond: data.velocity(x * SD, cond.t, SD) / SD


def run(sampler, data, grid, num=16, seed=5):
    """Samples, and where the exact flow takes the same noise."""
    keys = sampling.sample_keys(seed, np.arange(num))
    cond = Cond(t=jnp.zeros((num,)))
    make_fn = lambda params: velocity_fn(data)  # noqa: E731
    sample = sampling.make_sampler(make_fn, sampler, grid, (data.dim,), SD)
    start = sampling.sample_noise(keys, 0, (data.dim,), SD)
    exact = data.consistency(start, jnp.full((num,), grid[0]), SD)
    return np.asarray(sample(None, keys, cond)), np.asarray(exact), np.asarray(start)


@pytest.mark.parametrize(
    ("sampler", "order"), [("ddim", 1.0), ("heun", 2.0), ("2m", 2.0)]
)
def test_order_of_convergence(sampler, order, float64_islands):
    steps = np.array([32, 64, 128])
    errors = []
    for num_steps in steps:
        # The last step, to 0, is of first order: start it close enough to 0.
        grid = trigflow.edm_grid(num_steps, SD, sigma_min=1e-4, sigma_max=20.0)
        samples, exact, _ = run(sampler, MIXTURE, grid)
        errors.append(np.sqrt(np.mean((samples - exact) ** 2)))
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert -slope == pytest.approx(order, abs=0.25), errors
    assert errors[-1] < (3e-2 if order == 1 else 1e-3)


def edm_heun(denoiser, x, sigmas):
    """Alg. 2 of arXiv 2206.00364 without churn, in EDM's variables and in numpy."""
    for sigma, sigma_next in itertools.pairwise(sigmas):
        d = (x - denoiser(x, sigma)) / sigma
        x_next = x + (sigma_next - sigma) * d
        if sigma_next > 0:
            d_next = (x_next - denoiser(x_next, sigma_next)) / sigma_next
            x_next = x + (sigma_next - sigma) * (d + d_next) / 2
        x = x_next
    return x


def gaussian_denoiser(x, sigma):
    """``E[x0 | x0 + sigma eps]``."""
    s, mean = GAUSSIAN.std, np.array([GAUSSIAN.mean])
    return (s**2 * x + sigma**2 * mean) / (s**2 + sigma**2)


def test_heun_is_edms_heun(float64_islands):
    grid = trigflow.edm_grid(18, SD)
    samples, exact, start = run("heun", GAUSSIAN, grid)
    sigmas = np.append(SD * np.tan(grid[:-1]), 0.0)
    expected = edm_heun(gaussian_denoiser, start / np.cos(grid[0]), sigmas)
    np.testing.assert_allclose(samples, expected, rtol=1e-10, atol=1e-10)
    # The comparison means something: Heun's own error is far larger.
    assert np.abs(samples - exact).max() > 1e-5


def test_multistep_is_dpm_solver_in_edm_variables(float64_islands):
    """DPM-Solver++(2M), arXiv 2211.01095 Alg. 2; alpha = 1, lambda = -ln sigma."""
    grid = trigflow.edm_grid(9, SD)
    samples, _, start = run("2m", GAUSSIAN, grid)
    sigmas = SD * np.tan(grid[:-1])
    x, before = start / np.cos(grid[0]), None
    for i in range(len(sigmas) - 1):
        D = gaussian_denoiser(x, sigmas[i])
        h = np.log(sigmas[i] / sigmas[i + 1])
        mixed = D
        if before is not None:
            r = np.log(sigmas[i - 1] / sigmas[i]) / h
            mixed = (1 + 1 / (2 * r)) * D - before / (2 * r)
        x = sigmas[i + 1] / sigmas[i] * x - np.expm1(-h) * mixed
        before = D
    expected = gaussian_denoiser(x, sigmas[-1])
    np.testing.assert_allclose(samples, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sampler", ["ddim", "heun", "2m"])
def test_one_step_is_the_denoiser(sampler, float64_islands):
    grid = trigflow.edm_grid(1, SD)
    samples, _, start = run(sampler, GAUSSIAN, grid)
    t = jnp.full((len(start),), grid[0])
    np.testing.assert_allclose(samples, GAUSSIAN.denoiser(start, t, SD), rtol=1e-9)


def test_float32_samples_agree_with_float64():
    grid = trigflow.edm_grid(18, SD)
    samples, _, start = run("heun", MIXTURE, grid)
    assert samples.dtype == np.float32
    with jax.enable_x64(True):

        @jax.jit
        def denoiser(x, sigma):
            t = jnp.full((16,), jnp.arctan(sigma / SD))
            return MIXTURE.denoiser(x * jnp.cos(t)[:, None], t, SD)

        sigmas = np.append(SD * np.tan(grid[:-1]), 0.0)
        x = np.asarray(start, np.float64) / np.cos(grid[0])
        expected = edm_heun(denoiser, x, sigmas)
    np.testing.assert_allclose(samples, expected, rtol=0, atol=2e-5)


def test_heun_needs_a_grid_down_to_0():
    with pytest.raises(ValueError, match=r"must end at 0, not 0\.4"):
        run("heun", GAUSSIAN, np.array([1.5, 0.4]))


def test_the_grid_of_a_flow_is_not_for_heun():
    shifted = sampling.make_grid("ddim", 4, SD, None, 3.0)
    np.testing.assert_array_equal(shifted, trigflow.flow_grid(4, SD, 3.0))
    two = sampling.make_grid("consistency", 2, SD, None, 3.0)
    np.testing.assert_array_equal(two, trigflow.consistency_grid(2, SD))
    with pytest.raises(
        ValueError, match=r"sampling\.shift = 3\.0 is for .* ddim and 2m"
    ):
        sampling.make_grid("heun", 4, SD, None, 3.0)
