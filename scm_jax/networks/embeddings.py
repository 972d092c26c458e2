"""Embeddings of times, classes, scalars and positions into vectors, in float32."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from scm_jax.types import Cond, check_choice

SQRT2 = float(np.sqrt(2.0))
EMBEDDINGS = ("positional", "fourier")
TIMESTEP_MLP = "timestep_mlp"  # DiT's, which is SD3's: ``PooledEmbedding``
TIME_FEATURES = 256  # of SD3


def positional_embedding(
    a: jax.Array, dim: int, max_period: float = 10_000.0, amplitude: float = SQRT2
) -> jax.Array:
    """Positional embedding of a scalar, ``(b,) -> (b, dim)`` float32 with unit RMS.

    ``amplitude [cos(a w_i), sin(a w_i)]`` with ``w_i = max_period^(-i/(dim/2 - 1))``
    from 1 down to ``1/max_period``, both ends included. Sec. 4.1 wants features that
    vary slowly with ``t`` and leaves the range of frequencies open; this is EDM's.

    Raises:
      ValueError: ``dim`` is odd or below 4.
    """
    if dim % 2 or dim < 4:
        raise ValueError(f"dim = {dim} of a positional embedding: even, at least 4")
    half = dim // 2
    frequencies = max_period ** -(np.arange(half, dtype=np.float32) / (half - 1))
    angles = a.astype(jnp.float32)[:, None] * frequencies[None, :]
    return np.float32(amplitude) * jnp.concatenate(
        [jnp.cos(angles), jnp.sin(angles)], axis=-1
    )


def sinusoid(a: jax.Array, dim: int, max_period: float = 10_000.0) -> jax.Array:
    """SD3's ``[cos(a w_i), sin(a w_i)]``, ``w_i = max_period^(-2i/dim)``, float32.

    ``(b,) -> (b, dim)``. Unlike ``positional_embedding``, which is EDM's, it leaves the
    lowest frequency out and has the amplitude 1.
    """
    half = dim // 2
    frequencies = max_period ** -(np.arange(half, dtype=np.float32) / half)
    angles = a.astype(jnp.float32)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


THETA = 10_000.0  # longest period of positions over 2 pi


def position_table(grid: int, width: int, base: int = 64) -> jax.Array:
    """SD3's fixed positions of a ``grid x grid`` image, row by row: ``(grid^2, c)``.

    Half of the channels for x, then half for y, each ``[sin(p w_i), cos(p w_i)]`` with
    ``p = 0, base/grid, 2 base/grid, ...`` and ``w_i = 10000^(-4i/c)``.
    """
    quarter = width // 4
    frequencies = 1e4 ** -(jnp.arange(quarter, dtype=jnp.float32) / quarter)
    place = jnp.arange(grid, dtype=jnp.float32) * (base / grid)
    angles = place[:, None] * frequencies[None]
    axis = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    shape = (grid, grid, 2 * quarter)
    x, y = (jnp.broadcast_to(jnp.expand_dims(axis, i), shape) for i in (0, 1))
    return jnp.concatenate([x, y], axis=-1).reshape(grid * grid, 4 * quarter)


def centre_crop(table: jax.Array, rows: int, columns: int) -> jax.Array:
    """The middle ``rows x columns`` of the positions of a square, row by row."""
    grid = math.isqrt(len(table))
    top, left = (grid - rows) // 2, (grid - columns) // 2
    table = table.reshape(grid, grid, -1)[top : top + rows, left : left + columns]
    return table.reshape(rows * columns, -1)


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


def check_rotary(channels: int, num_axes: int) -> None:
    """Raises ``ValueError`` unless a head has a pair of channels for each axis."""
    if channels % 2 or channels < 2 * num_axes:
        raise ValueError(
            f"network.positions = 'rotary': a head of {channels} channels has no pair "
            f"for each of {num_axes} axes"
        )


def position_angles(axes: tuple[int, ...], channels: int) -> np.ndarray:
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


def position_sincos(axes: tuple[int, ...], channels: int) -> np.ndarray:
    """Sines, then cosines of ``position_angles``: ``(tokens, channels)`` float32."""
    table = position_angles(axes, channels)
    return np.concatenate([np.sin(table), np.cos(table)], axis=-1)


def rotate(a: jax.Array, turns: jax.Array) -> jax.Array:
    """Turns the pairs of channels ``(2i, 2i + 1)`` of ``a`` ``(b, n, heads, d)``.

    ``turns`` are ``position_angles``, ``(n, d / 2)``. The product of a query and a key
    then depends on the difference of their positions alone (arXiv 2104.09864).
    """
    turns = turns[None, :, None]
    cos, sin = jnp.cos(turns), jnp.sin(turns)
    pairs = a.astype(jnp.float32).reshape(*a.shape[:-1], -1, 2)
    x, y = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([x * cos - y * sin, x * sin + y * cos], axis=-1)
    return turned.reshape(a.shape).astype(a.dtype)


class FourierEmbedding(nn.Module):
    """Random Fourier features ``sqrt(2) cos(w_i a + p_i)``, ``(b,) -> (b, dim)``.

    ``w_i = 2 pi scale N(0, 1)`` and ``p_i = 2 pi U(0, 1)`` are drawn once and never
    trained (EDM2 has ``scale`` 1, NCSN++ 16). ``d/da`` has an RMS of ``2 pi scale``:
    large scales make the tangent of a consistency model unstable (Sec. 4.1).
    """

    dim: int
    scale: float = 1.0  # standard deviation of the frequencies, in turns per unit

    @nn.compact
    def __call__(self, a: jax.Array) -> jax.Array:
        """``(b,)`` -> ``(b, dim)`` float32 with unit RMS."""
        turn, shape = float(2 * np.pi), (self.dim,)
        normal, uniform = nn.initializers.normal, nn.initializers.uniform
        freqs = self.param("freqs", normal(turn * self.scale), shape)
        phases = self.param("phases", uniform(turn), shape)
        freqs, phases = jax.lax.stop_gradient((freqs, phases))
        angles = a.astype(jnp.float32)[:, None] * freqs[None] + phases[None]
        return SQRT2 * jnp.cos(angles)


def embed_time(net: Any, t: jax.Array, dim: int, **positional: float) -> jax.Array:
    """Features of ``c_noise(t)`` by ``net.embedding``; call it inside ``__call__``."""
    check_choice(net.embedding, EMBEDDINGS, "network.embedding")
    if net.embedding == "fourier":
        return FourierEmbedding(dim, net.fourier_scale, name="fourier")(t)
    return positional_embedding(t, dim, **positional)


def scalars(net: Any, cond: Cond) -> Iterator[tuple[str, jax.Array]]:
    """Name and value of each further scalar that ``net`` takes: ``dt``, ``guidance``.

    Raises:
      ValueError: ``cond`` has no value.
    """
    for name in ("dt", "guidance"):
        if getattr(net, f"use_{name}"):
            if (value := getattr(cond, name)) is None:
                raise ValueError(
                    f"this network takes cond.{name} as an input (network.use_{name} = "
                    "True), but the caller's Cond has none"
                )
            yield name, value


def labels(cond: Cond) -> jax.Array:
    """``cond.label``; -1, the null class, where it is left out."""
    if cond.label is None:
        return jnp.full(cond.t.shape, -1, jnp.int32)
    return cond.label


def _add_inputs(net: Any, total: jax.Array, cond: Cond) -> jax.Array:
    """``total`` ``(b, dim)`` and layers of further scalars and of the class."""
    for name, a in scalars(net, cond):
        # These start at zero: a student that inherits the weights of a teacher
        # without such an input is that teacher, whatever the value.
        zeros = nn.initializers.zeros
        layer = nn.Dense(net.dim, kernel_init=zeros, name=name)
        total = total + layer(positional_embedding(a, net.dim))
    if net.num_classes:
        normal = nn.initializers.normal(1.0)
        rows = net.num_classes + 1
        table = nn.Embed(rows, net.dim, embedding_init=normal, name="label")
        label = labels(cond)
        total = total + table(jnp.where(label < 0, net.num_classes, label))
    return total


class ConditionEmbedding(nn.Module):
    """Embeds time, second time, class and guidance into one vector, in float32.

    Each input has its own positional or table embedding and one linear layer; after
    them, ``c = W silu(sum)``.
    """

    dim: int
    num_classes: int = 0  # row num_classes of the table is the null class
    use_guidance: bool = False  # takes the guidance scale as an input (Sec. 5, App. D)
    use_dt: bool = False  # takes the second time cond.dt
    embedding: str = "positional"
    fourier_scale: float = 1.0

    @nn.compact
    def __call__(self, cond: Cond) -> jax.Array:
        """``Cond`` -> ``(b, dim)`` float32."""

        features = embed_time(self, cond.t, self.dim)
        total = nn.Dense(self.dim, name="t")(features)
        total = _add_inputs(self, total, cond)
        if cond.pooled is not None:
            total = total + nn.Dense(self.dim, name="pooled")(cond.pooled)
        # A linear layer follows every silu before a pixel norm sees the result, so the
        # embedding is never exactly zero at initialization.
        return nn.Dense(self.dim, name="out")(nn.silu(total))


class PooledEmbedding(nn.Module):
    """SD3's: time, pooled caption and further scalars as one vector, in float32.

    ``MLP(sinusoid(t)) + MLP(pooled)``, each ``W2 silu(W1 a)``; the layers of ``dt`` and
    guidance start at zero, as those of ``ConditionEmbedding``.
    """

    dim: int
    num_classes: int
    use_guidance: bool
    use_dt: bool

    @nn.compact
    def __call__(self, cond: Cond) -> jax.Array:
        """``Cond`` -> ``(b, dim)``."""
        total = self._mlp(sinusoid(cond.t, TIME_FEATURES), "t")
        if cond.pooled is not None:
            total = total + self._mlp(cond.pooled.astype(jnp.float32), "pooled")
        return _add_inputs(self, total, cond)

    def _mlp(self, a: jax.Array, name: str) -> jax.Array:
        h = nn.silu(nn.Dense(self.dim, name=f"{name}_in")(a))
        return nn.Dense(self.dim, name=f"{name}_out")(h)
