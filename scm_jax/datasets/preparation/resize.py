"""Recipes that give all images one size.

A recipe takes one uint8 image ``(h, w, c)`` of any size and a side in pixels and gives
uint8 ``(side, side, c)``. Frechet distances depend on it: data, reference statistics
and published figures belong together only if their recipe is the same.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from scm_jax.datasets.preparation.readers.items import ItemError, damaged
from scm_jax.types import lookup


def center_crop_dhariwal(image: np.ndarray, size: int) -> np.ndarray:
    """ImageNet of ADM, EDM and EDM2: halve by averages, then bicubic, then crop.

    While the shorter side is at least twice ``size``, a box filter halves width and
    height, rounded down; each halving rounds to whole grey levels. Then a bicubic
    filter makes the shorter side ``size``, and the middle is cut out.

    Example:
      >>> center_crop_dhariwal(np.full((9, 20, 3), 7, np.uint8), 4).shape
      (4, 4, 3)
    """
    while min(image.shape[:2]) >= 2 * size:
        height, width = image.shape[:2]
        image = _resize(image, height // 2, width // 2, Image.Resampling.BOX)
    return center_crop_bicubic(image, size)


def center_crop_bicubic(image: np.ndarray, size: int) -> np.ndarray:
    """ImageNet as arXiv 2410.11081 describes it: shorter side bicubic, then crop.

    Both sides are scaled by ``size / min(h, w)`` and rounded (halves to the even
    number). Pillow's bicubic filter has a support that grows as the image shrinks, so
    that nothing aliases.
    """
    height, width = image.shape[:2]
    scale = size / min(height, width)
    height, width = round(height * scale), round(width * scale)
    image = _resize(image, height, width, Image.Resampling.BICUBIC)
    # Half a pixel to the left and to the top of the middle where the rest is odd.
    top, left = ((side - size) // 2 for side in image.shape[:2])
    return np.ascontiguousarray(image[top : top + size, left : left + size])


def box(image: np.ndarray, size: int) -> np.ndarray:
    """Chrabaszcz et al. (arXiv 1707.08819): all of the image by a box filter.

    Each pixel is the average of its share of the image, up to one grey level: Pillow
    rounds after the rows and after the columns. Proportions are not kept.
    """
    return _resize(image, size, size, Image.Resampling.BOX)


def none(image: np.ndarray, size: int) -> np.ndarray:
    """The image as it is; raises ValueError unless it has that size."""
    if image.shape[:2] != (size, size):
        height, width = image.shape[:2]
        raise ValueError(
            f"the image is {height} pixels high and {width} wide, and the recipe "
            f"'none' wants all of them to be {size} by {size}; recipes that resize are "
            f"{', '.join(sorted(set(RECIPES) - {'none'}))}"
        )
    return image


RECIPES = {
    "center_crop_dhariwal": center_crop_dhariwal,
    "center_crop_bicubic": center_crop_bicubic,
    "box": box,
    "none": none,
}


def resize(image: np.ndarray, size: int, recipe: str, where: str) -> np.ndarray:
    """Applies a recipe to a uint8 image ``(h, w, 1 or 3)``; ``where`` names the item.

    Raises:
      ValueError: no such recipe or size.
      ItemError: the recipe cannot be applied to this image.
    """
    function = lookup(RECIPES, recipe, "recipe")
    if size < 1:
        raise ValueError(f"size = {size} must be at least 1")
    with damaged(where, (ValueError,), ItemError):
        image = function(image, size)
    return image


def _resize(image: np.ndarray, height: int, width: int, resample: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    grey = image.shape[-1] == 1
    source = Image.fromarray(image[..., 0] if grey else image)
    resized = np.array(source.resize((width, height), resample))
    return resized[..., None] if grey else resized
