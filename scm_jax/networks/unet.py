"""The EDM2 U-Net, config G (arXiv 2312.02696), with the changes of sCM.

Every activation keeps unit magnitude: layers multiply by normalized weights, sums and
concatenations are balanced, and there are no biases and no group norms. The defaults
are those of sCM (arXiv 2410.11081v2, Sec. 4.1): positional embedding of
``c_noise(t) = t`` and adaptive double normalization. The network as published is
``modulation="gain", embedding="fourier"``.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from scm_jax.networks import embeddings, layers, magnitude
from scm_jax.networks.attention import attention
from scm_jax.networks.magnitude import MPConv, mp_cat, mp_silu, mp_sum
from scm_jax.networks.text import text_encoders
from scm_jax.networks.unet_layout import BlockSpec, Group, apply_groups, make_layout
from scm_jax.types import Cond, Placement, TextInfo

# Channels of the first level (EDM2, Table 6); everything else is the same at all sizes.
_WIDTHS = {"xs": 128, "s": 192, "m": 256, "l": 320, "xl": 384, "xxl": 448}
PRESETS = {size: {"width": width} for size, width in _WIDTHS.items()}

MODULATIONS = ("gain", "double_norm", "double_norm_scale", "adaptive")
NULL_LABELS = ("zeros", "learned")

RESIDUAL_BALANCE = 0.3
CAT_BALANCE = 0.5
LABEL_BALANCE = 0.5
CLIP = 256.0


# Embedding ``(b, e)`` float32 after its silu, and the caption's context and its mask.
Given = tuple[jax.Array, jax.Array | None, jax.Array | None]


class Block(nn.Module):
    """One block: resample, residual branch of two convolutions, self-attention.

    Encoder: ``h <- norm(skip(h))``, decoder: ``h <- cat(h, skip)``; then
    ``y = conv1(mp_silu(modulate(conv0(mp_silu(h)), emb)))`` and
    ``h <- mp_sum(h, y, 0.3)`` (EDM2, Fig. 21). Attention reads the caption, too.
    """

    spec: BlockSpec
    head_channels: int
    dropout: float
    modulation: str
    clip: float
    attention: str
    dtype: Any

    @nn.compact
    def __call__(
        self, h: jax.Array, skip: jax.Array | None, given: Given, deterministic: bool
    ) -> tuple[jax.Array, jax.Array | None]:
        """``h`` is ``(b, h, w, c)``."""
        emb, *context = given
        out, decoder = self.spec.out_channels, self.spec.decoder
        h = layers.resample(h, self.spec.resample)
        if skip is not None:
            h = mp_cat(h, skip, CAT_BALANCE)
        project = h.shape[-1] != out
        if not decoder:
            h = MPConv(out, dtype=self.dtype, name="skip")(h) if project else h
            h = magnitude.rms_normalize(h, (-1,)).astype(self.dtype)
        y = MPConv(out, 3, self.dtype, name="conv0")(mp_silu(h))
        y = mp_silu(self._modulate(y, emb).astype(self.dtype))
        y = nn.Dropout(self.dropout)(y, deterministic=deterministic)
        y = MPConv(out, 3, self.dtype, name="conv1")(y)
        if decoder and project:
            h = MPConv(out, dtype=self.dtype, name="skip")(h)
        h = mp_sum(h, y, RESIDUAL_BALANCE)
        if self.spec.attention:
            h = mp_sum(h, self._attend(h, *context), RESIDUAL_BALANCE)
        if self.clip:
            h = jnp.clip(h, -self.clip, self.clip)
        return h, None if decoder else h

    def _modulate(self, y: jax.Array, emb: jax.Array) -> jax.Array:
        channels = y.shape[-1]
        if self.modulation == "gain":
            self.param("affine_gain", nn.initializers.zeros, ())  # see fold_weights
            scale = MPConv(channels, name="affine")(emb) + 1.0
            return y.astype(jnp.float32) * scale[:, None, None, :]
        vectors = layers.MODULATIONS[self.modulation]
        affine = MPConv(vectors * channels, name="affine")(emb)
        y = magnitude.rms_normalize(y, (-1,))
        return layers.modulate(y, affine, self.modulation)

    def _attend(
        self, h: jax.Array, context: jax.Array | None, mask: jax.Array | None
    ) -> jax.Array:
        b, height, width, c = h.shape
        q, k, v = self._project(h.reshape(b, height * width, c), "qkv")
        if context is not None:
            # One softmax over places and words.
            keys, values = self._project(context, "context_kv")
            k = jnp.concatenate([k, keys], axis=1)
            v = jnp.concatenate([v, values], axis=1)
            assert mask is not None
            places = jnp.ones((b, height * width), jnp.bool_)
            mask = jnp.concatenate([places, mask], axis=1)
        out = attention(q, k, v, key_mask=mask, implementation=self.attention)
        return MPConv(c, dtype=self.dtype, name="proj")(out.reshape(h.shape))

    def _project(self, y: jax.Array, name: str) -> list[jax.Array]:
        """Queries, keys, values of ``(b, n, c)``: one for each letter after ``_``."""
        c, parts = self.spec.out_channels, len(name.split("_")[-1])
        y = MPConv(parts * c, dtype=self.dtype, name=name)(y)
        # EDM2's order of the output channels: head, channel, then q, k, v.
        heads = c // self.head_channels
        y = y.reshape(*y.shape[:2], heads, self.head_channels, parts)
        y = magnitude.rms_normalize(y, (-2,)).astype(self.dtype)
        return [y[..., i] for i in range(parts)]


def fold_weights(params: Any) -> Any:
    """``magnitude.fold_kernel`` of every kernel ``NAME`` and its gain ``NAME_gain``."""

    def fold(name: str, child: Any) -> Any:
        if not isinstance(child, dict):
            return child
        if "kernel" not in child:
            return fold_weights(child)
        gain = params.get(f"{name}_gain", 1.0)
        return {"kernel": magnitude.fold_kernel(child["kernel"], gain)}

    return {name: fold(name, child) for name, child in params.items()}


class UNet(nn.Module):
    """``F(x_t / sigma_data, cond)`` for images ``(b, h, w, c)``.

    Attributes:
      sample_shape: ``(h, w, c)`` with ``h == w``, channels last.
      num_classes: classes; 0 for an unconditional network.
      space_to_depth: side of the squares of pixels that become channels at the input,
        for fewer places; resolutions are counted after it.
      width: channels of the first level; the embedding has ``max(channel_mult)`` times
        as many.
      channel_mult: channels of each level over ``width``, from the input down.
      num_blocks: blocks per level of the encoder.
      attention_resolutions: sides of the levels that attend.
      head_channels: channels of an attention head.
      dropout: rate before each block's second convolution, in training only.
      dropout_max_resolution: only blocks of at most this side drop (consistency runs
        use 16); 0 for all.
      modulation: how the embedding acts on the features: ``gain`` (EDM2's
        ``y (1 + gain s)``), or a key of ``layers.MODULATIONS`` on pixel-normalized
        features. The paper's sizes are those of ``double_norm_scale``.
      embedding: features of the time, ``positional`` or ``fourier``.
      fourier_scale: scale of Fourier features; EDM2's is 1.
      null_label: the null class is ``zeros`` (EDM2) or a ``learned`` row.
      clip: activations are clipped to ``[-clip, clip]`` after each block; 0 for never.
      use_guidance: takes the guidance scale as an input.
      use_dt: takes a second time as an input.
      attention: a key of ``attention.IMPLEMENTATIONS``.
      dtype: compute dtype of the blocks; embeddings, norms, softmax and the output are
        always float32.
      remat: what the backward pass recomputes, a key of ``layers.REMAT``.
      unroll: blocks of equal shape per iteration of their loop; 0 is all of them on a
        CPU and 1 elsewhere.
      tower_width: channels of the text tower, for data with captions.
      tower_depth: its blocks.
      text: what captions look like, given by the dataset.
      placement: where weights and activations lie on a mesh; no part of a config.
    """

    sample_shape: tuple[int, ...]
    num_classes: int = 0
    space_to_depth: int = 1
    width: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    num_blocks: int = 3
    attention_resolutions: tuple[int, ...] = (16, 8)
    head_channels: int = 64
    dropout: float = 0.0
    dropout_max_resolution: int = 0
    modulation: str = "double_norm_scale"
    embedding: str = "positional"
    fourier_scale: float = 1.0
    null_label: str = "zeros"
    clip: float = CLIP
    use_guidance: bool = False
    use_dt: bool = False
    attention: str = "einsum"
    dtype: str = "float32"
    remat: str = "none"
    unroll: int = 0
    tower_width: int = 128
    tower_depth: int = 2
    text: TextInfo | None = None
    placement: Placement | None = None

    def check(self) -> None:
        """Raises ``ValueError`` for settings that contradict each other."""
        layers.check_settings(self, modulation=MODULATIONS, null_label=NULL_LABELS)
        layers.check_divides(self, "space_to_depth", self.sample_shape[0], "the side")
        for group in self.layout():
            if group.spec.attention:
                c = group.spec.out_channels
                of = f"the {c} channels of {group.name}"
                layers.check_divides(self, "head_channels", c, of)

    def layout(self) -> tuple[Group, ...]:
        """The blocks; see ``make_layout``."""
        stem = self.width * self.channel_mult[0]
        side = self.sample_shape[0] // self.space_to_depth
        return make_layout(self, stem, attend_last_only=False, resolution=side)

    @property
    def stacks(self) -> tuple[str, ...]:
        return tuple(group.name for group in self.layout())

    @nn.nowrap
    def encoders(self) -> dict[str, nn.Module]:
        """See ``Network.encoders``."""
        return text_encoders(self, normalized=True)

    def draw(self, key: jax.Array, shapes: Any) -> Any:
        """Fresh parameters; see ``layers.draw_parameters``."""
        return layers.draw_parameters(
            shapes, key, jax.random.normal, lambda *_: 1.0, self.fourier_scale
        )

    def project(self, params: Any) -> Any:
        """Forced weight normalization: every kernel to unit RMS per output channel.

        It keeps the effective learning rate from decaying as weights grow (EDM2, Sec.
        2.3); the function that the network computes does not change.
        """

        def leaf(path: Any, w: jax.Array) -> jax.Array:
            return magnitude.normalize_kernel(w) if path[-1].key == "kernel" else w

        return jax.tree_util.tree_map_with_path(leaf, params)

    def normalize(self, params: Any) -> Any:
        """What the layers multiply by; see ``fold_weights``."""
        return fold_weights(params)

    @nn.compact
    def __call__(self, x: jax.Array, cond: Cond, *, train: bool = False) -> jax.Array:
        """``x`` is ``(b, h, w, c)``; returns ``F`` of that shape, float32."""
        self.check()
        layers.check_input(x, self.sample_shape)
        emb = layers.place_batch(self._embed(cond), self.placement)
        x = self._fold(x)
        # A channel of ones stands in for the biases.
        h = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
        h = MPConv(self.width * self.channel_mult[0], 3, self.dtype, name="in")(h)
        settings = ("head_channels", "modulation", "clip", "attention", "dtype")
        given = (emb, cond.context, cond.context_mask)
        h = apply_groups(self, Block, settings, h, given, not train)
        self.param("out_gain", nn.initializers.zeros, ())
        F = MPConv(x.shape[-1], 3, name="out")(h.astype(jnp.float32))
        tokens = F.reshape(len(F), -1, F.shape[-1])
        return layers.unpatchify(tokens, self.space_to_depth, self.sample_shape)

    def _fold(self, x: jax.Array) -> jax.Array:
        """Squares of pixels become channels."""
        side = x.shape[1] // self.space_to_depth
        return layers.patchify(x, self.space_to_depth).reshape(len(x), side, side, -1)

    def _embed(self, cond: Cond) -> jax.Array:
        """``Cond`` -> ``(b, e)`` float32, after its silu."""
        dim = self.width * max(self.channel_mult)
        features = embeddings.embed_time(self, cond.t, self.width)
        emb = MPConv(dim, name="emb_noise")(features)
        for name, a in embeddings.scalars(self, cond):
            # The gain starts at zero: a student that inherits the weights of a teacher
            # without this input is that teacher.
            self.param(f"emb_{name}_gain", nn.initializers.zeros, ())
            added = embeddings.positional_embedding(a, self.width)
            emb = emb + MPConv(dim, name=f"emb_{name}")(added)
        if self.num_classes:
            learned = self.null_label == "learned"
            rows = self.num_classes + learned
            label = embeddings.labels(cond)
            found = magnitude.MPTable(rows, dim, name="emb_label")(label)
            if not learned:
                found = jnp.where(label[:, None] < 0, 0.0, found)
            emb = mp_sum(emb, found, LABEL_BALANCE)
        if self.text is not None and cond.pooled is not None:
            pooled = magnitude.rms_normalize(cond.pooled, (-1,))
            emb = mp_sum(emb, MPConv(dim, name="emb_text")(pooled), LABEL_BALANCE)
        return mp_silu(emb)
