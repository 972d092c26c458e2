"""A small frozen network that names the digit that is heard on a spectrogram.

Four convolutions and a dense layer with ReLU: 32x32 levels of ``FRONT_END`` -> 48
features, and a head of ten digits. Trained on voices that the data set keeps for its
split ``test`` apart, by ``data/spoken_digits/train_reader.py``, stored as float16,
evaluated in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scm_jax.evaluation.features import frozen_weights

WEIGHTS_PATH = frozen_weights.FOLDER / "speech_reader.npz"
WEIGHTS_SHA256 = "1860d06e2d5cfa9711990a9979a250ff3eb55c0b7c2f37d9b6acf28226607f80"

IMAGE_SHAPE = (32, 32, 1)  # low frequencies at the bottom
NUM_DIGITS, NUM_FEATURES = 10, 48
# Input and output channels, stride; 3x3 pixels.
_CONVOLUTIONS = ((1, 16, 1), (16, 32, 2), (32, 64, 2), (64, 64, 2))
KERNEL_SHAPES: dict[str, tuple[int, ...]] = {
    **{f"conv{i}": (3, 3, *sizes[:2]) for i, sizes in enumerate(_CONVOLUTIONS)},
    "features": (4 * 4 * 64, NUM_FEATURES),
    "digit": (NUM_FEATURES, NUM_DIGITS),
}
WEIGHT_SHAPES = frozen_weights.with_biases(KERNEL_SHAPES)

Weights = Mapping[str, Any]
load_weights = frozen_weights.loader(
    WEIGHTS_PATH, WEIGHT_SHAPES, WEIGHTS_SHA256, np.float32
)


def read_images(weights: Weights, pixels: jax.Array) -> dict[str, jax.Array]:
    """``features`` ``(n, 48)`` and logits ``digit`` of spectrograms in 0..255."""
    h = pixels.astype(jnp.float32) / 127.5 - 1
    for i, (*_, stride) in enumerate(_CONVOLUTIONS):
        h = jax.nn.relu(frozen_weights.convolution(weights, f"conv{i}", h, stride))
    h = frozen_weights.dense(weights, "features", h.reshape(len(h), -1))
    h = jax.nn.relu(h)
    return {"features": h, "digit": frozen_weights.dense(weights, "digit", h)}


_read = jax.jit(read_images)


def read(weights: Weights, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """``read_images`` of uint8 spectrograms, see ``frozen_weights.in_batches``."""
    return frozen_weights.in_batches(_read, weights, pixels, (IMAGE_SHAPE,))
