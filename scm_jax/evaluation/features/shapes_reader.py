"""A small frozen network that reads what a caption of ``shapes`` says off an image.

Six convolutions and a dense layer with ReLU: 32x32x3 pixels -> 96 features; eight heads
name the words. Trained by ``data/shapes/train_reader.py``, stored as float16, evaluated
by JAX in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scm_jax.evaluation.features import frozen_weights

WEIGHTS_PATH = frozen_weights.FOLDER / "shapes_reader.npz"
WEIGHTS_SHA256 = "ac101a89dbadf969d370e4ee4088b60c235df6b4ee23c2da8c0d7bc831214a6b"

# How many words each head chooses from, in the order of ``shape_captions.LEGAL``.
HEADS = {
    **{"size": 3, "color": 8, "shape": 10, "second_color": 9, "second": 11},
    **{"background_color": 8, "background": 4, "place": 9},
}
NUM_FEATURES = 96
# Size, input and output channels, stride.
_CONVOLUTIONS = (
    *((3, 3, 32, 1), (3, 32, 48, 2), (3, 48, 64, 1)),
    *((3, 64, 96, 2), (3, 96, 96, 1), (3, 96, 96, 2)),
)
KERNEL_SHAPES: dict[str, tuple[int, ...]] = {
    f"conv{i}": (size, size, inputs, outputs)
    for i, (size, inputs, outputs, _) in enumerate(_CONVOLUTIONS)
}
KERNEL_SHAPES["dense"] = (4 * 4 * 96, NUM_FEATURES)
KERNEL_SHAPES |= {name: (NUM_FEATURES, number) for name, number in HEADS.items()}
WEIGHT_SHAPES = frozen_weights.with_biases(KERNEL_SHAPES)

Weights = Mapping[str, Any]
load_weights = frozen_weights.loader(
    WEIGHTS_PATH, WEIGHT_SHAPES, WEIGHTS_SHA256, np.float32
)


def logits(weights: Weights, pixels: jax.Array) -> dict[str, jax.Array]:
    """Logits of every head, ``(n, HEADS[head])``, for pixels ``(n, 32, 32, 3)``."""
    h = pixels.astype(jnp.float32) / 127.5 - 1
    for i, (*_, stride) in enumerate(_CONVOLUTIONS):
        h = jax.nn.relu(frozen_weights.convolution(weights, f"conv{i}", h, stride))
    h = jax.nn.relu(frozen_weights.dense(weights, "dense", h.reshape(len(h), -1)))
    return {name: frozen_weights.dense(weights, name, h) for name in HEADS}


@jax.jit
def _read(weights: Weights, pixels: jax.Array) -> dict[str, jax.Array]:
    return {k: jnp.argmax(v, axis=-1) for k, v in logits(weights, pixels).items()}


def read(weights: Weights, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """The word that each head names, as ``(n,)`` indices.

    Args:
      weights: ``load_weights()`` for the frozen ones.
      pixels: uint8 ``(n, 32, 32, 3)``, see ``frozen_weights.in_batches``.
    """
    return frozen_weights.in_batches(_read, weights, pixels, ((32, 32, 3),))
