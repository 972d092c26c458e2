"""The autoencoder of Stable Audio Open (arXiv 2407.14358), channels last.

Convolutions over time alone: every level has three residual units and changes the rate.
The layout is that of ``OobleckEncoder`` and ``OobleckDecoder`` in
Stability-AI/stable-audio-tools. Its weight normalization only matters for training:
kernels here are the products that ``external.audio_autoencoder`` makes of it.

Latents are raw: the published ones are diffused without a scale.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

DILATIONS = (1, 3, 9)  # of a level's residual units
SNAKE_EPS = 1e-9
STD_MIN = 1e-4  # of the posterior


class Snake(nn.Module):
    """``x + sin(a x)^2 / b`` for each channel, float32 (arXiv 2006.08195).

    ``alpha`` and ``beta`` are the logarithms of ``a`` and ``b``.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        a, b = (
            jnp.exp(self.param(name, nn.initializers.zeros, x.shape[-1:]))[None, None]
            for name in ("alpha", "beta")
        )
        x = x.astype(jnp.float32)
        return x + jnp.sin(a * x) ** 2 / (b + SNAKE_EPS)


class Unit(nn.Module):
    """``x + conv(snake(conv(snake(x))))``, kernels of 7 with holes and of 1."""

    dilation: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        options: Any = {"kernel_dilation": self.dilation, "dtype": self.dtype}
        h, c = Snake(name="snake1")(x), x.shape[-1]
        h = nn.Conv(c, (7,), padding=3 * self.dilation, name="conv1", **options)(h)
        h = Snake(name="snake2")(h)
        return x + nn.Conv(c, (1,), dtype=self.dtype, name="conv2")(h)


class Level(nn.Module):
    """Residual units, then a lower rate; or with ``up`` a higher rate, then units."""

    channels: int  # after the change of rate
    stride: int
    up: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self._change(x) if self.up else x
        for i, dilation in enumerate(DILATIONS, 1):
            x = Unit(dilation, self.dtype, name=f"res_unit{i}")(x)
        return x if self.up else self._change(x)

    def _change(self, x: jax.Array) -> jax.Array:
        x, s = Snake(name="snake1")(x), self.stride
        options: Any = {"strides": s, "dtype": self.dtype}
        pad = math.ceil(s / 2)
        if not self.up:
            name = "conv1"
            conv = nn.Conv(self.channels, (2 * s,), padding=pad, name=name, **options)
            return conv(x)
        # Flax pads what it spreads out; ``pad`` samples are to be cut off.
        options |= {"strides": (s,), "padding": ((2 * s - 1 - pad,) * 2,)}
        return nn.ConvTranspose(self.channels, (2 * s,), name="conv_t1", **options)(x)


class Half(nn.Module):
    """Encoder, or decoder with ``up``; see ``AudioAutoencoder``."""

    out: int
    levels: tuple[int, ...]  # channels, in order
    strides: tuple[int, ...]
    up: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        first, *others = self.levels
        x = nn.Conv(first, (7,), padding=3, dtype=self.dtype, name="conv1")(x)
        for i, (channels, stride) in enumerate(zip(others, self.strides, strict=True)):
            x = Level(channels, stride, self.up, self.dtype, name=f"block_{i}")(x)
        x = Snake(name="snake1")(x)
        taps = 7 if self.up else 3
        options: Any = {"use_bias": not self.up, "dtype": self.dtype, "name": "conv2"}
        return nn.Conv(self.out, (taps,), padding=taps // 2, **options)(x)


class AudioAutoencoder(nn.Module):
    """Encoder and decoder with a diagonal Gaussian posterior over latents.

    The defaults are those of Stable Audio Open 1.0, for stereo at 44.1 kHz: 2,048
    samples go into one of 21.5 latents a second. It has 156,077,696 parameters, and
    34,818 more in a file, where kernels are normalized.
    """

    channels: int = 2  # of sound: two are stereo
    latent_channels: int = 64
    # Full rate first; the first two are those of the first level.
    block_channels: tuple[int, ...] = (128, 128, 256, 512, 1024, 2048)
    strides: tuple[int, ...] = (2, 4, 4, 8, 8)
    dtype: Any = jnp.float32  # of the products; activations and posterior are float32

    slice_size = 1  # sounds processed at once

    def setup(self) -> None:
        widths, strides = self.block_channels, self.strides
        moments, dtype = 2 * self.latent_channels, self.dtype
        self.encoder = Half(moments, widths, strides, False, dtype)
        self.decoder = Half(self.channels, widths[::-1], strides[::-1], True, dtype)

    @property
    def factor(self) -> int:
        """Samples that go into one latent."""
        return math.prod(self.strides)

    @property
    def example_shape(self) -> tuple[int, ...]:
        """The shortest sound, ``(samples, channels)``."""
        return (self.factor, self.channels)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises ``ValueError`` for sound ``(b, samples, c)`` that does not fit."""
        if len(shape) != 3 or shape[1] % self.factor or shape[2] != self.channels:
            raise ValueError(
                f"data of shape {shape[1:]} cannot be encoded: this autoencoder takes "
                f"sound (samples, {self.channels}) with a multiple of {self.factor} "
                "samples"
            )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Through both halves, for initialization."""
        return self.decode(self.encode(x)[0])

    def encode(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and standard deviation of the posterior, float32.

        ``(b, samples, channels)`` in [-1, 1] -> ``(b, samples / factor,
        latent_channels)`` each.
        """
        moments = self.encoder(x.astype(self.dtype)).astype(jnp.float32)
        mean, scale = jnp.split(moments, 2, axis=-1)
        return mean, nn.softplus(scale) + STD_MIN

    def decode(self, z: jax.Array) -> jax.Array:
        """Sound ``(b, factor n, channels)`` of ``(b, n, latent_channels)``, float32."""
        return self.decoder(z.astype(self.dtype)).astype(jnp.float32)
