"""Consistency sampling of Gaussian data with the exact consistency function."""

import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import sampling, trigflow
from scm_jax.trigflow.exact import Gaussian
from scm_jax.types import Cond

SD = 0.5
DATA = Gaussian(mean=(0.7, -0.4), std=0.3)
NUM = 40_000


def student(x, cond):
    """``F`` of the exact consistency function."""
    return DATA.consistency_velocity(x * SD, cond.t, SD) / SD


def one_jump(mean, std, t):
    """Mean and std after ``f*`` at ``t`` of inputs with ``mean`` and ``std``."""
    root = np.sqrt((DATA.std * np.cos(t)) ** 2 + (SD * np.sin(t)) ** 2)
    mu = np.array(DATA.mean)
    return mu + DATA.std / root * (mean - np.cos(t) * mu), DATA.std / root * std


@pytest.fixture(scope="module")
def samples():
    """Steps -> samples of many keys."""
    keys = sampling.sample_keys(3, jnp.arange(NUM))
    cond = Cond(t=jnp.zeros((NUM,)))
    return {
        steps: np.asarray(
            sampling.make_sampler(
                lambda params: student,
                "consistency",
                sampling.make_grid("consistency", steps, SD),
                (2,),
                SD,
            )(None, keys, cond)
        )
        for steps in (1, 2)
    }


def test_one_step_has_the_exact_mean_and_std(samples):
    t = trigflow.t_max(SD)
    mean, std = one_jump(0.0, SD, t)
    # paper.md's numbers: what starting at t_max and not at pi/2 costs.
    np.testing.assert_allclose(mean, 0.99625003 * np.array(DATA.mean), rtol=1e-6)
    assert std == pytest.approx(0.30000375, abs=1e-8)
    check_moments(samples[1], mean, std)


def test_two_steps_have_the_exact_mean_and_std(samples):
    mean, std = one_jump(0.0, SD, trigflow.t_max(SD))
    mean = np.cos(1.1) * mean
    std = np.hypot(np.cos(1.1) * std, np.sin(1.1) * SD)
    check_moments(samples[2], *one_jump(mean, std, 1.1))


def check_moments(x, mean, std):
    spread = std / np.sqrt(NUM)
    np.testing.assert_allclose(x.mean(0), mean, rtol=0, atol=5 * spread)
    np.testing.assert_allclose(x.std(0), std, rtol=0, atol=5 * spread)
    assert abs(np.corrcoef(x.T)[0, 1]) < 5 / np.sqrt(NUM)


def test_samples_are_the_map_of_their_noise(samples):
    """Alg. of Sec. 2.1 by hand: noise of standard deviation 0.5, then fresh noise."""
    keys = sampling.sample_keys(3, jnp.arange(8))
    z = [np.asarray(sampling.sample_noise(keys, i, (2,), SD)) for i in (0, 1)]
    assert np.abs(np.corrcoef(z[0].ravel(), z[1].ravel())[0, 1]) < 0.9

    def f(x, t):
        return np.asarray(DATA.consistency(jnp.asarray(x), jnp.full((8,), t), SD))

    one = f(z[0], trigflow.t_max(SD))
    np.testing.assert_allclose(samples[1][:8], one, rtol=0, atol=1e-6)
    two = f(np.cos(1.1) * one + np.sin(1.1) * z[1], 1.1)
    np.testing.assert_allclose(samples[2][:8], two, rtol=0, atol=1e-6)


# --- Noise ----------------------------------------------------------------------------


def test_noise_has_the_standard_deviation_of_the_data():
    keys = sampling.sample_keys(0, jnp.arange(20_000))
    z = np.asarray(sampling.sample_noise(keys, 0, (2, 1), SD))
    assert z.std() == pytest.approx(SD, rel=5 / np.sqrt(2 * z.size))
    assert abs(z.mean()) < 5 * SD / np.sqrt(z.size)


def test_noise_of_a_sample_depends_on_seed_and_index_only():
    def noise(seed, indices, draw=0):
        keys = sampling.sample_keys(seed, np.array(indices))
        return np.asarray(sampling.sample_noise(keys, draw, (3, 2), SD))

    all_eight = noise(1, np.arange(8))
    np.testing.assert_array_equal(noise(1, [6])[0], all_eight[6])
    np.testing.assert_array_equal(noise(1, [6, 2, 6]), all_eight[[6, 2, 6]])
    for other in (
        noise(2, np.arange(8)),
        noise(1, np.arange(8, 16)),
        noise(1, range(8), 1),
    ):
        assert np.all(other != all_eight)


def test_samples_do_not_depend_on_the_batch():
    def sample(indices):
        keys = sampling.sample_keys(9, indices)
        cond = Cond(t=jnp.zeros((len(indices),)))
        grid = sampling.make_grid("consistency", 2, SD)
        problem = sampling.Problem(student, keys, cond, grid, (2,), SD)
        return sampling.consistency_sample(problem)

    all_eight = np.asarray(sample(np.arange(8)))
    np.testing.assert_allclose(sample(np.array([5])), all_eight[[5]], rtol=1e-6)
    np.testing.assert_allclose(
        sample(np.array([7, 0, 3])), all_eight[[7, 0, 3]], rtol=1e-6
    )
