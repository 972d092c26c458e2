"""Embeddings of times against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax.networks import embeddings
from tests.networks.reference import KEY, rms


def test_positional_embedding_values():
    e = embeddings.positional_embedding(jnp.asarray([0.7]), 6, max_period=10_000.0)
    angles = 0.7 * np.array([1.0, 0.01, 0.0001])
    expected = np.sqrt(2) * np.concatenate([np.cos(angles), np.sin(angles)])
    np.testing.assert_allclose(e[0], expected, rtol=1e-6)
    plain = embeddings.positional_embedding(jnp.asarray([0.7]), 6, amplitude=1.0)
    np.testing.assert_allclose(plain[0], expected / np.sqrt(2), rtol=1e-6)


@pytest.mark.parametrize(("dim", "expected"), [(16, 0.367), (256, 0.241)])
def test_embedding_has_unit_rms_and_a_slow_derivative(dim, expected):
    """RMS of d emb/dt is .24 for many channels; Fourier features have 6.3 or 100."""
    t = jnp.linspace(0.0, np.pi / 2, 33)
    e, de_dt = jax.jvp(
        lambda t: embeddings.positional_embedding(t, dim), (t,), (jnp.ones_like(t),)
    )
    np.testing.assert_allclose(jnp.mean(e**2, axis=-1), 1.0, rtol=1e-5)
    derivative = np.sqrt(np.mean(np.square(de_dt), axis=-1))
    # Half of the channels carry the square of the sine, half of the cosine.
    exact = np.sqrt(np.mean(1e4 ** (-2 * np.linspace(0, 1, dim // 2))))
    np.testing.assert_allclose(derivative, exact, rtol=1e-4)
    assert exact == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("dim", [2, 7])
def test_embedding_needs_an_even_dim(dim):
    with pytest.raises(ValueError, match=f"dim = {dim}"):
        embeddings.positional_embedding(jnp.ones(1), dim)


@pytest.mark.parametrize("scale", [1.0, 16.0])
def test_fourier_features_have_unit_rms_and_a_fast_derivative(scale):
    """``mean((sqrt(2) w sin)^2) = mean(w^2) = (2 pi scale)^2``: 6.3 and 100."""
    module = embeddings.FourierEmbedding(4096, scale)
    t = jnp.asarray([0.0, 0.3, 1.1])
    variables = module.init(KEY, t)
    e, de_dt = jax.jvp(lambda t: module.apply(variables, t), (t,), (jnp.ones_like(t),))
    w, p = (np.asarray(variables["params"][k], np.float64) for k in ("freqs", "phases"))
    exact = np.sqrt(2) * np.cos(np.asarray(t, np.float64)[:, None] * w + p)
    # An angle of up to 400 has a rounding of 3e-5.
    np.testing.assert_allclose(e, exact, rtol=0, atol=2e-4)
    assert rms(e) == pytest.approx(1.0, rel=0.03)
    assert rms(de_dt) == pytest.approx(2 * np.pi * scale, rel=0.05)
    assert p.min() >= 0 and p.max() < 2 * np.pi + 1e-6


def test_fourier_features_are_frozen():
    module = embeddings.FourierEmbedding(16)
    t = jnp.asarray([0.2, 1.0])
    params = module.init(KEY, t)["params"]

    def total(params, t):
        return jnp.sum(jnp.cos(3.0 * module.apply({"params": params}, t)))

    of_params, of_t = jax.grad(total, argnums=(0, 1))(params, t)
    assert set(of_params) == {"freqs", "phases"}
    assert all(np.all(g == 0) for g in of_params.values())
    assert np.all(np.abs(of_t) > 1e-3)
