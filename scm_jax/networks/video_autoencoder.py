"""The space-time autoencoder of Wan2.1 (arXiv 2503.20314), channels last.

Its convolutions see the present and the past. The first frame is a group of its own,
and then four frames at a time share one position of the latent: ``1 + 4 k`` frames give
``1 + k``. The layout is that of ``wan/modules/vae.py`` in Wan-Video/Wan2.1, which works
through a clip in pieces; here all of it is computed at once, with the same result.

Latents are raw, before the constants of ``scm_jax.datasets.prepared_latents``.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from scm_jax.networks import layers
from scm_jax.networks.attention import attention
from scm_jax.networks.autoencoder import LOGVAR_RANGE

SPACE = ((1, 1), (1, 1))
PAST = ((2, 0), *SPACE)  # two frames before each, none after it


class Norm(nn.Module):
    """``gamma a / rms(a)`` over the channels, float32."""

    @nn.compact
    def __call__(self, a: jax.Array) -> jax.Array:
        gamma = self.param("gamma", nn.initializers.ones, a.shape[-1:])
        return layers.pixel_norm(a, 1e-12) * gamma.reshape((1,) * (a.ndim - 1) + (-1,))


def conv(channels: int, dtype: Any, name: str) -> nn.Module:
    """A convolution of 3x3x3 that does not look ahead."""
    return nn.Conv(channels, (3, 3, 3), padding=PAST, dtype=dtype, name=name)


class Residual(nn.Module):
    """``shortcut(x) + conv(silu(norm(conv(silu(norm(x))))))``."""

    channels: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = x
        for i in (0, 3):  # the numbers of the published names
            h = nn.silu(Norm(name=f"residual_{i}")(h)).astype(self.dtype)
            name = f"residual_{2 if i == 0 else 6}"
            h = conv(self.channels, self.dtype, name)(h)
        if x.shape[-1] != self.channels:
            options: Any = {"dtype": self.dtype, "name": "shortcut"}
            x = nn.Conv(self.channels, (1, 1, 1), **options)(x)
        return x + h


class Attention(nn.Module):
    """``x + out(attend(q, k, v))`` within each frame, one head."""

    attention: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, t, h, w, c = x.shape
        frames = x.reshape(b * t, h, w, c)
        y = Norm(name="norm")(frames).astype(self.dtype)
        qkv = nn.Conv(3 * c, (1, 1), dtype=self.dtype, name="to_qkv")(y)
        q, k, v = jnp.split(qkv.reshape(b * t, h * w, 1, 3 * c), 3, axis=-1)
        y = attention(q, k, v, implementation=self.attention).reshape(frames.shape)
        y = nn.Conv(c, (1, 1), dtype=self.dtype, name="proj")(y)
        return x + y.reshape(x.shape)


class Resample(nn.Module):
    """Half or twice as many rows and columns and, with ``time``, frames.

    ``down``: a convolution of stride 2, then one over time, of stride 2, too: frame
    ``k`` of the result is made of the frames ``2k - 2, 2k - 1, 2k``, and the first one
    stays. ``up``: each frame but the first becomes two, then pixels are repeated.
    """

    mode: str
    time: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.mode == "up":
            x = self._double(x) if self.time else x
        b, t, h, w, c = x.shape
        frames = x.reshape(b * t, h, w, c)
        options: dict[str, Any] = {"dtype": self.dtype, "name": "resample_1"}
        if self.mode == "down":
            options |= {"strides": 2, "padding": ((0, 1), (0, 1))}
            frames = nn.Conv(c, (3, 3), **options)(frames)
        else:
            frames = layers.resample(frames, "up")
            frames = nn.Conv(c // 2, (3, 3), padding=SPACE, **options)(frames)
        x = frames.reshape(b, t, *frames.shape[1:])
        if self.mode == "down" and self.time and t > 1:
            options = {"padding": "VALID", "strides": (2, 1, 1), "dtype": self.dtype}
            halved = nn.Conv(c, (3, 1, 1), name="time_conv", **options)(x)
            x = jnp.concatenate([x[:, :1], halved], axis=1)
        return x

    def _double(self, x: jax.Array) -> jax.Array:
        b, t, h, w, c = x.shape
        if t == 1:
            return x
        options: Any = {"padding": ((2, 0), (0, 0), (0, 0)), "dtype": self.dtype}
        both = nn.Conv(2 * c, (3, 1, 1), name="time_conv", **options)(x[:, 1:])
        both = both.reshape(b, t - 1, h, w, 2, c).transpose(0, 1, 4, 2, 3, 5)
        return jnp.concatenate([x[:, :1], both.reshape(b, -1, h, w, c)], axis=1)


class Half(nn.Module):
    """Encoder (``down``) or decoder (``up``); see ``VideoAutoencoder``."""

    out: int
    levels: tuple[int, ...]  # channels, in order
    time: tuple[bool, ...]  # whether the change after each level is one of time, too
    mode: str
    num_blocks: int
    attention: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = conv(self.levels[0], self.dtype, "conv1")(x)
        x = self._middle(x) if self.mode == "up" else x
        number = 0
        for i, channels in enumerate(self.levels):
            for _ in range(self.num_blocks):
                name = f"{self.mode}samples_{number}"
                x, number = Residual(channels, self.dtype, name=name)(x), number + 1
            if i < len(self.time):
                name = f"{self.mode}samples_{number}"
                change = Resample(self.mode, self.time[i], self.dtype, name=name)
                x, number = change(x), number + 1
        x = self._middle(x) if self.mode == "down" else x
        x = nn.silu(Norm(name="head_0")(x)).astype(self.dtype)
        return conv(self.out, self.dtype, "head_2")(x)

    def _middle(self, x: jax.Array) -> jax.Array:
        x = Residual(x.shape[-1], self.dtype, name="middle_0")(x)
        x = Attention(self.attention, self.dtype, name="middle_1")(x)
        return Residual(x.shape[-1], self.dtype, name="middle_2")(x)


class VideoAutoencoder(nn.Module):
    """Encoder and decoder with a diagonal Gaussian posterior over latents.

    The defaults are Wan2.1's: 126,892,531 parameters; 4x8x8 pixels go into one position
    of the latent.
    """

    channels: int = 3  # of a frame
    latent_channels: int = 16
    block_channels: tuple[int, ...] = (96, 192, 384, 384)  # full resolution first
    time: tuple[bool, ...] = (False, True, True)  # after each level but the last
    num_blocks: int = 2  # per level of the encoder; the decoder has one more
    attention: str = "chunked"
    dtype: Any = jnp.float32  # of the products; norms and the posterior are float32

    slice_size = 1  # clips processed at once

    def setup(self) -> None:
        common = {"attention": self.attention, "dtype": self.dtype}
        moments, widths = 2 * self.latent_channels, self.block_channels
        num, back = self.num_blocks, (self.block_channels[::-1], self.time[::-1])
        self.encoder = Half(moments, widths, self.time, "down", num, **common)
        self.decoder = Half(self.channels, *back, "up", num + 1, **common)
        self.conv1 = nn.Conv(moments, (1, 1, 1), dtype=self.dtype)
        self.conv2 = nn.Conv(self.latent_channels, (1, 1, 1), dtype=self.dtype)

    @property
    def factor(self) -> int:
        """Side of a frame over the side of its latent."""
        return 2 ** len(self.time)

    @property
    def frames(self) -> int:
        """Frames that share one position of the latent, but for the first."""
        return 2 ** sum(self.time)

    @property
    def example_shape(self) -> tuple[int, ...]:
        """The smallest clips that pass through all layers, ``(t, h, w, c)``."""
        return (1 + self.frames, self.factor, self.factor, self.channels)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises ``ValueError`` for clips ``(b, t, h, w, c)`` that do not fit."""
        if len(shape) != 5 or shape[1] % self.frames != 1 % self.frames:
            raise ValueError(
                f"data of shape {shape[1:]} cannot be encoded: this autoencoder takes "
                f"clips (t, h, w, c) of 1 + {self.frames} k frames"
            )
        if shape[2] % self.factor or shape[3] % self.factor:
            raise ValueError(
                f"frames of {shape[2]}x{shape[3]} pixels cannot be encoded: both sides "
                f"must be multiples of {self.factor}"
            )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Through both halves, for initialization."""
        return self.decode(self.encode(x)[0])

    def encode(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and standard deviation of the posterior, float32; see ``encode``."""
        moments = self.conv1(self.encoder(x.astype(self.dtype))).astype(jnp.float32)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, jnp.exp(0.5 * jnp.clip(logvar, *LOGVAR_RANGE))

    def decode(self, z: jax.Array) -> jax.Array:
        """Pixels ``(b, 1 + 4 k, h, w, channels)``, float32."""
        z = self.conv2(z.astype(self.dtype))
        return self.decoder(z).astype(jnp.float32)
