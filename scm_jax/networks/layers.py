"""Building blocks of all backbones; float32 islands are marked by their casts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from scm_jax.networks.attention import ATTENDED, QUADRATIC
from scm_jax.types import Placement

PIXEL_NORM_EPS = 1e-8


def draw_parameters(
    shapes: Any,
    key: jax.Array,
    draw: Callable[[jax.Array, tuple[int, ...]], jax.Array],
    kernel_scale: Callable[[str, tuple[int, ...]], float],
    fourier_scale: float,
) -> Any:
    """Fresh parameters of a U-Net with one draw for all kernels.

    In distribution they are those of the modules' own initializers; but these would
    compile a random generator for each of more than a hundred leaves, which takes XLA
    longer than a whole training step of a small network.

    Args:
      shapes: tree of shapes; the last key of a path says what a leaf is.
      key: random key.
      draw: ``(key, shape) ->`` numbers of unit scale.
      kernel_scale: ``(name of the layer, shape) ->`` factor of its kernel.
      fourier_scale: of ``FourierEmbedding``.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    key_kernels, key_freqs, key_phases = jax.random.split(key, 3)
    sizes = [a.size for path, a in leaves if path[-1].key == "kernel"]
    # The barrier keeps the compiler from making one generator for each piece again.
    numbers = jax.lax.optimization_barrier(draw(key_kernels, (sum(sizes),)))
    pieces = iter(jnp.split(numbers, np.cumsum(sizes)[:-1]))
    turn = float(2 * np.pi)

    def fresh(path: Any, a: jax.ShapeDtypeStruct) -> jax.Array:
        match path[-1].key:
            case "kernel":
                scale = kernel_scale(path[-2].key, a.shape)
                return scale * next(pieces).reshape(a.shape)
            case "freqs":
                return turn * fourier_scale * jax.random.normal(key_freqs, a.shape)
            case "phases":
                return turn * jax.random.uniform(key_phases, a.shape)
            case "scale":
                return jnp.ones(a.shape, a.dtype)
            case _:
                return jnp.zeros(a.shape, a.dtype)

    return jax.tree.unflatten(tree, [fresh(path, a) for path, a in leaves])


# --- Norms ----------------------------------------------------------------------------


def check_width(width: int) -> None:
    """Raises ``ValueError`` for a width that has no positional embedding."""
    if width % 2 or width < 4:
        raise ValueError(f"network.width = {width}: must be even and at least 4")


def pixel_norm(a: jax.Array, eps: float = PIXEL_NORM_EPS) -> jax.Array:
    """``a / sqrt(mean(a^2) + eps)`` over the last axis, in float32 (Sec. 4.1).

    At ``a = 0`` the output is 0 but the slope is ``1/sqrt(eps)``: whatever feeds this
    must not be initialized to zero.
    """
    a32 = a.astype(jnp.float32)
    return a32 * jax.lax.rsqrt(jnp.mean(jnp.square(a32), -1, keepdims=True) + eps)


def layer_norm(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """Zero mean and unit variance over the last axis, in float32; no parameters."""
    x32 = x.astype(jnp.float32)
    x32 = x32 - jnp.mean(x32, -1, keepdims=True)
    return x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + eps)


def group_norm(x: jax.Array, num_groups: int, eps: float) -> jax.Array:
    """Zero mean and unit variance over space and each group of channels, in float32.

    Args:
      x: ``(b, ..., c)``.
      num_groups: must divide ``c``; neighbouring channels form a group.
      eps: added to the variance.
    """
    x32 = x.astype(jnp.float32).reshape(
        x.shape[0], -1, num_groups, x.shape[-1] // num_groups
    )
    x32 = x32 - jnp.mean(x32, (1, 3), keepdims=True)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), (1, 3), keepdims=True) + eps)
    return x32.reshape(x.shape)


# --- Modulation by the embedding ------------------------------------------------------

# How many vectors the embedding's linear layer gives to each form.
MODULATIONS = {"double_norm": 2, "double_norm_scale": 1, "adaptive": 2}


def modulate(normed: jax.Array, affine: jax.Array, form: str) -> jax.Array:
    """Scales and shifts normalized features by what the embedding says.

    With ``s, b`` the two halves of ``affine`` (Sec. 4.1; ``pnorm`` is ``pixel_norm``):

    * ``double_norm``: ``norm(x) pnorm(s) + pnorm(b)``, the paper's;
    * ``double_norm_scale``: ``norm(x) pnorm(s)``, without a shift;
    * ``adaptive``: ``norm(x) (1 + s) + b``, AdaGN and AdaLN, which the paper found to
      diverge in consistency training.

    Args:
      normed: ``(b, ..., c)`` normalized features.
      affine: ``(b, k c)`` with ``k = MODULATIONS[form]``.
      form: a key of ``MODULATIONS``.

    Returns:
      ``(b, ..., c)`` float32.
    """
    ones = (1,) * (normed.ndim - 2)
    parts = [
        a.reshape(a.shape[:1] + ones + a.shape[1:])
        for a in jnp.split(affine.astype(jnp.float32), MODULATIONS[form], axis=-1)
    ]
    normed = normed.astype(jnp.float32)
    if form == "adaptive":
        return normed * (1.0 + parts[0]) + parts[1]
    scaled = normed * pixel_norm(parts[0])
    return scaled + pixel_norm(parts[1]) if form == "double_norm" else scaled


def check_choice(value: str, legal: tuple[str, ...], path: str) -> None:
    """Raises ``ValueError``, with the legal values, unless ``value`` is one of them."""
    if value not in legal:
        raise ValueError(f"{path} = {value!r} is not one of {legal}")


# --- Resolution -----------------------------------------------------------------------


def resample(x: jax.Array, mode: str) -> jax.Array:
    """``(b, h, w, c)``: ``down`` averages 2x2, ``up`` repeats, ``none`` is ``x``."""
    if mode == "none":
        return x
    b, h, w, c = x.shape
    if mode == "down":
        return jnp.mean(x.reshape(b, h // 2, 2, w // 2, 2, c), axis=(2, 4))
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    return x.reshape(b, 2 * h, 2 * w, c)


# --- Memory and meshes ----------------------------------------------------------------

# Kernels of a block that multiply in float32 whatever the compute dtype is.
FLOAT32_KERNELS = ("affine", "gate")


def _is_product(primitive: Any, *_: Any, **params: Any) -> bool:
    """Matrix products with a weight, which have no batch axis, and convolutions."""
    if primitive.name == "dot_general":
        _, (batch, _) = params["dimension_numbers"]
        return not batch
    return bool(primitive.name == "conv_general_dilated")


def _keep_products(*names: str) -> Any:
    """Besides the named values.

    A list of what is kept, not of what is dropped: a policy that drops a value keeps
    the one that it was computed from, and it also decides inside attention's own
    ``jax.checkpoint``.
    """
    policies = jax.checkpoint_policies
    return policies.save_from_both_policies(
        _is_product, policies.save_only_these_names(*names)
    )


# What a backward pass keeps of a block (None: no recomputation at all):
# all of it; its inputs; the results of matrix products and convolutions, and the logits
# of the einsum attention; these without what is quadratic in tokens.
REMAT: dict[str, Any] = {
    "none": None,
    "blocks": jax.checkpoint_policies.nothing_saveable,
    "dots": _keep_products(ATTENDED, QUADRATIC),
    "attention": _keep_products(ATTENDED),
}


def rematerialize(
    block: type[nn.Module],
    remat: str,
    placement: Placement | None,
    name: str,
    *,
    in_loop: bool,
    static_argnums: tuple[int, ...],
) -> type[nn.Module]:
    """``block`` that gathers its weights, and forgets what ``remat`` says.

    Gathered weights are never kept: the backward pass gathers them again, and where
    they are, ``none`` is ``dots``.

    Args:
      block: class of a module.
      remat: a key of ``REMAT``.
      placement: where the weights lie; None for one device.
      name: of the block's subtree of parameters.
      in_loop: the block is the body of a loop. Elsewhere barriers keep XLA from merging
        the recomputation away.
      static_argnums: arguments of the call that are not arrays, self counted as 0.
    """
    policy = REMAT[remat]
    if placement is not None and placement.gathers:
        policy = policy or REMAT["dots"]

        def gather(variables: Any) -> Any:
            return {"params": _unpack(placement.gather(variables["params"], name))}

        block = nn.map_variables(block, "params", gather, init=True)
    if policy is None:
        return block
    return nn.remat(
        block, policy=policy, prevent_cse=not in_loop, static_argnums=static_argnums
    )


def _unpack(weights: Any) -> Any:
    """Gathered weights in the dtype of their products."""

    def leaf(path: Any, w: jax.Array) -> jax.Array:
        if any(getattr(p, "key", None) in FLOAT32_KERNELS for p in path):
            return w.astype(jnp.float32)
        return w

    return jax.tree_util.tree_map_with_path(leaf, weights)


def place_batch(h: jax.Array, placement: Placement | None) -> jax.Array:
    """``h`` with its batch split over the devices of the mesh, if there is one."""
    return h if placement is None else placement.batch(h)


# --- Checks ---------------------------------------------------------------------------


def check_input(x: jax.Array, sample_shape: tuple[int, ...]) -> None:
    """Raises ``ValueError`` unless ``x`` is a batch of samples of ``sample_shape``."""
    if x.shape[1:] != sample_shape:
        raise ValueError(
            f"x has shape {x.shape}, this network was built for samples of shape "
            f"{sample_shape}"
        )


def check_square(sample_shape: tuple[int, ...]) -> None:
    """Raises ``ValueError`` unless samples are square images with channels last."""
    if len(sample_shape) != 3 or sample_shape[0] != sample_shape[1]:
        raise ValueError(
            f"this network takes square images (h, w, c) with h == w, not samples of "
            f"shape {sample_shape}; network.name = 'dit' takes any shape"
        )
