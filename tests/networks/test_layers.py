"""Layers against their formulas in numpy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import networks
from scm_jax.networks import embeddings, layers, magnitude
from scm_jax.networks.attention import attention
from scm_jax.types import NULL_LABEL, Cond
from tests.networks.reference import correlate, normalized

KEY = jax.random.key(0, impl="unsafe_rbg")  # quick to compile


def normal(shape, seed=0, loc=0.3):
    return loc + np.random.default_rng(seed).normal(size=shape)


def rms(a):
    return float(np.sqrt(np.mean(np.square(np.asarray(a, np.float64)))))


# --- Embeddings of scalars ------------------------------------------------------------


def test_positional_embedding_values():
    e = embeddings.positional_embedding(jnp.asarray([0.7]), 6, max_period=10_000.0)
    angles = 0.7 * np.array([1.0, 0.01, 0.0001])
    expected = np.sqrt(2) * np.concatenate([np.cos(angles), np.sin(angles)])
    np.testing.assert_allclose(e[0], expected, rtol=1e-6)
    plain = embeddings.positional_embedding(jnp.asarray([0.7]), 6, amplitude=1.0)
    np.testing.assert_allclose(plain[0], expected / np.sqrt(2), rtol=1e-6)


@pytest.mark.parametrize(
    ("dim", "expected"), [(16, 0.367), (64, 0.264), (128, 0.248), (256, 0.241)]
)
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


def test_embedding_is_float32_whatever_comes_in():
    a = jnp.asarray([0.7], jnp.bfloat16)
    assert embeddings.positional_embedding(a, 8).dtype == jnp.float32
    module = embeddings.FourierEmbedding(8)
    variables = jax.eval_shape(module.init, KEY, a)
    e, tangent = jax.eval_shape(
        lambda v, a: jax.jvp(lambda a: module.apply(v, a), (a,), (a,)), variables, a
    )
    assert e.dtype == tangent.dtype == jnp.float32


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


def test_embedding_of_time_by_name():
    class Embed(nn.Module):
        embedding: str

        @nn.compact
        def __call__(self, t):
            return embeddings.embed_time(t, 8, self.embedding, 16.0, amplitude=1.0)

    t = jnp.asarray([0.2, 1.0])
    positional, none = Embed("positional").init_with_output(KEY, t)
    assert not none
    expected = embeddings.positional_embedding(t, 8, amplitude=1.0)
    np.testing.assert_array_equal(positional, expected)
    fourier, variables = Embed("fourier").init_with_output(KEY, t)
    inner = {"params": variables["params"]["fourier"]}
    expected = embeddings.FourierEmbedding(8, 16.0).apply(inner, t)
    np.testing.assert_array_equal(fourier, expected)
    message = r"network\.embedding = 'sinus' is not one of \('positional', 'fourier'\)"
    with pytest.raises(ValueError, match=message):
        Embed("sinus").init(KEY, t)


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


# --- Magnitude preservation -----------------------------------------------------------


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


@pytest.mark.parametrize("shape", [(8, 6, 3), (8, 8), (8,), (4, 8, 8, 3)])
def test_samples_that_are_not_square_images_name_their_shape(shape):
    layers.check_square((8, 8, 3))
    with pytest.raises(ValueError, match=r"square images.*'dit' takes any shape") as e:
        layers.check_square(shape)
    assert str(shape) in str(e.value)


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


@pytest.mark.parametrize("name", ["ddpmpp", "unet"])
def test_one_draw_has_the_distribution_of_the_modules_own_initializers(name):
    settings = {"width": 32, "channel_mult": (1,), "num_blocks": 1}
    settings |= {"attention_resolutions": (8,), "embedding": "fourier"}
    settings |= {"head_channels": 16} if name == "unet" else {}
    options = {"xla_backend_optimization_level": 0}  # compiling is most of the work
    net = networks.build(name, (8, 8, 4), 5, use_guidance=True, **settings)
    shapes, own = net.example(1), net.module

    def init(key):
        return own.init(key, *shapes)["params"]

    def draw(key):
        return own.draw(key, jax.eval_shape(init, key))

    expected, got = (jax.jit(f, compiler_options=options)(KEY) for f in (init, draw))
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
