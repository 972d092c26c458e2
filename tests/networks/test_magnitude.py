"""Layers that preserve magnitudes; test_unet.py has sums and linear layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax.networks import magnitude
from scm_jax.types import NULL_LABEL
from tests.networks.reference import KEY, correlate, normal, normalized


def test_rms_normalization_of_zero_has_a_finite_derivative():
    """It is ``v / eps``; a plain root of zero would give NaN in either mode."""
    zero, v = jnp.zeros((2, 8)), jnp.asarray(normal((2, 8)), jnp.float32)

    def normalize(x):
        return magnitude.rms_normalize(x, (-1,))

    value, tangent = jax.jvp(normalize, (zero,), (v,))
    np.testing.assert_array_equal(value, 0.0)
    np.testing.assert_allclose(tangent, v / 1e-4, rtol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(v * normalize(x)))(zero)
    np.testing.assert_allclose(gradient, v / 1e-4, rtol=1e-6)


def test_mp_silu_keeps_the_magnitude_of_a_unit_normal():
    x, weights = np.polynomial.hermite_e.hermegauss(101)
    silu = x / (1 + np.exp(-x))
    exact = np.sqrt(np.sum(weights * silu**2) / np.sum(weights))
    assert exact == pytest.approx(0.596, abs=5e-4)
    got = magnitude.mp_silu(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, silu / 0.596, rtol=1e-5, atol=1e-30)


def run_conv(w, x, **settings):
    size = w.shape[0] if w.ndim == 4 else 1
    module = magnitude.MPConv(w.shape[-1], size, **settings)
    folded = magnitude.fold_kernel(jnp.asarray(w, jnp.float32))
    return module.apply({"params": {"kernel": folded}}, jnp.asarray(x, jnp.float32))


@pytest.mark.parametrize("side", [(4, 5), (4, 4), (1, 2)])
def test_convolution_is_a_correlation_with_normalized_weights(side):
    """Also where it is made of patches, and where these are larger than the image."""
    x, w = normal((2, *side, 3)), normal((3, 3, 3, 5), 1)
    expected = correlate(x, normalized(w)) / np.sqrt(27)
    np.testing.assert_allclose(run_conv(w, x), expected, rtol=1e-5, atol=1e-6)


def test_weights_are_normalized_in_float32_and_used_in_the_compute_dtype():
    x, w = normal((2, 64), loc=0.0), normal((64, 5), 1) * 300
    y = run_conv(w, x, dtype=jnp.bfloat16)
    assert y.dtype == jnp.bfloat16
    error = np.asarray(y, np.float64) - np.asarray(run_conv(w, x), np.float64)
    assert 0 < np.abs(error).max() < 0.03


def test_table_is_a_layer_on_one_hot_vectors():
    w = normal((7, 5), 1)
    index = np.array([0, 6, 3, 3])
    one_hot = np.sqrt(7) * np.eye(7)[index]
    module = magnitude.MPTable(7, 5)
    folded = magnitude.fold_kernel(jnp.asarray(w, jnp.float32))
    variables = {"params": {"kernel": folded}}
    got = module.apply(variables, jnp.asarray(index))
    np.testing.assert_allclose(got, run_conv(w, one_hot), rtol=1e-5, atol=1e-6)
    # Rows are of order 1, and the null class, any negative index, is the last one.
    null = module.apply(variables, jnp.asarray([NULL_LABEL, 6]))
    np.testing.assert_array_equal(null[0], null[1])
    fresh = jax.eval_shape(module.init, KEY, jnp.asarray(index))
    assert fresh["params"]["kernel"].shape == (7, 5)
