"""SD3's weights: names, shapes, counts, and the network by the paper's formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import networks
from scm_jax.networks.external import edm, mmdit
from scm_jax.types import Cond, TextInfo
from tests.exchange.published_layers import (
    File,
    attend,
    gelu,
    heads,
    joined,
    layer_norm,
)
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


def reference(state, x, time, context, pooled):
    """One image ``(1, h, w, 4)`` through SD3 (arXiv 2403.03206, Fig. 2), in float64."""
    net, rows, columns = File(state), x.shape[1] // 2, x.shape[2] // 2
    c = net.time("t_embedder", time)
    c = c + net("y_embedder.mlp.2", silu(net("y_embedder.mlp.0", pooled)))
    c = silu(c)[:, None]
    patches = x.reshape(1, rows, 2, columns, 2, 4).transpose(0, 1, 3, 5, 2, 4)
    top, left = (GRID - rows) // 2, (GRID - columns) // 2
    table = net["pos_embed"].reshape(GRID, GRID, W)
    table = table[top : top + rows, left : left + columns].reshape(-1, W)
    h = net("x_embedder.proj", patches.reshape(1, rows * columns, -1)) + table
    ctx = net("context_embedder", context)
    for i in range(DEPTH):
        of_x, of_c = (
            File(state, f"joint_blocks.{i}.{stream}_block.")
            for stream in ("x", "context")
        )
        h, ctx = reference_block(of_x, of_c, h, ctx, c)
    shift, scale = vectors(net, "final_layer.adaLN_modulation.1", c)
    h = net("final_layer.linear", layer_norm(h) * (1 + scale) + shift)
    h = h.reshape(1, rows, columns, 2, 2, 4)
    return h.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape)


def reference_block(of_x, of_c, h, ctx, c):
    mx, mc = (vectors(stream, "adaLN_modulation.1", c) for stream in (of_x, of_c))
    from_x = qkv(of_x, "attn", layer_norm(h) * (1 + mx[1]) + mx[0])
    from_c = qkv(of_c, "attn", layer_norm(ctx) * (1 + mc[1]) + mc[0])
    joint = (np.concatenate(pair, axis=1) for pair in zip(from_x, from_c, strict=True))
    out = attend(*joint, d=W // HEADS)
    out_x, out_c = np.split(out, [h.shape[1]], axis=1)
    added = mx[2] * of_x("attn.proj", out_x)
    if len(mx) == 9:
        alone = qkv(of_x, "attn2", layer_norm(h) * (1 + mx[7]) + mx[6])
        added = added + mx[8] * of_x("attn2.proj", attend(*alone, d=W // HEADS))
    h = reference_mlp(of_x, h + added, mx)
    if len(mc) == 6:
        ctx = ctx + mc[2] * of_c("attn.proj", out_c)
        ctx = reference_mlp(of_c, ctx, mc)
    return h, ctx


def reference_mlp(stream, h, m):
    y = gelu(stream("mlp.fc1", layer_norm(h) * (1 + m[4]) + m[3]))
    return h + m[5] * stream("mlp.fc2", y)


def vectors(file, name, c):
    found = file(name, c)
    return np.split(found, found.shape[-1] // W, -1)


def qkv(file, name, a):
    """Queries, keys and values of tokens ``(1, n, c)``."""
    q, k, v = np.split(file(f"{name}.qkv", a), 3, -1)
    if f"{file.prefix}{name}.ln_q.weight" in file.state:
        q, k = (
            joined(file.rms(f"{name}.ln_{n}", heads(x, W // HEADS), 1e-6))
            for n, x in (("q", q), ("k", k))
        )
    return q, k, v


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
        one = slice(i, i + 1)
        said = context[one][:, seen]
        exact = reference(state, x[one], time[one], said, pooled[one])
        assert rms(F[one] - exact) < 2e-5 * rms(exact)


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
