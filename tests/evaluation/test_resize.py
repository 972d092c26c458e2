"""TensorFlow 1's bilinear resize; the numbers are TensorFlow's."""

import pathlib

import jax
import numpy as np
import pytest

from scm_jax.evaluation.features import inception

GOLDEN = pathlib.Path(__file__).parents[1] / "golden/resize_tf1.npz"
SIDE, CHANNELS, NUM_PIXELS = 299, 3, 1000
resize = jax.jit(inception.tf1_bilinear, static_argnums=(1, 2))


@pytest.mark.parametrize(
    "size", ["32x32", "64x64", "256x256", "512x512", "48x200", "400x37", "299x32"]
)
def test_pixels_are_those_of_tensorflow(size):
    height, width = map(int, size.split("x"))
    rng = np.random.default_rng(height * 1000 + width)
    image = rng.integers(0, 256, (1, height, width, CHANNELS), dtype=np.uint8)
    places = rng.integers(0, SIDE * SIDE * CHANNELS, NUM_PIXELS)
    got = np.asarray(resize(image, SIDE, SIDE))
    with np.load(GOLDEN) as golden:
        expected = golden[size]
    # Rounding of grey levels below 256 in three products and sums.
    np.testing.assert_allclose(got.reshape(-1)[places], expected, rtol=0, atol=1e-4)


def test_an_image_of_the_right_size_is_left_as_it_is():
    image = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    got = resize(image, 4, 4)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, image)


def test_the_grid_starts_at_the_first_pixel_and_repeats_the_last():
    """2 -> 4 pixels are read at 0, 0.5, 1 and 1.5, of which the last is outside."""
    row = np.array([10.0, 30.0], np.float32)[None, None, :, None]
    got = resize(row, 1, 4)[0, 0, :, 0]
    np.testing.assert_array_equal(got, [10, 20, 30, 30])
