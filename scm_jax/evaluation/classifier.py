"""A small frozen digits classifier, whose features are what digits are compared in.

Two dense layers with rectified units: 64 pixels -> 128 -> 32 features -> 10 logits.
``data/digits/train_classifier.py`` trains
it; its weights are package data and pinned by a hash, so that the numbers of two
machines and of two years can be compared. Evaluation runs in numpy float64.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from scm_jax.weight_files import tensors_sha256

WEIGHTS_PATH = Path(__file__).parent / "weights" / "digits_classifier.npz"
# Of the arrays, see tensors_sha256; printed by data/digits/train_classifier.py.
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


def load_weights(
    path: Path = WEIGHTS_PATH, sha256: str = WEIGHTS_SHA256
) -> dict[str, np.ndarray]:
    """The frozen weights as float64, after their hash was checked.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a damaged file, other arrays, or another hash.
    """
    try:
        with open(path, "rb") as file, np.load(file) as arrays:
            weights = {name: arrays[name] for name in arrays.files}
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        raise ValueError(f"{path} is damaged: install the package again") from error
    shapes = {name: array.shape for name, array in weights.items()}
    if shapes != WEIGHT_SHAPES:
        raise ValueError(f"{path} holds {shapes}: expected {WEIGHT_SHAPES}")
    found = tensors_sha256(weights)
    if found != sha256:
        raise ValueError(
            f"{path} has sha256 {found}, expected {sha256}: distances in other features"
            " cannot be compared. After training new weights on purpose, put their hash"
            " into WEIGHTS_SHA256 of scm_jax/evaluation/classifier.py."
        )
    return {name: array.astype(np.float64) for name, array in weights.items()}
