"""A small frozen digits classifier, in whose features digits are compared.

Two dense layers with ReLU: 64 pixels -> 128 -> 32 features -> 10 logits. Trained by
``data/digits/train_classifier.py``; evaluated by numpy in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from scm_jax.evaluation.features import frozen_weights

WEIGHTS_PATH = frozen_weights.FOLDER / "digits_classifier.npz"
# Printed by data/digits/train_classifier.py.
WEIGHTS_SHA256 = "21c9d6b91f0bdf50fbe761e3626177ca911f87d5dd34b74384efcc243d4179c4"

IMAGE_SHAPE = (8, 8, 1)
NUM_FEATURES = 32
NUM_CLASSES = 10
WEIGHT_SHAPES = {
    "dense0_kernel": (64, 128),
    "dense0_bias": (128,),
    "dense1_kernel": (128, NUM_FEATURES),
    "dense1_bias": (NUM_FEATURES,),
    "head_kernel": (NUM_FEATURES, NUM_CLASSES),
    "head_bias": (NUM_CLASSES,),
}

Weights = Mapping[str, Any]
load_weights = frozen_weights.loader(
    WEIGHTS_PATH, WEIGHT_SHAPES, WEIGHTS_SHA256, np.float64
)


def features(weights: Weights, pixels: Any, xp: ModuleType = np) -> Any:
    """The 32 activations before the last layer.

    Args:
      weights: arrays of ``WEIGHT_SHAPES``; ``load_weights()`` for the frozen ones.
      pixels: ``(n, 8, 8, 1)`` in 0..255, uint8 for data that is to be measured. The
        digits' own levels 0..16 become ``rint(level * 255 / 16)``.
      xp: ``numpy``, or ``jax.numpy`` where gradients are wanted.

    Returns:
      ``(n, 32)`` in the dtype of ``weights``.

    Raises:
      ValueError: another shape.
    """
    if pixels.ndim != 4 or pixels.shape[1:] != IMAGE_SHAPE:
        raise ValueError(f"pixels have shape {pixels.shape}: expected (n, 8, 8, 1)")
    h = pixels.astype(weights["dense0_kernel"].dtype) / 127.5
    h = h.reshape(len(h), -1)
    for layer in ("dense0", "dense1"):
        h = h @ weights[f"{layer}_kernel"] + weights[f"{layer}_bias"][None]
        h = xp.maximum(h, 0)
    return h


def logits(weights: Weights, features: Any) -> Any:
    """``(n, 10)`` class logits of ``(n, 32)`` features."""
    return features @ weights["head_kernel"] + weights["head_bias"][None]
