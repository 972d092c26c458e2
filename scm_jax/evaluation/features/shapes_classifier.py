"""A small frozen network, in whose features samples of ``shapes`` are compared.

Four convolutions and a dense layer with ReLU: 32x32x3 pixels -> 64 features. Three
heads classify the shape, its color and the kind of background. Trained by
``data/shapes/train_classifier.py``, stored as float16, evaluated by JAX in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scm_jax.evaluation.features import frozen_weights

WEIGHTS_PATH = frozen_weights.FOLDER / "shapes_classifier.npz"
# Printed by data/shapes/train_classifier.py. One run of it does not give these weights:
# training was interrupted after the first of its two cycles and resumed with --start.
WEIGHTS_SHA256 = "b928b152c59c59731218fac1df00548b27fecfb9fb69132bb6836d8eb1a1bc70"

SIDES = (32, 64)
NUM_FEATURES = 64
HEADS = {"shape": 10, "color": 8, "background": 4}
STRIDES = {"conv0": 2, "conv1": 2, "conv2": 1, "conv3": 1}
KERNEL_SHAPES = {
    "conv0": (5, 5, 3, 32),
    "conv1": (2, 2, 32, 64),
    "conv2": (3, 3, 64, 64),
    "conv3": (3, 3, 64, 48),
    "dense": (4 * 4 * 48, NUM_FEATURES),
    **{name: (NUM_FEATURES, number) for name, number in HEADS.items()},
}
WEIGHT_SHAPES = frozen_weights.with_biases(KERNEL_SHAPES, "_")

Weights = Mapping[str, Any]
load_weights = frozen_weights.loader(
    WEIGHTS_PATH, WEIGHT_SHAPES, WEIGHTS_SHA256, np.float32
)


def apply(weights: Weights, pixels: jax.Array) -> jax.Array:
    """The 64 activations before the heads, to be traced.

    Args:
      weights: arrays of ``WEIGHT_SHAPES``, float32.
      pixels: ``(n, 32, 32, 3)`` in 0..255, or ``(n, 64, 64, 3)``, of which every 2x2
        pixels are averaged.

    Returns:
      ``(n, 64)`` float32.
    """
    h = pixels.astype(jnp.float32)
    if h.shape[1] == 64:
        h = _average(h)
    h = h / 127.5 - 1
    for layer, stride in STRIDES.items():
        h = jax.nn.relu(frozen_weights.convolution(weights, layer, h, stride, "_"))
    # 4x4 places remain: features know roughly where the shape is.
    h = _average(h).reshape(len(h), -1)
    return jax.nn.relu(frozen_weights.dense(weights, "dense", h, "_"))


def _average(x: jax.Array) -> jax.Array:
    """Means of 2x2 pixels, ``(n, h, w, c) -> (n, h/2, w/2, c)``."""
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))


@jax.jit
def _read(weights: Weights, pixels: jax.Array) -> dict[str, jax.Array]:
    return {"features": apply(weights, pixels)}


def features(weights: Weights, pixels: np.ndarray) -> np.ndarray:
    """``apply`` of uint8 pixels, ``(n, 64)`` float32; ``frozen_weights.in_batches``."""
    shapes = [(side, side, 3) for side in SIDES]
    return frozen_weights.in_batches(_read, weights, pixels, shapes)["features"]


def logits(weights: Weights, features: Any, head: str = "shape") -> Any:
    """``(n, HEADS[head])`` logits of ``(n, 64)`` features."""
    return features @ weights[f"{head}_kernel"] + weights[f"{head}_bias"][None]
