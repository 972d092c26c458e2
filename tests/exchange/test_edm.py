"""Published weights: exact against a second implementation, and back again."""

import functools
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from scm_jax import networks
from scm_jax.networks.external import edm
from scm_jax.types import Cond

GOLDEN = Path(__file__).parent.parent / "golden"
SHAPE = (8, 8, 2)


@functools.cache
def load(name):
    """Weights of a file, and input and output of a second implementation."""
    with np.load(GOLDEN / f"{name}_tiny.npz", allow_pickle=False) as stored:
        arrays = dict(stored)
    state = {n.removeprefix("weights/"): a for n, a in arrays.items() if "/" in n}
    cond = Cond(t=jnp.asarray(arrays["c_noise"]), label=jnp.asarray(arrays["label"]))
    x, y = (arrays[k].transpose(0, 2, 3, 1) for k in "xy")
    return types.SimpleNamespace(state=state, x=x, cond=cond, y=y)


def build(golden, **changes):
    name, settings = edm.infer_network(golden.state)
    settings |= {"head_channels": 4} if name == "unet" else {}
    return networks.build(name, SHAPE, 3, **{**settings, **changes})


@pytest.fixture(scope="module", params=["edm2", "ddpmpp"])
def golden(request):
    """What ``load`` gives, with the network and the weights that were read into it."""
    golden = load(request.param)
    golden.network = build(golden)
    golden.module = golden.network.module
    golden.params, golden.extras = edm.import_weights(golden.module, golden.state)
    return golden


def test_settings_are_read_off_the_file():
    both = {"width": 4, "num_blocks": 2, "attention_resolutions": (4,)}
    unet = {"modulation": "gain", "embedding": "fourier", "null_label": "zeros"}
    for file, name, settings in [
        ("edm2", "unet", {**both, **unet, "channel_mult": (1, 2)}),
        ("ddpmpp", "ddpmpp", {**both, "channel_mult": (2, 2), "modulation": "add"}),
    ]:
        assert edm.infer_network(load(file).state) == (name, settings)


def test_networks_compute_what_the_published_ones_do(golden):
    """Including the null class; the reference is another implementation, in float64."""
    options = {"xla_backend_optimization_level": 0}
    apply = jax.jit(golden.network.apply, compiler_options=options)
    y = apply(golden.params, golden.x, golden.cond)
    error = np.sqrt(np.mean((y - golden.y) ** 2) / np.mean(golden.y**2))
    assert error < 2e-5
    other = golden.cond.replace(label=(golden.cond.label + 1) % 3)
    assert np.abs(apply(golden.params, golden.x, other)[0] - y[0]).max() > 1e-2


def test_import_fills_the_network_and_export_inverts_it_bitwise(golden):
    leaves = jax.tree_util.tree_leaves_with_path(golden.params)
    flat = {tuple(k.key for k in path): leaf.shape for path, leaf in leaves}
    assert flat == edm.expected_shapes(golden.module)
    assert all(leaf.dtype == np.float32 for _, leaf in leaves)
    assert len(golden.extras) == 1
    back = edm.export_weights(golden.module, golden.params, golden.extras)
    assert set(back) == set(golden.state)
    for name, tensor in golden.state.items():
        assert back[name].shape == tensor.shape, name
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def test_a_wrong_shape_names_the_tensor_the_parameter_and_both_shapes(golden):
    ends = ("conv_res1.weight", "conv1.weight")
    name = next(n for n in golden.state if n.endswith(ends))
    wrong = {**golden.state, name: np.ones((5, 4, 3, 3), np.float32)}
    with pytest.raises(ValueError, match=r"\(5, 4, 3, 3\)") as error:
        edm.import_weights(golden.module, wrong)
    bare = name.partition(".")[2]
    assert bare in str(error.value) and "kernel it must have (" in str(error.value)


def test_missing_and_unknown_tensors_are_listed(golden):
    name = sorted(golden.state)[3]
    state = {**golden.state, "unet.surprise": np.ones(2)}
    del state[name]
    with pytest.raises(ValueError, match="1 tensors missing, 1 left over") as error:
        edm.import_weights(golden.module, state)
    assert name.partition(".")[2] in str(error.value)
    assert "surprise (2,)" in str(error.value)


def test_another_depth_than_the_network_s_is_an_error(golden):
    with pytest.raises(ValueError, match="left over"):
        edm.import_weights(build(golden, num_blocks=1).module, golden.state)


def test_other_files_are_refused_with_what_they_hold():
    with pytest.raises(ValueError, match=r"neither EDM2.*blocks\.0\.attn"):
        edm.infer_network({"blocks.0.attn.qkv.weight": np.ones((3, 1))})


def test_a_guidance_input_has_no_place_in_such_files(golden):
    network = build(golden, use_guidance=True)
    with pytest.raises(ValueError, match="emb_guidance"):
        edm.export_weights(network.module, {})


@pytest.mark.parametrize("modulation", ["double_norm", "double_norm_scale"])
@pytest.mark.parametrize("name, more", [("unet", {"head_channels": 8}), ("ddpmpp", {})])
def test_networks_with_the_paper_s_changes_go_through_files_too(name, more, modulation):
    settings = {"width": 8, "channel_mult": (1, 2), "num_blocks": 1, **more}
    settings |= {"attention_resolutions": (4,), "modulation": modulation}
    module = networks.build(name, SHAPE, 3, **settings).module
    params = traverse_util.unflatten_dict(
        {
            path: np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
            for path, shape in edm.expected_shapes(module).items()
        }
    )
    state = edm.export_weights(module, params)
    back, _ = edm.import_weights(module, state)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    inferred = edm.infer_network(state)
    # One vector per block: DDPM++'s file does not say what it is for.
    alike = name == "unet" or modulation == "double_norm"
    assert (inferred[1]["modulation"] == modulation) == alike
