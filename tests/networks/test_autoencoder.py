"""The autoencoder: published size, posterior, slices; values are tests/exchange's."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax.networks import autoencoder
from scm_jax.networks.autoencoder import AutoencoderKL
from tests.networks.reference import draw_small, quick_jit


@pytest.fixture(scope="module")
def tiny():
    """Module and parameters; 2x2 pixels to a position."""
    module = AutoencoderKL(block_channels=(4, 8), num_blocks=1, num_groups=2)
    return module, draw_small(module)


def images(num, side=4):
    x = np.random.default_rng(1).uniform(-1, 1, (num, side, side, 3))
    return x.astype(np.float32)


def test_the_default_has_the_published_number_of_parameters():
    """83,653,863, counted by diffusers 0.42 on the published config."""
    leaves = jax.tree.leaves(autoencoder.abstract_params(AutoencoderKL()))
    assert sum(math.prod(leaf.shape) for leaf in leaves) == 83_653_863


@pytest.mark.parametrize(["logvar", "std"], [(90.0, np.e**10), (-90.0, np.e**-15)])
def test_the_log_variance_is_clipped(logvar, std, tiny):
    module, params = tiny
    bias = jnp.concatenate([jnp.full((4,), 3.0), jnp.full((4,), logvar)])
    kernel = jnp.zeros_like(params["quant"]["kernel"])
    params = {**params, "quant": {"kernel": kernel, "bias": bias}}
    run = quick_jit(lambda p, x: autoencoder.encode(module, p, x))
    mean, found = run(params, images(1))
    np.testing.assert_array_equal(mean, 3.0)
    np.testing.assert_allclose(found, std, rtol=1e-5)


@pytest.mark.parametrize("half", ["encode", "decode"])
def test_slices_change_nothing(half, tiny):
    """Five examples, two at a time: the last slice is filled up."""
    module, params = tiny
    x = images(5) if half == "encode" else images(5, 2)[..., [0, 1, 2, 0]]
    fn = getattr(autoencoder, half)
    whole, sliced = (
        quick_jit(functools.partial(fn, module, slice_size=size))(params, x)
        for size in (5, 2)
    )
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(sliced), strict=True):
        assert a.shape[0] == 5
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_no_more_than_a_slice_is_in_work():
    """Memory of a program for four slices, against that for one."""

    def peak(num):
        z = jax.ShapeDtypeStruct((num, 4, 4, 4), jnp.float32)
        module = AutoencoderKL(block_channels=(16, 16), num_blocks=1, num_groups=2)
        params = autoencoder.abstract_params(module)
        fn = functools.partial(autoencoder.decode, module, slice_size=2)
        return quick_jit(fn).lower(params, z).compile().memory_analysis()

    one, four = peak(2), peak(8)
    assert four.output_size_in_bytes == 4 * one.output_size_in_bytes
    # Besides pixels and latents, which exist for all examples, only one slice's.
    extra = four.output_size_in_bytes + 8 * 4 * 4 * 4 * 4
    assert four.temp_size_in_bytes <= 1.1 * one.temp_size_in_bytes + 2 * extra


def test_bfloat16_computes_the_same_in_fewer_digits(tiny):
    module, params = tiny
    z = images(2, 2)[..., [0, 1, 2, 0]]

    def run(module):
        return quick_jit(functools.partial(autoencoder.decode, module))(params, z)

    exact, rough = run(module), run(module.clone(dtype=jnp.bfloat16))
    assert rough.dtype == jnp.float32
    error = np.abs(np.asarray(rough - exact)).max() / np.asarray(exact).std()
    assert 1e-4 < error < 0.1


def test_a_side_that_does_not_fit_is_an_error(tiny):
    module, params = tiny
    with pytest.raises(ValueError, match=r"\(4, 5, 3\) .* multiples of 2"):
        autoencoder.encode(module, params, jnp.zeros((1, 4, 5, 3)))
