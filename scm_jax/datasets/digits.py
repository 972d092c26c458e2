"""Handwritten digits: 1,797 grey 8x8 images (``data/digits/README.md``)."""

from __future__ import annotations

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scm_jax.datasets import identity, pipeline, storage
from scm_jax.types import DatasetInfo

# Moments of the stored levels over all pixels of all items, measured in float64.
LEVEL_MEAN = 4.884164579855314
LEVEL_STD = 6.016787548672236

MAX_LEVEL = 16
SIGMA_DATA = 0.5

# Looked up and rounded once from float64, so that values have the same bits everywhere.
_X = (np.arange(MAX_LEVEL + 1) - LEVEL_MEAN) * (SIGMA_DATA / LEVEL_STD)


def to_x(levels: Any) -> jax.Array:
    """Stored levels 0..16 -> float32 with mean 0 and standard deviation 0.5.

    Example:
      >>> to_x(np.array([0, 16])).round(4).tolist()
      [-0.4059000015258789, 0.9236999750137329]
    """
    return jnp.asarray(_X, jnp.float32)[levels]


def to_pixels(x: np.ndarray) -> np.ndarray:
    """Inverts ``to_x``: rounds to the data's 17 levels, then scales to uint8 0..255."""
    exact = np.asarray(x, np.float64) * (LEVEL_STD / SIGMA_DATA) + LEVEL_MEAN
    levels = np.round(np.clip(exact, 0, MAX_LEVEL))
    return np.round(levels * (255 / MAX_LEVEL)).astype(np.uint8)


def make_digits(
    split: str = "train",
    *,
    root: str | os.PathLike[str] | None = None,
    prepare: bool = False,
) -> pipeline.FiniteDataset:
    """Opens the prepared digits.

    Args:
      split: ``train`` holds all items; slices such as ``train[:90%]`` work.
      root: folder of prepared datasets, by default ``storage.default_root()``.
      prepare: prepare them first where they are not; this needs no network.

    Raises:
      FileNotFoundError: not prepared; the message has the command that does it.
    """
    folder = storage.prepared_folder("digits", root, prepare_missing=prepare)
    source = pipeline.read_prepared(folder, split)
    info = DatasetInfo(
        name="digits",
        sample_shape=(8, 8, 1),
        num_classes=10,
        sigma_data=SIGMA_DATA,
        num_items=len(source),
        description="grey levels 0..16, centred and scaled to standard deviation 0.5",
        to_pixels=to_pixels,
        quantization="17 levels, rounded",
    )
    return pipeline.FiniteDataset(
        info,
        source,
        lambda fields: (to_x(fields["image"]), fields["label"].astype(np.int32)),
        identify=functools.partial(identity.of_prepared, folder, split),
    )
