"""Chains of maps and gamma sampling with the exact map of Gaussian data."""

import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import sampling, trigflow
from scm_jax.trigflow.exact import Gaussian
from scm_jax.types import Cond

SD = 0.5
DATA = Gaussian(mean=(0.7, -0.4), std=0.3)
NUM = 20_000
KEYS = sampling.sample_keys(3, jnp.arange(NUM))


def exact(x, cond):
    """``U`` of the exact map from ``t`` to ``t - dt``."""
    t = trigflow.time_from_t(cond.t)
    X = DATA.flow(x * SD, t, cond.t - cond.dt, SD)
    dt = cond.dt[:, None]
    return (jnp.cos(dt) * x * SD - X) / (jnp.sin(dt) * SD)


def one_time(x, cond):
    return jnp.sin(x + cond.t[:, None])


def draw(sampler, steps, fn=exact, gamma=0.0, times=None, num=NUM):
    grid = sampling.make_grid(sampler, steps, SD, times)
    sample = sampling.make_sampler(lambda _: fn, sampler, grid, (2,), SD, gamma=gamma)
    keys = KEYS[:num]
    return np.asarray(sample(None, keys, Cond(t=jnp.zeros((num,)))))


def test_a_chain_of_exact_maps_is_one_map_however_it_is_cut():
    """Row B15."""
    one = draw("map", 1)
    for steps, times in ((2, None), (5, None), (3, (1.2, 0.3))):
        np.testing.assert_allclose(draw("map", steps, times=times), one, atol=2e-4)
    np.testing.assert_allclose(draw("consistency", 1), one, atol=2e-4)


@pytest.mark.parametrize("gamma", [0.3, 0.7, 0.999])
def test_gamma_sampling_keeps_the_exact_distribution(gamma):
    """Row B17: new noise and the way down to it cancel."""
    x = draw("map", 4, gamma=gamma)
    assert np.abs(x - draw("map", 4)).max() > 0.05
    # Sampling begins at t_max with the moments of pi/2, which costs 0.4 % of the mean.
    np.testing.assert_allclose(x.mean(axis=0), DATA.mean, atol=0.012)
    np.testing.assert_allclose(x.std(axis=0), DATA.std, rtol=0.02)


def test_gamma_one_is_consistency_sampling():
    a = draw("map", 3, gamma=1.0, times=(1.1, 0.6), num=100)
    b = draw("consistency", 3, times=(1.1, 0.6), num=100)
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_network_of_one_time_takes_ddim_steps():
    """A map of the diagonal is a step of the ODE; segments are sampled so."""
    grid = sampling.make_grid("map", 4, SD)
    np.testing.assert_allclose(grid[1:-1], np.pi / 2 * np.array([3, 2, 1]) / 4)
    a = draw("map", 4, one_time, num=50)
    sample = sampling.make_sampler(lambda _: one_time, "ddim", grid, (2,), SD)
    b = sample(None, KEYS[:50], Cond(t=jnp.zeros((50,))))
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_each_sampler_says_where_its_maps_end():
    """The diagonal for solvers, 0 for consistency, the next time for a chain."""
    seen = {}

    def fn(x, cond):
        return x * 0.0 + (cond.t - cond.dt)[:, None]  # U is the end of the map

    for sampler in ("consistency", "map", "ddim"):
        grid = sampling.make_grid(sampler, 2, SD)
        problem = sampling.Problem(
            fn, KEYS[:1], Cond(t=jnp.zeros((1,))), grid, (2,), SD
        )
        ends = []
        x = jnp.zeros((1, 2))
        to = {"consistency": trigflow.time_from_t(0.0), "map": problem.time(1)}
        ends.append(float(problem.F(x, problem.time(0), to.get(sampler))[0, 0]))
        seen[sampler] = ends[0], draw(sampler, 2, fn, num=1)
    assert seen["consistency"][0] == pytest.approx(0.0, abs=1e-6)
    assert seen["map"][0] == pytest.approx(np.pi / 4)
    assert seen["ddim"][0] == pytest.approx(trigflow.t_max(SD))
    z = [np.asarray(sampling.sample_noise(KEYS[:1], i, (2,), SD)) for i in (0, 1)]
    t = [trigflow.t_max(SD), np.pi / 4]
    x0 = np.cos(t[0]) * z[0]  # of a map to 0, where U = 0
    x0 = np.cos(1.1) * (np.cos(1.1) * x0 + np.sin(1.1) * z[1])
    np.testing.assert_allclose(seen["consistency"][1], x0, atol=1e-5)
    x = np.cos(t[0] - t[1]) * z[0] - np.sin(t[0] - t[1]) * SD * t[1]
    np.testing.assert_allclose(seen["map"][1], np.cos(t[1]) * x, atol=1e-5)
