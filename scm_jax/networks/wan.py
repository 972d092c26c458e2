"""The transformer of Wan2.1 (arXiv 2503.20314) over clips of latents.

Full attention over ``(t, h, w)`` with rotary positions, cross-attention to the caption,
and one modulation that all blocks share. Formulas that the paper leaves open are those
of ``wan/modules/model.py`` in Wan-Video/Wan2.1. Norms, modulation and embeddings are
float32. The published weights predict the velocity of a rectified flow at ``1000 s``:
use them with ``parameterization = "rectified_flow"``.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from scm_jax.networks import embeddings, layers
from scm_jax.networks.adaln_single import (
    CaptionMemory,
    CrossAttention,
    RMSNorm,
    add_table,
    modulated,
    read_out,
)
from scm_jax.networks.attention import IMPLEMENTATIONS, attention
from scm_jax.networks.text import text_encoders
from scm_jax.types import Cond, Placement, TextInfo

# Text to video, on latents of 4x8x8 pixels with 16 channels, umT5-XXL reading captions.
PRESETS = {
    "1p3b": {"width": 1536, "depth": 30, "num_heads": 12, "hidden": 8960},
    "14b": {"width": 5120, "depth": 40, "num_heads": 40, "hidden": 13824},
}
NORM_EPS = 1e-6  # of queries and keys


class LayerNorm(nn.Module):
    """``w layer_norm(h) + b``, float32."""

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        """``(b, n, c)`` -> the same shape."""
        scale = self.param("scale", nn.initializers.ones, h.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, h.shape[-1:])
        return layers.layer_norm(h) * scale[None, None] + bias[None, None]


class Block(nn.Module):
    """Attention, cross-attention and a two-layer network.

    With six vectors ``m = table + t_block(emb)``, the gates ``m_2, m_5``:
    ``h <- h + m_2 attention(modulate(h, m_0, m_1))``,
    ``h <- h + cross(w layer_norm(h) + b)``,
    ``h <- h + m_5 W2 gelu(W1 modulate(h, m_3, m_4))``.
    """

    num_heads: int
    hidden: int
    dropout: float
    attention: str
    dtype: jnp.dtype
    placement: Placement | None = None

    @nn.compact
    def __call__(
        self,
        h: jax.Array,
        vectors: jax.Array,
        turns: jax.Array,
        memory: jax.Array | None,
        mask: jax.Array | None,
        deterministic: bool,
    ) -> tuple[jax.Array, None]:
        """``h`` is ``(b, n, c)``, ``vectors`` ``(b, 6, c)``; else see ``dit.Block``."""
        h = layers.place_tokens(h, self.placement)
        m = add_table(vectors, self, "table")
        gate1, gate2 = (m[:, i, None].astype(h.dtype) for i in (2, 5))
        y = modulated(h, m[:, 0], m[:, 1]).astype(self.dtype)
        h = h + gate1 * self._attend(y, turns)
        if memory is not None:
            sizes = (self.num_heads, self.attention, self.dtype, self.placement)
            y = LayerNorm(name="cross_norm")(h).astype(self.dtype)
            h = h + CrossAttention(*sizes)(y, memory, mask)
        y = modulated(h, m[:, 3], m[:, 4]).astype(self.dtype)
        y = nn.gelu(nn.Dense(self.hidden, dtype=self.dtype, name="mlp_in")(y))
        y = nn.Dropout(self.dropout)(y, deterministic=deterministic)
        y = nn.Dense(h.shape[-1], dtype=self.dtype, name="mlp_out")(y)
        return h + gate2 * y, None

    def _attend(self, y: jax.Array, turns: jax.Array) -> jax.Array:
        b, n, width = y.shape
        qkv = nn.DenseGeneral((3, width), dtype=self.dtype, name="qkv")(y)
        heads = (b, n, self.num_heads, width // self.num_heads)
        q = RMSNorm(NORM_EPS, name="q_norm")(qkv[:, :, 0])
        k = RMSNorm(NORM_EPS, name="k_norm")(qkv[:, :, 1])
        q, k = (embeddings.rotate(a.reshape(heads), turns) for a in (q, k))
        q, k, v = (a.astype(self.dtype) for a in (q, k, qkv[:, :, 2].reshape(heads)))
        how: Any = {"implementation": self.attention, "placement": self.placement}
        out = attention(q, k, v, **how).reshape(b, n, width)
        return nn.Dense(width, dtype=self.dtype, name="attention_out")(out)


class Wan(nn.Module):
    """``v(y, cond)`` for clips of latents ``(b, t, h, w, c)``.

    Attributes:
      patch_sides: of a patch along time, rows and columns.
      num_heads: must divide ``width``.
      hidden: channels inside a block's network.

    All other attributes are those of ``dit.DiT``. As published, a caption is filled up
    with zeros to the length of the context, and these are attended to. Labels, a second
    time, guidance and captions of the network's own text tower are options.
    """

    sample_shape: tuple[int, ...]
    num_classes: int = 0
    patch_sides: tuple[int, ...] = (1, 2, 2)
    width: int = 64
    depth: int = 3
    num_heads: int = 2
    hidden: int = 256
    dropout: float = 0.0
    use_guidance: bool = False
    use_dt: bool = False
    attention: str = "einsum"
    dtype: str = "float32"
    remat: str = "none"
    tower_width: int = 128
    tower_depth: int = 2
    text: TextInfo | None = None
    placement: Placement | None = None

    stacks = ("blocks",)

    def check(self) -> None:
        """Raises ``ValueError`` for settings that contradict each other."""
        layers.check_settings(self, remat=layers.REMAT, attention=IMPLEMENTATIONS)
        grid = layers.token_grid(self.patch_sides, self.sample_shape)
        layers.check_divides(self, "num_heads", self.width, f"width = {self.width}")
        embeddings.check_rotary(self.width // self.num_heads, len(grid))

    @nn.nowrap
    def encoders(self) -> dict[str, nn.Module]:
        """See ``Network.encoders``."""
        if encoders := text_encoders(self):
            assert self.text is not None
            sizes = (self.depth, self.width, self.num_heads, jnp.dtype(self.dtype))
            encoders["memory"] = CaptionMemory(*sizes, padded=self.text.length)
        return encoders

    @nn.compact
    def __call__(self, x: jax.Array, cond: Cond, *, train: bool = False) -> jax.Array:
        """``x`` is ``(b, *sample_shape)``; returns that shape, float32."""
        self.check()
        layers.check_input(x, self.sample_shape)
        dtype, width = jnp.dtype(self.dtype), self.width
        inputs = (self.num_classes, self.use_guidance, self.use_dt)
        emb = embeddings.PooledEmbedding(width, *inputs, name="cond")(cond)
        emb = layers.place_batch(emb, self.placement)
        vectors = nn.Dense(6 * width, name="t_block")(nn.silu(emb))
        vectors = vectors.reshape(-1, 6, width)

        tokens = layers.patchify(x, self.patch_sides).astype(dtype)
        h = nn.Dense(width, dtype=dtype, name="patch_in")(tokens)
        grid = layers.token_grid(self.patch_sides, self.sample_shape)
        turns = jnp.asarray(embeddings.position_angles(grid, width // self.num_heads))
        memory, mask = None, None
        if self.text is not None:
            memory, mask = jnp.moveaxis(cond.memory, 1, 0), cond.context_mask
        h = self._stack(dtype)(h, vectors, turns, memory, mask, not train)[0]

        return read_out(self, h, emb, tokens.shape[-1], self.patch_sides)

    def _stack(self, dtype: jnp.dtype) -> Any:
        unroll = self.depth if self.depth <= 4 else 1  # as in dit.py
        memory: Any = nn.broadcast if self.text is None else 0
        in_axes = (nn.broadcast, nn.broadcast, memory, nn.broadcast, nn.broadcast)
        block = layers.stacked(Block, self, "blocks", in_axes, self.depth, unroll)
        settings = (self.hidden, self.dropout, self.attention, dtype, self.placement)
        return block(self.num_heads, *settings, name="blocks")
