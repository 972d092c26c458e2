"""The digits: constants, pixels and the card, measured on the data themselves."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from scm_jax.datasets import digits, make_dataset, storage


@pytest.fixture(scope="module")
def dataset(digits_root):
    return make_dataset("digits", root=digits_root)


def test_constants_are_those_of_the_data(dataset):
    levels = dataset.source.fields["image"]
    assert levels.dtype == np.uint8 and levels.max() == digits.MAX_LEVEL
    assert levels.mean() == pytest.approx(digits.LEVEL_MEAN, rel=1e-12)
    assert levels.std() == pytest.approx(digits.LEVEL_STD, rel=1e-12)


def test_standard_deviation_is_sigma_data(dataset):
    x, label = dataset.arrays()
    assert x.dtype == np.float32 and x.shape == (1797, 8, 8, 1)
    assert label.dtype == np.int32
    assert abs(x.mean(dtype=np.float64)) < 1e-6
    assert x.std(dtype=np.float64) == pytest.approx(dataset.info.sigma_data, rel=1e-6)


def test_items_are_those_of_scikit_learn_in_order(dataset):
    original = load_digits()
    x, label = dataset.arrays()
    np.testing.assert_array_equal(label, original.target)
    levels = x[..., 0] * (digits.LEVEL_STD / 0.5) + digits.LEVEL_MEAN
    np.testing.assert_allclose(levels, original.images, atol=1e-5)


def test_pixels_of_real_data_are_their_levels(dataset):
    levels = dataset.source.fields["image"]
    pixels = dataset.info.to_pixels(dataset.arrays()[0])
    assert pixels.dtype == np.uint8 and pixels.shape == levels.shape
    np.testing.assert_array_equal(pixels, np.round(levels * (255 / 16)))
    # Seventeen distinct values, from black to white, so nothing was merged.
    assert len(np.unique(pixels)) == 17 and pixels.max() == 255 and pixels.min() == 0


def test_pixels_of_samples_are_rounded_to_levels_and_clipped():
    one_level = 0.5 / digits.LEVEL_STD
    x = digits.to_x(np.array([0, 5, 5, 16])) + one_level * np.array([-3, 0.4, -0.4, 9])
    pixels = digits.to_pixels(x)
    assert pixels.tolist() == [0, round(5 * 255 / 16), round(5 * 255 / 16), 255]


def test_card_says_what_was_measured(dataset):
    card = (Path(storage.builders_folder()) / "digits/README.md").read_text()
    counts = np.bincount(dataset.arrays()[1])
    assert " | ".join(map(str, counts)) in card
    assert str(digits.LEVEL_MEAN) in card and str(digits.LEVEL_STD) in card
    assert "1,797" in card and "Licence" in card
