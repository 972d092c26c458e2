"""Diffusion transformer (arXiv 2212.09748) over any number of axes, for sCM.

Changes for continuous-time consistency models (arXiv 2410.11081v2, Sec. 4.1):
positional embedding of ``c_noise(t) = t``, adaptive double normalization in place of
AdaLN, and RMS-normalized queries and keys. Equal blocks are stacked and scanned: their
parameters carry a leading axis of length ``depth``.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from scm_jax.networks import embeddings, layers
from scm_jax.networks.attention import attention
from scm_jax.types import Cond, Placement

# Table 1 of arXiv 2212.09748, and one more of about the U-Net's largest size. The patch
# (2, 4 or 8) is a setting of its own.
PRESETS = {
    "s": {"width": 384, "depth": 12, "num_heads": 6},
    "b": {"width": 768, "depth": 12, "num_heads": 12},
    "l": {"width": 1024, "depth": 24, "num_heads": 16},
    "xl": {"width": 1152, "depth": 28, "num_heads": 16},
    "1p6b": {"width": 1792, "depth": 28, "num_heads": 28},
}


class Block(nn.Module):
    """One transformer block: attention, then a two-layer network, both modulated.

    ``h <- h + gate * branch(modulate(layer_norm(h)))``. Gates are not normalized and
    start small, so that a fresh network is close to linear in its skip path.
    """

    num_heads: int
    mlp_ratio: int
    dropout: float
    modulation: str
    attention: str
    dtype: jnp.dtype
    placement: Placement | None = None

    @nn.compact
    def __call__(
        self, h: jax.Array, emb: jax.Array, deterministic: bool
    ) -> tuple[jax.Array, None]:
        """``h`` is ``(b, n, c)``; ``emb`` is ``(b, c)`` after its silu, float32."""
        width = h.shape[-1]
        h = layers.place_batch(h, self.placement)
        vectors = layers.MODULATIONS[self.modulation]
        affine = nn.Dense(2 * vectors * width, name="affine")(emb)
        gates = nn.Dense(
            2 * width,
            kernel_init=nn.initializers.variance_scaling(0.1, "fan_in", "normal"),
            name="gate",
        )(emb)
        affine1, affine2 = jnp.split(affine, 2, axis=-1)
        gate1, gate2 = jnp.split(gates.astype(h.dtype)[:, None, :], 2, axis=-1)

        y = layers.modulate(layers.layer_norm(h), affine1, self.modulation)
        h = h + gate1 * self._attend(y.astype(h.dtype))
        y = layers.modulate(layers.layer_norm(h), affine2, self.modulation)
        y = y.astype(h.dtype)
        y = nn.Dense(self.mlp_ratio * width, dtype=self.dtype, name="mlp_in")(y)
        y = nn.Dropout(self.dropout)(nn.silu(y), deterministic=deterministic)
        return h + gate2 * nn.Dense(width, dtype=self.dtype, name="mlp_out")(y), None

    def _attend(self, y: jax.Array) -> jax.Array:
        batch, tokens, width = y.shape
        # Three kernels side by side, so that a split by heads cuts each of them.
        qkv = nn.DenseGeneral((3, width), dtype=self.dtype, name="qkv")(y)
        qkv = qkv.reshape(batch, tokens, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        q, k = (layers.pixel_norm(a).astype(v.dtype) for a in (q, k))
        out = attention(q, k, v, implementation=self.attention)
        out = out.reshape(batch, tokens, width)
        return nn.Dense(width, dtype=self.dtype, name="attention_out")(out)


class DiT(nn.Module):
    """``F(x_t / sigma_data, cond)`` for samples ``(b, *axes, c)`` with any axes.

    Attributes:
      sample_shape: shape of one sample, channels last: ``(h, w, c)``, ``(n, c)``, ...
      num_classes: classes; 0 for an unconditional network.
      patch: side of a patch along every axis; must divide each of them.
      width: channels of a token.
      depth: number of blocks.
      num_heads: attention heads; must divide ``width``.
      mlp_ratio: hidden width of a block's network over ``width``.
      dropout: rate inside the blocks' networks, in training only.
      use_guidance: takes the guidance scale as an input.
      use_dt: takes a second time as an input.
      modulation: how the embedding acts on normalized features, a key of
        ``layers.MODULATIONS``.
      embedding: features of the time, ``positional`` or ``fourier``.
      fourier_scale: scale of Fourier features.
      attention: implementation behind the attention door.
      dtype: compute dtype of the blocks; embeddings, norms, softmax and the output are
        float32 whatever it is.
      remat: what the backward pass recomputes, a key of ``layers.REMAT``.
      placement: where weights and activations lie on a mesh; no part of a config.
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
    embedding: str = "positional"
    fourier_scale: float = 1.0
    attention: str = "einsum"
    dtype: str = "float32"
    remat: str = "none"
    placement: Placement | None = None

    def check(self) -> None:
        """Raises ``ValueError`` for settings that contradict each other."""
        layers.check_width(self.width)
        layers.check_choice(
            self.modulation, tuple(layers.MODULATIONS), "network.modulation"
        )
        layers.check_choice(self.embedding, embeddings.EMBEDDINGS, "network.embedding")
        layers.check_choice(self.remat, tuple(layers.REMAT), "network.remat")
        *axes, _ = self.sample_shape
        if not axes or any(n % self.patch for n in axes):
            raise ValueError(
                f"network.patch = {self.patch} does not divide every axis of "
                f"sample_shape {self.sample_shape} (channels last)"
            )
        if self.width % self.num_heads:
            raise ValueError(
                f"network.num_heads = {self.num_heads} does not divide "
                f"network.width = {self.width}"
            )

    @nn.compact
    def __call__(self, x: jax.Array, cond: Cond, *, train: bool = False) -> jax.Array:
        """``x`` is ``(b, *sample_shape)``; returns ``F`` of that shape, float32."""
        self.check()
        layers.check_input(x, self.sample_shape)
        dtype = jnp.dtype(self.dtype)
        emb = embeddings.ConditionEmbedding(
            self.width,
            self.num_classes,
            self.use_guidance,
            self.use_dt,
            self.embedding,
            self.fourier_scale,
            name="cond",
        )(cond)
        emb = layers.place_batch(nn.silu(emb), self.placement)

        tokens = self._patchify(x).astype(dtype)
        h = nn.Dense(self.width, dtype=dtype, name="patch_in")(tokens)
        position = self.param(
            "position", nn.initializers.normal(0.5), (tokens.shape[1], self.width)
        )
        h = h + position.astype(dtype)[None]
        h = self._blocks(h, emb, deterministic=not train, dtype=dtype)

        vectors = layers.MODULATIONS[self.modulation]
        affine = nn.Dense(vectors * self.width, name="affine_out")(emb)
        h = layers.modulate(layers.layer_norm(h), affine, self.modulation)
        out = nn.Dense(
            tokens.shape[-1],
            kernel_init=nn.initializers.variance_scaling(0.1, "fan_in", "normal"),
            name="patch_out",
        )(h)
        return self._unpatchify(out)

    def _blocks(
        self, h: jax.Array, emb: jax.Array, deterministic: bool, dtype: jnp.dtype
    ) -> jax.Array:
        unroll = self.depth if self.depth <= 4 else 1
        block = layers.rematerialize(
            Block,
            self.remat,
            self.placement,
            "blocks",
            in_loop=unroll < self.depth,
            static_argnums=(3,),
        )
        # Unrolling on request of the compiler costs nothing in the parameter tree;
        # short stacks run faster unrolled, deep ones compile faster scanned.
        stack = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=self.depth,
            unroll=unroll,
        )(
            self.num_heads,
            self.mlp_ratio,
            self.dropout,
            self.modulation,
            self.attention,
            dtype,
            self.placement,
            name="blocks",
        )
        return stack(h, emb, deterministic)[0]

    @property
    def stacks(self) -> tuple[str, ...]:
        """Names of the subtrees of parameters that hold the blocks."""
        return ("blocks",)

    def _patchify(self, x: jax.Array) -> jax.Array:
        """``(b, *axes, c) -> (b, tokens, patch^n c)``."""
        batch, *axes, channels = x.shape
        split = [m for n in axes for m in (n // self.patch, self.patch)]
        x = x.reshape(batch, *split, channels)
        n = len(axes)
        grid, inner = range(1, 2 * n, 2), range(2, 2 * n + 1, 2)
        x = x.transpose(0, *grid, *inner, 2 * n + 1)
        tokens = math.prod(a // self.patch for a in axes)
        return x.reshape(batch, tokens, self.patch**n * channels)

    def _unpatchify(self, h: jax.Array) -> jax.Array:
        """The inverse of ``_patchify``."""
        *axes, channels = self.sample_shape
        n = len(axes)
        grid = [a // self.patch for a in axes]
        h = h.reshape(h.shape[0], *grid, *(self.patch,) * n, channels)
        order = [i for a in range(n) for i in (1 + a, 1 + n + a)]
        return h.transpose(0, *order, 2 * n + 1).reshape(h.shape[0], *axes, channels)
