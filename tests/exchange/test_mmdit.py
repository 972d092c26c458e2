"""SD3's weights: names, shapes, counts, and the network by the paper's formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import networks
from scm_jax.networks.external import edm, mmdit
from scm_jax.types import Cond, TextInfo
from tests.networks.reference import quick_jit, rms, silu

W, HEADS, DEPTH, CONTEXT, POOLED, GRID = 128, 2, 3, 5, 7, 5
TEXT = TextInfo(3, width=CONTEXT, pooled=POOLED)
SD3_TEXT = TextInfo(154, width=4096, pooled=2048)
# The files' own order of vectors; 1 in the name of a variant is for SD3.5-medium.
KINDS = {"sd3": (False, 0), "sd35_medium": (True, 2)}


def linear(rng, out, inputs, name):
    weight = rng.normal(size=(out, inputs)) / np.sqrt(inputs)
    return {f"{name}.weight": weight, f"{name}.bias": 0.3 * rng.normal(size=out)}


def random_file(kind, seed=0):
    """Random weights under the names of single files, written out by hand."""
    norm, dual = KINDS[kind]
    rng = np.random.default_rng(seed)
    state = {
        "x_embedder.proj.weight": rng.normal(size=(W, 4, 2, 2)) / 4,
        "x_embedder.proj.bias": rng.normal(size=W),
        "pos_embed": rng.normal(size=(1, GRID**2, W)),
        **linear(rng, W, 256, "t_embedder.mlp.0"),
        **linear(rng, W, W, "t_embedder.mlp.2"),
        **linear(rng, W, POOLED, "y_embedder.mlp.0"),
        **linear(rng, W, W, "y_embedder.mlp.2"),
        **linear(rng, W, CONTEXT, "context_embedder"),
        **linear(rng, 2 * W, W, "final_layer.adaLN_modulation.1"),
        **linear(rng, 16, W, "final_layer.linear"),
    }
    for i in range(DEPTH):
        for stream in ("x_block", "context_block"):
            p = f"joint_blocks.{i}.{stream}"
            second = stream == "x_block" and i < dual
            last = stream == "context_block" and i == DEPTH - 1
            vectors = 2 if last else 9 if second else 6
            state |= linear(rng, vectors * W, W, f"{p}.adaLN_modulation.1")
            for attn in ("attn", "attn2")[: 1 + second]:
                state |= linear(rng, 3 * W, W, f"{p}.{attn}.qkv")
                if norm:
                    for letter in "qk":
                        scale = 1 + 0.3 * rng.normal(size=W // HEADS)
                        state[f"{p}.{attn}.ln_{letter}.weight"] = scale
                if not last:
                    state |= linear(rng, W, W, f"{p}.{attn}.proj")
            if not last:
                state |= linear(rng, 4 * W, W, f"{p}.mlp.fc1")
                state |= linear(rng, W, 4 * W, f"{p}.mlp.fc2")
    return {name: a.astype(np.float32) for name, a in state.items()}


def apply_linear(state, name, a):
    return a @ np.float64(state[f"{name}.weight"]).T + state[f"{name}.bias"]


def norm(a):
    a = a - a.mean(-1, keepdims=True)
    return a / np.sqrt((a**2).mean(-1, keepdims=True) + 1e-6)


def heads(state, p, a):
    """Queries, keys and values ``(heads, n, 64)`` of tokens ``(n, c)``."""
    qkv = apply_linear(state, f"{p}.qkv", a).reshape(len(a), 3, HEADS, W // HEADS)
    q, k, v = qkv.transpose(1, 2, 0, 3)
    if f"{p}.ln_q.weight" in state:
        q, k = (
            x
            / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
            * state[f"{p}.ln_{n}.weight"]
            for n, x in (("q", q), ("k", k))
        )
    return q, k, v


def softmax_attention(q, k, v):
    logits = q @ k.transpose(0, 2, 1) / np.sqrt(W // HEADS)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    out = weights / weights.sum(-1, keepdims=True) @ v
    return out.transpose(1, 0, 2).reshape(-1, W)


def gelu(a):
    return 0.5 * a * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3)))


def reference(state, x, time, context, pooled):
    """One image ``(h, w, 4)`` through SD3 (arXiv 2403.03206, Fig. 2), in float64."""
    angles = time * np.exp(-np.log(10000) * np.arange(128) / 128)
    features = np.concatenate([np.cos(angles), np.sin(angles)])
    c = 0
    for name, a in (("t_embedder", features), ("y_embedder", pooled)):
        hidden = silu(apply_linear(state, f"{name}.mlp.0", a))
        c = c + apply_linear(state, f"{name}.mlp.2", hidden)
    c = silu(c)
    rows, columns = x.shape[0] // 2, x.shape[1] // 2
    kernel, h = np.float64(state["x_embedder.proj.weight"]), []
    table = state["pos_embed"][0].reshape(GRID, GRID, W)
    top, left = (GRID - rows) // 2, (GRID - columns) // 2
    for i in range(rows):
        for j in range(columns):
            patch = x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            token = np.einsum("pqc,ocpq->o", patch, kernel)
            h.append(token + state["x_embedder.proj.bias"] + table[top + i, left + j])
    h, ctx = np.array(h), apply_linear(state, "context_embedder", context)
    for i in range(DEPTH):
        h, ctx = reference_block(state, f"joint_blocks.{i}", h, ctx, c)
    shift, scale = np.split(apply_linear(state, "final_layer.adaLN_modulation.1", c), 2)
    h = apply_linear(state, "final_layer.linear", norm(h) * (1 + scale) + shift)
    h = h.reshape(rows, columns, 2, 2, 4)
    return h.transpose(0, 2, 1, 3, 4).reshape(x.shape)


def reference_block(state, p, h, ctx, c):
    xp, cp = f"{p}.x_block", f"{p}.context_block"
    mx = apply_linear(state, f"{xp}.adaLN_modulation.1", c).reshape(-1, W)
    mc = apply_linear(state, f"{cp}.adaLN_modulation.1", c).reshape(-1, W)
    of_x = heads(state, f"{xp}.attn", norm(h) * (1 + mx[1]) + mx[0])
    of_c = heads(state, f"{cp}.attn", norm(ctx) * (1 + mc[1]) + mc[0])
    joint = (np.concatenate(pair, axis=1) for pair in zip(of_x, of_c, strict=True))
    out = softmax_attention(*joint)
    added = mx[2] * apply_linear(state, f"{xp}.attn.proj", out[: len(h)])
    if len(mx) == 9:
        alone = heads(state, f"{xp}.attn2", norm(h) * (1 + mx[7]) + mx[6])
        alone = softmax_attention(*alone)
        added = added + mx[8] * apply_linear(state, f"{xp}.attn2.proj", alone)
    h = reference_mlp(state, xp, h + added, mx)
    if len(mc) == 6:
        ctx = ctx + mc[2] * apply_linear(state, f"{cp}.attn.proj", out[len(h) :])
        ctx = reference_mlp(state, cp, ctx, mc)
    return h, ctx


def reference_mlp(state, p, h, m):
    y = gelu(apply_linear(state, f"{p}.mlp.fc1", norm(h) * (1 + m[4]) + m[3]))
    return h + m[5] * apply_linear(state, f"{p}.mlp.fc2", y)


def build(state, shape=(6, 8, 4), text=TEXT, **changes):
    name, settings = mmdit.infer_network(state)
    return networks.build(name, shape, 0, text, **settings, **changes)


@pytest.mark.parametrize("kind", KINDS)
def test_network_of_a_file_is_sd3(kind):
    """Both streams, vectors, norms, second attention, crop; a mask is absence."""
    state = random_file(kind)
    net = build(state)
    rng = np.random.default_rng(1)
    x, context = rng.normal(size=(2, 6, 8, 4)), rng.normal(size=(2, 3, CONTEXT))
    pooled, time = rng.normal(size=(2, POOLED)), np.array([12.5, 900.0])
    mask = np.array([[True, True, True], [True, True, False]])
    cond = Cond(jnp.asarray(time, jnp.float32), pooled=jnp.asarray(pooled, jnp.float32))
    cond = cond.replace(
        context=jnp.asarray(context, jnp.float32), context_mask=jnp.asarray(mask)
    )
    params = mmdit.import_weights(net.module, state)
    F = quick_jit(net.apply)(params, jnp.asarray(x, jnp.float32), cond)
    for i, seen in enumerate(mask):
        exact = reference(state, x[i], time[i], context[i][seen], pooled[i])
        assert rms(F[i] - exact) < 2e-5 * rms(exact)


def renamed(state):
    """The same weights under diffusers' names, written out by hand."""
    ends = {
        "x_embedder.proj": "pos_embed.proj",
        "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
        "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
        "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
        "final_layer.linear": "proj_out",
        "final_layer.adaLN_modulation.1": "norm_out.linear",
    }
    of_stream = {
        "x_block": {
            "adaLN_modulation.1": "norm1.linear",
            "attn.proj": "attn.to_out.0",
            "attn2.proj": "attn2.to_out.0",
            "mlp.fc1": "ff.net.0.proj",
            "mlp.fc2": "ff.net.2",
            **{f"{a}.ln_{n}": f"{a}.norm_{n}" for a in ("attn", "attn2") for n in "qk"},
        },
        "context_block": {
            "adaLN_modulation.1": "norm1_context.linear",
            "attn.proj": "attn.to_add_out",
            "mlp.fc1": "ff_context.net.0.proj",
            "mlp.fc2": "ff_context.net.2",
            **{f"attn.ln_{n}": f"attn.norm_added_{n}" for n in "qk"},
        },
    }
    found = {}
    for name, a in state.items():
        layer, _, leaf = name.rpartition(".")
        if not layer.startswith("joint"):
            if "final_layer.adaLN" in layer:
                a = np.concatenate(np.split(a, 2)[::-1])
            found[f"{ends.get(layer, layer)}.{leaf}".replace(".pos_", "pos_")] = a
            continue
        _, i, stream, rest = layer.split(".", 3)
        p = f"transformer_blocks.{i}."
        if rest.endswith("qkv"):
            form = "attn.add_{}_proj" if stream[0] == "c" else f"{rest[:-4]}.to_{{}}"
            for letter, part in zip("qkv", np.split(a, 3), strict=True):
                found[f"{p}{form.format(letter)}.{leaf}"] = part
            continue
        if stream == "context_block" and "adaLN" in rest and len(a) == 2 * W:
            a = np.concatenate(np.split(a, 2)[::-1])
        found[f"{p}{of_stream[stream][rest]}.{leaf}"] = a
    found["pos_embed.pos_embed"] = found.pop("pos_embed")
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_both_namings_are_one_network_and_go_back_bit_for_bit(kind):
    single = random_file(kind, seed=2)
    half = {mmdit.PREFIX + n: a.astype(jnp.bfloat16) for n, a in single.items()}
    half |= {mmdit.PREFIX + "pos_embed": half[f"{mmdit.PREFIX}pos_embed"].astype("f4")}
    other = {"first_stage_model.conv.weight": np.ones(3, np.float16)}
    module = build(single).module
    exact = mmdit.import_weights(module, single)
    assert exact["blocks" if kind == "sd3" else "dual_blocks"]
    for state, more in ((single, {}), (renamed(single), {}), (half, other)):
        assert mmdit.recognizes(state) and build(state).module == module
        params = mmdit.import_weights(module, {**state, **more})
        if not more:
            jax.tree.map(np.testing.assert_array_equal, params, exact)
        back = mmdit.export_weights(module, params, mmdit.file_layout(state))
        assert set(back) == set(state)
        for name, a in state.items():
            assert back[name].dtype == a.dtype, name
            np.testing.assert_array_equal(back[name], a, err_msg=name)


# Published sizes: parameters without and with the position table, tensors of a file.
COUNTS = {
    "sd3_medium": (2_028_328_000, 2_084_951_104),
    "sd35_medium": (2_243_171_520, 2_469_663_936),
    "sd35_large": (8_056_627_520, 8_146_280_768),
    15: (496_066_624, None),
    18: (856_159_552, None),
    21: (1_358_950_720, None),
    30: (3_962_392_384, None),
}


@pytest.mark.parametrize("size", COUNTS)
def test_parameters_are_counted_to_the_last(size):
    settings = networks.PRESETS["mmdit"].get(size)
    if settings is None:
        settings = {"width": 64 * size, "depth": size, "num_heads": size}
        settings["qk_norm"] = "none"
    net = networks.build("mmdit", (128, 128, 16), 0, SD3_TEXT, **settings)
    shapes = edm.expected_shapes(net.module)
    without, count = COUNTS[size]
    total = sum(np.prod(shape) for shape in shapes.values())
    assert total - np.prod(shapes["position",]) == without
    if count is None:
        return
    assert total == count
    for naming in mmdit.NAMINGS:
        table = mmdit.entries(net.module, naming)
        sizes = [np.prod(entry.file_shape(shapes)) for entry in table]
        assert sum(sizes) == count and len({e.name for e in table}) == len(table)


def test_names_and_shapes_of_sd3_medium():
    """As modalities' table of the published file has them."""
    settings = networks.PRESETS["mmdit"]["sd3_medium"]
    module = networks.build("mmdit", (128, 128, 16), 0, SD3_TEXT, **settings).module
    shapes = edm.expected_shapes(module)
    found = {e.name: e.file_shape(shapes) for e in mmdit.entries(module)}
    block = "joint_blocks.23."
    for name, shape in {
        "x_embedder.proj.weight": (1536, 16, 2, 2),
        "pos_embed": (1, 36864, 1536),
        "t_embedder.mlp.0.weight": (1536, 256),
        "y_embedder.mlp.0.weight": (1536, 2048),
        "context_embedder.weight": (1536, 4096),
        f"{block}x_block.adaLN_modulation.1.weight": (9216, 1536),
        f"{block}x_block.attn.qkv.weight": (4608, 1536),
        f"{block}x_block.mlp.fc1.weight": (6144, 1536),
        f"{block}context_block.adaLN_modulation.1.bias": (3072,),
        f"{block}context_block.attn.qkv.bias": (4608,),
        "final_layer.adaLN_modulation.1.weight": (3072, 1536),
        "final_layer.linear.weight": (64, 1536),
    }.items():
        assert found[name] == shape, name
    assert f"{block}context_block.attn.proj.weight" not in found
    assert f"{block}context_block.mlp.fc1.weight" not in found
    assert len(found) == 17 + 24 * 20 - 6


def test_what_such_files_cannot_hold_is_an_error():
    state = random_file("sd3")
    net = build(state, use_guidance=True)
    with pytest.raises(ValueError, match="no place for .*cond/guidance/kernel"):
        mmdit.export_weights(net.module, {})
    plain = build({**state}).module.clone(modulation="double_norm")
    with pytest.raises(ValueError, match="modulation 'double_norm'"):
        mmdit.export_weights(plain, {})
    wrong = {**state, "context_embedder.weight": np.ones((W, 9), np.float32)}
    with pytest.raises(
        ValueError, match=r"context_embedder.weight has shape \(128, 9\)"
    ):
        mmdit.import_weights(plain, wrong)
    del wrong["pos_embed"]
    with pytest.raises(ValueError, match="1 tensors missing"):
        mmdit.import_weights(plain, wrong)
