"""Layers that preserve magnitudes, against EDM2's equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax.networks import magnitude
from scm_jax.types import NULL_LABEL
from tests.networks.reference import KEY, correlate, normal, normalized, rms


@pytest.mark.parametrize("axes", [(-1,), (-2,), (1, 2)])
def test_rms_normalization(axes, float64_islands):
    x, v = normal((2, 3, 4, 5)), normal((2, 3, 4, 5), 1)
    root = np.sqrt(np.mean(x**2, axis=axes, keepdims=True))

    @jax.jit
    def run(x, v):
        return jax.jvp(lambda x: magnitude.rms_normalize(x, axes), (x,), (v,))

    value, tangent = run(x, v)
    np.testing.assert_allclose(value, x / (1e-4 + root), rtol=1e-12)
    slope = np.mean(x * v, axis=axes, keepdims=True) / root
    expected = v / (1e-4 + root) - x * slope / (1e-4 + root) ** 2
    np.testing.assert_allclose(tangent, expected, rtol=1e-9, atol=1e-11)


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


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_mp_sum_keeps_the_magnitude_of_independent_parts(t):
    a, b = normal((2, 100, 200), loc=0.0)
    got = magnitude.mp_sum(jnp.asarray(a), jnp.asarray(b), t)
    expected = ((1 - t) * a + t * b) / np.sqrt((1 - t) ** 2 + t**2)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert rms(got) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("t", [0.3, 0.5])
def test_mp_cat_weighs_its_parts_whatever_their_width(t):
    a, b = normal((100, 20), 1, loc=0.0), normal((100, 300), 2, loc=0.0)
    got = np.asarray(magnitude.mp_cat(jnp.asarray(a), jnp.asarray(b), t))
    c = np.sqrt(320 / ((1 - t) ** 2 + t**2))
    expected = [a * c * (1 - t) / np.sqrt(20), b * c * t / np.sqrt(300)]
    np.testing.assert_allclose(got, np.concatenate(expected, -1), rtol=1e-5)
    assert rms(got) == pytest.approx(1.0, abs=0.02)
    # Each part's share of the sum of squares is that of its weight.
    share = np.sum(got[:, 20:] ** 2) / np.sum(got**2)
    assert share == pytest.approx(t**2 / ((1 - t) ** 2 + t**2), abs=0.03)


def run_conv(w, x, gain=1.0, **settings):
    size = w.shape[0] if w.ndim == 4 else 1
    module = magnitude.MPConv(w.shape[-1], size, **settings)
    folded = magnitude.fold_kernel(jnp.asarray(w, jnp.float32), gain)
    return module.apply({"params": {"kernel": folded}}, jnp.asarray(x, jnp.float32))


@pytest.mark.parametrize("shape", [(2, 6), (2, 3, 4, 6)])
def test_linear_layer_is_a_product_with_normalized_weights(shape):
    x, w = normal(shape), normal((6, 5), 1) * np.array([1.0, 3, 0.1, 10, 1])
    expected = 0.7 * x @ normalized(w) / np.sqrt(6)
    np.testing.assert_allclose(run_conv(w, x, 0.7), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("side", [(4, 5), (4, 4), (1, 2)])
def test_convolution_is_a_correlation_with_normalized_weights(side):
    """Also where it is made of patches, and where these are larger than the image."""
    x, w = normal((2, *side, 3)), normal((3, 3, 3, 5), 1)
    expected = correlate(x, normalized(w)) / np.sqrt(27)
    np.testing.assert_allclose(run_conv(w, x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1, 3])
def test_layers_keep_the_magnitude_of_their_input(size):
    module = magnitude.MPConv(32, size)
    x = normal((2, 24, 24, 32), loc=0.0)
    variables = module.init(KEY, jnp.asarray(x, jnp.float32))
    folded = jax.tree.map(magnitude.fold_kernel, variables)
    y = module.apply(folded, jnp.asarray(x, jnp.float32))
    inner = y[:, 1:-1, 1:-1]  # at the border a part of the input is zero
    assert rms(inner) == pytest.approx(1.0, abs=0.04)
    assert variables["params"]["kernel"].dtype == jnp.float32


def test_size_of_the_weights_does_not_matter():
    x, w = normal((2, 4, 4, 3)), normal((3, 3, 3, 5), 1)
    y = run_conv(w, x)
    scaled = run_conv(w * np.array([0.5, 2.0, 7.0, 100.0, 1e4]), x)
    # eps = 1e-4 is added to norms of about 1.
    np.testing.assert_allclose(scaled, y, rtol=3e-4, atol=1e-6)


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


@pytest.mark.parametrize("shape", [(4, 6), (3, 3, 4, 6)])
def test_weights_of_a_stack_are_normalized_one_by_one(shape):
    stack = normal((2, *shape), 3) * np.array([1.0, 50.0]).reshape(2, *[1] * len(shape))
    got = magnitude.normalize_kernel(jnp.asarray(stack, jnp.float32))
    for i in range(2):
        one = magnitude.normalize_kernel(jnp.asarray(stack[i], jnp.float32))
        np.testing.assert_allclose(one, normalized(stack[i]), rtol=1e-5)
        np.testing.assert_allclose(got[i], one, rtol=1e-6)
