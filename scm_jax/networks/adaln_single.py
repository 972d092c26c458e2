"""What transformers with one shared modulation have in common (PixArt, SANA, Wan).

One layer turns the embedding of the time into the vectors of all blocks, and every
block adds a table of its own (arXiv 2310.00426, ``adaLN-single``). Captions are read by
cross-attention with normalized queries and keys.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from scm_jax.networks import layers
from scm_jax.networks.attention import attention
from scm_jax.types import Cond, Placement

CROSS_EPS = 1e-6  # of the norms of queries and keys


class RMSNorm(nn.Module):
    """``w a / sqrt(mean(a^2) + eps)`` over all channels, float32."""

    eps: float
    initial: float = 1.0

    @nn.compact
    def __call__(self, a: jax.Array) -> jax.Array:
        """``(b, n, c)`` -> the same shape."""
        draw = nn.initializers.constant(self.initial)
        scale = self.param("scale", draw, a.shape[-1:])
        return layers.pixel_norm(a, self.eps) * scale[None, None]


def modulated(h: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """``layer_norm(h) (1 + scale) + shift``, float32; vectors are ``(b, c)``."""
    normed = layers.layer_norm(h)
    return normed * (1 + scale[:, None]) + shift[:, None]


def add_table(vectors: jax.Array, module: nn.Module, name: str) -> jax.Array:
    """``vectors`` ``(b, k, c)`` and a table ``(k, c)`` of ``module``."""
    draw = nn.initializers.normal(vectors.shape[-1] ** -0.5)
    return vectors + module.param(name, draw, vectors.shape[1:])[None]


def read_out(
    net: Any, h: jax.Array, emb: jax.Array, values: int, patch: layers.Patch
) -> jax.Array:
    """The last layer: ``values`` of each patch, as samples of ``net``'s shape."""
    m = add_table(jnp.stack([emb, emb], axis=1), net, "table_out")
    h = modulated(h, m[:, 0], m[:, 1])
    out = nn.Dense(values, kernel_init=layers.SMALL, name="patch_out")
    return layers.unpatchify(out(h), patch, net.sample_shape)


@dataclasses.dataclass(frozen=True)
class CrossAttention:
    """Attention to the caption, with layers of the block that calls it."""

    num_heads: int
    attention: str
    dtype: Any
    placement: Placement | None = None

    def __call__(self, h: jax.Array, memory: jax.Array, mask: Any) -> jax.Array:
        """``h`` ``(b, n, c)``; ``memory`` ``(b, m, 2, heads, d)`` keys and values."""
        b, n, width = h.shape
        q = nn.Dense(width, dtype=self.dtype, name="cross_q")(h)
        q = RMSNorm(CROSS_EPS, name="cross_q_norm")(q).astype(memory.dtype)
        q = q.reshape(b, n, self.num_heads, -1)
        k, v = memory[:, :, 0], memory[:, :, 1]
        how: Any = {"implementation": self.attention, "placement": self.placement}
        out = attention(q, k, v, key_mask=mask, **how)
        dense = nn.Dense(width, dtype=self.dtype, name="cross_out")
        return dense(out.reshape(h.shape))


class KeysAndValues(nn.Module):
    """``[k, v] = W c + b`` and ``k <- rms_norm(k)``: ``(b, n, w) -> (b, n, 2, w)``."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, c: jax.Array) -> jax.Array:
        kv = nn.Dense(2 * self.width, dtype=self.dtype, name="kv")(c)
        k, v = jnp.split(kv, 2, axis=-1)
        k = RMSNorm(CROSS_EPS, name="k_norm")(k).astype(v.dtype)
        return jnp.stack([k, v], axis=2)


class CaptionMemory(nn.Module):
    """Keys and values of the caption for every block; needs neither ``x`` nor ``t``.

    ``KeysAndValues`` of ``c = W2 gelu(W1 context)``, which ``norm``, epsilon and
    initial scale of an ``RMSNorm``, normalizes. Fills ``memory`` with ``(b, depth, n,
    2, heads, d)`` and removes ``context``. ``padded``: the caption is filled up to this
    length with zeros, which are attended to.
    """

    depth: int
    width: int
    num_heads: int
    dtype: Any
    norm: tuple[float, float] | None = None
    padded: int = 0

    @nn.compact
    def __call__(self, cond: Cond) -> Cond:
        h = cond.context
        assert h is not None
        if self.padded:
            assert cond.context_mask is not None
            h = jnp.where(cond.context_mask[..., None], h, 0.0)
            h = jnp.pad(h, ((0, 0), (0, self.padded - h.shape[1]), (0, 0)))
            cond = dataclasses.replace(cond, context_mask=None)
        h = nn.Dense(self.width, dtype=self.dtype, name="in")(h)
        h = nn.Dense(self.width, dtype=self.dtype, name="out")(nn.gelu(h))
        if self.norm is not None:
            h = RMSNorm(*self.norm, name="norm")(h).astype(self.dtype)
        axes: Any = {"in_axes": None, "out_axes": 1, "axis_size": self.depth}
        axes |= {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        both = nn.vmap(KeysAndValues, **axes)
        memory = both(self.width, self.dtype, name="blocks")(h)
        memory = memory.reshape(*memory.shape[:4], self.num_heads, -1)
        return dataclasses.replace(cond, context=None, memory=memory)
