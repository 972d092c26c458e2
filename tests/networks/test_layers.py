"""Layers against their formulas in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax.networks import layers
from scm_jax.networks.attention import attention


def normal(shape, seed=0, loc=0.3):
    return loc + np.random.default_rng(seed).normal(size=shape)


# --- Positional embedding -------------------------------------------------------------


def test_positional_embedding_values():
    e = layers.positional_embedding(jnp.asarray([0.7]), 6, max_period=10_000.0)
    angles = 0.7 * np.array([1.0, 0.01, 0.0001])
    expected = np.sqrt(2) * np.concatenate([np.cos(angles), np.sin(angles)])
    np.testing.assert_allclose(e[0], expected, rtol=1e-6)


@pytest.mark.parametrize("dim", [16, 64, 256])
def test_embedding_has_unit_rms_and_a_slow_derivative(dim):
    """RMS of d emb/dt is .24 for many channels; Fourier features have 6.3 or 100."""
    t = jnp.linspace(0.0, np.pi / 2, 33)
    e, de_dt = jax.jvp(
        lambda t: layers.positional_embedding(t, dim), (t,), (jnp.ones_like(t),)
    )
    np.testing.assert_allclose(jnp.mean(e**2, axis=-1), 1.0, rtol=1e-5)
    rms = np.sqrt(np.mean(np.square(de_dt), axis=-1))
    expected = np.sqrt(np.mean(1e4 ** (-2 * np.linspace(0, 1, dim // 2))))
    assert abs(expected - 0.24) < (0.02 if dim == 256 else 0.15)
    # Half of the channels carry the square of the sine, half of the cosine.
    np.testing.assert_allclose(rms, expected, rtol=1e-4)


def test_embedding_is_float32_whatever_comes_in():
    e = layers.positional_embedding(jnp.asarray([0.7], jnp.bfloat16), 8)
    assert e.dtype == jnp.float32


@pytest.mark.parametrize("dim", [2, 7])
def test_embedding_needs_an_even_dim(dim):
    with pytest.raises(ValueError, match=f"dim = {dim}"):
        layers.positional_embedding(jnp.ones(1), dim)


# --- Norms ----------------------------------------------------------------------------


def test_pixel_norm_and_its_tangent(float64_islands):
    """Tangent of paper.md: ``ta/R - a mean(a ta)/R^3``."""
    a, ta = normal((2, 3, 5)), normal((2, 3, 5), 1)
    value, tangent = jax.jvp(layers.pixel_norm, (jnp.asarray(a),), (jnp.asarray(ta),))
    R = np.sqrt(np.mean(a**2, axis=-1, keepdims=True) + 1e-8)
    np.testing.assert_allclose(value, a / R, rtol=1e-12)
    expected = ta / R - a * np.mean(a * ta, axis=-1, keepdims=True) / R**3
    np.testing.assert_allclose(tangent, expected, rtol=1e-10, atol=1e-12)


def test_double_norm_is_norm_times_scale_plus_shift(float64_islands):
    """Both modulations normalized over channels, no "+1" on the scale."""
    x, scale, shift = normal((2, 7, 5), 2), normal((2, 5), 3), normal((2, 5), 4)
    mean = x.mean(-1, keepdims=True)
    norm = (x - mean) / np.sqrt(np.mean((x - mean) ** 2, -1, keepdims=True) + 1e-6)
    unit = [
        a / np.sqrt(np.mean(a**2, -1, keepdims=True) + 1e-8) for a in (scale, shift)
    ]
    expected = norm * unit[0][:, None] + unit[1][:, None]
    got = layers.double_norm(*(jnp.asarray(a) for a in (x, scale, shift)))
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-12)
    # The size of the modulation does not matter.
    large = layers.double_norm(*(jnp.asarray(a) for a in (x, 50 * scale, 9 * shift)))
    np.testing.assert_allclose(large, got, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(2, 5), (2, 7, 5), (2, 3, 4, 5)])
def test_double_norm_takes_any_number_of_axes(shape):
    x = jnp.asarray(normal(shape), jnp.float32)
    scale = jnp.asarray(normal((2, 5), 3), jnp.float32)
    y = layers.double_norm(x, scale, scale)
    assert y.shape == shape
    flat = layers.double_norm(x.reshape(2, -1, 5), scale, scale)
    np.testing.assert_allclose(y.reshape(2, -1, 5), flat, rtol=1e-6)


def test_norms_compute_in_float32_and_double_norm_keeps_the_dtype():
    x = jnp.asarray(normal((2, 4, 512), loc=100.0), jnp.bfloat16)
    ones = jnp.ones((2, 512), jnp.float32)
    assert layers.pixel_norm(x).dtype == layers.layer_norm(x).dtype == jnp.float32
    y = layers.double_norm(x, ones, 0 * ones)
    assert y.dtype == jnp.bfloat16
    # In bfloat16 the mean of numbers near 100 would be off by up to a whole unit.
    assert abs(float(jnp.mean(y.astype(jnp.float32)))) < 1e-2


# --- Attention ------------------------------------------------------------------------


def softmax(a):
    e = np.exp(a - a.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.fixture
def qkv(float64_islands):
    """Queries, keys, values and their tangents: 3 queries, 5 keys, 2 heads, d = 4."""
    shapes = [(2, 3, 2, 4), (2, 5, 2, 4), (2, 5, 2, 4)] * 2
    return [jnp.asarray(normal(shape, i)) for i, shape in enumerate(shapes)]


def test_attention_is_softmax(qkv):
    q, k, v = (np.asarray(a) for a in qkv[:3])
    p = softmax(np.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(4))
    expected = np.einsum("bhnm,bmhd->bnhd", p, v)
    np.testing.assert_allclose(attention(*qkv[:3]), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "zero", [None, 0, 1, 2], ids=["all", "no tq", "no tk", "no tv"]
)
def test_tangent_of_attention(zero, qkv):
    """App. F: ``ty = p tv + (p tS) v - (p . tS) y`` with ``tS = a (tq k + q tk)``."""
    tangents = [a * float(i != zero) for i, a in enumerate(qkv[3:])]
    _, got = jax.jvp(attention, tuple(qkv[:3]), tuple(tangents))
    q, k, v, tq, tk, tv = (np.asarray(a) for a in (*qkv[:3], *tangents))
    p = softmax(np.einsum("bnhd,bmhd->bhnm", q, k) / 2)
    tS = np.einsum("bnhd,bmhd->bhnm", tq, k) + np.einsum("bnhd,bmhd->bhnm", q, tk)
    y = np.einsum("bhnm,bmhd->bnhd", p, v)
    H = p * tS / 2
    expected = (
        np.einsum("bhnm,bmhd->bnhd", p, tv)
        + np.einsum("bhnm,bmhd->bnhd", H, v)
        - np.einsum("bhn,bnhd->bnhd", H.sum(-1), y)
    )
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-12)


def test_logits_and_softmax_are_float32_under_bfloat16():
    """Logits near 40 have steps of 1/4 in bfloat16: weights would be off by 10 %."""
    q, k, v = (
        jnp.asarray(normal((2, 16, 2, 16), i, loc=0.0) * scale, jnp.bfloat16)
        for i, scale in enumerate((6.0, 6.0, 1.0))
    )
    out = attention(q, k, v)
    assert out.dtype == jnp.bfloat16
    exact = attention(*(a.astype(jnp.float32) for a in (q, k, v)))
    np.testing.assert_allclose(out.astype(jnp.float32), exact, rtol=0, atol=0.02)


def test_unknown_attention_is_an_error():
    q = jnp.ones((1, 2, 1, 4))
    with pytest.raises(ValueError, match=r"network\.attention = 'flash' is not one of"):
        attention(q, q, q, implementation="flash")
