"""A small frozen digits classifier, whose features are what digits are compared in.

Two convolutions of 3x3 and one dense layer with rectified units: 8x8 pixels ->
8x8x16 -> 4x4x32 -> 32 features -> 10 logits. ``data/digits/train_classifier.py`` trains
it; its weights are package data and pinned by a hash, so that the numbers of two
machines and of two years can be compared. Evaluation runs in numpy float64.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

WEIGHTS_PATH = Path(__file__).parent / "weights" / "digits_classifier.npz"
# Of the arrays, see weights_hash; printed by data/digits/train_classifier.py.
WEIGHTS_SHA256 = "cc1a6567a0a98500e0c905b2376bb6b8773de7a1962e304802eb467bd285230c"

IMAGE_SHAPE = (8, 8, 1)
NUM_FEATURES = 32
NUM_CLASSES = 10
WEIGHT_SHAPES = {
    "conv0_kernel": (9 * 1, 16),
    "conv0_bias": (16,),
    "conv1_kernel": (9 * 16, 32),
    "conv1_bias": (32,),
    "dense_kernel": (4 * 4 * 32, NUM_FEATURES),
    "dense_bias": (NUM_FEATURES,),
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
    h = pixels.astype(weights["conv0_kernel"].dtype) / 127.5
    h = _conv(h, weights["conv0_kernel"], weights["conv0_bias"], 1, xp)
    h = _conv(h, weights["conv1_kernel"], weights["conv1_bias"], 2, xp)
    h = h.reshape(len(h), -1) @ weights["dense_kernel"] + weights["dense_bias"][None]
    return xp.maximum(h, 0)


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
    found = weights_hash(weights)
    if found != sha256:
        raise ValueError(
            f"{path} has sha256 {found}, expected {sha256}: distances in other features"
            " cannot be compared. After training new weights on purpose, put their hash"
            " into WEIGHTS_SHA256 of scm_jax/evaluation/classifier.py."
        )
    return {name: array.astype(np.float64) for name, array in weights.items()}


def weights_hash(weights: Weights) -> str:
    """sha256 over names, shapes and little-endian float32 values, sorted by name.

    Arrays rather than the file, as zip files differ by the system that wrote them.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name], "<f4")
        digest.update(f"{name}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _conv(x: Any, kernel: Any, bias: Any, stride: int, xp: ModuleType) -> Any:
    """Rectified 3x3 convolution with zero padding, as one matrix product."""
    height, width = x.shape[1:3]
    x = xp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = [
        x[:, i : i + height : stride, j : j + width : stride]
        for i in range(3)
        for j in range(3)
    ]
    h = xp.concatenate(patches, axis=-1) @ kernel + bias[None, None, None]
    return xp.maximum(h, 0)
