"""What every sampler of the registry must do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import sampling
from scm_jax.cost import counts
from scm_jax.types import Cond

SD = 0.5
MEAN = np.array([0.7, -0.4, 1.3], np.float32)
NAMES = sorted(sampling.SAMPLERS)


def test_registry_is_not_empty():
    assert {"consistency", "ddim", "heun", "2m"} <= set(NAMES)


def point_mass(params, x, cond):
    """The perfect network of data that is ``params`` always; x is ``x_t / sd``."""
    cos, sin = jnp.cos(cond.t)[:, None], jnp.sin(cond.t)[:, None]
    return (cos * x * SD - params[None]) / (sin * SD)


def sampler_of(name, steps, fn=point_mass, shape=(3,)):
    return sampling.make_sampler(
        lambda params: lambda x, cond: fn(params, x, cond),
        name,
        sampling.make_grid(name, steps, SD),
        shape,
        SD,
    )


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("name", NAMES)
def test_a_point_mass_is_reached_exactly(name, steps):
    """Its denoiser and its consistency function are one constant."""
    keys = sampling.sample_keys(0, np.arange(5))
    x = sampler_of(name, steps)(MEAN, keys, Cond(t=jnp.zeros((5,))))
    assert x.shape == (5, 3) and x.dtype == jnp.float32
    # At t = 0.004 F amplifies the rounding of x by 1/sin t; f takes sin t of it again.
    np.testing.assert_allclose(x, np.tile(MEAN, (5, 1)), rtol=0, atol=2e-5)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("name", NAMES)
def test_evaluations_of_the_network_are_as_announced(name, steps):
    weights = jnp.ones((3, 3))

    def fn(params, x, cond):
        return x @ params

    keys = sampling.sample_keys(0, np.arange(5))
    args = (weights, keys, Cond(t=jnp.zeros((5,))))
    one = 5 * 3 * 3
    macs = counts.count_macs(sampler_of(name, steps, fn), *args)
    assert macs == one * sampling.nfe(name, steps)


@pytest.mark.parametrize("name", NAMES)
def test_second_call_does_not_compile(name):
    traces = []

    def fn(params, x, cond):
        return point_mass(params, x, cond) + trace_label(cond)

    def trace_label(cond):
        traces.append(cond.label)
        return 0.0 * cond.label[:, None]

    sample = sampler_of(name, 3, fn)
    for seed in (0, 1, 2):
        keys = sampling.sample_keys(seed, np.arange(4) + 10 * seed)
        label = jnp.full((4,), seed, jnp.int32)
        sample(MEAN + seed, keys, Cond(t=jnp.zeros((4,)), label=label))
        if seed == 0:
            first = len(traces)
    assert first > 0 and len(traces) == first


@pytest.mark.parametrize("name", NAMES)
def test_sample_depends_on_its_own_key_label_and_guidance_only(name):
    """Rows of a batch in another order, and the times that the network sees."""

    def fn(params, x, cond):
        assert cond.t.shape == cond.label.shape == cond.guidance.shape == x.shape[:1]
        row = jnp.sin(cond.t) + cond.label + cond.guidance
        return 0.1 * jnp.tanh(x + row[:, None, None])

    sample = sampler_of(name, 3, fn, shape=(2, 3))
    keys = sampling.sample_keys(4, np.arange(4))
    label, guidance = jnp.arange(4), jnp.linspace(1.0, 2.0, 4)
    cond = Cond(t=jnp.zeros((4,)), label=label, guidance=guidance)
    order = jnp.asarray([2, 0, 3, 3])
    moved = jax.tree.map(lambda a: a[order], cond)
    x = sample(None, keys, cond)
    np.testing.assert_allclose(sample(None, keys[order], moved), x[order], atol=1e-6)
    assert len(np.unique(np.asarray(x).round(4))) == x.size


@pytest.mark.parametrize("name", NAMES)
def test_no_implicit_promotion_of_dtypes(name):
    def fn(params, x, cond):
        return x * jnp.cos(cond.t)[:, None]

    with jax.numpy_dtype_promotion("strict"):
        keys = sampling.sample_keys(0, jnp.arange(4))
        cond = Cond(t=jnp.zeros((4,)))
        x = jax.eval_shape(sampler_of(name, 3, fn), None, keys, cond)
    assert x.dtype == jnp.float32


def test_unknown_samplers_are_errors():
    for call in (
        lambda: sampling.make_grid("euler", 2, SD),
        lambda: sampling.nfe("euler", 2),
        lambda: sampler_of("euler", 2),
    ):
        with pytest.raises(ValueError, match="sampler = 'euler' is not one of"):
            call()
