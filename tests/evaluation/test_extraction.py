"""Batches of images through a feature network, here a tiny one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax.evaluation.features.extraction import FeatureNet, as_rgb


def apply(params, x):
    x = x.astype(jnp.float32)
    return {"features": jnp.einsum("bhwc,cd->bd", x, params), "first": x[:, 0]}


@pytest.fixture
def net():
    params = np.arange(12, dtype=np.float32).reshape(3, 4) / 8
    return FeatureNet("tiny", "abc", "none", apply, params, batch_size=4)


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
    parts = list(dataclasses.replace(net, batch_size=batch_size).batches(images))
    assert [len(p["features"]) for p in parts[:-1]] == [batch_size] * (len(parts) - 1)
    for name in expected:
        got = np.concatenate([p[name] for p in parts])
        np.testing.assert_allclose(got, expected[name], rtol=1e-6)


@pytest.mark.parametrize("cuts", [[3], [1, 2, 9], [4, 8], [0, 11]])
def test_chunks_do_not_matter(net, images, cuts):
    got = net(iter(np.split(images, cuts)))["features"]
    np.testing.assert_array_equal(got, net(images)["features"])


def test_there_is_one_compilation_with_products_in_float32(net, images):
    """Also where the hardware would do less."""
    traced, compiled = [], []

    def counted(params, x):
        traced.append(x.shape)
        compiled.append(str(jax.make_jaxpr(apply)(params, x)))
        return apply(params, x)

    for part in [images, images[:2], images[:5]]:
        list(dataclasses.replace(net, apply=counted).batches(part))
    assert traced == [(4, 2, 3, 3)]
    assert "HIGHEST" in compiled[0]


def test_a_stream_is_read_one_batch_ahead(net, images):
    """It need not fit into memory."""
    taken = []

    def stream():
        for i in range(5):
            taken.append(i)
            yield images[:4]

    next(net.batches(stream()))
    assert taken == [0, 1]


def test_preparation_sees_rgb_and_its_result_is_what_the_network_gets(net, images):
    def halve(x):
        assert x.shape[-1] == 3
        return (x // 2)[:, :1]

    prepared = FeatureNet("p", "", "halved", apply, net.params, prepare=halve)
    got = prepared(images[..., :1])["first"]
    np.testing.assert_array_equal(got, np.repeat(images[:, 0, :, :1] // 2, 3, axis=-1))


def test_grey_images_are_repeated(images):
    grey = images[..., :1]
    np.testing.assert_array_equal(as_rgb(grey), np.concatenate([grey] * 3, axis=-1))
    assert as_rgb(images) is images


def test_other_images_are_refused(net, images):
    two_sizes = [images, images[:, :1]]
    for bad, message in (
        (np.zeros((2, 3, 3, 3), np.float32), r"float32 \(2, 3.*expected"),
        (np.zeros((3, 3, 3), np.uint8), r"uint8 \(3, 3, 3\): expected"),
        (np.zeros((2, 3, 3, 4), np.uint8), r"uint8 \(2, 3, 3, 4\): expected"),
        (two_sizes, r"\(1, 3, 3\) after such of \(2, 3, 3\)"),
        ([], "tiny: no images"),
        (np.zeros((0, 2, 3, 3), np.uint8), "tiny: no images"),
    ):
        with pytest.raises(ValueError, match=message):
            net(bad)


def test_a_batch_size_of_nothing_is_refused(net, images):
    with pytest.raises(ValueError, match="batch_size = 0"):
        dataclasses.replace(net, batch_size=0)(images)
