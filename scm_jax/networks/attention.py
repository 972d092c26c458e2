"""The one entry to attention: every implementation has a forward-mode rule.

An implementation is a function ``(q, k, v, key_mask) -> out`` and one line of
``IMPLEMENTATIONS``; its argument shapes are those of ``attention``. A kernel for an
accelerator must provide

- value and tangent in one call under ``jax.jvp``, also inside ``jax.grad`` with the
  tangent stopped, as in a consistency step (Alg. 1 of arXiv 2410.11081v2);
- ``jax.grad`` of the value alone, ``jax.vmap``, a sharded batch and sharded heads;
- the right gradient through a tangent that is not stopped (second order), or an error;
- its multiply-adds: ``scm_jax.cost.counts.register_macs``.

The fused kernels of libraries (cuDNN, Pallas flash and splash, tokamax) are
``custom_vjp`` and raise under ``jax.jvp``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from scm_jax.types import Placement, lookup

# Names, for rematerialization, of what is quadratic in tokens and of the result.
QUADRATIC, ATTENDED = "attention", "attended"

# Blocks of the chunked implementation hold QUERY_CHUNK x KEY_CHUNK logits per head.
QUERY_CHUNK = 256
KEY_CHUNK = 512
# The backward pass keeps one number per query and chunk of keys: at most this many, so
# that it stays linear in tokens. Beyond 64 x 512 keys chunks grow instead.
MAX_KEY_CHUNKS = 64


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    key_mask: jax.Array | None = None,
    implementation: str = "einsum",
    placement: Placement | None = None,
) -> jax.Array:
    """``softmax(q k^T / sqrt(d)) v``, softmax in float32 or wider.

    Args:
      q: ``(b, n, heads, d)`` queries.
      k: ``(b, m, heads, d)`` keys.
      v: ``(b, m, heads, e)`` values, of the dtype of ``q`` and ``k``.
      key_mask: ``(b, m)`` bool, true for the keys to attend to; None is all. Masked
        keys and values must be finite.
      implementation: a key of ``IMPLEMENTATIONS``.
      placement: of tokens on a mesh, which may split heads here instead.

    Returns:
      ``(b, n, heads, e)`` in the dtype of ``v``; 0 for an example whose keys are all
      masked. Forward mode, reverse mode, reverse over forward and second order work.
    """
    function = lookup(IMPLEMENTATIONS, implementation, "network.attention")
    if key_mask is not None and (
        key_mask.shape != k.shape[:2] or key_mask.dtype != jnp.bool_
    ):
        raise ValueError(
            f"key_mask is {key_mask.dtype}{list(key_mask.shape)}; for keys of shape "
            f"{k.shape} it must be bool{list(k.shape[:2])}, true where attended to"
        )
    if placement is not None:
        q, k, v = (placement.batch(a, 2) for a in (q, k, v))
    out = function(q, k, v, key_mask)
    out = out if placement is None else placement.batch(out, 1)
    return checkpoint_name(out, ATTENDED)


def einsum(
    q: jax.Array, k: jax.Array, v: jax.Array, key_mask: jax.Array | None
) -> jax.Array:
    """Two matrix products; all ``n m`` logits of a head exist at once."""
    scale = q.shape[-1] ** -0.5
    dtype = jnp.promote_types(v.dtype, jnp.float32)
    logits = jnp.einsum("bnhd,bmhd->bhnm", q * scale, k, preferred_element_type=dtype)
    if key_mask is not None:
        logits = _hide(logits, key_mask)
    logits = checkpoint_name(logits, QUADRATIC)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    if key_mask is not None:  # where all keys are masked, all logits are equal
        weights = jnp.where(key_mask[:, None, None, :], weights, 0)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v)


def chunked(
    q: jax.Array, k: jax.Array, v: jax.Array, key_mask: jax.Array | None
) -> jax.Array:
    """Online softmax over chunks of keys, for one chunk of queries after the other.

    Per query, with the running maximum ``M``, sum ``L`` and product ``A`` (Milakov and
    Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135):

        M' = max(M, max_j S_j)      p_j = exp(S_j - M')      c = exp(M - M')
        L' = c L + sum_j p_j        A' = c A + sum_j p_j v_j         out = A / L

    Memory is linear in tokens in every mode, and no derivative is written by hand.
    The result does not depend on ``M``, which is therefore constant to derivatives.
    JAX's forward mode of the loop then carries ``dL = sum h_j`` and
    ``dA = sum h_j v_j + p_j dv_j`` with ``h = p dS``: the online tangent (App. F of
    arXiv 2410.11081v2), ``d out = (dA - out dL) / L``. The new ``L`` and ``A`` are
    linear in the old, so reverse mode needs nothing of the past but ``M``, and computes
    the logits of a chunk again. In units of ``b h n m d`` multiply-adds: value 2, value
    and tangent 6, gradient 7, consistency step 11. The einsum's are 2, 6, 6, 10.
    """
    wide = jnp.promote_types(v.dtype, jnp.float32)
    key_limit = max(KEY_CHUNK, -(-k.shape[1] // MAX_KEY_CHUNKS))
    if key_mask is None and k.shape[1] % _count(k.shape[1], key_limit):
        key_mask = jnp.ones(k.shape[:2], jnp.bool_)  # padding will be masked
    # An offset that all keys share would be a large constant of a row of dS, and cancel
    # in d out only after h was rounded.
    keys, rest = _centre(k.astype(wide), key_mask, v.dtype)
    # Wide outside the loops, in the compute dtype only inside: the gradients of the
    # chunks are then added up in the wide dtype.
    chunks = jax.tree.map(
        lambda x: _split(x, key_limit), (keys, v.astype(wide), key_mask)
    )
    out = jax.lax.map(
        lambda queries: _attend(queries, rest, chunks, v.dtype),
        _split(q.astype(wide), QUERY_CHUNK),
    )
    # (chunks, b, h, queries, e) -> (b, chunks, queries, h, e)
    out = jnp.transpose(out, (1, 0, 3, 2, 4))
    return out.reshape(q.shape[0], -1, *out.shape[3:])[:, : q.shape[1]]


def _attend(queries: jax.Array, rest: jax.Array, chunks: Any, dtype: Any) -> jax.Array:
    """The loop over chunks of keys, for one chunk of queries; ``(b, h, n, e)``.

    ``queries`` ``(b, n, h, d)`` and ``rest`` ``(b, h, d)``, to be subtracted from the
    keys, are wide; ``dtype`` is that of the factors of the products and of the result.
    """
    wide, (b, n, h, d) = queries.dtype, queries.shape
    shift = jnp.einsum("bnhd,bhd->bhn", queries, rest)[..., None]

    def multiply(axes: str, a: jax.Array, b: jax.Array) -> jax.Array:
        a, b = a.astype(dtype), b.astype(dtype)
        return jnp.einsum(axes, a, b, preferred_element_type=wide)

    def step(carry: Any, chunk: Any) -> tuple[Any, None]:
        peak, total, product = carry
        keys, values, mask = chunk
        logits = (multiply("bnhd,bmhd->bhnm", queries, keys) - shift) * d**-0.5
        if mask is not None:
            logits = _hide(logits, mask)
        highest = jnp.max(jax.lax.stop_gradient(logits), axis=-1)
        new_peak = jnp.maximum(peak, highest)
        decay = jnp.exp(peak - new_peak)
        weights = jnp.exp(logits - new_peak[..., None])
        total = decay * total + jnp.sum(weights, axis=-1)
        added = multiply("bhnm,bmhd->bhnd", weights, values)
        product = decay[..., None] * product + added
        return (new_peak, total, product), None

    start = (
        # Far above a hidden logit: where all keys are masked, all weights are 0.
        jnp.full((b, h, n), jnp.finfo(wide).min / 2, wide),
        jnp.zeros((b, h, n), wide),
        jnp.zeros((b, h, n, chunks[1].shape[-1]), wide),
    )
    # A scan keeps the compiler from merging the second computation with the first.
    step = jax.checkpoint(step, prevent_cse=False)
    (_, total, product), _ = jax.lax.scan(step, start, chunks)
    total = jnp.where(total == 0, 1, total)
    return (product / total[..., None]).astype(dtype)


def _hide(logits: jax.Array, key_mask: jax.Array) -> jax.Array:
    """Logits ``(b, h, n, m)`` with the least number where a key is masked."""
    # Not minus infinity: inf - inf is NaN, and its gradient too.
    lowest = jnp.finfo(logits.dtype).min
    return jnp.where(key_mask[:, None, None, :], logits, lowest)


def _centre(
    k: jax.Array, key_mask: jax.Array | None, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    """Keys ``(b, m, h, d)`` minus a constant, and the rest of their mean ``(b, h, d)``.

    The centred keys are ``keys - rest[:, None]``.
    """
    # Rounding the centred keys to 16 bits would double their error. An offset rounded
    # to dtype leaves keys exact where it matters (Sterbenz), and one below their
    # standard deviation does no harm; the rest is subtracted from the logits.
    stopped = jax.lax.stop_gradient(k)
    mean = _mean(stopped, key_mask)
    spread = jnp.sqrt(_mean((stopped - mean) ** 2, key_mask))
    offset = jnp.where(jnp.abs(mean) > spread, mean, 0).astype(dtype).astype(k.dtype)
    keys = k - offset
    return keys, _mean(keys, key_mask)[:, 0]


def _mean(x: jax.Array, key_mask: jax.Array | None) -> jax.Array:
    """``(b, 1, h, d)``: the mean over the tokens that are attended to, or 0."""
    if key_mask is None:
        return jnp.mean(x, axis=1, keepdims=True)
    mask = key_mask[:, :, None, None]
    count = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    return jnp.sum(jnp.where(mask, x, 0), axis=1, keepdims=True) / count


def _split(x: jax.Array, limit: int) -> jax.Array:
    """``(b, n, ...)`` -> ``(chunks, b, tokens, ...)``, evenly, with zeros."""
    b, length, *others = x.shape
    count = _count(length, limit)
    size = -(-length // count)
    x = jnp.pad(x, [(0, 0), (0, count * size - length), *[(0, 0)] * len(others)])
    return jnp.moveaxis(x.reshape(b, count, size, *others), 1, 0)


def _count(length: int, limit: int) -> int:
    """How many chunks of at most ``limit`` tokens there are."""
    return -(-length // limit)


IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
    "einsum": einsum,
    "chunked": chunked,
}
