"""Layers that preserve magnitudes (EDM2, arXiv 2312.02696, App. B)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

SILU_RMS = 0.596  # root mean square of silu of a unit normal
RMS_EPS = 1e-4


def rms_normalize(
    x: jax.Array, axes: tuple[int, ...], eps: float = RMS_EPS
) -> jax.Array:
    """``x / (eps + rms(x))`` over ``axes``, in float32 (EDM2, Eq. 47)."""
    x32 = x.astype(jnp.float32)
    mean = jnp.mean(jnp.square(x32), axes, keepdims=True)
    return x32 / (eps + jnp.sqrt(mean + 1e-30))  # a finite derivative at x = 0


def mp_silu(x: jax.Array) -> jax.Array:
    """``silu(x) / 0.596``: unit magnitude for unit normal input (EDM2, Eq. 81)."""
    return nn.silu(x) / SILU_RMS


def mp_sum(a: jax.Array, b: jax.Array, t: float) -> jax.Array:
    """``((1 - t) a + t b) / sqrt((1 - t)^2 + t^2)`` (EDM2, Eq. 88)."""
    norm = float(np.hypot(1 - t, t))
    return a * ((1 - t) / norm) + b * (t / norm)


def mp_cat(a: jax.Array, b: jax.Array, t: float) -> jax.Array:
    """Concatenates channels with weights ``1 - t`` and ``t`` (EDM2, Eq. 103)."""
    n_a, n_b = a.shape[-1], b.shape[-1]
    scale = np.sqrt((n_a + n_b) / ((1 - t) ** 2 + t**2))
    w_a = float(scale / np.sqrt(n_a) * (1 - t))
    w_b = float(scale / np.sqrt(n_b) * t)
    return jnp.concatenate([a * w_a, b * w_b], axis=-1)


class MPConv(nn.Module):
    """Convolution or linear layer of EDM2 (Eq. 66) on weights that are folded already.

    ``kernel`` is ``(size, size, in, out)``, or ``(in, out)`` for ``size`` 1; no bias.
    It is stored as trained; ``fold_kernel`` makes of it, once per update of the
    optimizer, what a pass multiplies by.
    """

    features: int  # output channels
    size: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``(b, ..., in)`` -> ``(b, ..., out)``."""
        shape: tuple[int, ...] = (x.shape[-1], self.features)
        if self.size > 1:
            shape = (self.size, self.size, *shape)
        w = self.param("kernel", nn.initializers.normal(1.0), shape)
        return conv(x.astype(self.dtype), w.astype(self.dtype))


class MPTable(nn.Module):
    """Rows of a table: an ``MPConv`` on ``sqrt(rows) one_hot(index)``."""

    rows: int  # a negative index is the last row
    features: int  # width of a row

    @nn.compact
    def __call__(self, index: jax.Array) -> jax.Array:
        """``(b,)`` int -> ``(b, features)`` float32."""
        shape = (self.rows, self.features)
        table = self.param("kernel", nn.initializers.normal(1.0), shape)
        # Beyond the last row is NaN, which stops a training.
        index = jnp.where(index < 0, self.rows - 1, index)
        row = jnp.take(table, index, axis=0, mode="fill")
        return row.astype(jnp.float32) * np.float32(np.sqrt(self.rows))


def _input_axes(w: jax.Array) -> tuple[int, ...]:
    """All axes of a kernel but the last, less a leading stack axis."""
    axes = (-4, -3, -2) if w.ndim >= 4 else (-2,)
    return axes[-(w.ndim - 1) :]


def normalize_kernel(w: jax.Array) -> jax.Array:
    """Unit RMS per output channel."""
    return rms_normalize(w, _input_axes(w))


def fold_kernel(w: jax.Array, gain: jax.Array | float = 1.0) -> jax.Array:
    """``gain w / (|w| sqrt(fan_in))`` per output channel (EDM2, Eq. 66), float32.

    ``|w|`` is the root mean square over the inputs. Stacked kernels carry a leading
    axis, and one gain each.
    """
    fan_in = np.prod([w.shape[axis] for axis in _input_axes(w)])
    gain = jnp.asarray(gain, jnp.float32)
    gain = gain.reshape(gain.shape + (1,) * (w.ndim - gain.ndim))
    return normalize_kernel(w) * (gain / np.sqrt(fan_in).astype(np.float32))


# XLA's CPU backend convolves images of at most so many positions more slowly than it
# multiplies their patches: 1.5 times at 4x4 with its gradient, 10 times at 2x2.
FEW_POSITIONS = 16


def conv(x: jax.Array, w: jax.Array) -> jax.Array:
    """``(b, h, w, in)`` by a ``(k, k, in, out)`` or ``(in, out)`` kernel, same size."""
    if w.ndim == 2:
        return jnp.einsum("...i,io->...o", x, w)
    if jax.default_backend() == "cpu" and x.shape[1] * x.shape[2] <= FEW_POSITIONS:
        return jnp.einsum(
            "...i,io->...o", patches(x, w.shape[0]), w.reshape(-1, w.shape[-1])
        )
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def patches(x: jax.Array, size: int) -> jax.Array:
    """``(b, h, w, c)`` -> ``(b, h, w, size^2 c)``: what a kernel sees at each place."""
    _, h, w, _ = x.shape
    before, after = (size - 1) // 2, size // 2
    x = jnp.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
    return jnp.concatenate(
        [x[:, i : i + h, j : j + w] for i in range(size) for j in range(size)], axis=-1
    )
