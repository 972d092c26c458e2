"""The diffusion transformer: axes, patches, size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import networks
from scm_jax.cost import counts
from scm_jax.networks import layers
from scm_jax.types import Cond
from tests.networks.reference import fresh_size, rms

SMALL = {"width": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 2}
SHAPES = [(8, 2), (4, 6, 1), (2, 4, 4, 3)]


def inputs():
    x = np.random.default_rng(1).normal(size=(4, 4, 4, 2)).astype(np.float32)
    t = jnp.asarray([1e-3, 0.4, 1.1, 1.56])
    return x, Cond(t=t, label=jnp.asarray([0, 1, 2, -1]))


# --- Axes and patches -----------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_samples_may_have_any_number_of_axes(shape):
    net = networks.build("dit", shape, 0, **SMALL)
    params = jax.eval_shape(net.init, jax.random.key(0))
    tokens = int(np.prod([n // 2 for n in shape[:-1]]))
    assert params["position"].shape == (tokens, 16)
    F = jax.eval_shape(net.apply, params, *net.example(3))
    assert F.shape == (3, *shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_tokens_are_patches_and_come_back(shape):
    x = jnp.arange(2.0 * np.prod(shape)).reshape(2, *shape)
    tokens = layers.patchify(x, 2)
    n = len(shape) - 1
    assert tokens.shape == (2, np.prod(shape) // (2**n * shape[-1]), 2**n * shape[-1])
    first, second = (slice(0, 2),) * n, (*(slice(0, 2),) * (n - 1), slice(2, 4))
    np.testing.assert_array_equal(tokens[:, 0], x[:, *first].reshape(2, -1))
    np.testing.assert_array_equal(tokens[:, 1], x[:, *second].reshape(2, -1))
    np.testing.assert_array_equal(layers.unpatchify(tokens, 2, shape), x)


def test_a_token_sees_the_others_and_knows_its_place():
    net = networks.build("dit", (4, 4, 2), 3, **SMALL)
    params = fresh_size(net)
    x, cond = inputs()
    apply = jax.jit(net.apply)
    F = apply(params, x, cond)
    far = apply(params, jnp.asarray(x).at[:, 3, 3].add(1.0), cond) - F
    assert rms(far[:, :2, :2]) > 1e-4
    # Moving the content by a patch does not only move the result.
    moved = apply(params, jnp.roll(x, 2, axis=1), cond)
    assert rms(moved - jnp.roll(F, 2, axis=1)) > 1e-2


# Millions of parameters and 1e9 multiply-adds of arXiv 2212.09748, Table 4 (patch 2 on
# 256x256 latents), and of the U-Net's largest size for one of our own.
SIZES = {
    "s": (33, 6.06),
    "b": (130, 23.01),
    "l": (458, 80.71),
    "xl": (675, 118.64),
    "1p6b": (1600, None),
}


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes(size):
    """Six vectors of modulation per block as in the original, so the sizes agree."""
    others = {"latte_xl", "audio_120m", "audio_480m"}
    assert {*SIZES, *others} == set(networks.PRESETS["dit"])
    settings = {**networks.PRESETS["dit"][size], "patch": 2}
    net = networks.build("dit", (32, 32, 4), 1000, **settings)
    params = jax.eval_shape(net.init, jax.random.key(0))
    millions, gmacs = SIZES[size]
    count = counts.parameter_count(params) / 1e6
    assert count == pytest.approx(millions, rel=0.01 if gmacs else 0.03)
    if size in ("s", "xl"):  # a trace takes seconds
        inputs = jax.eval_shape(lambda: net.example(1))
        macs = counts.count_macs(net.apply, params, *inputs) / 1e9
        assert macs == pytest.approx(gmacs, rel=0.002)


def test_deep_stacks_are_scanned_and_shallow_ones_unrolled_alike():
    """``unroll`` is the compiler's business: same parameters, same result."""
    net = networks.build("dit", (4, 4, 2), 0, **{**SMALL, "depth": 5})
    params = jax.eval_shape(net.init, jax.random.key(0))
    assert {a.shape[0] for a in jax.tree.leaves(params["blocks"])} == {5}
    args = jax.eval_shape(lambda: net.example(1))
    shallow = networks.build("dit", (4, 4, 2), 0, **{**SMALL, "depth": 4})
    macs = [
        counts.count_macs(n.apply, jax.eval_shape(n.init, jax.random.key(0)), *args)
        for n in (shallow, net)
    ]
    per_block = 16 * 4 * 16 + 16 * 2 * 16  # modulation and gates, once per sample
    per_block += 4 * (16 * 48 + 16 * 16 + 2 * 16 * 32)  # per token
    per_block += 2 * 4 * 4 * 16  # q k and p v
    assert macs[1] - macs[0] == per_block
