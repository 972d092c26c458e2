"""The one attention door: every implementation behind it has a forward-mode rule."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Fused library kernels (cuDNN, Pallas flash, tokamax) are custom_vjp and raise under
# jax.jvp; none of them may be added here without a forward-mode rule of its own.
IMPLEMENTATIONS = ("einsum",)


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    implementation: str = "einsum",
) -> jax.Array:
    """``softmax(q k^T / sqrt(d)) v``, softmax in float32.

    Args:
      q: ``(b, n, heads, d)`` queries.
      k: ``(b, m, heads, d)`` keys.
      v: ``(b, m, heads, d)`` values.
      implementation: one of ``IMPLEMENTATIONS``.

    Returns:
      ``(b, n, heads, d)`` in the dtype of ``v``. Forward mode, reverse mode and reverse
      over forward all work.

    Raises:
      ValueError: unknown implementation.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"network.attention = {implementation!r} is not one of {IMPLEMENTATIONS}"
        )
    scale = q.shape[-1] ** -0.5
    logits = jnp.einsum(
        "bnhd,bmhd->bhnm", q * scale, k, preferred_element_type=jnp.float32
    )
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v)
