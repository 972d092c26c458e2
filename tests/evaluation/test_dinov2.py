"""DINOv2: every stage against a second implementation, files, and image resizing."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax.evaluation.features import dinov2, dinov2_weights
from scm_jax.files.state_dict import write_state_dict
from scm_jax.files.tensors import tensors_sha256

GOLDEN = Path(__file__).parent.parent / "golden" / "dinov2_tiny.npz"
# Error of a sum of some hundred products in float32; asked for are 1e-4.
TOLERANCE = 1e-5


@functools.cache
def golden():
    """Weights by name, and images and stages of the second implementation."""
    with np.load(GOLDEN, allow_pickle=False) as stored:
        arrays = dict(stored)
    weights = {n.removeprefix("weights/"): a for n, a in arrays.items() if "/" in n}
    return weights, arrays


@functools.cache
def params():
    tensors = dinov2_weights.published(golden()[0], "golden")
    return dinov2_weights.convert(tensors, image_size=12, head_width=8)


def assert_close(found, expected):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * scale)


def test_patches_and_positions():
    run = jax.jit(lambda p, images: dinov2.embed(p, dinov2.normalize(images)))
    assert_close(run(params(), golden()[1]["images"]), golden()[1]["tokens"])


def test_each_block():
    """Each from the reference's input, so that one error does not hide another."""
    _, arrays = golden()
    inputs = np.concatenate([arrays["tokens"][None], arrays["blocks"][:-1]])
    block = jax.jit(dinov2.block)
    for i, (h, expected) in enumerate(zip(inputs, arrays["blocks"], strict=True)):
        weights = jax.tree.map(lambda w, i=i: w[i], params()["blocks"])
        # What a block adds, which its input must not drown.
        assert_close(block(weights, h) - h, expected - h)


def test_last_norm():
    _, arrays = golden()
    found = jax.jit(dinov2.layer_norm)(params()["norm"], arrays["blocks"][-1])
    assert_close(found, arrays["normalized"])


def test_features_are_the_class_token_after_all_blocks():
    _, arrays = golden()
    found = jax.jit(dinov2.apply)(params(), arrays["images"])
    assert_close(found["features"], arrays["features"])


def test_positions_are_interpolated_as_by_torch():
    positions = np.random.default_rng(2).standard_normal((37 * 37, 2))
    found = dinov2_weights.interpolate_positions(positions, 16)
    np.testing.assert_allclose(found, golden()[1]["positions_16"], rtol=0, atol=1e-12)


def test_positions_of_the_trained_size_stay():
    positions = np.random.default_rng(0).standard_normal((25, 3))
    found = dinov2_weights.interpolate_positions(positions, 5)
    np.testing.assert_array_equal(found, positions)


# The published sizes.


def zeros(sizes):
    shapes = dinov2_weights.tensor_shapes(sizes)
    zero = np.zeros((), np.float32)
    return {name: np.broadcast_to(zero, shape) for name, shape in shapes.items()}


def test_shapes_of_the_published_network():
    """16 heads of 64 channels, 256 patches, 1024 features; nothing is computed."""
    tensors = zeros(dinov2_weights.Sizes(width=1024, depth=1, hidden=4096))
    one_block = dinov2_weights.convert(tensors, dinov2.IMAGE_SIZE)
    assert one_block["blocks"]["qkv"]["kernel"].shape == (1, 1024, 3, 16, 64)
    assert one_block["position"].shape == (256, 1024)
    assert dinov2.image_size(one_block) == 224
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.uint8)
    features = jax.eval_shape(dinov2.apply, one_block, images)["features"]
    assert (features.shape, features.dtype) == ((2, 1024), jnp.float32)
    # With the token for masked patches, which is not read.
    whole = zeros(dinov2_weights.PUBLISHED["dinov2_vitl14"])
    assert sum(x.size for x in whole.values()) + 1024 == 304_368_640


# Files.


def hugging_face(weights):
    """The same weights by the names of facebook/dinov2-large."""
    outer = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    inner = {
        "attn.proj": "attention.output.dense",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
    }
    renamed = {"embeddings.mask_token": np.zeros((1, 24), np.float32)}
    for name, array in weights.items():
        if name in outer:
            renamed[outer[name]] = array
            continue
        name = name.replace("blocks.", "encoder.layer.")
        for ours, theirs in inner.items():
            name = name.replace(ours, theirs)
        if "attn.qkv" not in name:
            renamed[name] = array
            continue
        for which, part in zip(
            ("query", "key", "value"), np.split(array, 3), strict=True
        ):
            renamed[name.replace("attn.qkv", f"attention.attention.{which}")] = part
    return renamed


def test_names_of_hugging_face_give_the_same_weights():
    weights, _ = golden()
    found = dinov2_weights.published(hugging_face(weights), "file")
    assert found.keys() == weights.keys()
    assert tensors_sha256(found) == tensors_sha256(weights)


def drop(name):
    return lambda weights: weights.pop(name)


def put(name, shape):
    return lambda weights: weights.update({name: np.zeros(shape, np.float32)})


@pytest.mark.parametrize(
    ["change", "message"],
    [
        [drop("blocks.1.ls1.gamma"), r"missing: blocks.1.ls1.gamma \(24,\)"],
        [put("register_tokens", (1, 4, 24)), r"unknown: register_tokens \(1, 4, 24\)"],
        [
            put("blocks.2.mlp.fc1.weight", (40, 24)),
            r"blocks.2.mlp.fc1.weight \(40, 24\), expected \(48, 24\)",
        ],
        [drop("cls_token"), "DINOv2: expected cls_token.* it holds 47 tensors"],
        [put("pos_embed", ()), "DINOv2: expected cls_token.* it holds 48 tensors"],
    ],
)
def test_what_is_wrong_in_a_file_is_named(change, message):
    weights = dict(golden()[0])
    change(weights)
    with pytest.raises(ValueError, match=r"^file\.pth does not hold ") as error:
        dinov2_weights.published(weights, "file.pth")
    assert error.match(message)


def test_missing_parts_of_hugging_face_are_named():
    weights = hugging_face(golden()[0])
    del weights["encoder.layer.1.attention.attention.key.weight"]
    with pytest.raises(ValueError, match="missing: blocks.1.attn.qkv.weight"):
        dinov2_weights.published(weights, "file")


def test_a_published_network_that_lacks_blocks_is_refused():
    state = zeros(dinov2_weights.Sizes(width=384, depth=11, hidden=1536))
    with pytest.raises(ValueError, match="missing: blocks.11.norm1.weight"):
        dinov2_weights.published(state, "file")


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="multiple of the patch 4.*head_width = 7"):
        dinov2_weights.convert(golden()[0], image_size=12, head_width=7)
    with pytest.raises(ValueError, match="image_size = 13 must be"):
        dinov2_weights.convert(golden()[0], image_size=13, head_width=8)


def test_extractor_reads_a_file_and_batches(tmp_path, monkeypatch):
    """Found in the folder of weights; the protocol says what was used."""
    rng = np.random.default_rng(3)
    # One head of 64 channels and patches of 56, for 224 pixels.
    sizes = dinov2_weights.Sizes(64, depth=1, hidden=32, patch=56, side=3)
    weights = {
        name: 0.1 * rng.standard_normal(shape).astype(np.float32)
        for name, shape in dinov2_weights.tensor_shapes(sizes).items()
    }
    folder = tmp_path / "dinov2"
    folder.mkdir()
    mask = {"mask_token": np.zeros((1, 64), np.float32)}
    write_state_dict(folder / "model.safetensors", weights | mask)
    monkeypatch.setenv("SCM_JAX_WEIGHTS", str(tmp_path))
    other = dinov2.extractor(resize="pil_bicubic")
    assert (other.resize, other.prepare) == ("pil_bicubic", dinov2.resize_with_pil)
    net = dinov2.extractor(batch_size=2)
    assert net.name == "dinov2_width64_depth1_patch56"
    assert net.resize == "tensor_bicubic"
    assert net.weights_sha256 == tensors_sha256(weights)
    images = np.random.default_rng(4).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    found = net(images)["features"]
    alone = net(images[2:])["features"]
    assert found.shape == (3, 64)
    np.testing.assert_allclose(found[2:], alone, rtol=1e-5, atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_no_weights_says_where_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("SCM_JAX_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError) as error:
        dinov2.extractor()
    for part in ("dl.fbaipublicfiles.com/dinov2", str(tmp_path / "dinov2")):
        assert part in str(error.value)


def test_an_unknown_resize_rule_is_refused():
    with pytest.raises(ValueError, match="resize = 'bilinear' is not one of"):
        dinov2.extractor(resize="bilinear")


# Resizing.


resize_on_device = jax.jit(dinov2.resize_on_device, static_argnums=1)


@pytest.mark.parametrize("which", ["small", "large"])
def test_device_resize_is_torchs_antialiased_bicubic(which):
    """Enlarging and reducing, of noise; overshoot is kept. In grey levels."""
    _, arrays = golden()
    found = resize_on_device(arrays[which][None], 12)[0]
    np.testing.assert_allclose(found, arrays[f"{which}_resized"], rtol=0, atol=1e-3)


@pytest.mark.parametrize("side", [20, 100])
def test_device_resize_is_within_a_grey_level_of_pillow(side):
    """For values that no pass brings out of 0..255; Pillow rounds after each of two."""
    rng = np.random.default_rng(0)
    images = rng.integers(64, 192, (2, side, side, 3), dtype=np.uint8)
    pillow = dinov2.resize_with_pil(images, 56).astype(float)
    found = resize_on_device(images, 56)
    assert np.abs(found - pillow).max() < 1.3


def test_resize_rules_leave_images_of_the_right_size():
    images = np.random.default_rng(0).integers(0, 256, (1, 56, 56, 3), dtype=np.uint8)
    np.testing.assert_array_equal(dinov2.resize_with_pil(images, 56), images)
    np.testing.assert_allclose(resize_on_device(images, 56), images, atol=1e-4)
