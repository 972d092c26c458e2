"""The autoencoder of latent diffusion (AutoencoderKL, arXiv 2112.10752), channels last.

The defaults are the layout of ``stabilityai/sd-vae-ft-mse``, 83,653,863 parameters. It
is no backbone: it maps pixels to a posterior over latents, and latents to pixels.

The range of pixels is the caller's choice (``scm_jax.datasets.pixels.PIXEL_RANGES``).
Latents are raw, before the factor 0.18215 by which Stable Diffusion multiplies them and
before the whitening of ``scm_jax.datasets.latents``.
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

# Bounds of the predicted log-variance.
LOGVAR_RANGE = (-30.0, 20.0)
# Images processed at once. One of 512x512 takes 0.9 GiB to decode in float32 and 0.4
# GiB to encode (the compiler's figures on a CPU).
SLICE_SIZE = 8


def norm_silu(x: jax.Array, num_groups: int, dtype: Any, name: str) -> jax.Array:
    """Group norm and SiLU, float32 inside; call it inside a compact ``__call__``."""
    return nn.silu(layers.GroupNorm(num_groups, name=name)(x)).astype(dtype)


class Block(nn.Module):
    """``shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))))))``.

    ``shortcut`` is the identity where the number of channels stays.
    """

    features: int
    num_groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = x
        for i in (1, 2):
            h = norm_silu(h, self.num_groups, self.dtype, f"norm{i}")
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
        b, _, _, c = x.shape
        tokens = layers.GroupNorm(self.num_groups, name="norm")(x).astype(self.dtype)
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
        for i in range(self.num_blocks):
            block = Block(self.features, self.num_groups, self.dtype, name=f"block_{i}")
            x = block(x)
        if self.resample == "none":
            return x
        options: dict[str, Any] = {"dtype": self.dtype, "name": "resample"}
        if self.resample == "down":
            options |= {"strides": 2, "padding": ((0, 1), (0, 1))}
        else:
            x = layers.resample(x, "up")
        return nn.Conv(self.features, (3, 3), **options)(x)


class Half(nn.Module):
    """Encoder (``down``) or decoder (``up``); see ``AutoencoderKL``."""

    features: int
    block_channels: tuple[int, ...]  # in order; a decoder begins with the lowest
    resample: str
    num_blocks: int
    num_groups: int
    attention: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        common = {"num_groups": self.num_groups, "dtype": self.dtype}
        first, last = self.block_channels[0], len(self.block_channels) - 1
        x = nn.Conv(first, (3, 3), dtype=self.dtype, name="in")(x)
        middle = Middle(**common, attention=self.attention, name="middle")
        x = middle(x) if self.resample == "up" else x
        for i, channels in enumerate(self.block_channels):
            mode = "none" if i == last else self.resample
            level = Level(channels, self.num_blocks, mode, **common, name=f"level_{i}")
            x = level(x)
        x = middle(x) if self.resample == "down" else x
        x = norm_silu(x, **common, name="norm_out")
        return nn.Conv(self.features, (3, 3), dtype=self.dtype, name="out")(x)


class AutoencoderKL(nn.Module):
    """Encoder and decoder with a diagonal Gaussian posterior over latents.

    ``f = 2^(len(block_channels) - 1)`` pixels go into one position of the latent.
    """

    channels: int = 3  # of an image
    latent_channels: int = 4
    block_channels: tuple[int, ...] = (128, 256, 512, 512)  # full resolution first
    num_blocks: int = 2  # per resolution of the encoder; the decoder has one more
    num_groups: int = 32  # of each norm; divides all of block_channels
    attention: str = "chunked"  # 512x512 images have 4096 tokens
    dtype: Any = jnp.float32  # of the products; norms and the posterior are float32

    def setup(self) -> None:
        common = {
            "num_groups": self.num_groups,
            "attention": self.attention,
            "dtype": self.dtype,
        }
        moments = 2 * self.latent_channels
        widths, blocks = self.block_channels, self.num_blocks
        self.encoder = Half(moments, widths, "down", blocks, **common)
        self.decoder = Half(self.channels, widths[::-1], "up", blocks + 1, **common)
        self.quant = nn.Dense(moments, dtype=self.dtype)
        self.post_quant = nn.Dense(self.latent_channels, dtype=self.dtype)

    slice_size = SLICE_SIZE

    @property
    def factor(self) -> int:
        """Side of an image over the side of its latent."""
        return 2 ** (len(self.block_channels) - 1)

    @property
    def example_shape(self) -> tuple[int, ...]:
        """The smallest images, ``(h, w, c)``."""
        return (self.factor, self.factor, self.channels)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises ``ValueError`` for images ``(b, h, w, c)`` that do not fit."""
        if len(shape) != 4 or shape[1] % self.factor or shape[2] % self.factor:
            raise ValueError(
                f"data of shape {shape[1:]} cannot be encoded: this autoencoder takes "
                f"images (h, w, c) whose sides are multiples of {self.factor}"
            )

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
def abstract_params(module: Any) -> Any:
    """Shapes of the parameters; nothing is allocated."""
    # Tracing the full size takes a second or two.
    x = jax.ShapeDtypeStruct((1, *module.example_shape), jnp.float32)
    return jax.eval_shape(module.init, jax.random.key(0), x)["params"]


def encode(
    module: Any, params: Any, x: jax.Array, slice_size: int = 0
) -> tuple[jax.Array, jax.Array]:
    """The posterior of each image, clip or sound; traceable.

    ``module`` is an ``AutoencoderKL``, ``VideoAutoencoder`` or ``AudioAutoencoder``.
    ``x`` are ``(b, h, w, channels)`` pixels or ``(b, samples, channels)``, at most
    ``slice_size`` of them at once. Returns mean and standard deviation, ``(b, h / f,
    w / f, latent_channels)`` or ``(b, samples / f, latent_channels)`` float32.

    Raises:
      ValueError: the sides, or the samples, are not divisible by ``f``.
    """
    module.check_shape(x.shape)
    run = functools.partial(module.apply, {"params": params}, method="encode")
    return in_slices(run, x, slice_size or module.slice_size)


def decode(module: Any, params: Any, z: jax.Array, slice_size: int = 0) -> jax.Array:
    """Raw latents ``(b, h, w, latent_channels)`` to pixels, float32; traceable.

    Pixels are in the range of those that were encoded, not clipped to it. At most
    ``slice_size`` images are processed at once.
    """
    run = functools.partial(module.apply, {"params": params}, method="decode")
    return in_slices(run, z, slice_size or module.slice_size)


def in_slices(fn: Callable[[jax.Array], Any], x: jax.Array, size: int) -> Any:
    """``fn(x)`` for independent examples, ``size`` of them at a time to save memory."""
    num = x.shape[0]
    if num <= size:
        return fn(x)
    count = -(-num // size)
    padded = jnp.pad(x, [(0, count * size - num), *[(0, 0)] * (x.ndim - 1)])
    parts = jax.lax.map(fn, padded.reshape(count, size, *x.shape[1:]))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:num], parts)
