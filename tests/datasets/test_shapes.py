"""Shapes: what is drawn depends on seed, split and item alone, and is what it says."""

import dataclasses
import hashlib

import jax
import numpy as np
import pytest

from scm_jax.datasets import make_dataset, pipeline, shapes
from scm_jax.datasets import shape_drawing as drawing
from scm_jax.datasets.shapes import ShapeSource

NUM = 2000


@pytest.fixture(scope="module")
def images():
    return ShapeSource("train", NUM).gather(np.arange(NUM))["image"]


# First bytes of the sha256 of the pixels of an item; of the same on every machine.
PIXELS = {
    ("train", 32, 0): "e9bd5e1c0747c04a",
    ("train", 32, 19_999): "c4536fca5f3da474",
    ("train", 64, 7): "e7c937504a64e2fa",
    ("test", 32, 0): "a036e0ffab07b45b",
    ("test", 64, 123_456_789): "7932666ef07e6511",
}


@pytest.mark.parametrize(("split", "resolution", "index"), list(PIXELS))
def test_pixels_are_the_recorded_ones(split, resolution, index):
    source = ShapeSource(split, index + 1, resolution)
    pixels = source.read(index)["image"]
    found = hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
    assert found == PIXELS[split, resolution, index]


def test_an_item_depends_on_its_index_alone(images):
    indices = np.array([1999, 3, 70, 3, 131])
    picked = ShapeSource("train", 10**9).gather(indices)
    np.testing.assert_array_equal(picked["image"], images[indices])
    assert picked["label"].tolist() == [9, 3, 0, 3, 1]
    one = ShapeSource("train", NUM).read(70)
    np.testing.assert_array_equal(one["image"], images[70])
    assert one["label"].shape == () and one["label"] == 0


def test_another_seed_draws_other_items(images):
    other = ShapeSource("train", NUM, seed=1).gather(np.arange(64))["image"]
    assert (other != images[:64]).any(axis=(1, 2, 3)).all()


def test_no_image_occurs_twice_in_or_between_splits(images):
    test = ShapeSource("test", NUM).gather(np.arange(NUM))["image"]
    seen = {image.tobytes() for part in (images, test) for image in part}
    assert len(seen) == 2 * NUM


def test_mean_and_standard_deviation(images):
    x = images.astype(np.float64) / 127.5 - 1
    # An image's mean, and its mean square, are independent between images.
    means, squares = x.mean((1, 2, 3)), (x**2).mean((1, 2, 3))
    error = 4 / np.sqrt(NUM)
    # The constants of the drawing were chosen to three digits.
    assert abs(means.mean()) < error * means.std() + 0.005
    expected = 0.5**2
    assert abs(squares.mean() - expected) < error * squares.std() + 0.005


def test_every_kind_of_thing_is_drawn():
    seen = ShapeSource("test", NUM).attributes(np.arange(NUM))
    assert np.bincount(seen.shape).tolist() == [NUM // 10] * 10
    for values, number in (
        (seen.color, len(shapes.COLORS)),
        (seen.background_color, len(shapes.COLORS)),
        (seen.background, len(shapes.BACKGROUNDS)),
    ):
        counts = np.bincount(values, minlength=number)
        share = 1 / number
        error = 5 * np.sqrt(NUM * share * (1 - share))
        assert len(counts) == number and (abs(counts - NUM * share) < error).all()
    assert set(seen.second) == {-1, *range(10)}
    away = (seen.background_color - seen.color) % len(shapes.COLORS)
    assert away.min() == 2 and away.max() == len(shapes.COLORS) - 2


def test_the_shape_has_its_color_where_it_is():
    """At the centre of a filled shape, up to light, paint and contrast."""
    source = ShapeSource("train", 500)
    seen = source.attributes(np.arange(500))
    filled = ~np.isin(seen.shape, [1, 8])  # rings and moons are open in the middle
    images = source.gather(np.arange(500))["image"]
    column, row = ((seen.center + 1) * 16).astype(int).T
    pixels = images[np.arange(500), row, column] / 255
    palette = drawing.CONTRAST * (drawing._PALETTE - drawing.MEAN_PAINT) + 0.5
    # Paint and light change a channel by less than 0.12 + 0.05 of it.
    distance = abs(pixels[:, None] - np.clip(palette, 0, 1)[None]).max(-1)
    assert (distance[np.arange(500), seen.color][filled] < 0.2).all()
    assert (distance[np.arange(500), seen.background_color][filled] > 0.2).all()


def test_captions_say_the_attributes():
    source = ShapeSource("test", 300)
    seen = source.attributes(np.arange(300))
    colors, kinds = list(shapes.COLORS), list(shapes.SHAPES)
    for index in range(300):
        text = source.caption(index)
        first, place = text.split(", ")
        things, background = first.split(" on ")
        main, *other = things.split(" and ")
        article, size, color, shape = main.split()
        assert (article, color) == ("a", colors[seen.color[index]])
        assert shape == kinds[seen.shape[index]] == source.class_names[index % 10]
        limits = {"small": (0.36, 0.46), "medium": (0.46, 0.56), "large": (0.56, 0.66)}
        low, high = limits[size]
        assert low <= seen.size[index] <= high
        assert background.split()[-2:] == [
            colors[seen.background_color[index]],
            shapes.BACKGROUNDS[seen.background[index]],
        ]
        assert bool(other) == (seen.second[index] >= 0)
        if other:
            second = (colors[seen.second_color[index]], kinds[seen.second[index]])
            assert other[0] == "a tiny {} {}".format(*second)
        right, down = seen.center[index]
        assert ("left" in place, "right" in place) == (right < -0.15, right > 0.15)
        upper, lower = {"upper", "top"}, {"lower", "bottom"}
        assert bool(upper & set(place.split())) == (down < -0.15)
        assert bool(lower & set(place.split())) == (down > 0.15)
        assert text in source.name(index)


def test_larger_images_show_the_same():
    indices = np.arange(200)
    small = ShapeSource("train", 200).gather(indices)["image"].astype(np.float64)
    large = ShapeSource("train", 200, 64).gather(indices)["image"]
    averaged = large.reshape(200, 32, 2, 32, 2, 3).mean((2, 4))
    difference = averaged - small
    # Edges only: one pixel wide in both.
    assert np.median(abs(difference)) < 1
    assert np.sqrt((difference**2).mean((1, 2, 3))).max() < 12
    shifted = np.roll(averaged, 1, axis=1) - small
    assert (difference**2).mean() < 0.1 * (shifted**2).mean()


def test_drawn_when_needed_gives_what_is_drawn_at_once(monkeypatch):
    settings = {"num_items": 96, "resolution": 32}
    at_once = make_dataset("shapes", **settings).opened
    monkeypatch.setattr(pipeline, "MEMORY_LIMIT", 96 * 32**2 * 3 - 1)
    when_needed = make_dataset("shapes", **settings).opened
    assert isinstance(at_once.source, pipeline.MemorySource)
    assert isinstance(when_needed.source, ShapeSource)
    for a, b in zip(at_once.arrays(), when_needed.arrays(), strict=True):
        np.testing.assert_array_equal(a, b)
    one, other = (next(d.iterator(8, seed=3)).fields for d in (at_once, when_needed))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_as_trained_on():
    data = make_dataset("shapes", "test", num_items=32, conditional=False)
    assert data.info.num_classes == 0 and data.info.sample_shape == (32, 32, 3)
    x, label = make_dataset("shapes", "test", num_items=32).arrays()
    pixels = ShapeSource("test", 32).gather(np.arange(32))["image"]
    np.testing.assert_allclose(x, pixels / np.float32(127.5) - 1, atol=2e-7)
    np.testing.assert_array_equal(data.info.to_pixels(x), pixels)
    assert label.tolist() == [k % 10 for k in range(32)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "validation"}, "split of dataset 'shapes'.*test"),
        ({"resolution": 48}, r"dataset.resolution = 48 .*\(32, 64\)"),
        ({"num_items": 0}, "dataset.num_items = 0 .*at least 1"),
        ({"seed": -1}, "seed"),
    ],
)
def test_what_cannot_be_drawn(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(ShapeSource(), **change)


@pytest.mark.parametrize("index", [-1, 5])
def test_an_item_that_is_not_there(index):
    with pytest.raises(IndexError, match=rf"no item {index}: legal are 0..4"):
        ShapeSource("train", 5).gather(np.array([0, index]))
