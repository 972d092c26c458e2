"""The FID network against torch-fidelity's, with weights drawn from a seed.

``golden/inception.npz`` holds what that network gave (``golden/make_inception.py``);
neither PyTorch nor published weights are needed here.
"""

import math
import pathlib

import jax
import numpy as np
import pytest

from scm_jax.evaluation.features import inception, inception_weights
from scm_jax.files.state_dict import write_state_dict
from scm_jax.files.tensors import tensors_sha256
from tests.evaluation import inception_tensors as drawn

GOLDEN = pathlib.Path(__file__).parents[1] / "golden/inception.npz"
OUTPUTS = {"features": "pool3", "spatial": "spatial", "logits": "logits_unbiased"}
# The project's bound for a port: of the root mean square of what is compared.
AGREEMENT = 1e-4
FAST = {"xla_backend_optimization_level": 0}  # compiles faster


@pytest.fixture(scope="module")
def tensors():
    shapes = inception_weights.tensor_shapes()
    return drawn.tensors({name: shapes[name] for name in sorted(shapes)})


@pytest.fixture(scope="module")
def net(tensors):
    return inception_weights.from_state_dict(tensors)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def output(net):
    """Stages and outputs for a small image, in which borders are a large part."""

    def run(params, x):
        stages = inception.stages(params, x)
        return stages, inception.outputs(params, stages)

    return jax.jit(run, compiler_options=FAST)(net.params, drawn.image(139, 107))


def assert_agrees(x, expected):
    scale = expected[1]
    np.testing.assert_allclose(drawn.summary(x), expected, 0, AGREEMENT * scale)


# The network.


@pytest.mark.parametrize("stage", list(inception.STAGES))
def test_every_stage_agrees_with_torch_fidelity(output, golden, stage):
    assert_agrees(output[0][stage], golden[stage])


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_agree_with_torch_fidelity(output, golden, name):
    assert_agrees(output[1][name], golden[OUTPUTS[name]])


def test_pixels_to_features_agree_with_torch_fidelity(net, golden):
    """Resizing and quantization included; spatial features in ADM's order."""
    run = jax.jit(inception.features, compiler_options=FAST)
    got = run(net.params, drawn.pixels())
    shapes = {name: x.shape for name, x in got.items()}
    assert shapes == {"features": (1, 2048), "spatial": (1, 2023), "logits": (1, 1008)}
    for name, x in got.items():
        assert_agrees(x, golden[f"pixels_{name}"])


def abstract(*shape):
    return jax.ShapeDtypeStruct(shape, np.float32)


def test_shapes_of_an_image_of_299():
    params = {
        name: {"kernel": abstract(*shape), "bias": abstract(shape[-1])}
        for name, shape in inception.conv_shapes().items()
    } | {"fc": {"kernel": abstract(2048, 1008), "bias": abstract(1008)}}
    found = jax.eval_shape(inception.stages, params, abstract(2, 299, 299, 3))
    sides = {name: x.shape[1:] for name, x in found.items()}
    assert sides["MaxPool_1"] == (73, 73, 64)
    assert sides["MaxPool_2"] == (35, 35, 192)
    for name, channels in {"5b": 256, "5c": 288, "5d": 288}.items():
        assert sides[f"Mixed_{name}"] == (35, 35, channels)
    for name in "abcde":
        assert sides[f"Mixed_6{name}"] == (17, 17, 768)
    for name, channels in {"7a": 1280, "7b": 2048, "7c": 2048}.items():
        assert sides[f"Mixed_{name}"] == (8, 8, channels)


def test_number_of_parameters():
    """torchvision's 27,161,264 for 1000 classes, without its auxiliary head."""
    auxiliary = 768 * 128 + 128 * 768 * 25 + 2 * (128 + 768) + 769 * 1000
    expected = 27_161_264 - auxiliary + 8 * 2049
    shapes = inception_weights.tensor_shapes()
    trained = [s for name, s in shapes.items() if "running" not in name]
    assert sum(map(math.prod, trained)) == expected == 23_850_960
    assert len(inception.conv_shapes()) == 94


# Weights.


def test_a_file_of_pytorch_fid(tmp_path, tensors, net):
    path = tmp_path / "inception.pth"
    counters = {"Mixed_5b.branch1x1.bn.num_batches_tracked": np.array(7)}
    write_state_dict(path.with_suffix(".safetensors"), tensors | counters)
    path.with_suffix(".safetensors").rename(path)
    assert_same_net(inception_weights.load(path), net)


def test_the_published_names_stand_for_the_published_bytes(tmp_path):
    for prefix in ("pt_inception", "weights-inception"):
        path = tmp_path / f"{prefix}-2015-12-05-6726825d.pth"
        path.write_bytes(b"other")
        with pytest.raises(ValueError, match=r"sha256 [0-9a-f]{64}, .*6726825d0a.*get"):
            inception_weights.load(path)


def assert_same_net(got, expected):
    assert got.weights_sha256 == expected.weights_sha256
    same = jax.tree.map(np.array_equal, got.params, expected.params)
    assert jax.tree.all(same), same


def test_the_id_is_that_of_the_numbers(tensors, net):
    again = {name: tensors[name] for name in reversed(tensors)}
    assert tensors_sha256(again) == net.weights_sha256
    again["fc.bias"] = again["fc.bias"] + np.float32(1e-6)
    assert tensors_sha256(again) != net.weights_sha256


def test_what_does_not_fit_is_named():
    shapes = inception_weights.tensor_shapes()
    state = {n: np.broadcast_to(np.float32(1), s) for n, s in shapes.items()}
    state["extra"] = np.zeros(2)
    state["fc.weight"] = state["fc.weight"][:1000]
    state["Mixed_5b.branch1x1.bn.bias"] = np.full(64, np.nan)
    del state["Mixed_7c.branch_pool.conv.weight"]
    with pytest.raises(ValueError) as caught:
        inception_weights.from_state_dict(state, where="weights.pth")
    lines = str(caught.value).splitlines()
    assert lines == [
        "weights.pth does not hold this network's weights:",
        "  missing: Mixed_7c.branch_pool.conv.weight (192, 2048, 1, 1)",
        "  unknown: extra (2,)",
        "  wrong shape: fc.weight (1000, 2048), expected (1008, 2048)",
        "  not finite: Mixed_5b.branch1x1.bn.bias",
    ]


def test_only_the_first_of_many_are_named():
    with pytest.raises(ValueError, match=r"missing: 464 more"):
        inception_weights.from_state_dict({})


def test_other_files_are_told_what_to_take(tmp_path):
    other, damaged = tmp_path / "a.npz", tmp_path / "inception-2015-12-05.pkl"
    write_state_dict(other, {"layers.conv.weight": np.zeros(3)})
    damaged.write_bytes(b"\x80\x04cos\nsystem\n.")
    for path, found in ((other, "layers.conv.weight"), (damaged, "os.system")):
        with pytest.raises(ValueError, match=rf"(?s){found}.*pt_inception-2015"):
            inception_weights.load(path)
