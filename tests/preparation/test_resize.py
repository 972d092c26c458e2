"""Recipes that give images one size."""

import numpy as np
import pytest
from PIL import Image

from scm_jax.datasets.preparation.readers.items import ItemError
from scm_jax.datasets.preparation.resize import RECIPES, resize

RESIZING = sorted(set(RECIPES) - {"none"})


def noise(height, width, channels=3):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (height, width, channels), np.uint8)


@pytest.mark.parametrize("recipe", RESIZING)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(4, 4), (9, 20), (33, 7), (3, 5), (64, 4), (8, 1)])
def test_every_shape_becomes_a_square_and_a_constant_stays_one(recipe, channels, shape):
    image = np.full((*shape, channels), 137, np.uint8)
    resized = resize(image, 4, recipe, "a")
    assert resized.dtype == np.uint8 and resized.shape == (4, 4, channels)
    assert (resized == 137).all()


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_an_image_of_the_size_is_left_alone(recipe):
    image = noise(6, 6)
    np.testing.assert_array_equal(resize(image, 6, recipe, "a"), image)


def test_box_is_the_mean_of_each_cell_and_drops_the_proportions():
    image = noise(6, 12)
    cells = image.reshape(3, 2, 3, 4, 3).mean((1, 3))
    resized = resize(image, 3, "box", "a")
    assert np.abs(resized - cells).max() <= 1  # rounded after rows and after columns


@pytest.mark.parametrize("recipe", ["center_crop_bicubic", "center_crop_dhariwal"])
@pytest.mark.parametrize("extra, first", [(0, 0), (1, 0), (2, 1), (5, 2)])
def test_the_crop_is_the_middle_half_a_pixel_to_the_left(recipe, extra, first):
    wide = noise(8, 8 + extra)
    np.testing.assert_array_equal(
        resize(wide, 8, recipe, "a"), wide[:, first : first + 8]
    )
    tall = wide.transpose(1, 0, 2)
    np.testing.assert_array_equal(resize(tall, 8, recipe, "a"), tall[first : first + 8])


def golden(image, size, halvings):
    """The steps by hand: ``halvings`` times (width, height), then the rest."""
    picture = Image.fromarray(image)
    for half in halvings:
        picture = picture.resize(half, Image.Resampling.BOX)
    width, height = picture.size
    if width < height:
        picture = picture.resize((size, round(size * height / width)), Image.BICUBIC)
    else:
        picture = picture.resize((round(size * width / height), size), Image.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return np.array(picture.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize(
    "shape, halvings",
    [
        ((15, 31), []),
        ((16, 31), [(15, 8)]),
        ((47, 35), [(17, 23), (8, 11)]),
        ((70, 131), [(65, 35), (32, 17), (16, 8)]),
    ],
)
def test_the_recipes_of_imagenet_step_by_step(shape, halvings):
    image = noise(*shape)
    for recipe, steps in (("dhariwal", halvings), ("bicubic", [])):
        resized = resize(image, 8, f"center_crop_{recipe}", "a")
        np.testing.assert_array_equal(resized, golden(image, 8, steps))


def test_what_no_recipe_can_do_names_the_item():
    message = "a.zip: 3.png: the image is 5 pixels high and 4 wide.*box, center_crop"
    with pytest.raises(ItemError, match=message):
        resize(noise(5, 4), 4, "none", "a.zip: 3.png")
    with pytest.raises(ValueError, match="recipe = 'boks' is not one of.*'box'"):
        resize(noise(4, 4), 4, "boks", "a")
    with pytest.raises(ValueError, match="size = 0 must be at least 1"):
        resize(noise(4, 4), 0, "box", "a")
