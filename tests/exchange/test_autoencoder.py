"""The published autoencoder's files: exact against diffusers, and back again."""

import functools
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util

from scm_jax.files import state_dict
from scm_jax.networks import autoencoder
from scm_jax.networks.external import autoencoder as exchange
from tests.golden import autoencoder_weights as tiny
from tests.networks.reference import quick_jit

GOLDEN = Path(__file__).parent.parent / "golden" / "autoencoder_tiny.npz"
SETTINGS = {
    "block_channels": tuple(tiny.CONFIG["block_out_channels"]),
    "num_groups": tiny.CONFIG["norm_num_groups"],
}
ATTENTION = "encoder.mid_block.attentions.0"
HALVES = {
    "encode": ("image", ("mean", "std")),
    "decode": ("latent", ("pixels",)),
}


@functools.cache
def _drawn(spelling, **settings):
    module = autoencoder.AutoencoderKL(**{**SETTINGS, **settings})
    new = exchange.entries(module)
    shapes = autoencoder.abstract_params(module)
    flat = traverse_util.flatten_dict(shapes)
    empty = {e.name: e.write(np.empty(flat[e.path].shape, np.bool_)) for e in new}
    tensors = tiny.draw({name: a.shape for name, a in empty.items()})
    names = [e.name for e in exchange.entries(module, spelling)]
    return module, {name: tensors[e.name] for name, e in zip(names, new, strict=True)}


def drawn(spelling="new", **settings):
    """The tiny module and the tensors of a file for it."""
    module, state = _drawn(spelling, **settings)
    return module, dict(state)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN, allow_pickle=False) as stored:
        return dict(stored)


def write(folder, state, config=tiny.CONFIG):
    path = folder / "diffusion_pytorch_model.safetensors"
    state_dict.write_state_dict(path, state)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("half", ["encode", "decode"])
def test_every_stage_is_that_of_diffusers(half, golden):
    module, state = drawn()
    params = exchange.import_autoencoder(module, state)
    source, results = HALVES[half]

    def run(params, x):
        return module.apply(
            {"params": params}, x, method=half, capture_intermediates=True
        )

    found, kept = quick_jit(run)(params, getattr(tiny, source)())
    flat = traverse_util.flatten_dict(kept["intermediates"], sep="/")
    stages = {n.removesuffix("/__call__"): a[0] for n, a in flat.items()}
    stages |= dict(zip(results, jax.tree.leaves(found), strict=True))
    compared = sorted(set(stages) & set(golden))
    assert len(compared) == {"encode": 9, "decode": 8}[half]
    for name in compared:
        scale = golden[name].std()
        np.testing.assert_allclose(
            stages[name], golden[name], rtol=0, atol=1e-4 * scale, err_msg=name
        )


@pytest.mark.parametrize("spelling", ["old", "new"])
def test_both_spellings_of_the_attention_are_read_and_written(spelling):
    module, state = drawn(spelling)
    assert (f"{ATTENTION}.query.weight" in state) == (spelling == "old")
    assert (f"{ATTENTION}.to_out.0.bias" in state) == (spelling == "new")
    params = exchange.import_autoencoder(module, state)
    other = exchange.import_autoencoder(module, drawn("new")[1])
    jax.tree.map(np.testing.assert_array_equal, params, other)
    back = exchange.export_autoencoder(module, params, spelling)
    assert back.keys() == state.keys()
    jax.tree.map(np.testing.assert_array_equal, back, state)


def test_names_are_those_of_the_published_file():
    """Names of the attention, whose layers no other test knows by all their names."""
    names = {e.name for e in exchange.entries(drawn()[0], "old")}
    layers = ("group_norm", "query", "key", "value", "proj_attn")
    attention = [
        f"{half}.mid_block.attentions.0.{layer}.{leaf}"
        for half in ("encoder", "decoder")
        for layer in layers
        for leaf in ("weight", "bias")
    ]
    assert {name for name in names if "attentions" in name} == set(attention)


def test_settings_are_read_off_the_file_and_its_config(tmp_path):
    module, state = drawn(block_channels=(8, 4), num_blocks=1, latent_channels=2)
    config = {"block_out_channels": [8, 4], "layers_per_block": 1, "latent_channels": 2}
    path = write(tmp_path, state, {**tiny.CONFIG, **config})
    found, _ = exchange.load_autoencoder(path, dtype="bfloat16")
    assert found == module.clone(dtype="bfloat16")


def test_without_a_config_norms_have_the_published_number_of_groups():
    module, state = drawn(block_channels=(32, 64), num_groups=32)
    assert exchange.infer_autoencoder(state) == module
    with pytest.raises(ValueError, match=r"32 groups .*\(8, 12, 16\).*norm_num_groups"):
        exchange.infer_autoencoder(drawn()[1])


@pytest.mark.parametrize(
    ["change", "message"],
    [
        ({"latent_channels": 16}, "latent_channels = 16, the tensors 4"),
        ({"block_out_channels": [8, 8, 16]}, r"= \(8, 8, 16\), the tensors \(8, 12"),
        ({"act_fn": "gelu"}, "act_fn = 'gelu'; 'silu' only"),
    ],
)
def test_a_config_of_another_network_is_refused(change, message, tmp_path):
    path = write(tmp_path, drawn()[1], {**tiny.CONFIG, **change})
    with pytest.raises(ValueError, match=message) as caught:
        exchange.load_autoencoder(path)
    assert str(path) in str(caught.value)


def test_a_missing_and_an_unknown_tensor_are_named(tmp_path):
    _, state = drawn("old")
    state["loss.weight"] = state.pop(f"{ATTENTION}.key.bias")
    with pytest.raises(ValueError) as caught:
        exchange.load_autoencoder(write(tmp_path, state))
    first, *lines = str(caught.value).splitlines()
    assert "1 tensors missing, 1 left over" in first
    assert lines == [
        f"  missing: {ATTENTION}.key.bias (for encoder/middle/attn/k/bias)",
        "  left over: loss.weight (16,)",
    ]


def test_a_tensor_of_another_shape_is_named(tmp_path):
    _, state = drawn()
    name = "decoder.up_blocks.1.resnets.0.conv_shortcut.weight"
    state[name] = state[name][..., 0, 0]
    place = "decoder/level_1/block_0/shortcut/kernel"
    message = f"{name} has shape (12, 16); for {place} it must have (12, 16, 1, 1)"
    with pytest.raises(ValueError, match=re.escape(message)):
        exchange.load_autoencoder(write(tmp_path, state))
    path = write(tmp_path, {"conv.weight": np.zeros((2, 2), np.float32)}, None)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no weights of an AutoencoderKL: .*'conv.we"):
        exchange.load_autoencoder(path)


def test_half_precision_files_become_float32():
    module, state = drawn()
    half = {name: tensor.astype(np.float16) for name, tensor in state.items()}
    params = exchange.import_autoencoder(module, half)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
