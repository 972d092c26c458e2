"""Diffusion transformer (arXiv 2212.09748) over any number of axes, for sCM.

It has the changes of sCM (arXiv 2410.11081v2, Sec. 4.1): positional embedding of
``c_noise(t) = t``, adaptive double normalization in place of AdaLN, and RMS-normalized
queries and keys. Equal blocks are stacked and scanned: their parameters carry a leading
axis of length ``depth``. With the settings ``AS_PUBLISHED`` it is the original DiT.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from scm_jax.networks import embeddings, layers
from scm_jax.networks.attention import attention
from scm_jax.networks.text import KeysAndValues, text_encoders
from scm_jax.types import Cond, Placement, TextInfo

# Table 1 of arXiv 2212.09748, and one of about the U-Net's largest size.
PRESETS: dict[str, dict[str, Any]] = {
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
# Of 16 frames of 32x32 latents (arXiv 2401.03048); trained with four more channels for
# the variance, which are 18,448 of its 673,681,568 parameters.
PRESETS["latte_xl"] = {
    **PRESETS["xl"],
    **AS_PUBLISHED,
    **{"patch_sides": (1, 2, 2), "positions": "sincos", "factorized": True},
}
# Latents ``(n, c)`` of sound with a caption of T5-large and CLAP: the sizes that
# MeanAudio has (arXiv 2508.06098), whose blocks are others.
_AUDIO = {"patch_sides": (1,), "positions": "rotary"}
PRESETS["audio_120m"] = {"width": 512, "depth": 19, "num_heads": 8, **_AUDIO}
PRESETS["audio_480m"] = {"width": 1024, "depth": 21, "num_heads": 16, **_AUDIO}
QK_NORMS = ("none", "pixel")
POSITIONS = ("learned", "sincos", "rotary")
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
    over: str = "all"  # attention within a frame: space, or along a place: time
    frames: int = 1

    @nn.compact
    def __call__(
        self,
        h: jax.Array,
        emb: jax.Array,
        memory: jax.Array | None,
        mask: jax.Array | None,
        turns: jax.Array | None,
        deterministic: bool,
    ) -> tuple[jax.Array, None]:
        """One block.

        Args:
          h: ``(b, n, c)`` tokens.
          emb: ``(b, c)`` embedding after its silu, float32.
          memory: ``(b, m, 2, heads, d)`` keys and values of the context.
          mask: ``(b, m)``, which of them to attend to.
          turns: rotary positions, see ``embeddings.position_angles``.
          deterministic: no dropout.
        """
        width = h.shape[-1]
        h = layers.place_tokens(h, self.placement)
        vectors = layers.MODULATIONS[self.modulation]
        affine = nn.Dense(2 * vectors * width, name="affine")(emb)
        gates = nn.Dense(2 * width, kernel_init=layers.SMALL, name="gate")(emb)
        affine1, affine2 = jnp.split(affine, 2, axis=-1)
        gate1, gate2 = jnp.split(gates.astype(h.dtype)[:, None, :], 2, axis=-1)

        y = layers.modulate(layers.layer_norm(h), affine1, self.modulation)
        h = h + gate1 * self._attend(y.astype(h.dtype), turns)
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
        how: Any = {"implementation": self.attention, "placement": self.placement}
        out = attention(q, k, v, key_mask=mask, **how)
        small, width = layers.SMALL, y.shape[-1]
        dense = nn.Dense(width, dtype=self.dtype, kernel_init=small, name="cross_out")
        return dense(out.reshape(y.shape))

    def _attend(self, y: jax.Array, turns: jax.Array | None) -> jax.Array:
        batch, tokens, width = y.shape
        # Three kernels side by side, so that a split by heads cuts each of them.
        qkv = nn.DenseGeneral((3, width), dtype=self.dtype, name="qkv")(y)
        qkv = qkv.reshape(batch, tokens, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        if self.qk_norm == "pixel":
            q, k = (layers.pixel_norm(a).astype(v.dtype) for a in (q, k))
        if turns is not None:
            q, k = (embeddings.rotate(a, turns) for a in (q, k))
        if self.over != "all":
            q, k, v = (self._group(a) for a in (q, k, v))
        how: Any = {"implementation": self.attention, "placement": self.placement}
        out = attention(q, k, v, **how)
        if self.over == "time":
            out = out.reshape(batch, -1, self.frames, width).swapaxes(1, 2)
        out = out.reshape(batch, tokens, width)
        return nn.Dense(width, dtype=self.dtype, name="attention_out")(out)

    def _group(self, a: jax.Array) -> jax.Array:
        """``(b, frames places, ...)`` with what attends to each other in one row."""
        a = a.reshape(a.shape[0], self.frames, -1, *a.shape[2:])
        a = a if self.over == "space" else a.swapaxes(1, 2)
        return a.reshape(-1, *a.shape[2:])


class Pair(nn.Module):
    """A block that attends within each frame, then one that attends along time."""

    make: Callable[..., Block]

    @nn.compact
    def __call__(
        self,
        h: jax.Array,
        emb: jax.Array,
        memory: jax.Array | None,
        mask: jax.Array | None,
        turns: jax.Array | None,
        deterministic: bool,
    ) -> tuple[jax.Array, None]:
        """See ``Block``; ``memory`` has a leading axis of two."""
        for i, over in enumerate(("space", "time")):
            read = None if memory is None else memory[i]
            block = self.make(over=over, name=over)
            h, _ = block(h, emb, read, mask, turns, deterministic)
        return h, None


class DiT(nn.Module):
    """``F(x_t / sigma_data, cond)`` for samples ``(b, *axes, c)`` with any axes.

    Attributes:
      sample_shape: shape of one sample, channels last: ``(h, w, c)``, ``(n, c)``, ...
      patch: side of a patch along every axis; must divide each of them.
      patch_sides: one side for each axis, in place of ``patch``.
      width: channels of a token.
      depth: number of blocks.
      num_heads: attention heads; must divide ``width``.
      mlp_ratio: hidden width of a block's network over ``width``.
      dropout: rate inside the blocks' networks, in training only.
      modulation: a key of ``layers.MODULATIONS``.
      embedding: of time; besides those of the U-Net, ``timestep_mlp``.
      qk_norm: of self-attention: ``pixel``, ``layers.pixel_norm`` of a head, or none.
      activation: a key of ``ACTIVATIONS``.
      positions: ``learned`` for this grid of tokens; ``sincos``, a fixed table; or
        ``rotary``, turns of queries and keys. The last two fit other lengths, too.
      factorized: every other block attends within each frame, an index of the first
        axis, and the others along that axis: ``n (frames + places)`` in place of
        ``n^2`` logits (arXiv 2401.03048). ``depth`` must be even.
      cross_attention: every block attends to the caption; else only its pooled vector
        is read.
      use_frames: a clip may be told its first frames, ``Cond.frames``.

    All other attributes are those of ``unet.UNet``.
    """

    sample_shape: tuple[int, ...]
    num_classes: int = 0
    patch: int = 2
    patch_sides: tuple[int, ...] = ()
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
    positions: str = "learned"
    factorized: bool = False
    attention: str = "einsum"
    dtype: str = "float32"
    remat: str = "none"
    tower_width: int = 128
    tower_depth: int = 2
    cross_attention: bool = True
    use_frames: bool = False
    text: TextInfo | None = None
    placement: Placement | None = None

    stacks = ("blocks",)

    @property
    def sides(self) -> layers.Patch:
        """Sides of a patch: one for all axes, or one for each."""
        return self.patch_sides or self.patch

    def check(self) -> None:
        """Raises ``ValueError`` for settings that contradict each other."""
        layers.check_settings(
            self,
            modulation=layers.MODULATIONS,
            qk_norm=QK_NORMS,
            activation=ACTIVATIONS,
            positions=POSITIONS,
            embedding=(*embeddings.EMBEDDINGS, embeddings.TIMESTEP_MLP),
        )
        grid = layers.token_grid(self.sides, self.sample_shape)
        of = f"network.width = {self.width}"
        layers.check_divides(self, "num_heads", self.width, of)
        if self.positions == "rotary":
            embeddings.check_rotary(self.width // self.num_heads, len(grid))
        if self.use_frames and len(grid) != 3:
            raise ValueError(
                f"network.use_frames = True needs clips (t, h, w, c); samples are "
                f"{self.sample_shape}"
            )
        if self.factorized and (len(grid) < 2 or self.depth % 2):
            raise ValueError(
                f"network.factorized = True needs an even depth, not {self.depth}, and "
                f"two axes or more; samples are {self.sample_shape}"
            )

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

        tokens = layers.patchify(x, self.sides).astype(dtype)
        h = nn.Dense(self.width, dtype=dtype, name="patch_in")(tokens)
        if self.use_frames:
            h = h + self._read_frames(x, cond, dtype)
        grid, turns = layers.token_grid(self.sides, self.sample_shape), None
        if self.positions == "learned":
            shape = (tokens.shape[1], self.width)
            position = self.param("position", nn.initializers.normal(0.5), shape)
            h = h + position.astype(dtype)[None]
        elif self.positions == "sincos":
            table = embeddings.position_sincos(grid, self.width)
            h = h + jnp.asarray(table, dtype)[None]
        else:
            head = self.width // self.num_heads
            turns = jnp.asarray(embeddings.position_angles(grid, head))
        memory, mask = None, None
        if self.text is not None and self.cross_attention:
            # The loop runs over the first axis.
            memory, mask = jnp.moveaxis(cond.memory, 1, 0), cond.context_mask
            if self.factorized:
                memory = memory.reshape(-1, 2, *memory.shape[1:])
        h = self._stack(dtype, grid[0])(h, emb, memory, mask, turns, not train)[0]

        vectors = layers.MODULATIONS[self.modulation]
        affine = nn.Dense(vectors * self.width, name="affine_out")(emb)
        h = layers.modulate(layers.layer_norm(h), affine, self.modulation)
        out = nn.Dense(tokens.shape[-1], kernel_init=layers.SMALL, name="patch_out")
        return layers.unpatchify(out(h), self.sides, self.sample_shape)

    def _read_frames(self, x: jax.Array, cond: Cond, dtype: jnp.dtype) -> jax.Array:
        frames = cond.frames
        if frames is None:
            frames = jnp.zeros((*x.shape[:-1], x.shape[-1] + 1))
        tokens = layers.patchify(frames, self.sides).astype(dtype)
        # Starts at zero: with the weights of a network without it, it is that network.
        draw = nn.initializers.zeros
        dense = nn.Dense(self.width, False, dtype, kernel_init=draw, name="frames_in")
        return dense(tokens)

    def _stack(self, dtype: jnp.dtype, frames: int) -> Any:
        names = ["num_heads", "mlp_ratio", "dropout", "modulation", "qk_norm"]
        names += ["activation", "attention", "placement"]
        settings: dict[str, Any] = {name: getattr(self, name) for name in names}
        settings |= {"dtype": dtype, "frames": frames}
        block: Any = Block
        if self.factorized:
            make, block = functools.partial(Block, **settings), Pair
            settings = {"make": make}
        length = self.depth // (2 if self.factorized else 1)
        # Short stacks run faster unrolled, deep ones compile faster scanned.
        unroll = length if self.depth <= 4 else 1
        memory = nn.broadcast if self.text is None or not self.cross_attention else 0
        in_axes = (nn.broadcast, memory, *(nn.broadcast,) * 3)
        stack = layers.stacked(block, self, "blocks", in_axes, length, unroll)
        return stack(**settings, name="blocks")
