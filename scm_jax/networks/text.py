"""Captions inside a network: a text tower, the null caption, keys and values.

An encoder is a module ``Cond -> Cond``. What it computes depends on neither ``x`` nor
``t``: under the ``jax.jvp`` of a consistency step it has no tangent and runs once, and
a sampler runs it once for all its steps.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from scm_jax.networks import layers
from scm_jax.networks.attention import attention
from scm_jax.types import Cond, TextInfo

HEAD_CHANNELS = 32
MLP_RATIO = 4


class TextTower(nn.Module):
    """A small transformer over the words of a caption, trained with the network.

    ``h <- h + attention(norm(h))``, ``h <- h + W2 silu(W1 norm(h))`` on a learned table
    of tokens and positions. Fills ``context`` ``(b, n, width)``, ``context_mask`` and
    ``pooled``, the mean of the context. An empty caption is one learned token.

    With ``normalized`` the layers are EDM2's, for a network whose weights are
    normalized: its learning rate, ten times that of others, is for such weights.
    """

    text: TextInfo
    width: int
    depth: int
    normalized: bool = False

    @nn.compact
    def __call__(self, cond: Cond) -> Cond:
        """Replaces ``cond.tokens``; a missing caption is the null caption."""
        tokens = cond.tokens
        if tokens is None:
            tokens = jnp.zeros((len(cond.t), self.text.length), jnp.int32)
        check_length(tokens.shape[1], self.text.length)
        null, first = self.text.vocab_size, jnp.arange(tokens.shape[1]) == 0
        empty = ~jnp.any(tokens > 0, axis=1, keepdims=True)
        tokens = jnp.where(empty & first[None], null, tokens)
        mask = tokens > 0
        shape = (self.text.length, self.width)
        position = self.param("position", nn.initializers.normal(0.5), shape)
        h = self._table(null + 1)(tokens) + position[None, : tokens.shape[1]]
        for i in range(self.depth):
            h = h + self._attend(layers.layer_norm(h), mask, i)
            y = self._dense(MLP_RATIO * self.width, f"mlp_in_{i}")(layers.layer_norm(h))
            h = h + self._dense(self.width, f"mlp_out_{i}")(nn.silu(y))
        h = layers.layer_norm(h)
        weight = mask[..., None] / jnp.sum(mask, axis=1)[:, None, None]
        return dataclasses.replace(
            cond,
            tokens=None,
            context=h,
            context_mask=mask,
            pooled=jnp.sum(weight * h, axis=1),
            memory=(),
        )

    def _attend(self, y: jax.Array, mask: jax.Array, i: int) -> jax.Array:
        heads = max(1, self.width // HEAD_CHANNELS)
        qkv = self._dense(3 * self.width, f"qkv_{i}")(y)
        qkv = qkv.reshape(*y.shape[:2], 3, heads, self.width // heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        out = attention(q, k, v, key_mask=mask).reshape(y.shape)
        return self._dense(self.width, f"attention_out_{i}")(out)

    def _dense(self, features: int, name: str) -> nn.Module:
        if not self.normalized:
            return nn.Dense(features, name=name)
        from scm_jax.networks import magnitude  # which other networks do not need

        return magnitude.MPConv(features, name=name)

    def _table(self, rows: int) -> nn.Module:
        if self.normalized:
            from scm_jax.networks import magnitude

            return magnitude.MPTable(rows, self.width, name="token")
        normal = nn.initializers.normal(1.0)
        return nn.Embed(rows, self.width, embedding_init=normal, name="token")


class StoredStates(nn.Module):
    """Precomputed states of a caption; an empty one becomes the stored null caption.

    Without stored states, the null caption has no token and a pooled vector of zeros.
    """

    text: TextInfo

    @nn.compact
    def __call__(self, cond: Cond) -> Cond:
        """Checks and completes ``context``, ``context_mask`` and ``pooled``."""
        b, text = len(cond.t), self.text
        context, mask, pooled = cond.context, cond.context_mask, cond.pooled
        if context is None:
            context = jnp.zeros((b, text.length, text.width))
            mask = jnp.zeros((b, text.length), jnp.bool_)
        check_length(context.shape[1], text.length)
        if context.shape[2] != text.width:
            raise ValueError(
                f"states of captions have {context.shape[2]} channels; this network "
                f"was trained on those of {text.encoder or 'an encoder'}: {text.width}"
            )
        if mask is None:
            mask = jnp.ones(context.shape[:2], jnp.bool_)
        if pooled is None and text.pooled:
            pooled = jnp.zeros((b, text.pooled))
        empty = ~jnp.any(mask, axis=1)[:, None]
        if pooled is not None:
            pooled = jnp.where(empty, 0.0, pooled)
        if text.null is not None:
            states, vector = text.null
            rows = jnp.arange(context.shape[1])[None] < len(states)
            padding = ((0, context.shape[1] - len(states)), (0, 0))
            context = jnp.where(empty[..., None], jnp.pad(states, padding), context)
            mask = jnp.where(empty, rows, mask)
            if pooled is not None:
                pooled = jnp.where(empty, vector[None], pooled)
        return dataclasses.replace(
            cond, context=context, context_mask=mask, pooled=pooled, memory=()
        )


class KeysAndValues(nn.Module):
    """Keys and values of the context for the cross-attention of every block.

    Fills ``memory`` with ``(b, depth, n, 2, heads, d)``; the keys are RMS-normalized.
    """

    depth: int
    width: int
    num_heads: int
    dtype: Any

    @nn.compact
    def __call__(self, cond: Cond) -> Cond:
        """Needs ``context``, which it removes."""
        context = cond.context
        assert context is not None
        d = self.width // self.num_heads
        draw = nn.initializers.lecun_normal(-4, (-3, -2, -1), batch_axis=(0,))
        shape = (self.depth, context.shape[-1], 2, self.num_heads, d)
        kernel = self.param("kernel", draw, shape)
        product = jnp.einsum(
            "bnc,lckhd->blnkhd", context.astype(self.dtype), kernel.astype(self.dtype)
        )
        keys = layers.pixel_norm(product[:, :, :, :1]).astype(product.dtype)
        memory = jnp.concatenate([keys, product[:, :, :, 1:]], axis=3)
        return dataclasses.replace(cond, context=None, memory=memory)


def text_encoders(net: Any, normalized: bool = False) -> dict[str, nn.Module]:
    """What fills ``context`` and ``pooled`` for ``net``, which may have no captions."""
    if net.text is None:
        return {}
    if not net.text.words:
        return {"text": StoredStates(net.text)}
    sizes = net.tower_width, net.tower_depth, normalized
    return {"text": TextTower(net.text, *sizes)}


def check_length(length: int, limit: int) -> None:
    """Raises ``ValueError`` for a caption that is longer than the network's context."""
    if length > limit:
        raise ValueError(f"captions of {length} tokens: this network takes {limit}")
