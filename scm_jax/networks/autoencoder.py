"""The autoencoder of latent diffusion (AutoencoderKL, arXiv 2112.10752), channels last.

The defaults are the layout of ``stabilityai/sd-vae-ft-mse``, 83,653,863 parameters. It
is no backbone and no entry of ``NETWORKS``: it maps pixels to a posterior over latents
and latents to pixels.

The module knows no pixel range: in which one images enter and leave is the caller's
choice (``scm_jax.datasets.pixels.PIXEL_RANGES``). Nor does it know any scaling of
latents: these are raw, before the factor 0.18215 by which Stable Diffusion multiplies
them and before the whitening of ``scm_jax.datasets.latents``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from scm_jax.networks import layers
from scm_jax.networks.attention import attention

NORM_EPS = 1e-6
# Bounds of the predicted log-variance.
LOGVAR_RANGE = (-30.0, 20.0)
# Images that are in work at once. One of 512x512 takes 0.9 GiB to decode in float32 and
# 0.4 GiB to encode (the compiler's figures on a CPU).
SLICE_SIZE = 8


class GroupNorm(nn.Module):
    """Group norm with scale and bias, then SiLU unless ``linear``; float32 inside."""

    num_groups: int
    dtype: Any
    linear: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``(b, h, w, c)`` -> the same shape."""
        c = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        y = layers.group_norm(x, self.num_groups, NORM_EPS)
        y = y * scale[None, None, None] + bias[None, None, None]
        return (y if self.linear else nn.silu(y)).astype(self.dtype)


class Block(nn.Module):
    """``shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))))))``.

    ``shortcut`` is the identity where the number of channels stays.
    """

    features: int
    num_groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``(b, h, w, c)`` -> ``(b, h, w, features)``."""
        h = x
        for i in (1, 2):
            h = GroupNorm(self.num_groups, self.dtype, name=f"norm{i}")(h)
            h = nn.Conv(self.features, (3, 3), dtype=self.dtype, name=f"conv{i}")(h)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype, name="shortcut")(x)
        return x + h


class SelfAttention(nn.Module):
    """``x + out(attend(q, k, v))`` over all positions of the normed input, one head."""

    num_groups: int
    attention: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``(b, h, w, c)`` -> the same shape."""
        b, _, _, c = x.shape
        tokens = GroupNorm(self.num_groups, self.dtype, linear=True, name="norm")(x)
        q, k, v = (
            nn.Dense(c, dtype=self.dtype, name=name)(tokens).reshape(b, -1, 1, c)
            for name in ("q", "k", "v")
        )
        h = attention(q, k, v, implementation=self.attention).reshape(x.shape)
        return x + nn.Dense(c, dtype=self.dtype, name="out")(h)


class Middle(nn.Module):
    """Block, self-attention, block at the lowest resolution."""

    num_groups: int
    attention: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``(b, h, w, c)`` -> the same shape."""
        block = {"num_groups": self.num_groups, "dtype": self.dtype}
        x = Block(x.shape[-1], **block, name="block_0")(x)
        x = SelfAttention(self.num_groups, self.attention, self.dtype, name="attn")(x)
        return Block(x.shape[-1], **block, name="block_1")(x)


class Level(nn.Module):
    """Blocks of one resolution, then a change of it.

    ``down`` is a convolution of stride 2 on an image with one more row and column of
    zeros at the bottom and the right; ``up`` repeats pixels, and convolves.
    """

    features: int
    num_blocks: int
    resample: str
    num_groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``(b, h, w, c)`` -> ``(b, h', w', features)``."""
        for i in range(self.num_blocks):
            block = Block(self.features, self.num_groups, self.dtype, name=f"block_{i}")
            x = block(x)
        if self.resample == "none":
            return x
        stride: dict[str, Any] = {}
        if self.resample == "down":
            stride = {"strides": 2, "padding": ((0, 1), (0, 1))}
        else:
            x = layers.resample(x, "up")
        conv = nn.Conv(
            self.features, (3, 3), **stride, dtype=self.dtype, name="resample"
        )
        return conv(x)


class Encoder(nn.Module):
    """Pixels to features of the posterior; see ``AutoencoderKL``."""

    features: int
    block_channels: tuple[int, ...]
    num_blocks: int
    num_groups: int
    attention: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``(b, h, w, c)`` -> ``(b, h / f, w / f, features)``."""
        common = {"num_groups": self.num_groups, "dtype": self.dtype}
        first, last = self.block_channels[0], len(self.block_channels) - 1
        x = nn.Conv(first, (3, 3), dtype=self.dtype, name="in")(x)
        for i, channels in enumerate(self.block_channels):
            mode = "none" if i == last else "down"
            level = Level(channels, self.num_blocks, mode, **common, name=f"level_{i}")
            x = level(x)
        x = Middle(**common, attention=self.attention, name="middle")(x)
        x = GroupNorm(**common, name="norm_out")(x)
        return nn.Conv(self.features, (3, 3), dtype=self.dtype, name="out")(x)


class Decoder(nn.Module):
    """Latents to pixels; see ``AutoencoderKL``. Level 0 has the lowest resolution."""

    features: int
    block_channels: tuple[int, ...]
    num_blocks: int
    num_groups: int
    attention: str
    dtype: Any

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        """``(b, h, w, c)`` -> ``(b, f h, f w, features)``."""
        common = {"num_groups": self.num_groups, "dtype": self.dtype}
        order, last = self.block_channels[::-1], len(self.block_channels) - 1
        x = nn.Conv(order[0], (3, 3), dtype=self.dtype, name="in")(z)
        x = Middle(**common, attention=self.attention, name="middle")(x)
        for i, channels in enumerate(order):
            mode = "none" if i == last else "up"
            level = Level(channels, self.num_blocks, mode, **common, name=f"level_{i}")
            x = level(x)
        x = GroupNorm(**common, name="norm_out")(x)
        return nn.Conv(self.features, (3, 3), dtype=self.dtype, name="out")(x)


class AutoencoderKL(nn.Module):
    """Encoder and decoder with a diagonal Gaussian posterior over latents.

    ``f = 2^(len(block_channels) - 1)`` pixels go into one position of the latent.

    Attributes:
      channels: of an image.
      latent_channels: of a latent.
      block_channels: width of each resolution, the full one first.
      num_blocks: blocks per resolution of the encoder; the decoder has one more.
      num_groups: of each group norm; divides all of ``block_channels``.
      attention: see ``scm_jax.networks.attention``; 512x512 images have 4096 tokens.
      dtype: compute dtype; norms and the posterior are float32.
    """

    channels: int = 3
    latent_channels: int = 4
    block_channels: tuple[int, ...] = (128, 256, 512, 512)
    num_blocks: int = 2
    num_groups: int = 32
    attention: str = "chunked"
    dtype: Any = jnp.float32

    def setup(self) -> None:
        common = {
            "block_channels": self.block_channels,
            "num_groups": self.num_groups,
            "attention": self.attention,
            "dtype": self.dtype,
        }
        moments = 2 * self.latent_channels
        self.encoder = Encoder(moments, num_blocks=self.num_blocks, **common)
        self.decoder = Decoder(self.channels, num_blocks=self.num_blocks + 1, **common)
        self.quant = nn.Dense(moments, dtype=self.dtype)
        self.post_quant = nn.Dense(self.latent_channels, dtype=self.dtype)

    @property
    def factor(self) -> int:
        """Side of an image over the side of its latent."""
        return 2 ** (len(self.block_channels) - 1)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Through both halves, for initialization."""
        return self.decode(self.encode(x)[0])

    def encode(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and standard deviation of the posterior, float32; see ``encode``."""
        moments = self.quant(self.encoder(x.astype(self.dtype))).astype(jnp.float32)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, jnp.exp(0.5 * jnp.clip(logvar, *LOGVAR_RANGE))

    def decode(self, z: jax.Array) -> jax.Array:
        """Pixels, float32; see ``decode``."""
        z = self.post_quant(z.astype(self.dtype))
        return self.decoder(z).astype(jnp.float32)


@functools.lru_cache(maxsize=8)
def abstract_params(module: AutoencoderKL) -> Any:
    """Shapes of the parameters; nothing is allocated."""
    # Tracing the full size takes a second or two.
    side = module.factor
    x = jax.ShapeDtypeStruct((1, side, side, module.channels), jnp.float32)
    return jax.eval_shape(module.init, jax.random.key(0), x)["params"]


def encode(
    module: AutoencoderKL, params: Any, x: jax.Array, slice_size: int = SLICE_SIZE
) -> tuple[jax.Array, jax.Array]:
    """The posterior of each image; traceable.

    Args:
      module: the autoencoder.
      params: its parameters.
      x: ``(b, h, w, channels)`` pixels, in the range that the latents are meant for.
      slice_size: images that are in work at once.

    Returns:
      Mean and standard deviation, each ``(b, h / f, w / f, latent_channels)`` float32.

    Raises:
      ValueError: the sides are not divisible by ``f``.
    """
    if x.shape[1] % module.factor or x.shape[2] % module.factor:
        raise ValueError(
            f"images of {x.shape[1]}x{x.shape[2]} pixels cannot be encoded: both sides "
            f"must be multiples of {module.factor}"
        )

    def run(part: jax.Array) -> Any:
        return module.apply({"params": params}, part, method="encode")

    return in_slices(run, x, slice_size)


def decode(
    module: AutoencoderKL, params: Any, z: jax.Array, slice_size: int = SLICE_SIZE
) -> jax.Array:
    """Raw latents ``(b, h, w, latent_channels)`` to pixels, float32; traceable.

    Pixels are in the range of those that were encoded, not clipped to it. At most
    ``slice_size`` images are in work at once.
    """

    def run(part: jax.Array) -> Any:
        return module.apply({"params": params}, part, method="decode")

    return in_slices(run, z, slice_size)


def in_slices(fn: Callable[[jax.Array], Any], x: jax.Array, size: int) -> Any:
    """``fn(x)`` for examples that do not meet, ``size`` of them at a time.

    Memory is that of ``size`` examples, and of the result.
    """
    num = x.shape[0]
    if num <= size:
        return fn(x)
    count = -(-num // size)
    padded = jnp.pad(x, [(0, count * size - num), *[(0, 0)] * (x.ndim - 1)])
    parts = jax.lax.map(fn, padded.reshape(count, size, *x.shape[1:]))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:num], parts)
