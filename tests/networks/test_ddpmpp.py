"""DDPM++ against its published size and against its formulas in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import networks
from scm_jax.cost import counts
from scm_jax.networks import ddpmpp
from scm_jax.networks.unet_layout import BlockSpec
from tests.networks import reference as ref
from tests.networks.reference import KEY, quick_jit


@pytest.mark.parametrize(
    ("modulation", "millions"), [("add", 55.73), ("double_norm", 60.07)]
)
def test_cifar10_network_has_its_published_parameters(modulation, millions):
    settings = {**networks.PRESETS["ddpmpp"]["cifar10"], "modulation": modulation}
    net = networks.build("ddpmpp", (32, 32, 3), 0, **settings)
    params = jax.eval_shape(net.init, jax.random.key(0))
    count = counts.parameter_count(params) / 1e6
    assert count == pytest.approx(millions, abs=0.005)
    macs = counts.count_macs(net.apply, params, *jax.eval_shape(lambda: net.example(1)))
    assert macs / 1e9 == pytest.approx(21.2, abs=0.1)


# --- Formulas -------------------------------------------------------------------------


def reference_block(p, spec, modulation, num_heads, h, skip, emb):
    """As EDM's block with skip scale sqrt(1/2), and sCM's modulation of it."""
    if skip is not None:
        h = np.concatenate([h, skip], axis=-1)
    y = ref.silu(ref.group_norm(h, p["norm0"]))
    y = ref.layer(ref.resample(y, spec.resample), p["conv0"])
    affine = ref.layer(emb, p["affine"])
    if modulation == "add":
        y = ref.group_norm(y + affine[:, None, None], p["norm1"])
    else:
        y = ref.modulate(ref.group_norm(y, p["norm1"]), affine, modulation)
    y = ref.layer(ref.silu(y), p["conv1"])
    h = ref.resample(h, spec.resample)
    h = ref.layer(h, p["skip"]) if "skip" in p else h
    h = (h + y) / np.sqrt(2)
    if spec.attention:
        qkv = ref.layer(ref.group_norm(h, p["norm2"]), p["qkv"])
        y = ref.attend(*ref.heads_of(qkv, num_heads)).reshape(h.shape)
        h = (h + ref.layer(y, p["proj"])) / np.sqrt(2)
    return h


BLOCKS = {
    "encoder, down": (BlockSpec(4, 16, 0, 16, "down", False, False), "add", 1),
    "encoder, attention": (
        BlockSpec(4, 16, 0, 16, "none", True, False),
        "double_norm",
        1,
    ),
    "decoder, skip, attention": (
        BlockSpec(4, 12, 20, 16, "none", True, True),
        "double_norm_scale",
        2,
    ),
    "decoder, up": (BlockSpec(4, 16, 0, 16, "up", False, True), "adaptive", 1),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_block_is_that_of_the_paper(name):
    spec, modulation, num_heads = BLOCKS[name]
    rng = np.random.default_rng(1)
    side = {"none": 4, "down": 8, "up": 2}[spec.resample]
    h = rng.normal(size=(2, side, side, spec.in_channels)) + 0.5
    skip = rng.normal(size=(2, 4, 4, spec.skip_channels))
    inputs = h, skip if spec.skip_channels else None, rng.normal(size=(2, 24))
    dtype = jnp.dtype("float32")
    block = ddpmpp.Block(spec, num_heads, 0.0, modulation, "einsum", dtype)
    wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), inputs)
    shapes = jax.eval_shape(
        functools.partial(block.init, deterministic=True), KEY, *wide
    )["params"]
    assert ("skip" in shapes) == (spec.resample != "none" or spec.skip_channels > 0)
    params = jax.tree.map(lambda a: 0.3 * a, ref.draw(shapes))
    run = quick_jit(lambda p, *inputs: block.apply({"params": p}, *inputs, True))
    got, kept = run(params, *wide)
    expected = reference_block(
        ref.float64(params), spec, modulation, num_heads, *inputs
    )
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)
    assert kept is None if spec.decoder else np.all(kept == got)


def test_embedding_is_that_of_the_paper():
    """Positional features of amplitude 1, and a null class of zeros."""
    params, got = ref.embedding_of(ddpmpp.DDPMpp, lambda p: p, channel_mult=(1,))
    p, cond = ref.float64(params), ref.float64(ref.COND)
    rows = np.sqrt(3) * p["emb_label"]["kernel"][[2, 0, 0]]
    rows[2] = 0
    emb = ref.positional(cond.t, 16, 1.0) + rows + p["emb_label"]["bias"]
    emb = ref.layer(ref.silu(ref.layer(emb, p["emb0"])), p["emb1"])
    for name in ("dt", "guidance"):
        emb = emb + ref.layer(
            ref.positional(getattr(cond, name), 16, 1.0), p[f"emb_{name}"]
        )
    assert emb.shape == (3, 64)
    np.testing.assert_allclose(got, ref.silu(emb), rtol=1e-4, atol=1e-4)


def test_fresh_kernels_are_xaviers_times_the_gain_of_their_layer():
    """Uniform to the square root of 6 / (inputs + outputs) of all taps together."""
    settings = {"width": 32, "channel_mult": (1,), "num_blocks": 1}
    net = networks.build("ddpmpp", (8, 8, 4), 3, attention_resolutions=(8,), **settings)
    block = quick_jit(net.init)(KEY)["enc_8x8_block0"]
    for name, taps, outputs, gain in [
        ("conv0", 9, 32, 1.0),
        ("conv1", 9, 32, 1e-5),
        ("qkv", 1, 96, 0.2**0.5),
        ("proj", 1, 32, 1e-5),
    ]:
        limit = gain * np.sqrt(6 / (taps * (32 + outputs)))
        kernel = np.asarray(block[name]["kernel"])
        assert np.abs(kernel).max() == pytest.approx(limit, rel=0.01)
        assert kernel.std() == pytest.approx(limit / np.sqrt(3), rel=0.05)
