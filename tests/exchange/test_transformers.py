"""DiT, SiT, SANA-Sprint and Wan2.1 against their papers' formulas, and back."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import networks
from scm_jax.cost import counts
from scm_jax.networks import dit
from scm_jax.networks.external import transformers
from scm_jax.types import NULL_LABEL, Cond, TextInfo
from tests.exchange import test_wan
from tests.exchange.published_layers import (
    DEPTH,
    HEADS,
    C,
    File,
    W,
    attend,
    draw,
    gelu,
    heads,
    joined,
    layer_norm,
    layout,
    of_a_file,
    same,
    to_diffusers,
)
from tests.networks.reference import quick_jit, rms, silu

TEXT = TextInfo(5, width=6)
OPEN = {"head_channels": 4, "num_heads": HEADS}


# --- Names and shapes of the files ----------------------------------------------------


# As the state dicts of both projects have them; DiT's output is twice its input's size.
DIT = """
    pos_embed: 1 n w
    y_embedder.embedding_table: k+1 w
    x_embedder.proj: w c 2 2 bias
    t_embedder.mlp.0: w 256 bias
    t_embedder.mlp.2: w w bias
    final_layer.linear: 8*c w bias
    final_layer.adaLN_modulation.1: 2*w w bias
    #.attn.qkv: 3*w w bias
    #.attn.proj: w w bias
    #.mlp.fc1: 4*w w bias
    #.mlp.fc2: w 4*w bias
    #.adaLN_modulation.1: 6*w w bias
"""
SANA = """
    x_embedder.proj: w c 1 1 bias
    t_embedder.mlp.0: w 256 bias
    t_embedder.mlp.2: w w bias
    cfg_embedder.mlp.0: w 256 bias
    cfg_embedder.mlp.2: w w bias
    t_block.1: 6*w w bias
    y_embedder.y_proj.fc1: w text bias
    y_embedder.y_proj.fc2: w w bias
    attention_y_norm: w
    final_layer.linear: c w bias
    final_layer.scale_shift_table: 2 w
    #.scale_shift_table: 6 w
    #.attn.qkv: 3*w w
    #.attn.q_norm: w
    #.attn.k_norm: w
    #.attn.proj: w w bias
    #.cross_attn.q_linear: w w bias
    #.cross_attn.kv_linear: 2*w w bias
    #.cross_attn.q_norm: w
    #.cross_attn.k_norm: w
    #.cross_attn.proj: w w bias
    #.mlp.inverted_conv.conv: 5*w w 1 1 bias
    #.mlp.depth_conv.conv: 5*w 1 3 3 bias
    #.mlp.point_conv.conv: w 2.5*w 1 1
"""
# diffusers' own renaming, in the order of its conversion script.
RENAMED = """
    x_embedder patch_embed t_embedder.mlp.0 time_embed.timestep_embedder.linear_1
    t_embedder.mlp.2 time_embed.timestep_embedder.linear_2
    cfg_embedder.mlp.0 time_embed.guidance_embedder.linear_1
    cfg_embedder.mlp.2 time_embed.guidance_embedder.linear_2
    t_block.1 time_embed.linear y_embedder.y_proj.fc caption_projection.linear_
    attention_y_norm caption_norm final_layer.linear proj_out
    final_layer.scale_shift_table scale_shift_table
    cross_attn.q_linear attn2.to_q cross_attn.kv_linear attn2.to_kv
    cross_attn.proj attn2.to_out.0 cross_attn.q_norm attn2.norm_q
    cross_attn.k_norm attn2.norm_k .attn.qkv .attn1.to_qkv .attn.proj .attn1.to_out.0
    .attn.q_norm .attn1.norm_q .attn.k_norm .attn1.norm_k
    mlp.inverted_conv.conv ff.conv_inverted mlp.depth_conv.conv ff.conv_depth
    mlp.point_conv.conv ff.conv_point blocks. transformer_blocks.
""".split()


SIZES = [("0p6b", 593501216), ("1p6b", 1610237472)]


@pytest.mark.parametrize("size, parameters", SIZES)
def test_the_whole_layout_of_sana_sprint(size, parameters):
    settings = networks.PRESETS["sana"][size]
    text, more = TextInfo(300, width=2304), {"use_guidance": True}
    net = networks.build("sana", (32, 32, 32), 0, text, **more, **settings)
    file = layout(SANA, settings["width"], settings["depth"], c=32, text=2304)
    assert of_a_file(net.module) == file
    empty = {n: np.broadcast_to(np.float32(0), shape) for n, shape in file.items()}
    other = to_diffusers(empty, RENAMED)
    assert of_a_file(net.module, "diffusers") == {n: a.shape for n, a in other.items()}
    for state in (empty, other):
        name, inferred = transformers.infer_network(state)
        assert name == "sana" and inferred.items() >= settings.items()
        assert transformers.recognizes(state)
    abstract = jax.eval_shape(net.init, jax.random.key(0))
    assert counts.parameter_count(abstract) == parameters
    assert net.consumes == {"t", "guidance", "context", "context_mask"}


@pytest.mark.parametrize("side", [32, 64])
def test_the_whole_layout_of_dit_and_sit(side):
    settings = {**networks.PRESETS["dit"]["xl"], **dit.AS_PUBLISHED}
    net = networks.build("dit", (side, side, 4), 1000, **settings)
    file = layout(DIT, 1152, 28, c=4, n=(side // 2) ** 2, k=1000)
    assert side == 64 or sum(map(math.prod, file.values())) == 675_129_632
    for leaf in ("weight", "bias"):  # without the variance
        name = f"final_layer.linear.{leaf}"
        file[name] = (16, *file[name][1:])
    empty = {n: np.broadcast_to(np.float32(0), shape) for n, shape in file.items()}
    assert transformers.infer_network(empty)[1].items() >= settings.items()
    assert of_a_file(net.module) == file


# --- What the networks compute --------------------------------------------------------


def published_dit(state, x, t, label):
    """Arxiv 2212.09748, Sec. 3.2; the first half of the channels that come out."""
    net, (b, side, _, c) = File(state), x.shape
    n = side // 2
    patches = x.reshape(b, n, 2, n, 2, c).transpose(0, 1, 3, 5, 2, 4)  # c, p, q last
    h = net("x_embedder.proj", patches.reshape(b, n * n, -1)) + net["pos_embed"]
    emb = net.time("t_embedder", t) + net["y_embedder.embedding_table.weight"][label]
    emb = silu(emb)[:, None]
    for i in range(DEPTH):
        block = File(state, f"blocks.{i}.")
        six = np.split(block("adaLN_modulation.1", emb), 6, -1)
        y = layer_norm(h) * (1 + six[1]) + six[0]
        y = attend(*np.split(block("attn.qkv", y), 3, -1))
        h = h + six[2] * block("attn.proj", y)
        y = layer_norm(h) * (1 + six[4]) + six[3]
        h = h + six[5] * block("mlp.fc2", gelu(block("mlp.fc1", y)))
    shift, scale = np.split(net("final_layer.adaLN_modulation.1", emb), 2, -1)
    out = net("final_layer.linear", layer_norm(h) * (1 + scale) + shift)
    out = out.reshape(b, n, n, 2, 2, 2 * c).transpose(0, 1, 3, 2, 4, 5)
    return out.reshape(b, side, side, 2 * c)[..., :c]


def published_sana(state, y, s, guidance, context, mask):
    """Arxiv 2410.10629, Sec. 3.3, with the norms of 2503.09641; a sum for each pair."""
    net, (b, rows, columns, c) = File(state), y.shape
    h = net("x_embedder.proj", y.reshape(b, -1, c))
    emb = net.time("t_embedder", s) + net.time("cfg_embedder", 0.1 * guidance)
    six = net("t_block.1", silu(emb)).reshape(b, 6, 1, W)
    words = net("y_embedder.y_proj.fc2", gelu(net("y_embedder.y_proj.fc1", context)))
    words = net.rms("attention_y_norm", words, 1e-5)
    for i in range(DEPTH):
        block = File(state, f"blocks.{i}.")
        m = np.moveaxis(six + block["scale_shift_table"][None, :, None], 1, 0)
        q = block("attn.qkv", layer_norm(h) * (1 + m[1]) + m[0])
        q, k, v = np.split(q, 3, -1)
        q, k = (block.rms(f"attn.{n}_norm", a, 1e-5) for n, a in (("q", q), ("k", k)))
        q, k, v = (heads(a, OPEN["head_channels"]) for a in (q, k, v))
        weights = np.maximum(q, 0) @ np.maximum(k, 0).swapaxes(2, 3)
        out = weights @ v / (weights.sum(-1, keepdims=True) + 1e-8)
        h = h + m[2] * block("attn.proj", joined(out))
        q = block.rms("cross_attn.q_norm", block("cross_attn.q_linear", h), 1e-6)
        k, v = np.split(block("cross_attn.kv_linear", words), 2, -1)
        k = block.rms("cross_attn.k_norm", k, 1e-6)
        h = h + block("cross_attn.proj", attend(q, k, v, mask[:, None, None]))
        z = layer_norm(h) * (1 + m[4]) + m[3]
        z = silu(block("mlp.inverted_conv.conv", z)).reshape(b, rows, columns, -1)
        z, taps = np.pad(z, [(0, 0), (1, 1), (1, 1), (0, 0)]), np.ndindex(3, 3)
        kernel = block["mlp.depth_conv.conv.weight"][:, 0]
        z = sum(z[:, i : i + rows, j : j + columns] * kernel[:, i, j] for i, j in taps)
        z = z.reshape(b, rows * columns, -1) + block["mlp.depth_conv.conv.bias"]
        value, gate = np.split(z, 2, -1)
        h = h + m[5] * block("mlp.point_conv.conv", value * silu(gate))
    shift, scale = net["final_layer.scale_shift_table"][:, None] + emb
    h = layer_norm(h) * (1 + scale[:, None]) + shift[:, None]
    return net("final_layer.linear", h).reshape(y.shape)


def dit_case():
    state = draw(layout(DIT, W, DEPTH, c=C, n=9, k=4))
    name, settings = transformers.infer_network(state)
    assert "num_heads" not in settings  # no published size is so narrow
    net = networks.build(name, (6, 6, C), 4, num_heads=HEADS, **settings)
    rng = np.random.default_rng(1)
    x, t = rng.normal(size=(3, 6, 6, C)), np.array([0.0, 412.5, 999.0])
    label = np.array([3, 0, NULL_LABEL])
    cond = Cond(t=jnp.float32(t), label=jnp.asarray(label))
    return state, net, x, cond, published_dit(state, x, t, np.array([3, 0, 4]))


def sana_case():
    state = draw(layout(SANA, W, DEPTH, c=C, text=TEXT.width))
    name, settings = transformers.infer_network(state)
    net = networks.build(name, (4, 6, C), 0, TEXT, **OPEN, **settings)
    rng = np.random.default_rng(2)
    y, context = rng.normal(size=(3, 4, 6, C)), rng.normal(size=(3, *(5, 6)))
    s, guidance = np.array([0.0, 0.3, 1.0]), np.array([1.0, 4.5, 5.0])
    mask = np.arange(5) < np.array([[5], [2], [1]])
    texts = {"context": jnp.float32(context), "context_mask": jnp.asarray(mask)}
    cond = Cond(t=jnp.float32(s), guidance=jnp.float32(guidance), **texts)
    expected = published_sana(state, y, s, guidance, context, mask)
    return state, net, y, cond, expected


CASES = {"dit": dit_case, "sana": sana_case, "wan": test_wan.wan_case}


@pytest.mark.parametrize("name", sorted(CASES))
def test_networks_compute_what_the_papers_say(name):
    """And the file comes back bit for bit, with what the training had besides."""
    state, net, x, cond, expected = CASES[name]()
    if name == "sana":
        state["y_embedder.y_embedding"] = np.ones((5, 6), np.float32)
        state["logvar_linear.bias"] = np.ones(1, np.float32)
    params, extras = transformers.import_weights(net.module, state)
    others = {
        "dit": ["final_layer.linear.bias", "final_layer.linear.weight"],
        "sana": ["logvar_linear.bias", "y_embedder.y_embedding"],
        "wan": [],
    }
    assert sorted(extras) == others[name]
    F = quick_jit(net.apply)(params, jnp.float32(x), cond)
    assert rms(F - expected) < 1e-5 * rms(expected)
    same(state, transformers.export_weights(net.module, params, extras))


SPELLINGS = {
    "sana": (RENAMED, DEPTH * (2 + 2), "transformer_blocks.1.attn1.to_v.weight"),
    "wan": (test_wan.RENAMED_WAN, 0, "blocks.1.attn1.to_v.weight"),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_both_spellings_are_one_network(name):
    state, net, *_ = CASES[name]()
    table, more, one = SPELLINGS[name]
    renamed = to_diffusers(state, table)
    assert len(renamed) == len(state) + more and one in renamed
    assert transformers.infer_network(renamed) == transformers.infer_network(state)
    params, _ = transformers.import_weights(net.module, state)
    other, extras = transformers.import_weights(net.module, renamed)
    jax.tree.map(np.testing.assert_array_equal, params, other)
    assert transformers.naming(renamed) == "diffusers" and not extras
    back = transformers.export_weights(net.module, other, naming="diffusers")
    same(renamed, back)


def test_changed_networks_have_no_place_in_such_files():
    state, net, *_ = dit_case()
    changed = net.module.clone(qk_norm="pixel", use_guidance=True)
    with pytest.raises(ValueError, match=r"cond/guidance/bias.*'qk_norm'"):
        transformers.export_weights(changed, {})
    del state["blocks.1.attn.qkv.weight"]
    with pytest.raises(ValueError, match=r"missing: blocks.1.attn.qkv.weight \(for bl"):
        transformers.import_weights(net.module, state)
