"""Raw items that are drawn when they are read: no file, so as many as one likes."""

from __future__ import annotations

from collections.abc import Callable

from scm_jax.datasets.preparation.readers.items import Items
from scm_jax.datasets.shapes import RESOLUTIONS, ShapeSource
from scm_jax.types import lookup

KIND = "drawn"

# By name: (split, number of items, side in pixels) -> the items.
DRAWN: dict[str, Callable[[str, int, int], Items]] = {"shapes": ShapeSource}


def open_drawn(name: str, split: str, num_items: int, size: int = 0) -> Items:
    """Items of a data set that is drawn.

    Args:
      name: a key of ``DRAWN``.
      split: ``train`` or ``test``.
      num_items: how many.
      size: side in pixels; 0 for 32.

    Raises:
      ValueError: no such data set, split, number or size.
    """
    make = lookup(DRAWN, name, f"source of the kind {KIND!r}")
    return make(split, num_items, size or RESOLUTIONS[0])
