"""Image resizing exactly as published metrics do it; another rule is another metric."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def tf1_bilinear(images: jax.Array, height: int, width: int) -> jax.Array:
    """Bilinear resize as ``resize_bilinear`` of TensorFlow 1, the rule of FID.

    Pixel ``i`` of the result is read at ``i * in / out``: no half-pixel centres, no
    smoothing when the image gets smaller, and the last rows and columns are repeated.

    Args:
      images: ``(b, h, w, c)``, uint8 or float.
      height: of the result.
      width: of the result.

    Returns:
      float32 ``(b, height, width, c)`` in the range of ``images``.
    """
    x = jnp.asarray(images).astype(jnp.float32)
    if x.shape[1:3] == (height, width):
        return x
    left, right, across = _grid(x.shape[2], width)
    top, bottom, down = _grid(x.shape[1], height)
    x = _lerp(x[:, :, left], x[:, :, right], across[None, None, :, None])
    return _lerp(x[:, top], x[:, bottom], down[None, :, None, None])


def _grid(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two source pixels of every new pixel, and the weight of the second."""
    # In float32 as TensorFlow has it (tensorflow/core/kernels/image/
    # resize_bilinear_op.cc): at large sizes the rounding is what is seen.
    scale = np.float32(size) / np.float32(new_size)
    source = np.arange(new_size, dtype=np.float32) * scale
    first = np.floor(source)
    second = np.minimum(first + 1, size - 1)
    return first.astype(np.int32), second.astype(np.int32), source - first


def _lerp(a: jax.Array, b: jax.Array, weight: np.ndarray) -> jax.Array:
    return a + (b - a) * jnp.asarray(weight)
