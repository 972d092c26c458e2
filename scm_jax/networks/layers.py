"""Building blocks of all backbones; float32 islands are marked by their casts."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from scm_jax.networks.attention import ATTENDED, QUADRATIC
from scm_jax.networks.embeddings import EMBEDDINGS
from scm_jax.types import Placement, check_choice

PIXEL_NORM_EPS = 1e-8
GROUP_NORM_EPS = 1e-6
# Outputs and gates start small, so that a fresh network is nearly linear.
SMALL = nn.initializers.variance_scaling(0.1, "fan_in", "normal")


def draw_parameters(
    shapes: Any,
    key: jax.Array,
    draw: Callable[[jax.Array, tuple[int, ...]], jax.Array],
    kernel_scale: Callable[[str, tuple[int, ...]], float],
    fourier_scale: float,
) -> Any:
    """Fresh parameters of a U-Net with one draw for all kernels.

    Their distribution is that of the modules' own initializers. These would compile a
    random generator for each of more than a hundred leaves, which takes XLA longer than
    a whole training step of a small network.

    The last key of a path in the tree ``shapes`` tells the kind of a leaf. Kernels are
    ``draw(key, shape)``, numbers of unit scale, times ``kernel_scale(layer, shape)``.
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


def pixel_norm(a: jax.Array, eps: float = PIXEL_NORM_EPS) -> jax.Array:
    """``a / sqrt(mean(a^2) + eps)`` over the last axis, in float32 (Sec. 4.1).

    At ``a = 0`` the output is 0 but the slope is ``1/sqrt(eps)``: what feeds this must
    not be initialized to zero.
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

    ``x`` is ``(b, ..., c)``; ``num_groups`` divides ``c``, neighbours form a group.
    """
    x32 = x.astype(jnp.float32).reshape(
        x.shape[0], -1, num_groups, x.shape[-1] // num_groups
    )
    x32 = x32 - jnp.mean(x32, (1, 3), keepdims=True)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), (1, 3), keepdims=True) + eps)
    return x32.reshape(x.shape)


class GroupNorm(nn.Module):
    """Group norm over ``num_groups`` with scale and bias, in float32.

    By default, there are at most 32 groups of at least 4 channels.
    """

    num_groups: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``(b, h, w, c)`` -> the same shape, float32."""
        c = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        y = group_norm(x, self.num_groups or min(32, c // 4), GROUP_NORM_EPS)
        return y * scale[None, None, None] + bias[None, None, None]


# How many vectors the embedding's linear layer gives to each form.
MODULATIONS = {"double_norm": 2, "double_norm_scale": 1, "adaptive": 2}


def modulate(normed: jax.Array, affine: jax.Array, form: str) -> jax.Array:
    """Scales and shifts normalized features by the embedding.

    With ``s, b`` the two halves of ``affine`` (Sec. 4.1; ``pnorm`` is ``pixel_norm``):

    * ``double_norm``: ``norm(x) pnorm(s) + pnorm(b)``, the paper's;
    * ``double_norm_scale``: ``norm(x) pnorm(s)``, without a shift;
    * ``adaptive``: ``norm(x) (1 + s) + b``, AdaGN and AdaLN, which the paper found to
      diverge in consistency training.

    ``normed`` is ``(b, ..., c)``, ``affine`` is ``(b, k c)`` with
    ``k = MODULATIONS[form]``. Returns ``(b, ..., c)`` float32.
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


def resample(x: jax.Array, mode: str) -> jax.Array:
    """``(b, h, w, c)``: ``down`` averages 2x2, ``up`` repeats, ``none`` is ``x``."""
    if mode == "none":
        return x
    b, h, w, c = x.shape
    if mode == "down":
        return jnp.mean(x.reshape(b, h // 2, 2, w // 2, 2, c), axis=(2, 4))
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    return x.reshape(b, 2 * h, 2 * w, c)


# Kernels of a block that multiply in float32 whatever the compute dtype is.
FLOAT32_KERNELS = ("affine", "gate")


def _is_product(primitive: Any, *_: Any, **params: Any) -> bool:
    """Matrix products with a weight, which have no batch axis, and convolutions."""
    if primitive.name == "dot_general":
        _, (batch, _) = params["dimension_numbers"]
        return not batch
    return bool(primitive.name == "conv_general_dilated")


def _keep_products(*names: str) -> Any:
    # A list of what is kept, not of what is dropped: a policy that drops a value keeps
    # the one that it was computed from, and it also decides inside attention's own
    # jax.checkpoint.
    policies = jax.checkpoint_policies
    return policies.save_from_both_policies(
        _is_product, policies.save_only_these_names(*names)
    )


# What a backward pass keeps of a block: everything; its inputs; results of matrix
# products, convolutions and the einsum attention's logits; these without the logits.
REMAT: dict[str, Any] = {
    "none": None,
    "blocks": jax.checkpoint_policies.nothing_saveable,
    "dots": _keep_products(ATTENDED, QUADRATIC),
    "attention": _keep_products(ATTENDED),
}


def stacked(
    block: type[nn.Module],
    net: Any,
    name: str,
    in_axes: tuple[Any, ...],
    length: int = 0,
    unroll: int = 1,
) -> type[nn.Module]:
    """``block`` that gathers its weights and recomputes, scanned ``length`` times.

    Args:
      block: class of a module; the last argument of its call is no array.
      net: has ``remat``, a key of ``REMAT``, and ``placement``.
      name: name of the block's subtree of parameters.
      in_axes: how the loop splits arguments of the block after the first.
      length: iterations of the loop; 0 for a block without one.
      unroll: blocks per iteration.
    """
    policy, placement = REMAT[net.remat], net.placement
    if placement is not None and placement.gathers:
        # Gathered weights are never kept: the backward pass gathers them again.
        policy = policy or REMAT["dots"]

        def gather(variables: Any) -> Any:
            weights = placement.gather(variables["params"], name)
            return {"params": jax.tree_util.tree_map_with_path(_unpack, weights)}

        block = nn.map_variables(block, "params", gather, init=True)
    if policy is not None:
        # Outside of loops, barriers keep XLA from merging the recomputation away.
        block = nn.remat(
            block,
            policy=policy,
            prevent_cse=unroll >= length,
            static_argnums=(len(in_axes) + 1,),
        )
    if not length:
        return block
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=in_axes,
        length=length,
        unroll=unroll,
    )


def _unpack(path: Any, w: jax.Array) -> jax.Array:
    """A gathered weight in the dtype of its products."""
    wide = any(getattr(p, "key", None) in FLOAT32_KERNELS for p in path)
    return w.astype(jnp.float32) if wide else w


Patch = int | tuple[int, ...]  # one side for all axes, or one for each


def token_grid(patch: Patch, sample_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Tokens along each axis of samples ``(*axes, c)``.

    Raises:
      ValueError: ``network.patch`` does not divide an axis, or fits no number of axes.
    """
    *axes, _ = sample_shape
    sides = patch_sides(patch, len(axes))
    pairs = [*zip(axes, sides, strict=False)]
    if not axes or len(sides) != len(axes) or any(a % p for a, p in pairs):
        raise ValueError(
            f"network.patch = {patch} does not divide every axis of sample_shape "
            f"{sample_shape} (channels last)"
        )
    return tuple(a // p for a, p in pairs)


def patch_sides(patch: Patch, num_axes: int) -> tuple[int, ...]:
    """One side for each axis."""
    return (patch,) * num_axes if isinstance(patch, int) else tuple(patch)


def patchify(x: jax.Array, patch: Patch) -> jax.Array:
    """``(b, *axes, c) -> (b, tokens, values of a patch)``; the last axis is fastest."""
    batch, *axes, channels = x.shape
    grid, n = token_grid(patch, x.shape[1:]), len(axes)
    sides = patch_sides(patch, n)
    split = [m for pair in zip(grid, sides, strict=True) for m in pair]
    x = x.reshape(batch, *split, channels)
    inner = range(2, 2 * n + 1, 2)
    x = x.transpose(0, *range(1, 2 * n, 2), *inner, 2 * n + 1)
    return x.reshape(batch, math.prod(grid), math.prod(sides) * channels)


def unpatchify(h: jax.Array, patch: Patch, sample_shape: tuple[int, ...]) -> jax.Array:
    """The inverse of ``patchify`` for samples of ``sample_shape``."""
    *axes, channels = sample_shape
    n = len(axes)
    sides = patch_sides(patch, n)
    h = h.reshape(h.shape[0], *token_grid(patch, sample_shape), *sides, channels)
    order = [i for a in range(n) for i in (1 + a, 1 + n + a)]
    return h.transpose(0, *order, 2 * n + 1).reshape(h.shape[0], *sample_shape)


def place_batch(h: jax.Array, placement: Placement | None) -> jax.Array:
    """``h`` with its batch split over the devices of the mesh, if there is one."""
    return h if placement is None else placement.batch(h)


def place_tokens(h: jax.Array, placement: Placement | None) -> jax.Array:
    """``place_batch`` of tokens ``(b, n, c)``, which a mesh may split as well."""
    return h if placement is None else placement.batch(h, 1)


def check_settings(net: Any, **choices: Collection[str]) -> None:
    """Raises ``ValueError`` for a setting of ``net`` that is not legal."""
    if hasattr(net, "embedding"):  # not a perceptron
        choices = {"embedding": EMBEDDINGS, "remat": REMAT, **choices}
    if net.width % 2 or net.width < 4:  # the width of a positional embedding
        raise ValueError(f"network.width = {net.width}: must be even and at least 4")
    if not 0.0 <= net.dropout < 1.0:
        raise ValueError(f"network.dropout = {net.dropout} is not in [0, 1)")
    for setting, legal in choices.items():
        check_choice(getattr(net, setting), legal, f"network.{setting}")


def check_divides(net: Any, setting: str, channels: int, of: str) -> None:
    """Raises ``ValueError`` unless a setting of ``net`` divides ``channels``."""
    if channels % getattr(net, setting):
        raise ValueError(
            f"network.{setting} = {getattr(net, setting)} does not divide {of}"
        )


def check_input(x: jax.Array, sample_shape: tuple[int, ...]) -> None:
    """Raises ``ValueError`` unless ``x`` is a batch of samples of ``sample_shape``."""
    if x.shape[1:] != sample_shape:
        raise ValueError(
            f"x has shape {x.shape}, this network was built for samples of shape "
            f"{sample_shape}"
        )
