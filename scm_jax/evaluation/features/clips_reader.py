"""A small frozen network that reads digit and motion off clips of ``moving_digits``.

Four convolutions and a dense layer read each frame, 16x16 pixels -> 64 numbers, from
which one head names the digit; two dense layers read the 8 frames together, and three
heads name digit, direction and speed from their 48 features. Clips of one frame are
compared in its 64 numbers. Trained by ``data/moving_digits/train_reader.py``, stored as
float16, evaluated in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scm_jax.evaluation.features import frozen_weights

WEIGHTS_PATH = frozen_weights.FOLDER / "clips_reader.npz"
WEIGHTS_SHA256 = "268bdbdabd7eeee2e7ab4397f6f82670f5d42d58de11e728406fc02a17ffcf47"

CLIP_SHAPE = (8, 16, 16, 1)
SHAPES = CLIP_SHAPE, (1, 16, 16, 1)
NUM_FEATURES = 48
# Direction in eighths of a turn, speed in thirds of the data's clips.
HEADS = {"digit": 10, "direction": 8, "speed": 3}
# Input and output channels, stride; 3x3 pixels.
_CONVOLUTIONS = ((1, 16, 1), (16, 32, 2), (32, 64, 1), (64, 64, 2))
_FRAME = 64
KERNEL_SHAPES: dict[str, tuple[int, ...]] = {
    **{f"conv{i}": (3, 3, *sizes[:2]) for i, sizes in enumerate(_CONVOLUTIONS)},
    "frame": (4 * 4 * 64, _FRAME),
    "frame_digit": (_FRAME, HEADS["digit"]),
    "clip": (CLIP_SHAPE[0] * _FRAME, 128),
    "features": (128, NUM_FEATURES),
    **{name: (NUM_FEATURES, number) for name, number in HEADS.items()},
}
WEIGHT_SHAPES = frozen_weights.with_biases(KERNEL_SHAPES)

Weights = Mapping[str, Any]
load_weights = frozen_weights.loader(
    WEIGHTS_PATH, WEIGHT_SHAPES, WEIGHTS_SHA256, np.float32
)


def read_clips(weights: Weights, pixels: jax.Array) -> dict[str, jax.Array]:
    """Features and logits of clips ``(n, 8, 16, 16, 1)`` in 0..255.

    ``frame_digit`` are ``(n, 8, 10)`` logits, ``features`` ``(n, 48)``, the heads of
    ``HEADS`` ``(n, number)``. Clips of one frame have ``features`` ``(n, 64)`` and no
    heads.
    """
    dense, n = functools.partial(frozen_weights.dense, weights), len(pixels)
    h = pixels.astype(jnp.float32).reshape(-1, *CLIP_SHAPE[1:]) / 127.5
    for i, (*_, stride) in enumerate(_CONVOLUTIONS):
        h = jax.nn.relu(frozen_weights.convolution(weights, f"conv{i}", h, stride))
    h = jax.nn.relu(dense("frame", h.reshape(len(h), -1)))
    named = dense("frame_digit", h).reshape(n, pixels.shape[1], -1)
    if pixels.shape[1] == 1:
        return {"frame_digit": named, "features": h}
    h = jax.nn.relu(dense("clip", h.reshape(n, -1)))
    h = jax.nn.relu(dense("features", h))
    heads = {name: dense(name, h) for name in HEADS}
    return {"frame_digit": named, "features": h, **heads}


_read = jax.jit(read_clips)


def read(weights: Weights, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """``read_clips`` of uint8 clips, see ``frozen_weights.in_batches``."""
    return frozen_weights.in_batches(_read, weights, pixels, SHAPES)
