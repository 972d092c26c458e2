"""Layers against their formulas in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import networks
from scm_jax.networks import embeddings, layers, magnitude
from scm_jax.networks.attention import attention
from scm_jax.types import NULL_LABEL, Cond
from tests.networks.reference import KEY, normal, quick_jit

# --- Norms and modulation -------------------------------------------------------------


def test_pixel_norm_and_its_tangent(float64_islands):
    """Tangent of the norm: ``ta/R - a mean(a ta)/R^3``."""
    a, ta = normal((2, 3, 5)), normal((2, 3, 5), 1)
    run = jax.jit(lambda a, ta: jax.jvp(layers.pixel_norm, (a,), (ta,)))
    value, tangent = run(a, ta)
    R = np.sqrt(np.mean(a**2, axis=-1, keepdims=True) + 1e-8)
    np.testing.assert_allclose(value, a / R, rtol=1e-12)
    expected = ta / R - a * np.mean(a * ta, axis=-1, keepdims=True) / R**3
    np.testing.assert_allclose(tangent, expected, rtol=1e-10, atol=1e-12)


def unit(a):
    return a / np.sqrt(np.mean(a**2, -1, keepdims=True) + 1e-8)


FORMS = {
    "double_norm": lambda x, s, b: x * unit(s) + unit(b),
    "double_norm_scale": lambda x, s: x * unit(s),
    "adaptive": lambda x, s, b: x * (1 + s) + b,
}


def test_every_form_of_modulation_is_tested():
    assert set(FORMS) == set(layers.MODULATIONS)


@pytest.mark.parametrize("shape", [(2, 5), (2, 7, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("form", FORMS)
def test_modulation(form, shape, float64_islands):
    """For samples with any number of axes; one vector for a whole sample."""
    x = normal(shape, 2)
    parts = [normal((2, 5), 3 + i) for i in range(layers.MODULATIONS[form])]
    ones = (1,) * (len(shape) - 2)
    expected = FORMS[form](x, *(a.reshape(2, *ones, 5) for a in parts))
    affine = jnp.asarray(np.concatenate(parts, axis=-1))
    got = jax.jit(layers.modulate, static_argnums=2)(x, affine, form)
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-12)


def test_layer_norm(float64_islands):
    x = normal((2, 7, 5), 2, loc=3.0)
    mean = x.mean(-1, keepdims=True)
    variance = np.mean((x - mean) ** 2, -1, keepdims=True)
    got = layers.layer_norm(jnp.asarray(x))
    np.testing.assert_allclose(got, (x - mean) / np.sqrt(variance + 1e-6), rtol=1e-11)


def double_norm(x, scale, shift):
    affine = jnp.concatenate([jnp.asarray(scale), jnp.asarray(shift)], axis=-1)
    return layers.modulate(layers.layer_norm(jnp.asarray(x)), affine, "double_norm")


def test_double_norm_is_norm_times_scale_plus_shift(float64_islands):
    """Both modulations normalized over channels, no "+1" on the scale."""
    x, scale, shift = normal((2, 7, 5), 2), normal((2, 5), 3), normal((2, 5), 4)
    mean = x.mean(-1, keepdims=True)
    norm = (x - mean) / np.sqrt(np.mean((x - mean) ** 2, -1, keepdims=True) + 1e-6)
    expected = norm * unit(scale)[:, None] + unit(shift)[:, None]
    got = double_norm(x, scale, shift)
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-12)
    # The size of the modulation does not matter.
    large = double_norm(x, 50 * scale, 9 * shift)
    np.testing.assert_allclose(large, got, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("axes", [(), (6,), (3, 4)])
def test_group_norm(axes, float64_islands):
    """Over space and neighbouring channels of each example."""
    x = normal((2, *axes, 8), 5) * np.array([1.0, 2, 3, 4, 5, 6, 7, 8])
    expected = np.empty_like(x)
    for b in range(2):
        for group in (slice(0, 4), slice(4, 8)):
            part = x[b, ..., group]
            expected[b, ..., group] = (part - part.mean()) / np.sqrt(part.var() + 1e-3)
    got = jax.jit(lambda x: layers.group_norm(x, 2, 1e-3))(x)
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-12)


def test_norms_and_modulation_compute_in_float32():
    x = jnp.asarray(normal((2, 4, 512), loc=100.0), jnp.bfloat16)
    ones = jnp.ones((2, 512), jnp.bfloat16)
    normed = {
        "pixel": layers.pixel_norm(x),
        "layer": layers.layer_norm(x),
        "group": layers.group_norm(x, 2, 1e-6),
        "rms": magnitude.rms_normalize(x, (-1,)),
        "modulated": double_norm(x, ones, 0 * ones),
        "scaled": layers.modulate(layers.layer_norm(x), ones, "double_norm_scale"),
        "adaptive": layers.modulate(x, jnp.tile(ones, 2), "adaptive"),
    }
    assert {name: str(y.dtype) for name, y in normed.items()} == dict.fromkeys(
        normed, "float32"
    )
    # In bfloat16 the mean of numbers near 100 would be off by up to a whole unit.
    for name in ("layer", "group", "modulated"):
        assert abs(float(jnp.mean(normed[name]))) < 1e-2


# --- Resampling and inputs ------------------------------------------------------------


def test_resampling():
    x = normal((2, 4, 6, 3))
    down, up = np.empty((2, 2, 3, 3)), np.empty((2, 8, 12, 3))
    for i in range(8):
        for j in range(12):
            up[:, i, j] = x[:, i // 2, j // 2]
    for i in range(2):
        for j in range(3):
            down[:, i, j] = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((1, 2))
    for mode, expected in {"none": x, "down": down, "up": up}.items():
        got = layers.resample(jnp.asarray(x), mode)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_missing_label_is_the_null_class():
    cond = Cond(t=jnp.ones(3))
    np.testing.assert_array_equal(embeddings.labels(cond), np.full(3, NULL_LABEL))
    label = jnp.asarray([2, NULL_LABEL, 0])
    np.testing.assert_array_equal(embeddings.labels(cond.replace(label=label)), label)


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


@pytest.mark.parametrize("name", ["ddpmpp", "unet"])
def test_one_draw_has_the_distribution_of_the_modules_own_initializers(name):
    settings = {"width": 32, "channel_mult": (1,), "num_blocks": 1}
    settings |= {"attention_resolutions": (8,), "embedding": "fourier"}
    settings |= {"head_channels": 16} if name == "unet" else {}
    net = networks.build(name, (8, 8, 4), 5, use_guidance=True, **settings)
    shapes, own = net.example(1), net.module

    def init(key):
        return own.init(key, *shapes)["params"]

    def draw(key):
        return own.draw(key, jax.eval_shape(init, key))

    expected, got = (quick_jit(f)(KEY) for f in (init, draw))
    leaves = jax.tree_util.tree_leaves_with_path(expected)
    for (path, a), b in zip(leaves, jax.tree.leaves(got), strict=True):
        where = jax.tree_util.keystr(path)
        assert a.shape == b.shape and a.dtype == b.dtype, where
        # Means and standard deviations of so many numbers, to five deviations.
        tolerance = 5 * float(jnp.std(a)) * np.sqrt(2.0 / max(a.size, 1))
        assert abs(float(jnp.mean(a) - jnp.mean(b))) <= tolerance, where
        assert abs(float(jnp.std(a) - jnp.std(b))) <= tolerance, where
    # No two kernels are made of the same numbers.
    random = [a for a in jax.tree.leaves(got) if a.ndim > 1 and float(jnp.std(a)) > 0]
    first = {round(float(a.reshape(-1)[0] / jnp.std(a)), 5) for a in random}
    assert len(first) == len(random) > 8
