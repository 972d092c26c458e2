"""Wan2.1's transformer: its files, and a build by its paper's formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import networks
from scm_jax.cost import counts
from scm_jax.networks.external import transformers
from scm_jax.types import Cond, TextInfo
from tests.exchange.published_layers import (
    DEPTH,
    C,
    File,
    attend,
    draw,
    gelu,
    layer_norm,
    layout,
    of_a_file,
    sinusoid,
    to_diffusers,
)
from tests.networks.reference import silu

TEXT = TextInfo(5, width=6)
WAN = """
    patch_embedding: w c 1 2 2 bias
    text_embedding.0: w text bias
    text_embedding.2: w w bias
    time_embedding.0: w 256 bias
    time_embedding.2: w w bias
    time_projection.1: 6*w w bias
    head.head: 4*c w bias
    head.modulation: 1 2 w
    #.modulation: 1 6 w
    #.self_attn.q: w w bias
    #.self_attn.k: w w bias
    #.self_attn.v: w w bias
    #.self_attn.o: w w bias
    #.self_attn.norm_q: w
    #.self_attn.norm_k: w
    #.norm3: w bias
    #.cross_attn.q: w w bias
    #.cross_attn.k: w w bias
    #.cross_attn.v: w w bias
    #.cross_attn.o: w w bias
    #.cross_attn.norm_q: w
    #.cross_attn.norm_k: w
    #.ffn.0: hidden w bias
    #.ffn.2: w hidden bias
"""
RENAMED_WAN = """
    time_embedding.0 condition_embedder.time_embedder.linear_1
    time_embedding.2 condition_embedder.time_embedder.linear_2
    text_embedding.0 condition_embedder.text_embedder.linear_1
    text_embedding.2 condition_embedder.text_embedder.linear_2
    time_projection.1 condition_embedder.time_proj head.modulation scale_shift_table
    head.head proj_out modulation scale_shift_table ffn.0 ffn.net.0.proj
    ffn.2 ffn.net.2 norm3 norm2 self_attn.o self_attn.to_out.0
    cross_attn.o cross_attn.to_out.0 self_attn.norm attn1.norm
    cross_attn.norm attn2.norm self_attn.to self_attn.to self_attn.q self_attn.to_q
    self_attn.k self_attn.to_k self_attn.v self_attn.to_v cross_attn.q cross_attn.to_q
    cross_attn.k cross_attn.to_k cross_attn.v cross_attn.to_v self_attn attn1
    cross_attn attn2
""".split()


@pytest.mark.parametrize(
    "size, parameters", [("1p3b", 1_418_996_800), ("14b", 14_288_491_584)]
)
def test_the_whole_layout_of_wan(size, parameters):
    settings = networks.PRESETS["wan"][size]
    text = TextInfo(512, width=4096)
    net = networks.build("wan", (21, 60, 104, 16), 0, text, **settings)
    sizes = {"c": 16, "text": 4096, "hidden": settings["hidden"]}
    file = layout(WAN, settings["width"], settings["depth"], **sizes)
    assert of_a_file(net.module) == file
    empty = {n: np.broadcast_to(np.float32(0), shape) for n, shape in file.items()}
    other = to_diffusers(empty, RENAMED_WAN)
    assert of_a_file(net.module, "diffusers") == {n: a.shape for n, a in other.items()}
    for state in (empty, other):
        name, inferred = transformers.infer_network(state)
        assert name == "wan" and inferred == {**settings, "patch_sides": (1, 2, 2)}
    abstract = jax.eval_shape(net.init, jax.random.key(0))
    assert counts.parameter_count(abstract) == parameters
    assert net.consumes == {"t", "context", "context_mask"}


def turned(a, grid):
    """Rotary positions of (t, h, w) as complex numbers: heads of 12 are 4, 4, 4."""
    place = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1)
    angle = place.reshape(-1, 3, 1) * 1e4 ** (-np.arange(0, 4, 2) / 4)
    turned = (a[..., ::2] + 1j * a[..., 1::2]) * np.exp(1j * angle.reshape(-1, 6))
    return np.stack([turned.real, turned.imag], -1).reshape(a.shape)


def published_wan(state, y, s, context, mask):
    """Arxiv 2503.20314, Sec. 4.2; zeros after a caption are attended to."""
    net, (b, t, rows, columns, c) = File(state), y.shape
    w = len(state["patch_embedding.bias"])
    grid = (t, rows // 2, columns // 2)
    split = y.reshape(b, t, grid[1], 2, grid[2], 2, c).transpose(0, 1, 2, 4, 6, 3, 5)
    h = net("patch_embedding", split.reshape(b, math.prod(grid), -1))
    emb = net("time_embedding.2", silu(net("time_embedding.0", sinusoid(s))))
    six = net("time_projection.1", silu(emb)).reshape(b, 6, 1, w)
    words = np.zeros((b, TEXT.length, TEXT.width))
    words[:, : context.shape[1]] = np.where(mask[..., None], context, 0)
    words = net("text_embedding.2", gelu(net("text_embedding.0", words)))
    for i in range(DEPTH):
        block = File(state, f"blocks.{i}.")
        m = np.moveaxis(six + block["modulation"][:, :, None], 1, 0)
        z = layer_norm(h) * (1 + m[1]) + m[0]
        q, k, v = (block(f"self_attn.{name}", z) for name in "qkv")
        q = block.rms("self_attn.norm_q", q, 1e-6)
        k = block.rms("self_attn.norm_k", k, 1e-6)
        out = attend(q, k, v, d=12, turn=lambda a: turned(a, grid))
        h = h + m[2] * block("self_attn.o", out)
        z = layer_norm(h) * block["norm3.weight"] + block["norm3.bias"]
        q = block.rms("cross_attn.norm_q", block("cross_attn.q", z), 1e-6)
        k = block.rms("cross_attn.norm_k", block("cross_attn.k", words), 1e-6)
        out = attend(q, k, block("cross_attn.v", words), d=12)
        h = h + block("cross_attn.o", out)
        z = layer_norm(h) * (1 + m[4]) + m[3]
        h = h + m[5] * block("ffn.2", gelu(block("ffn.0", z)))
    shift, scale = np.moveaxis(net["head.modulation"] + emb[:, None], 1, 0)[:, :, None]
    out = net("head.head", layer_norm(h) * (1 + scale) + shift)
    out = out.reshape(b, *grid, 2, 2, c).transpose(0, 1, 2, 4, 3, 5, 6)
    return out.reshape(y.shape)


def wan_case():
    w = 24
    state = draw(layout(WAN, w, DEPTH, c=C, text=TEXT.width, hidden=20))
    name, settings = transformers.infer_network(state)
    net = networks.build(name, (3, 4, 6, C), 0, TEXT, num_heads=2, **settings)
    rng = np.random.default_rng(3)
    y, context = rng.normal(size=(3, 3, 4, 6, C)), rng.normal(size=(3, 4, 6))
    s, mask = np.array([0.0, 310.0, 1000.0]), np.arange(4) < np.array([[4], [2], [1]])
    texts = {"context": jnp.float32(context), "context_mask": jnp.asarray(mask)}
    expected = published_wan(state, y, s, context, mask)
    return state, net, y, Cond(t=jnp.float32(s), **texts), expected
