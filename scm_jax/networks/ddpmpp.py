"""DDPM++ as in EDM (arXiv 2011.13456, 2206.00364), with the changes of sCM.

The paper's CIFAR-10 network: a U-Net with group norms and biased layers. The defaults
are those of sCM (arXiv 2410.11081v2, Sec. 4.1): positional embedding of
``c_noise(t) = t`` and adaptive double normalization. The network as published is
``modulation="add"``.
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
from scm_jax.networks.layers import GroupNorm
from scm_jax.networks.unet_layout import BlockSpec, Group, apply_groups, make_layout
from scm_jax.types import Cond, Placement

# The paper's CIFAR-10 network (EDM, Table 7).
PRESETS = {"cifar10": {"width": 128}}

MODULATIONS = ("add", "double_norm", "double_norm_scale", "adaptive")

EMBEDDING_MULT = 4
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
    """Convolution or linear layer with a bias; see ``magnitude.conv``."""

    features: int  # output channels
    size: int = 1  # stored as (in, out)
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
    """A linear layer on ``sqrt(n) one_hot(label)``; the null class is all zeros."""

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
    dtype: Any

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
      width: channels before multiplication; the embedding has four times as many.
      num_heads: attention heads.
      modulation: how the embedding acts on group-normalized features: ``add`` (EDM: it
        is added before the norm), or a key of ``layers.MODULATIONS``.
      embedding: features of the time, ``positional`` or ``fourier``.
      fourier_scale: scale of Fourier features; NCSN++ has 16.

    All other attributes are those of ``unet.UNet``.
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
        layers.check_settings(self, modulation=MODULATIONS)
        for group in self.layout():
            spec = group.spec
            for c in (spec.in_channels + spec.skip_channels, spec.out_channels):
                if c < 4 or c % min(32, c // 4):
                    raise ValueError(
                        f"the {c} channels of {group.name} do not divide into groups; "
                        f"use a network.width of 4, 8, 16 or a multiple of 32"
                    )
            if spec.attention:
                of = f"the {spec.out_channels} channels of {group.name}"
                layers.check_divides(self, "num_heads", spec.out_channels, of)

    def layout(self) -> tuple[Group, ...]:
        """The blocks; see ``make_layout``."""
        return make_layout(self, self.width, attend_last_only=True)

    def draw(self, key: jax.Array, shapes: Any) -> Any:
        """Fresh parameters; see ``layers.draw_parameters``."""
        return layers.draw_parameters(shapes, key, _uniform, _limit, self.fourier_scale)

    @property
    def stacks(self) -> tuple[str, ...]:
        return tuple(group.name for group in self.layout())

    @nn.compact
    def __call__(self, x: jax.Array, cond: Cond, *, train: bool = False) -> jax.Array:
        """``x`` is ``(b, h, w, c)``; returns ``F`` of that shape, float32."""
        self.check()
        layers.check_input(x, self.sample_shape)
        emb = layers.place_batch(self._embed(cond), self.placement)
        h = Conv(self.width, 3, dtype=self.dtype, name="in")(x)
        settings = ("num_heads", "modulation", "attention", "dtype")
        h = apply_groups(self, Block, settings, h, emb, not train)
        h = nn.silu(GroupNorm(name="norm_out")(h))
        return Conv(x.shape[-1], 3, name="out")(h)

    def _embed(self, cond: Cond) -> jax.Array:
        """``Cond`` -> ``(b, e)`` float32, after its silu."""
        dim = EMBEDDING_MULT * self.width
        amplitude = {"amplitude": EMBEDDING_AMPLITUDE}
        emb = embeddings.embed_time(self, cond.t, self.width, **amplitude)
        if self.num_classes:
            label = Label(self.num_classes, self.width, name="emb_label")
            emb = emb + label(embeddings.labels(cond))
        emb = nn.silu(Conv(dim, name="emb0")(emb))
        emb = Conv(dim, name="emb1")(emb)
        for name, a in embeddings.scalars(self, cond):  # these start at zero, see GAINS
            added = embeddings.positional_embedding(a, self.width, **amplitude)
            emb = emb + Conv(dim, name=f"emb_{name}")(added)
        return nn.silu(emb)
