"""Building blocks of all backbones; float32 islands are marked by their casts."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from scm_jax.types import Cond

PIXEL_NORM_EPS = 1e-8


def positional_embedding(
    a: jax.Array, dim: int, max_period: float = 10_000.0
) -> jax.Array:
    """Positional embedding of a scalar, ``(b,) -> (b, dim)`` float32 with unit RMS.

    ``sqrt(2) [cos(a w_i), sin(a w_i)]`` with ``w_i = max_period^(-i/(dim/2 - 1))`` from
    1 down to ``1/max_period``, both ends included (Sec. 4.1: positional features of
    ``c_noise(t) = t`` vary slowly, Fourier features of a large scale do not; the
    frequency range is not given there and is EDM's). Computed in float32, like its
    tangent.

    Raises:
      ValueError: ``dim`` is odd or below 4.
    """
    if dim % 2 or dim < 4:
        raise ValueError(f"dim = {dim} of a positional embedding: even, at least 4")
    half = dim // 2
    frequencies = max_period ** -(np.arange(half, dtype=np.float32) / (half - 1))
    angles = a.astype(jnp.float32)[:, None] * frequencies[None, :]
    return np.sqrt(2.0).astype(np.float32) * jnp.concatenate(
        [jnp.cos(angles), jnp.sin(angles)], axis=-1
    )


def check_width(width: int) -> None:
    """Raises ``ValueError`` for a width that has no positional embedding."""
    if width % 2 or width < 4:
        raise ValueError(f"network.width = {width}: must be even and at least 4")


def pixel_norm(a: jax.Array, eps: float = PIXEL_NORM_EPS) -> jax.Array:
    """``a / sqrt(mean(a^2) + eps)`` over the last axis, in float32 (Sec. 4.1).

    At ``a = 0`` the output is 0 but the slope is ``1/sqrt(eps)``: whatever feeds this
    must not be initialized to zero.
    """
    a32 = a.astype(jnp.float32)
    return a32 * jax.lax.rsqrt(jnp.mean(jnp.square(a32), -1, keepdims=True) + eps)


def layer_norm(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """Zero mean and unit variance over the last axis, in float32; no parameters."""
    x32 = x.astype(jnp.float32)
    x32 = x32 - jnp.mean(x32, -1, keepdims=True)
    return x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + eps)


def double_norm(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """Adaptive double normalization ``norm(x) pnorm(scale) + pnorm(shift)`` (Sec. 4.1).

    Args:
      x: ``(b, ..., c)`` features.
      scale: ``(b, c)`` from the embedding; there is no "+1".
      shift: ``(b, c)``.

    Returns:
      ``(b, ..., c)`` in ``x``'s dtype; the arithmetic is float32.
    """
    ones = (1,) * (x.ndim - 2)
    scale = pixel_norm(scale).reshape(scale.shape[:1] + ones + scale.shape[1:])
    shift = pixel_norm(shift).reshape(shift.shape[:1] + ones + shift.shape[1:])
    return (layer_norm(x) * scale + shift).astype(x.dtype)


class ConditionEmbedding(nn.Module):
    """Embeds time, second time, class and guidance into one vector, in float32.

    Each input has its own positional or table embedding and one linear layer; the sum
    passes through a small network: ``c = W2 silu(W1 sum)``. Inputs that ``Cond`` leaves
    out contribute nothing, except that a labelled network reads a missing label as the
    null class.

    Attributes:
      dim: width of the embedding.
      num_classes: classes; 0 for an unconditional network. Row ``num_classes`` of the
        table is the null class.
      use_guidance: takes the guidance scale as an input (Sec. 5, App. D).
      use_dt: takes the second time ``cond.dt``.
    """

    dim: int
    num_classes: int = 0
    use_guidance: bool = False
    use_dt: bool = False

    @nn.compact
    def __call__(self, cond: Cond) -> jax.Array:
        """``Cond`` -> ``(b, dim)`` float32."""

        def scalar(a: jax.Array, name: str, **init: Any) -> jax.Array:
            features = positional_embedding(a, self.dim)
            return nn.Dense(self.dim, name=name, **init)(features)

        total = scalar(cond.t, "t")
        if self.use_dt:
            total = total + scalar(_required(cond.dt, "dt"), "dt")
        if self.use_guidance:
            # Starts at zero: a student that inherits an unguided teacher's weights is
            # that teacher, whatever the scale.
            total = total + scalar(
                _required(cond.guidance, "guidance"),
                "guidance",
                kernel_init=nn.initializers.zeros,
            )
        if self.num_classes:
            table = nn.Embed(
                self.num_classes + 1,
                self.dim,
                embedding_init=nn.initializers.normal(1.0),
                name="label",
            )
            label = cond.label
            if label is None:
                label = jnp.full(cond.t.shape, -1, jnp.int32)
            total = total + table(jnp.where(label < 0, self.num_classes, label))
        # A linear layer follows every silu before a pixel norm sees the result, so the
        # embedding is never exactly zero at initialization.
        return nn.Dense(self.dim, name="out")(nn.silu(total))


def _required(value: jax.Array | None, name: str) -> jax.Array:
    if value is None:
        raise ValueError(
            f"this network takes cond.{name} as an input (network.use_{name} = True), "
            f"but the caller's Cond has none"
        )
    return value
