"""The transformer of SANA-Sprint (arXiv 2503.09641, 2410.10629): linear attention.

One vector, of the time and the guidance scale, modulates all blocks through one shared
layer and a table of each block; there is no positional embedding. Formulas and numbers
that the papers leave open are those of ``diffusion/model/nets`` in NVlabs/Sana. Norms,
embeddings and linear attention are float32. The network predicts the velocity of a
rectified flow at its time ``s``; see ``trigflow.from_sana_sprint``.
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
from scm_jax.networks.attention import IMPLEMENTATIONS
from scm_jax.networks.text import text_encoders
from scm_jax.types import Cond, Placement, TextInfo

# SANA-Sprint 0.6B and 1.6B, on 32 x 32 x 32 latents of 1024 x 1024 pixels.
PRESETS = {
    "0p6b": {"width": 1152, "depth": 28, "num_heads": 16},
    "1p6b": {"width": 2240, "depth": 20, "num_heads": 20},
}
GUIDANCE_SCALE = 0.1  # the embedding of guidance reads 0.1 w
LINEAR_EPS = 1e-8  # of linear attention; diffusers has 1e-15
SELF_EPS, CAPTION_EPS = 1e-5, 1e-5  # of RMS norms
CAPTION_SCALE = 0.01  # at the start


def linear_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attention with the weights ``relu(q_i) . relu(k_j)``, linear in tokens.

        out_i = sum_j (relu(q_i) . relu(k_j)) v_j / (sum_j relu(q_i) . relu(k_j) + eps)

    computed as ``q_i . (sum_j k_j [v_j, 1])``: ``(b, n, heads, d)`` each, float32.
    """
    q, k = nn.relu(q), nn.relu(k)
    ones = jnp.ones((*v.shape[:3], 1), v.dtype)
    states = jnp.einsum("bnhd,bnhe->bhde", k, jnp.concatenate([v, ones], axis=-1))
    out = jnp.einsum("bnhd,bhde->bnhe", q, states)
    return out[..., :-1] / (out[..., -1:] + LINEAR_EPS)


class Block(nn.Module):
    """Linear attention, cross-attention and the convolutional mix network.

    With six vectors ``m = table + t_block(emb)``, the gates ``m_2, m_5``:
    ``h <- h + m_2 attention(modulate(h, m_0, m_1))``, ``h <- h + cross(h)``,
    ``h <- h + m_5 mix(modulate(h, m_3, m_4))``.
    """

    grid: tuple[int, int]  # rows and columns of tokens
    num_heads: int  # of cross-attention
    head_channels: int  # of linear attention
    hidden: int  # channels of the mix network
    dropout: float
    attention: str
    dtype: jnp.dtype
    placement: Placement | None = None

    @nn.compact
    def __call__(
        self,
        h: jax.Array,
        vectors: jax.Array,
        memory: jax.Array | None,
        mask: jax.Array | None,
        deterministic: bool,
    ) -> tuple[jax.Array, None]:
        """``h`` is ``(b, n, c)``, ``vectors`` ``(b, 6, c)``; else see ``dit.Block``."""
        h = layers.place_batch(h, self.placement)
        m = add_table(vectors, self, "table")
        gate1, gate2 = (m[:, i, None].astype(h.dtype) for i in (2, 5))
        y = modulated(h, m[:, 0], m[:, 1])
        h = h + gate1 * self._attend(y.astype(self.dtype))
        if memory is not None:
            sizes = (self.num_heads, self.attention, self.dtype, self.placement)
            h = h + CrossAttention(*sizes)(h, memory, mask)
        y = modulated(h, m[:, 3], m[:, 4])
        return h + gate2 * self._mix(y.astype(self.dtype), deterministic), None

    def _attend(self, y: jax.Array) -> jax.Array:
        b, n, width = y.shape
        options: Any = {"use_bias": False, "dtype": self.dtype}
        qkv = nn.DenseGeneral((3, width), name="qkv", **options)(y)
        q = RMSNorm(SELF_EPS, name="q_norm")(qkv[:, :, 0])
        k = RMSNorm(SELF_EPS, name="k_norm")(qkv[:, :, 1])
        heads = (b, n, width // self.head_channels, self.head_channels)
        v = qkv[:, :, 2].astype(q.dtype)
        out = linear_attention(*(a.reshape(heads) for a in (q, k, v)))
        dense = nn.Dense(width, dtype=self.dtype, name="attention_out")
        return dense(out.reshape(b, n, width))

    def _mix(self, y: jax.Array, deterministic: bool) -> jax.Array:
        """``W_out (a * silu(g))``, ``[a, g] = depthwise 3x3 (silu(W_in y))``."""
        b, n, width = y.shape
        y = nn.silu(nn.Dense(2 * self.hidden, dtype=self.dtype, name="mlp_in")(y))
        options: Any = {"dtype": self.dtype, "feature_group_count": 2 * self.hidden}
        depthwise = nn.Conv(2 * self.hidden, (3, 3), name="mlp_depth", **options)
        y = depthwise(y.reshape(b, *self.grid, -1))
        value, gate = jnp.split(y.reshape(b, n, -1), 2, axis=-1)
        y = nn.Dropout(self.dropout)(value * nn.silu(gate), deterministic=deterministic)
        dense = nn.Dense(width, use_bias=False, dtype=self.dtype, name="mlp_out")
        return dense(y)


class GuidanceMLP(nn.Module):
    """``W2 silu(W1 sinusoid(a))``; starts without effect."""

    width: int

    @nn.compact
    def __call__(self, a: jax.Array) -> jax.Array:
        """``(b,)`` -> ``(b, width)`` float32."""
        features = embeddings.sinusoid(a, embeddings.TIME_FEATURES)
        h = nn.silu(nn.Dense(self.width, name="in")(features))
        zeros = nn.initializers.zeros
        return nn.Dense(self.width, kernel_init=zeros, name="out")(h)


class Sana(nn.Module):
    """``v(y, cond)`` for images of latents ``(b, h, w, c)``.

    Attributes:
      num_heads: heads of cross-attention; must divide ``width``.
      head_channels: channels of a head of linear attention; must divide ``width``.
      mlp_ratio: channels of the mix network over ``width``.

    All other attributes are those of ``dit.DiT``. Labels, a second time and captions
    of the network's own text tower, which the published one lacks, are options.
    """

    sample_shape: tuple[int, ...]
    num_classes: int = 0
    patch: int = 1
    width: int = 64
    depth: int = 3
    num_heads: int = 2
    head_channels: int = 32
    mlp_ratio: float = 2.5
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
        *axes, _ = self.sample_shape
        if len(axes) != 2 or any(n % self.patch for n in axes):
            raise ValueError(
                f"network.patch = {self.patch} does not divide both sides of an image; "
                f"sample_shape is {self.sample_shape} (channels last)"
            )
        for setting in ("num_heads", "head_channels"):
            layers.check_divides(self, setting, self.width, f"width = {self.width}")

    @nn.nowrap
    def encoders(self) -> dict[str, nn.Module]:
        """See ``Network.encoders``."""
        if encoders := text_encoders(self):
            sizes = (self.depth, self.width, self.num_heads)
            norm, dtype = (CAPTION_EPS, CAPTION_SCALE), jnp.dtype(self.dtype)
            encoders["memory"] = CaptionMemory(*sizes, dtype, norm)
        return encoders

    @nn.compact
    def __call__(self, x: jax.Array, cond: Cond, *, train: bool = False) -> jax.Array:
        """``x`` is ``(b, *sample_shape)``; returns that shape, float32."""
        self.check()
        layers.check_input(x, self.sample_shape)
        dtype, width = jnp.dtype(self.dtype), self.width
        embed = embeddings.PooledEmbedding(
            width, self.num_classes, False, self.use_dt, name="cond"
        )
        emb = embed(cond)
        for name, a in embeddings.scalars(self, cond):
            if name == "guidance":
                emb = emb + GuidanceMLP(width, name=name)(GUIDANCE_SCALE * a)
        emb = layers.place_batch(emb, self.placement)
        vectors = nn.Dense(6 * width, name="t_block")(nn.silu(emb))
        vectors = vectors.reshape(-1, 6, width)

        tokens = layers.patchify(x, self.patch).astype(dtype)
        h = nn.Dense(width, dtype=dtype, name="patch_in")(tokens)
        memory, mask = None, None
        if self.text is not None:
            memory, mask = jnp.moveaxis(cond.memory, 1, 0), cond.context_mask
        h = self._stack(dtype)(h, vectors, memory, mask, not train)[0]

        return read_out(self, h, emb, tokens.shape[-1], self.patch)

    def _stack(self, dtype: jnp.dtype) -> Any:
        unroll = self.depth if self.depth <= 4 else 1  # as in dit.py
        memory: Any = nn.broadcast if self.text is None else 0
        in_axes = (nn.broadcast, memory, nn.broadcast, nn.broadcast)
        rows, columns, _ = self.sample_shape
        return layers.stacked(Block, self, "blocks", in_axes, self.depth, unroll)(
            (rows // self.patch, columns // self.patch),
            self.num_heads,
            self.head_channels,
            round(self.mlp_ratio * self.width),
            self.dropout,
            self.attention,
            dtype,
            self.placement,
            name="blocks",
        )
