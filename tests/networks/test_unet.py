"""The EDM2 U-Net against its published sizes and against its formulas in numpy."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import networks
from scm_jax.cost import counts
from scm_jax.networks import unet
from scm_jax.networks.unet_layout import BlockSpec
from scm_jax.types import Cond
from tests.networks import reference as ref
from tests.networks.reference import KEY, quick_jit, rms

# --- Published sizes ------------------------------------------------------------------

# Millions of parameters and 1e9 multiply-adds of EDM2 itself: counted in its own code.
EDM2 = {
    "xs": (124.7, 45.0),
    "s": (280.2, 100.8),
    "m": (497.8, 178.9),
    "l": (777.5, 279.3),
    "xl": (1119.3, 402.0),
    "xxl": (1523.2, 546.9),
}
# The sCM paper's capacities, and ours with a shift beside each scale.
PAPER = {"s": 280.2, "m": 497.8, "l": 777.6, "xl": 1119.4, "xxl": 1523.4}
WITH_SHIFT = {"s": 293.9, "m": 522.2, "l": 815.6, "xl": 1174.1, "xxl": 1597.8}


def abstract(size, **settings):
    """A network of the ImageNet 512 latents and the shapes of its parameters."""
    settings = {**networks.PRESETS["unet"][size], **settings}
    net = networks.build("unet", (64, 64, 4), 1000, **settings)
    return net, jax.eval_shape(net.init, jax.random.key(0))


def kernels(params, only=""):
    """Name -> number of weights of every kernel with ``only`` in its name."""
    return {
        name: int(np.prod(w.shape))
        for path, w in jax.tree_util.tree_leaves_with_path(params)
        if only in (name := jax.tree_util.keystr(path)) and "kernel" in name
    }


def test_every_size_is_tested():
    assert set(networks.PRESETS["unet"]) == set(EDM2) == {"xs", *PAPER}


@pytest.mark.parametrize("size", EDM2)
def test_published_network_has_its_parameters_and_multiply_adds(size):
    net, params = abstract(size, modulation="gain", embedding="fourier")
    count = counts.parameter_count(params) / 1e6
    assert count == pytest.approx(EDM2[size][0], abs=0.05)
    if size in ("xs", "xxl") or "SCM_JAX_NIGHTLY" in os.environ:  # seconds each
        inputs = jax.eval_shape(lambda: net.example(1))
        macs = counts.count_macs(net.apply, params, *inputs) / 1e9
        assert macs == pytest.approx(EDM2[size][1], abs=0.1)
    if size in PAPER:
        # The default has these kernels (next test), and the paper's capacity.
        assert sum(kernels(params).values()) / 1e6 == pytest.approx(count, abs=0.001)
        assert count == pytest.approx(PAPER[size], abs=0.3)
        shift = sum(kernels(params, "affine").values()) / 1e6
        assert count + shift == pytest.approx(WITH_SHIFT[size], abs=0.1)


def test_forms_of_modulation_differ_in_one_layer_alone():
    published = kernels(abstract("xs", modulation="gain", embedding="fourier")[1])
    default = abstract("xs")[1]
    assert kernels(default) == published
    assert counts.parameter_count(default) - sum(published.values()) == 1  # out_gain
    affine = kernels(default, "affine")
    assert len(affine) == len(abstract("xs")[0].module.layout())
    doubled = {**published, **{name: 2 * n for name, n in affine.items()}}
    assert kernels(abstract("xs", modulation="double_norm")[1]) == doubled


# --- Formulas -------------------------------------------------------------------------


def mp_silu(x):
    return ref.silu(x) / 0.596


def reference_block(p, spec, modulation, h, skip, emb, clip=256.0):
    """EDM2, Fig. 21 and App. B, with heads of 8 channels."""
    out = spec.out_channels
    h = ref.resample(h, spec.resample)
    if skip is not None:
        n, m = h.shape[-1], skip.shape[-1]
        both = np.sqrt((n + m) / 0.5)
        parts = [both * 0.5 * h / np.sqrt(n), both * 0.5 * skip / np.sqrt(m)]
        h = np.concatenate(parts, axis=-1)
    if not spec.decoder:
        h = ref.mp_layer(h, p["skip"]["kernel"]) if "skip" in p else h
        h = ref.unit_rms(h, -1)
    y = ref.mp_layer(mp_silu(h), p["conv0"]["kernel"])
    affine = p["affine"]["kernel"]
    if modulation == "gain":
        scale = ref.mp_layer(emb, affine, p["affine_gain"]) + 1
        y = y * scale[:, None, None]
    else:
        form = ref.mp_layer(emb, affine)
        y = ref.modulate(ref.unit_rms(y, -1), form, modulation)
    y = ref.mp_layer(mp_silu(y), p["conv1"]["kernel"])
    if spec.decoder and "skip" in p:
        h = ref.mp_layer(h, p["skip"]["kernel"])
    h = ref.mp_sum(h, y, 0.3)
    if spec.attention:
        qkv = ref.heads_of(ref.mp_layer(h, p["qkv"]["kernel"]), out // 8)
        y = ref.attend(*(ref.unit_rms(a, -1) for a in qkv)).reshape(h.shape)
        h = ref.mp_sum(h, ref.mp_layer(y, p["proj"]["kernel"]), 0.3)
    return np.clip(h, -clip, clip)


BLOCKS = {
    "encoder, down, wider, attention": (
        BlockSpec(4, 12, 0, 16, "down", True, False),
        "double_norm_scale",
        256.0,
    ),
    "encoder, same width, clipped": (
        BlockSpec(4, 16, 0, 16, "none", False, False),
        "gain",
        0.5,
    ),
    "decoder, skip, attention": (
        BlockSpec(4, 12, 20, 16, "none", True, True),
        "double_norm",
        256.0,
    ),
    "decoder, up": (BlockSpec(4, 16, 0, 16, "up", False, True), "adaptive", 256.0),
}


def run_block(spec, modulation, clip, inputs, params=None):
    block = unet.Block(spec, 8, 0.0, modulation, clip, "einsum", jnp.dtype("float32"))
    h, skip, emb = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), inputs)
    inputs = h, skip, (emb, None, None)
    if params is None:
        init = functools.partial(block.init, deterministic=True)
        params = ref.draw(jax.eval_shape(init, KEY, *inputs)["params"])

    @quick_jit
    def run(params, *inputs):
        weights = unet.fold_weights(params)
        return block.apply({"params": weights}, *inputs, True)

    return params, run(params, *inputs)


def block_inputs(spec):
    rng = np.random.default_rng(1)
    side = {"none": 4, "down": 8, "up": 2}[spec.resample]
    h = rng.normal(size=(2, side, side, spec.in_channels)) * 3.0
    skip = rng.normal(size=(2, 4, 4, spec.skip_channels)) + 0.5
    return h, skip if spec.skip_channels else None, rng.normal(size=(2, 24))


@pytest.mark.parametrize("name", BLOCKS)
def test_block_is_that_of_the_paper(name):
    spec, modulation, clip = BLOCKS[name]
    inputs = block_inputs(spec)
    params, (h, kept) = run_block(spec, modulation, clip, inputs)
    expected = reference_block(ref.float64(params), spec, modulation, *inputs, clip)
    np.testing.assert_allclose(h, expected, rtol=0, atol=3e-5)
    # The encoder's output is also kept for the decoder.
    assert kept is None if spec.decoder else np.all(kept == h)
    at_limit = np.mean(np.abs(h) >= clip)
    assert 0.1 < at_limit < 0.9 if clip < 1 else at_limit == 0


def test_activations_are_clipped_on_request_only():
    """Huge activations pass a decoder block unless it clips; 0 is never."""
    spec = BlockSpec(4, 16, 0, 16, "none", False, True)
    h, skip, emb = block_inputs(spec)
    inputs = 1e3 * h, skip, emb
    params, (free, _) = run_block(spec, "double_norm", 0.0, inputs)
    assert np.abs(free).max() > 1000
    _, (clipped, _) = run_block(spec, "double_norm", unet.CLIP, inputs, params)
    np.testing.assert_allclose(clipped, np.clip(free, -256, 256), rtol=1e-5)


@pytest.mark.parametrize("null_label", unet.NULL_LABELS)
def test_embedding_is_that_of_the_paper(null_label):
    """And the null class: zeros in place of a row, or a row of its own."""
    settings = {"channel_mult": (1, 2), "null_label": null_label}
    params, got = ref.embedding_of(unet.UNet, unet.fold_weights, **settings)
    p, cond = ref.float64(params), ref.float64(ref.COND)
    emb = ref.mp_layer(ref.positional(cond.t, 16, 2**0.5), p["emb_noise"]["kernel"])
    for name in ("dt", "guidance"):
        features = ref.positional(getattr(cond, name), 16, 2**0.5)
        gain = p[f"emb_{name}_gain"]
        emb = emb + ref.mp_layer(features, p[f"emb_{name}"]["kernel"], gain)
    table = p["emb_label"]["kernel"]
    learned = null_label == "learned"
    assert table.shape == (3 + learned, 32)
    rows = ref.normalized(table)[[2, 0, -1]]
    rows[2] *= learned
    expected = mp_silu(ref.mp_sum(emb, rows, 0.5))
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)


# --- The network as a whole -----------------------------------------------------------


def column_rms(w, leading):
    axes = tuple(range(leading, w.ndim - 1))
    return np.sqrt(np.mean(np.square(np.asarray(w, np.float64)), axis=axes))


def test_projection_brings_every_output_channel_to_unit_rms():
    """Layer by layer in a stack, and nothing else."""
    settings = {"modulation": "gain", "embedding": "fourier", "use_guidance": True}
    settings |= {"width": 16, "channel_mult": (1, 2), "num_blocks": 2}
    net = networks.build("unet", (8, 8, 2), 3, head_channels=8, **settings)
    stacked = {g.name for g in net.module.layout() if len(g.names) > 1}
    assert len(stacked) > 2
    rng = np.random.default_rng(3)
    raw = jax.tree.map(
        lambda a: a * np.float32(0.05 + 20 * rng.random(a.shape)),
        ref.draw(jax.eval_shape(net.init, KEY)),
    )
    project = quick_jit(net.project)
    once = project(raw)
    twice = project(once)
    # The function does not change: weights are normalized in use anyway.
    fold = quick_jit(net.fold)
    for a, b in zip(*(jax.tree.leaves(fold(p)) for p in (raw, once)), strict=True):
        np.testing.assert_allclose(a, b, rtol=5e-3, atol=1e-6)
    projected = 0
    for path, w in jax.tree_util.tree_leaves_with_path(raw):
        after, again = (
            functools.reduce(lambda tree, key: tree[key.key], path, tree)
            for tree in (once, twice)
        )
        if path[-1].key != "kernel":
            np.testing.assert_array_equal(after, w)  # gains, frequencies, phases
            continue
        projected += 1
        leading = int(path[0].key in stacked)
        # eps = 1e-4 is added to the norm.
        np.testing.assert_allclose(column_rms(after, leading), 1.0, rtol=2e-3)
        np.testing.assert_allclose(column_rms(again, leading), 1.0, rtol=2e-4)
        np.testing.assert_allclose(again, after, rtol=2e-3)
        directions = [a / np.linalg.norm(a) for a in (w[..., 0], after[..., 0])]
        if not leading:
            np.testing.assert_allclose(*directions, rtol=1e-4, atol=1e-6)
    others = {p[-1].key for p, _ in jax.tree_util.tree_leaves_with_path(raw)}
    gains = {"affine_gain", "emb_guidance_gain", "out_gain"}
    assert others == {"kernel", "freqs", "phases"} | gains
    assert projected > 30


def test_activations_keep_their_magnitude():
    """All blocks with fresh weights do: that is what the normalizations are for."""
    settings = {"width": 32, "channel_mult": (1, 2), "num_blocks": 1}
    net = networks.build("unet", (16, 16, 3), 0, head_channels=16, **settings)
    groups = {g.name for g in net.module.layout()}
    assert all(len(g.names) == 1 for g in net.module.layout())
    params = net.project(ref.draw(jax.eval_shape(net.init, KEY)))
    x = np.random.default_rng(4).normal(size=(4, 16, 16, 3)).astype(np.float32)

    @quick_jit
    def outputs(params):
        _, state = net.module.apply(
            {"params": net.fold(params).weights},
            x,
            Cond(t=jnp.asarray([0.1, 0.5, 1.0, 1.5])),
            capture_intermediates=lambda module, _: isinstance(module, unet.Block),
        )
        blocks = state["intermediates"]
        return {name: blocks[name]["__call__"][0][0] for name in blocks}

    sizes = {name: rms(h) for name, h in outputs(params).items()}
    assert set(sizes) == groups
    assert all(0.5 < size < 2.0 for size in sizes.values()), sizes
