"""DDPM++ as in EDM (arXiv 2011.13456, 2206.00364), with the changes of sCM.

The paper's CIFAR-10 network: a U-Net with group norms and biased layers. Changes for
continuous-time consistency models (arXiv 2410.11081v2, Sec. 4.1) are options whose
defaults are the paper's: ``c_noise(t) = t`` is embedded by position and acts through
adaptive double normalization. ``modulation="add"`` is the network as published.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from scm_jax.networks import embeddings, layers, magnitude
from scm_jax.networks.attention import attention
from scm_jax.networks.unet_layout import (
    BlockSpec,
    Layout,
    apply_groups,
    check_settings,
    dropout_rate,
    make_layout,
)
from scm_jax.types import Cond, Placement

# The paper's CIFAR-10 network (EDM, Table 7).
PRESETS = {"cifar10": {"width": 128}}

MODULATIONS = ("add", "double_norm", "double_norm_scale", "adaptive")

EMBEDDING_MULT = 4
NORM_EPS = 1e-6
EMBEDDING_AMPLITUDE = 1.0
SKIP_SCALE = float(np.sqrt(0.5))

# Scales of the initial weights of layers, where they are not 1. Inputs that a teacher
# does not have start at zero, so that a student starts as its teacher.
GAINS = {
    "conv1": 1e-5,
    "proj": 1e-5,
    "out": 1e-5,
    "qkv": 0.2**0.5,
    "emb_dt": 0.0,
    "emb_guidance": 0.0,
}


def _limit(layer: str, shape: tuple[int, ...]) -> float:
    """Xavier's: weights are uniform in ``[-limit, limit]``, times the layer's gain."""
    *taps, fan_in, fan_out = shape[-4:] if len(shape) >= 4 else shape[-2:]
    fans = np.prod(taps) * (fan_in + fan_out)
    return float(GAINS.get(layer, 1.0) * np.sqrt(6.0 / fans))


def _uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)


def _initializer(layer: str) -> Callable[..., jax.Array]:
    return lambda key, shape: _limit(layer, shape) * _uniform(key, shape)


class Conv(nn.Module):
    """Convolution or linear layer with a bias; ``kernel`` is ``(size, size, in, out)``.

    Attributes:
      features: output channels.
      size: side of the kernel; 1 stores it as ``(in, out)``.
      dtype: compute dtype.
    """

    features: int
    size: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``(b, ..., in)`` -> ``(b, ..., out)``."""
        shape: tuple[int, ...] = (x.shape[-1], self.features)
        if self.size > 1:
            shape = (self.size, self.size, *shape)
        w = self.param("kernel", _initializer(str(self.name)), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = magnitude.conv(x.astype(self.dtype), w.astype(self.dtype))
        return y + bias.astype(self.dtype).reshape((1,) * (y.ndim - 1) + (-1,))


class Label(nn.Module):
    """A linear layer on ``sqrt(n) one_hot(label)``; the null class is all zeros.

    Attributes:
      num_classes: rows of ``kernel``.
      features: width of the output.
    """

    num_classes: int
    features: int

    @nn.compact
    def __call__(self, label: jax.Array) -> jax.Array:
        """``(b,)`` int -> ``(b, features)`` float32."""
        shape = (self.num_classes, self.features)
        kernel = self.param("kernel", _initializer("emb_label"), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        # Beyond the last row is NaN, which stops a training.
        row = jnp.take(kernel, jnp.maximum(label, 0), axis=0, mode="fill")
        row = row * float(np.sqrt(self.num_classes))
        return jnp.where(label[:, None] < 0, 0.0, row) + bias[None]


class GroupNorm(nn.Module):
    """Group norm of at most 32 groups of at least 4 channels, with scale and bias."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``(b, h, w, c)`` -> the same shape, float32."""
        c = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        y = layers.group_norm(x, min(32, c // 4), NORM_EPS)
        return y * scale[None, None, None] + bias[None, None, None]


class Block(nn.Module):
    """One block: residual branch of two convolutions, then self-attention.

    ``h <- sqrt(1/2) (skip(h) + conv1(silu(modulate(norm1(conv0(silu(norm0(h)))))))``,
    then ``h <- sqrt(1/2) (h + proj(attend(norm2(h))))``.
    """

    spec: BlockSpec
    num_heads: int
    dropout: float
    modulation: str
    attention: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, h: jax.Array, skip: jax.Array | None, emb: jax.Array, deterministic: bool
    ) -> tuple[jax.Array, jax.Array | None]:
        """``h``: ``(b, h, w, c)``; ``emb``: ``(b, e)`` float32, after its silu."""
        out, mode = self.spec.out_channels, self.spec.resample
        if skip is not None:
            h = jnp.concatenate([h, skip], axis=-1)
        y = nn.silu(GroupNorm(name="norm0")(h)).astype(self.dtype)
        y = Conv(out, 3, dtype=self.dtype, name="conv0")(layers.resample(y, mode))
        y = nn.silu(self._modulate(y, emb)).astype(self.dtype)
        y = nn.Dropout(self.dropout)(y, deterministic=deterministic)
        y = Conv(out, 3, self.dtype, name="conv1")(y)
        if h.shape[-1] != out or mode != "none":
            h = layers.resample(h, mode)
            h = Conv(out, dtype=self.dtype, name="skip")(h)
        h = (h + y) * SKIP_SCALE
        if self.spec.attention:
            h = (h + self._attend(h)) * SKIP_SCALE
        return h, None if self.spec.decoder else h

    def _modulate(self, y: jax.Array, emb: jax.Array) -> jax.Array:
        channels = y.shape[-1]
        norm = GroupNorm(name="norm1")
        if self.modulation == "add":
            shift = Conv(channels, name="affine")(emb)
            return norm(y.astype(jnp.float32) + shift[:, None, None, :])
        vectors = layers.MODULATIONS[self.modulation]
        affine = Conv(vectors * channels, name="affine")(emb)
        return layers.modulate(norm(y), affine, self.modulation)

    def _attend(self, h: jax.Array) -> jax.Array:
        b, height, width, c = h.shape
        y = GroupNorm(name="norm2")(h).astype(self.dtype)
        qkv = Conv(3 * c, dtype=self.dtype, name="qkv")(y)
        # EDM's order of the output channels: head, channel, then q, k, v.
        qkv = qkv.reshape(b, height * width, self.num_heads, c // self.num_heads, 3)
        out = attention(
            qkv[..., 0], qkv[..., 1], qkv[..., 2], implementation=self.attention
        )
        proj = Conv(c, dtype=self.dtype, name="proj")
        return proj(out.reshape(h.shape))


class DDPMpp(nn.Module):
    """``F(x_t / sigma_data, cond)`` for images ``(b, h, w, c)``.

    Attributes:
      sample_shape: ``(h, w, c)`` with ``h == w``, channels last.
      num_classes: classes; 0 for an unconditional network.
      width: channels before multiplication; the embedding has four times as many.
      channel_mult: channels of each level over ``width``, from the input down.
      num_blocks: blocks per level of the encoder.
      attention_resolutions: sides of the levels that attend.
      num_heads: attention heads.
      dropout: rate before each block's second convolution, in training only.
      dropout_max_resolution: only blocks of at most this side drop; 0 for all.
      modulation: how the embedding acts on group-normalized features: ``add`` (EDM: it
        is added before the norm), or a key of ``layers.MODULATIONS``.
      embedding: features of the time, ``positional`` or ``fourier``.
      fourier_scale: scale of Fourier features; NCSN++ has 16.
      use_guidance: takes the guidance scale as an input.
      use_dt: takes a second time as an input.
      attention: implementation behind the attention door.
      dtype: compute dtype of the blocks; embeddings, norms, softmax and the output are
        float32 whatever it is.
      remat: what the backward pass recomputes, a key of ``layers.REMAT``.
      unroll: blocks of equal shape per iteration of their loop; 0 chooses.
      placement: where weights and activations lie on a mesh; no part of a config.
    """

    sample_shape: tuple[int, ...]
    num_classes: int = 0
    width: int = 128
    channel_mult: tuple[int, ...] = (2, 2, 2)
    num_blocks: int = 4
    attention_resolutions: tuple[int, ...] = (16,)
    num_heads: int = 1
    dropout: float = 0.0
    dropout_max_resolution: int = 0
    modulation: str = "double_norm"
    embedding: str = "positional"
    fourier_scale: float = 16.0
    use_guidance: bool = False
    use_dt: bool = False
    attention: str = "einsum"
    dtype: str = "float32"
    remat: str = "none"
    unroll: int = 0
    placement: Placement | None = None

    def check(self) -> None:
        """Raises ``ValueError`` for settings that contradict each other."""
        check_settings(self, MODULATIONS)
        for group in self.layout().groups:
            spec = group.spec
            for c in (spec.in_channels + spec.skip_channels, spec.out_channels):
                if c < 4 or c % min(32, c // 4):
                    raise ValueError(
                        f"the {c} channels of {group.name} do not divide into groups; "
                        f"use a network.width of 4, 8, 16 or a multiple of 32"
                    )
            if spec.attention and spec.out_channels % self.num_heads:
                raise ValueError(
                    f"network.num_heads = {self.num_heads} does not divide the "
                    f"{spec.out_channels} channels of {group.name}"
                )

    def layout(self) -> Layout:
        """The blocks.

        Raises:
          ValueError: not square images, or a side that cannot be halved often enough.
        """
        layers.check_square(self.sample_shape)
        return make_layout(
            self.sample_shape[0],
            self.width,
            tuple(self.width * m for m in self.channel_mult),
            self.num_blocks,
            tuple(self.attention_resolutions),
            attend_last_only=True,
        )

    def draw(self, key: jax.Array, shapes: Any) -> Any:
        """Fresh parameters; see ``layers.draw_parameters``."""
        return layers.draw_parameters(shapes, key, _uniform, _limit, self.fourier_scale)

    @property
    def stacks(self) -> tuple[str, ...]:
        """Names of the subtrees of parameters that hold the blocks."""
        return tuple(group.name for group in self.layout().groups)

    @nn.compact
    def __call__(self, x: jax.Array, cond: Cond, *, train: bool = False) -> jax.Array:
        """``x`` is ``(b, h, w, c)``; returns ``F`` of that shape, float32."""
        self.check()
        layers.check_input(x, self.sample_shape)
        dtype = jnp.dtype(self.dtype)
        emb = layers.place_batch(self._embed(cond), self.placement)
        h = Conv(self.width, 3, dtype=dtype, name="in")(x)
        h = apply_groups(
            self.layout(),
            lambda spec: (
                Block,
                {
                    "spec": spec,
                    "num_heads": self.num_heads,
                    "dropout": dropout_rate(
                        spec, self.dropout, self.dropout_max_resolution
                    ),
                    "modulation": self.modulation,
                    "attention": self.attention,
                    "dtype": dtype,
                },
            ),
            h,
            emb,
            not train,
            remat=self.remat,
            unroll=self.unroll,
            placement=self.placement,
        )
        h = nn.silu(GroupNorm(name="norm_out")(h))
        return Conv(x.shape[-1], 3, name="out")(h)

    def _embed(self, cond: Cond) -> jax.Array:
        """``Cond`` -> ``(b, e)`` float32, after its silu."""
        dim = EMBEDDING_MULT * self.width
        amplitude = {"amplitude": EMBEDDING_AMPLITUDE}
        emb = embeddings.embed_time(
            cond.t, self.width, self.embedding, self.fourier_scale, **amplitude
        )
        if self.num_classes:
            label = Label(self.num_classes, self.width, name="emb_label")
            emb = emb + label(embeddings.labels(cond))
        emb = nn.silu(Conv(dim, name="emb0")(emb))
        emb = Conv(dim, name="emb1")(emb)
        if self.use_dt:
            emb = self._add_scalar(emb, embeddings.required(cond.dt, "dt"), "dt")
        if self.use_guidance:
            scale = embeddings.required(cond.guidance, "guidance")
            emb = self._add_scalar(emb, scale, "guidance")
        return nn.silu(emb)

    def _add_scalar(self, emb: jax.Array, a: jax.Array, name: str) -> jax.Array:
        features = embeddings.positional_embedding(
            a, self.width, amplitude=EMBEDDING_AMPLITUDE
        )
        return emb + Conv(emb.shape[-1], name=f"emb_{name}")(features)
