"""Published weights: exact against a second implementation, and back again."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import networks
from scm_jax.networks.external import edm
from scm_jax.types import Cond

GOLDEN = Path(__file__).parent.parent / "golden"
SHAPE = (8, 8, 2)


@dataclasses.dataclass
class Golden:
    """Weights of a file, and input and output of a second implementation."""

    state: dict
    x: np.ndarray
    cond: Cond
    y: np.ndarray


def load(name):
    with np.load(GOLDEN / f"{name}_tiny.npz", allow_pickle=False) as stored:
        arrays = dict(stored)
    state = {n.removeprefix("weights/"): a for n, a in arrays.items() if "/" in n}
    cond = Cond(t=jnp.asarray(arrays["c_noise"]), label=jnp.asarray(arrays["label"]))
    return Golden(
        state,
        arrays["x"].transpose(0, 2, 3, 1),
        cond,
        arrays["y"].transpose(0, 2, 3, 1),
    )


def build(golden, **changes):
    name, settings = edm.infer_network(golden.state)
    settings |= {"head_channels": 4} if name == "unet" else {}
    return networks.build(name, SHAPE, 3, **{**settings, **changes})


@pytest.fixture(scope="module", params=["edm2", "ddpmpp"])
def golden(request):
    return load(request.param)


def test_settings_are_read_off_the_file():
    name, settings = edm.infer_network(load("edm2").state)
    assert name == "unet"
    assert settings == {
        "width": 4,
        "channel_mult": (1, 2),
        "num_blocks": 2,
        "attention_resolutions": (4,),
        "modulation": "gain",
        "embedding": "fourier",
        "null_label": "zeros",
    }
    name, settings = edm.infer_network(load("ddpmpp").state)
    assert name == "ddpmpp"
    assert settings == {
        "width": 4,
        "channel_mult": (2, 2),
        "num_blocks": 2,
        "attention_resolutions": (4,),
        "modulation": "add",
    }


def test_networks_compute_what_the_published_ones_do(golden):
    """Including the null class; the reference is another implementation, in float64."""
    network = build(golden)
    params, _ = edm.import_weights(network.module, golden.state)
    y = jax.jit(network.apply)(params, golden.x, golden.cond)
    error = np.sqrt(np.mean((y - golden.y) ** 2) / np.mean(golden.y**2))
    assert error < 2e-5
    # The label matters, and so does the time.
    other = network.apply(params, golden.x, golden.cond.replace(label=None))
    assert np.abs(other[0] - y[0]).max() > 1e-2


def test_import_then_export_is_the_identity_bitwise(golden):
    module = build(golden).module
    params, extras = edm.import_weights(module, golden.state)
    back = edm.export_weights(module, params, extras)
    assert set(back) == set(golden.state)
    for name, tensor in golden.state.items():
        assert back[name].shape == tensor.shape, name
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def test_every_parameter_of_the_network_is_filled(golden):
    module = build(golden).module
    params, extras = edm.import_weights(module, golden.state)
    flat = {
        tuple(k.key for k in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    assert flat == edm.expected_shapes(module)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    assert len(extras) == 1


def test_a_wrong_shape_names_the_tensor_the_parameter_and_both_shapes(golden):
    module = build(golden).module
    name = next(
        n for n in golden.state if n.endswith(("conv_res1.weight", "conv1.weight"))
    )
    wrong = {**golden.state, name: np.ones((5, 4, 3, 3), np.float32)}
    with pytest.raises(ValueError, match=r"\(5, 4, 3, 3\)") as error:
        edm.import_weights(module, wrong)
    bare = name.partition(".")[2]
    assert bare in str(error.value) and "kernel it must have (" in str(error.value)


def test_missing_and_unknown_tensors_are_listed(golden):
    module = build(golden).module
    names = sorted(golden.state)
    fewer = {n: a for n, a in golden.state.items() if n != names[3]}
    with pytest.raises(ValueError, match="1 tensors missing, 1 left over") as error:
        edm.import_weights(module, {**fewer, "unet.surprise": np.ones(2)})
    assert names[3].partition(".")[2] in str(error.value)
    assert "surprise (2,)" in str(error.value)


def test_another_depth_than_the_network_s_is_an_error(golden):
    module = build(golden, num_blocks=1).module
    with pytest.raises(ValueError, match="left over"):
        edm.import_weights(module, golden.state)


def test_other_files_are_refused_with_what_they_hold():
    with pytest.raises(ValueError, match=r"neither EDM2.*blocks\.0\.attn"):
        edm.infer_network({"blocks.0.attn.qkv.weight": np.ones((3, 1))})


def test_a_guidance_input_has_no_place_in_such_files(golden):
    network = build(golden, use_guidance=True)
    with pytest.raises(ValueError, match="emb_guidance"):
        edm.export_weights(network.module, {})


@pytest.mark.parametrize("modulation", ["double_norm", "double_norm_scale"])
def test_networks_with_the_paper_s_changes_go_through_files_too(modulation):
    for name, settings in {
        "unet": {"width": 8, "head_channels": 8, "attention_resolutions": (4,)},
        "ddpmpp": {"width": 8, "attention_resolutions": (4,)},
    }.items():
        network = networks.build(
            name,
            SHAPE,
            3,
            modulation=modulation,
            channel_mult=(1, 2),
            num_blocks=1,
            **settings,
        )
        shapes = jax.eval_shape(network.init, jax.random.key(0))
        params = jax.tree.map(
            lambda a: np.arange(a.size, dtype=np.float32).reshape(a.shape), shapes
        )
        state = edm.export_weights(network.module, params)
        back, _ = edm.import_weights(network.module, state)
        jax.tree.map(np.testing.assert_array_equal, back, params)
        inferred = edm.infer_network(state)
        # One vector per block: DDPM++'s file does not say what it is for.
        alike = name == "unet" or modulation == "double_norm"
        assert (inferred[1]["modulation"] == modulation) == alike
