"""Embeddings of times, classes and scalars into vectors, in float32."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from scm_jax.types import Cond

SQRT2 = float(np.sqrt(2.0))
EMBEDDINGS = ("positional", "fourier")


def positional_embedding(
    a: jax.Array, dim: int, max_period: float = 10_000.0, amplitude: float = SQRT2
) -> jax.Array:
    """Positional embedding of a scalar, ``(b,) -> (b, dim)`` float32 with unit RMS.

    ``amplitude [cos(a w_i), sin(a w_i)]`` with ``w_i = max_period^(-i/(dim/2 - 1))``
    from 1 down to ``1/max_period``, both ends included (Sec. 4.1: positional features
    of ``c_noise(t) = t`` vary slowly, Fourier features of a large scale do not; the
    frequency range is not given there and is EDM's). Computed in float32, like its
    tangent.

    Raises:
      ValueError: ``dim`` is odd or below 4.
    """
    if dim % 2 or dim < 4:
        raise ValueError(f"dim = {dim} of a positional embedding: even, at least 4")
    half = dim // 2
    frequencies = max_period ** -(np.arange(half, dtype=np.float32) / (half - 1))
    angles = a.astype(jnp.float32)[:, None] * frequencies[None, :]
    return np.float32(amplitude) * jnp.concatenate(
        [jnp.cos(angles), jnp.sin(angles)], axis=-1
    )


class FourierEmbedding(nn.Module):
    """Random Fourier features ``sqrt(2) cos(w_i a + p_i)``, ``(b,) -> (b, dim)``.

    ``w_i = 2 pi scale N(0, 1)`` and ``p_i = 2 pi U(0, 1)`` are drawn once and never
    trained (EDM2 has ``scale`` 1, NCSN++ 16). ``d/da`` has an RMS of ``2 pi scale``
    before the features' own amplitude: large scales make the tangent of a consistency
    model unstable (Sec. 4.1), which is why this is not the default.

    Attributes:
      dim: number of features.
      scale: standard deviation of the frequencies, in turns per unit of ``a``.
    """

    dim: int
    scale: float = 1.0

    @nn.compact
    def __call__(self, a: jax.Array) -> jax.Array:
        """``(b,)`` -> ``(b, dim)`` float32 with unit RMS."""
        turn = float(2 * np.pi)
        freqs = self.param(
            "freqs", nn.initializers.normal(turn * self.scale), (self.dim,)
        )
        phases = self.param("phases", nn.initializers.uniform(turn), (self.dim,))
        freqs, phases = jax.lax.stop_gradient((freqs, phases))
        return SQRT2 * jnp.cos(
            a.astype(jnp.float32)[:, None] * freqs[None] + phases[None]
        )


def embed_time(
    t: jax.Array, dim: int, embedding: str, fourier_scale: float, **positional: float
) -> jax.Array:
    """Features of ``c_noise(t)`` by name; call it inside a compact ``__call__``.

    Raises:
      ValueError: unknown name.
    """
    if embedding not in EMBEDDINGS:
        raise ValueError(
            f"network.embedding = {embedding!r} is not one of {EMBEDDINGS}"
        )
    if embedding == "fourier":
        return FourierEmbedding(dim, fourier_scale, name="fourier")(t)
    return positional_embedding(t, dim, **positional)


def required(value: jax.Array | None, name: str) -> jax.Array:
    """``value``; an error that says which input of the network is missing."""
    if value is None:
        raise ValueError(
            f"this network takes cond.{name} as an input (network.use_{name} = True), "
            f"but the caller's Cond has none"
        )
    return value


def labels(cond: Cond) -> jax.Array:
    """``cond.label``; -1, the null class, where it is left out."""
    if cond.label is None:
        return jnp.full(cond.t.shape, -1, jnp.int32)
    return cond.label


class ConditionEmbedding(nn.Module):
    """Embeds time, second time, class and guidance into one vector, in float32.

    Each input has its own positional or table embedding and one linear layer; the sum
    passes through a small network: ``c = W2 silu(W1 sum)``. Inputs that ``Cond`` leaves
    out contribute nothing, except that a labelled network reads a missing label as the
    null class.

    Attributes:
      dim: width of the embedding.
      num_classes: classes; 0 for an unconditional network. Row ``num_classes`` of the
        table is the null class.
      use_guidance: takes the guidance scale as an input (Sec. 5, App. D).
      use_dt: takes the second time ``cond.dt``.
      embedding: features of the time, ``positional`` or ``fourier``.
      fourier_scale: scale of Fourier features.
    """

    dim: int
    num_classes: int = 0
    use_guidance: bool = False
    use_dt: bool = False
    embedding: str = "positional"
    fourier_scale: float = 1.0

    @nn.compact
    def __call__(self, cond: Cond) -> jax.Array:
        """``Cond`` -> ``(b, dim)`` float32."""

        def scalar(a: jax.Array, name: str, **init: Any) -> jax.Array:
            features = positional_embedding(a, self.dim)
            return nn.Dense(self.dim, name=name, **init)(features)

        features = embed_time(cond.t, self.dim, self.embedding, self.fourier_scale)
        total = nn.Dense(self.dim, name="t")(features)
        if self.use_dt:
            total = total + scalar(required(cond.dt, "dt"), "dt")
        if self.use_guidance:
            # Starts at zero: a student that inherits an unguided teacher's weights is
            # that teacher, whatever the scale.
            total = total + scalar(
                required(cond.guidance, "guidance"),
                "guidance",
                kernel_init=nn.initializers.zeros,
            )
        if self.num_classes:
            table = nn.Embed(
                self.num_classes + 1,
                self.dim,
                embedding_init=nn.initializers.normal(1.0),
                name="label",
            )
            label = labels(cond)
            total = total + table(jnp.where(label < 0, self.num_classes, label))
        # A linear layer follows every silu before a pixel norm sees the result, so the
        # embedding is never exactly zero at initialization.
        return nn.Dense(self.dim, name="out")(nn.silu(total))
