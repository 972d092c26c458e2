"""Where a token lies along each axis: tables and rotations without parameters.

Both work for more tokens along an axis than a network was trained with.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

THETA = 10_000.0


def split_channels(channels: int, num_axes: int) -> tuple[int, ...]:
    """How many channels tell the position along each axis: even numbers.

    All axes but the first have ``2 floor(channels / (2 num_axes))``, the first has the
    rest, as in Wan2.1 (arXiv 2503.20314).

    Example:
      >>> split_channels(128, 3)
      (44, 42, 42)
    """
    rest = 2 * (channels // (2 * num_axes))
    return channels - (num_axes - 1) * rest, *(rest,) * (num_axes - 1)


def angles(axes: tuple[int, ...], channels: int) -> np.ndarray:
    """``p_a THETA^(-2i / c_a)`` for pair ``i`` of the ``c_a`` channels of axis ``a``.

    Tokens are those of a grid of ``axes``, the last axis fastest: ``(tokens,
    channels / 2)`` float32.
    """
    parts = []
    for axis, c in enumerate(split_channels(channels, len(axes))):
        shape = [1] * len(axes) + [c // 2]
        shape[axis] = axes[axis]
        frequency = THETA ** (-np.arange(0, c, 2) / c)
        outer = np.arange(axes[axis])[:, None] * frequency
        parts.append(np.broadcast_to(outer.reshape(shape), (*axes, c // 2)))
    table = np.concatenate(parts, axis=-1, dtype=np.float32)
    return table.reshape(math.prod(axes), channels // 2)


def sincos(axes: tuple[int, ...], channels: int) -> np.ndarray:
    """Sines, then cosines of ``angles``: ``(tokens, channels)`` float32."""
    table = angles(axes, channels)
    return np.concatenate([np.sin(table), np.cos(table)], axis=-1)


def rotate(a: jax.Array, turns: jax.Array) -> jax.Array:
    """Turns the pairs of channels ``(2i, 2i + 1)`` of ``a`` ``(b, n, heads, d)``.

    ``turns`` are ``angles``, ``(n, d / 2)``. The product of a query and a key then
    depends on the difference of their positions alone (arXiv 2104.09864).
    """
    turns = turns[None, :, None]
    cos, sin = jnp.cos(turns), jnp.sin(turns)
    pairs = a.astype(jnp.float32).reshape(*a.shape[:-1], -1, 2)
    x, y = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([x * cos - y * sin, x * sin + y * cos], axis=-1)
    return turned.reshape(a.shape).astype(a.dtype)
