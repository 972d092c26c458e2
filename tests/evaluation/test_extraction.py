"""Batches of images through a feature network, here a tiny one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax.evaluation.features.extraction import FeatureNet, as_rgb, extract


def apply(params, x):
    x = x.astype(jnp.float32)
    return {"features": jnp.einsum("bhwc,cd->bd", x, params), "first": x[:, 0]}


@pytest.fixture
def net():
    params = np.arange(12, dtype=np.float32).reshape(3, 4) / 8
    return FeatureNet("tiny", "abc", "none", 4, apply, params, batch_size=4)


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (11, 2, 3, 3), dtype=np.uint8)


def test_outputs_are_those_of_each_image(net, images):
    got = net(images)
    expected = images.sum(axis=(1, 2), dtype=np.float64) @ net.params
    assert got["features"].dtype == np.float32
    np.testing.assert_allclose(got["features"], expected, rtol=1e-5)
    np.testing.assert_array_equal(got["first"], images[:, 0])


@pytest.mark.parametrize("batch_size", [1, 3, 11, 64])
def test_batch_size_does_not_matter(net, images, batch_size):
    expected = net(images)
    parts = list(extract(apply, net.params, images, batch_size))
    assert [len(p["features"]) for p in parts[:-1]] == [batch_size] * (len(parts) - 1)
    for name in expected:
        got = np.concatenate([p[name] for p in parts])
        np.testing.assert_allclose(got, expected[name], rtol=1e-6)


@pytest.mark.parametrize("cuts", [[3], [1, 2, 9], [4, 8], [0, 11]])
def test_chunks_do_not_matter(net, images, cuts):
    got = net(iter(np.split(images, cuts)))["features"]
    np.testing.assert_array_equal(got, net(images)["features"])


def test_there_is_one_compilation(images):
    traced = []

    def counted(params, x):
        traced.append(x.shape)
        return {"features": x.astype(jnp.float32).mean((1, 2))}

    for part in [images, images[:2], images[:5]]:
        list(extract(counted, (), part, batch_size=4))
    assert traced == [(4, 2, 3, 3)]


def test_products_are_float32_also_where_the_hardware_would_do_less():
    def product(params, x):
        return {"features": x @ params}

    inputs = np.ones((2, 3), np.float32)
    compiled = []

    def listened(params, x):
        compiled.append(str(jax.make_jaxpr(product)(params, x)))
        return product(params, x)

    list(extract(listened, np.ones((3, 4), np.float32), inputs))
    assert "HIGHEST" in compiled[0]


def test_a_stream_is_read_one_batch_ahead(images):
    """It need not fit into memory."""
    taken = []

    def stream():
        for i in range(5):
            taken.append(i)
            yield images[:4]

    outputs = extract(apply, np.zeros((3, 4), np.float32), stream(), batch_size=4)
    next(outputs)
    assert taken == [0, 1]


def test_preparation_sees_rgb_and_its_result_is_what_the_network_gets(net, images):
    def halve(x):
        assert x.shape[-1] == 3
        return (x // 2)[:, :1]

    prepared = FeatureNet("p", "", "halved", 4, apply, net.params, prepare=halve)
    got = prepared(images[..., :1])["first"]
    np.testing.assert_array_equal(got, np.repeat(images[:, 0, :, :1] // 2, 3, axis=-1))


def test_grey_images_are_repeated(net, images):
    grey = images[..., :1]
    assert as_rgb(grey).shape == images.shape
    np.testing.assert_array_equal(as_rgb(grey), np.concatenate([grey] * 3, axis=-1))
    assert as_rgb(images) is images


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((2, 3, 3, 3), np.float32),
        np.zeros((3, 3, 3), np.uint8),
        np.zeros((2, 3, 3, 4), np.uint8),
    ],
    ids=["float", "one image", "four channels"],
)
def test_other_images_are_refused(net, bad):
    with pytest.raises(ValueError, match=rf"{bad.dtype} \({len(bad)}, 3.*expected"):
        net(bad)


def test_images_of_two_sizes_are_refused(net, images):
    with pytest.raises(ValueError, match=r"\(1, 3, 3\) after such of \(2, 3, 3\)"):
        net([images, images[:, :1]])


@pytest.mark.parametrize("none", [[], np.zeros((0, 2, 3, 3), np.uint8)])
def test_no_images_are_refused(net, none):
    with pytest.raises(ValueError, match="tiny: no images"):
        net(none)


def test_a_batch_size_of_nothing_is_refused(images):
    with pytest.raises(ValueError, match="batch_size = 0"):
        list(extract(apply, (), images, batch_size=0))
