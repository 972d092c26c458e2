"""Diffusion transformer (arXiv 2212.09748) over any number of axes, for sCM.

It has the changes of sCM (arXiv 2410.11081v2, Sec. 4.1): positional embedding of
``c_noise(t) = t``, adaptive double normalization in place of AdaLN, and RMS-normalized
queries and keys. Equal blocks are stacked and scanned: their parameters carry a leading
axis of length ``depth``. With the settings ``AS_PUBLISHED`` it is the original DiT.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from scm_jax.networks import embeddings, layers
from scm_jax.networks.attention import attention
from scm_jax.networks.text import KeysAndValues, text_encoders
from scm_jax.types import Cond, Placement, TextInfo

# Table 1 of arXiv 2212.09748, and one of about the U-Net's largest size.
PRESETS = {
    "s": {"width": 384, "depth": 12, "num_heads": 6},
    "b": {"width": 768, "depth": 12, "num_heads": 12},
    "l": {"width": 1024, "depth": 24, "num_heads": 16},
    "xl": {"width": 1152, "depth": 28, "num_heads": 16},
    "1p6b": {"width": 1792, "depth": 28, "num_heads": 28},
}

# The block and the embedding of the published DiT and SiT, without sCM's changes.
AS_PUBLISHED = {
    "modulation": "adaptive",
    "embedding": embeddings.TIMESTEP_MLP,
    "qk_norm": "none",
    "activation": "gelu",
}
QK_NORMS = ("none", "pixel")
ACTIVATIONS = {"silu": nn.silu, "gelu": nn.gelu}  # the tanh form of GELU


class Block(nn.Module):
    """One transformer block: attention, then a two-layer network, both modulated.

    ``h <- h + gate * branch(modulate(layer_norm(h)))``; gates are not normalized.
    Cross-attention ``h <- h + W attention(Q layer_norm(h), K, V)`` comes between them.
    """

    num_heads: int
    mlp_ratio: int
    dropout: float
    modulation: str
    qk_norm: str
    activation: str
    attention: str
    dtype: jnp.dtype
    placement: Placement | None = None

    @nn.compact
    def __call__(
        self,
        h: jax.Array,
        emb: jax.Array,
        memory: jax.Array | None,
        mask: jax.Array | None,
        deterministic: bool,
    ) -> tuple[jax.Array, None]:
        """One block.

        Args:
          h: ``(b, n, c)`` tokens.
          emb: ``(b, c)`` embedding after its silu, float32.
          memory: ``(b, m, 2, heads, d)`` keys and values of the context.
          mask: ``(b, m)``, which of them to attend to.
          deterministic: no dropout.
        """
        width = h.shape[-1]
        h = layers.place_batch(h, self.placement)
        vectors = layers.MODULATIONS[self.modulation]
        affine = nn.Dense(2 * vectors * width, name="affine")(emb)
        gates = nn.Dense(2 * width, kernel_init=layers.SMALL, name="gate")(emb)
        affine1, affine2 = jnp.split(affine, 2, axis=-1)
        gate1, gate2 = jnp.split(gates.astype(h.dtype)[:, None, :], 2, axis=-1)

        y = layers.modulate(layers.layer_norm(h), affine1, self.modulation)
        h = h + gate1 * self._attend(y.astype(h.dtype))
        if memory is not None:
            h = h + self._cross(layers.layer_norm(h).astype(h.dtype), memory, mask)
        y = layers.modulate(layers.layer_norm(h), affine2, self.modulation)
        y = y.astype(h.dtype)
        y = nn.Dense(self.mlp_ratio * width, dtype=self.dtype, name="mlp_in")(y)
        y = ACTIVATIONS[self.activation](y)
        y = nn.Dropout(self.dropout)(y, deterministic=deterministic)
        return h + gate2 * nn.Dense(width, dtype=self.dtype, name="mlp_out")(y), None

    def _cross(self, y: jax.Array, memory: jax.Array, mask: Any) -> jax.Array:
        q = nn.Dense(y.shape[-1], dtype=self.dtype, name="cross_q")(y)
        q = q.reshape(*y.shape[:2], self.num_heads, -1)
        q = layers.pixel_norm(q).astype(memory.dtype)
        k, v = memory[:, :, 0], memory[:, :, 1]
        out = attention(q, k, v, key_mask=mask, implementation=self.attention)
        small, width = layers.SMALL, y.shape[-1]
        dense = nn.Dense(width, dtype=self.dtype, kernel_init=small, name="cross_out")
        return dense(out.reshape(y.shape))

    def _attend(self, y: jax.Array) -> jax.Array:
        batch, tokens, width = y.shape
        # Three kernels side by side, so that a split by heads cuts each of them.
        qkv = nn.DenseGeneral((3, width), dtype=self.dtype, name="qkv")(y)
        qkv = qkv.reshape(batch, tokens, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        if self.qk_norm == "pixel":
            q, k = (layers.pixel_norm(a).astype(v.dtype) for a in (q, k))
        out = attention(q, k, v, implementation=self.attention)
        out = out.reshape(batch, tokens, width)
        return nn.Dense(width, dtype=self.dtype, name="attention_out")(out)


class DiT(nn.Module):
    """``F(x_t / sigma_data, cond)`` for samples ``(b, *axes, c)`` with any axes.

    Attributes:
      sample_shape: shape of one sample, channels last: ``(h, w, c)``, ``(n, c)``, ...
      patch: side of a patch along every axis; must divide each of them.
      width: channels of a token.
      depth: number of blocks.
      num_heads: attention heads; must divide ``width``.
      mlp_ratio: hidden width of a block's network over ``width``.
      dropout: rate inside the blocks' networks, in training only.
      modulation: a key of ``layers.MODULATIONS``.
      embedding: of time; besides those of the U-Net, ``timestep_mlp``.
      qk_norm: of self-attention: ``pixel``, ``layers.pixel_norm`` of a head, or none.
      activation: a key of ``ACTIVATIONS``.
      cross_attention: every block attends to the caption; else only its pooled vector
        is read.

    All other attributes are those of ``unet.UNet``.
    """

    sample_shape: tuple[int, ...]
    num_classes: int = 0
    patch: int = 2
    width: int = 64
    depth: int = 3
    num_heads: int = 4
    mlp_ratio: int = 4
    dropout: float = 0.0
    use_guidance: bool = False
    use_dt: bool = False
    modulation: str = "double_norm"
    qk_norm: str = "pixel"
    activation: str = "silu"
    embedding: str = "positional"
    fourier_scale: float = 1.0
    attention: str = "einsum"
    dtype: str = "float32"
    remat: str = "none"
    tower_width: int = 128
    tower_depth: int = 2
    cross_attention: bool = True
    text: TextInfo | None = None
    placement: Placement | None = None

    stacks = ("blocks",)

    def check(self) -> None:
        """Raises ``ValueError`` for settings that contradict each other."""
        layers.check_settings(
            self,
            modulation=layers.MODULATIONS,
            qk_norm=QK_NORMS,
            activation=ACTIVATIONS,
            embedding=(*embeddings.EMBEDDINGS, embeddings.TIMESTEP_MLP),
        )
        *axes, _ = self.sample_shape
        if not axes or any(n % self.patch for n in axes):
            raise ValueError(
                f"network.patch = {self.patch} does not divide every axis of "
                f"sample_shape {self.sample_shape} (channels last)"
            )
        of = f"network.width = {self.width}"
        layers.check_divides(self, "num_heads", self.width, of)

    @nn.nowrap
    def encoders(self) -> dict[str, nn.Module]:
        """See ``Network.encoders``."""
        encoders = text_encoders(self)
        if encoders and self.cross_attention:
            dtype = jnp.dtype(self.dtype)
            memory = KeysAndValues(self.depth, self.width, self.num_heads, dtype)
            encoders["memory"] = memory
        return encoders

    @nn.compact
    def __call__(self, x: jax.Array, cond: Cond, *, train: bool = False) -> jax.Array:
        """``x`` is ``(b, *sample_shape)``; returns ``F`` of that shape, float32."""
        self.check()
        layers.check_input(x, self.sample_shape)
        dtype = jnp.dtype(self.dtype)
        inputs = (self.width, self.num_classes, self.use_guidance, self.use_dt)
        embed: Any
        if self.embedding == embeddings.TIMESTEP_MLP:
            embed = embeddings.PooledEmbedding(*inputs, name="cond")
        else:
            features = (self.embedding, self.fourier_scale)
            embed = embeddings.ConditionEmbedding(*inputs, *features, name="cond")
        emb = layers.place_batch(nn.silu(embed(cond)), self.placement)

        tokens = layers.patchify(x, self.patch).astype(dtype)
        h = nn.Dense(self.width, dtype=dtype, name="patch_in")(tokens)
        position = self.param(
            "position", nn.initializers.normal(0.5), (tokens.shape[1], self.width)
        )
        h = h + position.astype(dtype)[None]
        memory, mask = None, None
        if self.text is not None and self.cross_attention:
            # The loop runs over the first axis.
            memory, mask = jnp.moveaxis(cond.memory, 1, 0), cond.context_mask
        h = self._stack(dtype)(h, emb, memory, mask, not train)[0]

        vectors = layers.MODULATIONS[self.modulation]
        affine = nn.Dense(vectors * self.width, name="affine_out")(emb)
        h = layers.modulate(layers.layer_norm(h), affine, self.modulation)
        out = nn.Dense(tokens.shape[-1], kernel_init=layers.SMALL, name="patch_out")
        return layers.unpatchify(out(h), self.patch, self.sample_shape)

    def _stack(self, dtype: jnp.dtype) -> Any:
        # Short stacks run faster unrolled, deep ones compile faster scanned.
        unroll = self.depth if self.depth <= 4 else 1
        memory = nn.broadcast if self.text is None or not self.cross_attention else 0
        in_axes = (nn.broadcast, memory, nn.broadcast, nn.broadcast)
        return layers.stacked(Block, self, "blocks", in_axes, self.depth, unroll)(
            self.num_heads,
            self.mlp_ratio,
            self.dropout,
            self.modulation,
            self.qk_norm,
            self.activation,
            self.attention,
            dtype,
            self.placement,
            name="blocks",
        )
