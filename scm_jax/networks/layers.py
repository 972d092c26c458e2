"""Building blocks of all backbones; float32 islands are marked by their casts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from scm_jax.networks.attention import ATTENDED, QUADRATIC
from scm_jax.types import Cond, Placement

PIXEL_NORM_EPS = 1e-8
SQRT2 = float(np.sqrt(2.0))
EMBEDDINGS = ("positional", "fourier")


# --- Embeddings of scalars ------------------------------------------------------------


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


# --- Magnitude preservation (EDM2, arXiv 2312.02696, App. B) --------------------------

SILU_RMS = 0.596  # root mean square of silu of a unit normal
RMS_EPS = 1e-4


def rms_normalize(
    x: jax.Array, axes: tuple[int, ...], eps: float = RMS_EPS
) -> jax.Array:
    """``x / (eps + rms(x))`` over ``axes``, in float32 (EDM2, Eq. 47).

    The floor inside the root is far below ``eps`` and only keeps the derivative at
    ``x = 0`` finite.
    """
    x32 = x.astype(jnp.float32)
    mean = jnp.mean(jnp.square(x32), axes, keepdims=True)
    return x32 / (eps + jnp.sqrt(mean + 1e-30))


def mp_silu(x: jax.Array) -> jax.Array:
    """``silu(x) / 0.596``: unit magnitude for unit normal input (EDM2, Eq. 81)."""
    return nn.silu(x) / SILU_RMS


def mp_sum(a: jax.Array, b: jax.Array, t: float) -> jax.Array:
    """``((1 - t) a + t b) / sqrt((1 - t)^2 + t^2)`` (EDM2, Eq. 88)."""
    norm = float(np.hypot(1 - t, t))
    return a * ((1 - t) / norm) + b * (t / norm)


def mp_cat(a: jax.Array, b: jax.Array, t: float) -> jax.Array:
    """Concatenates channels with weights ``1 - t`` and ``t`` (EDM2, Eq. 103)."""
    n_a, n_b = a.shape[-1], b.shape[-1]
    scale = np.sqrt((n_a + n_b) / ((1 - t) ** 2 + t**2))
    w_a = float(scale / np.sqrt(n_a) * (1 - t))
    w_b = float(scale / np.sqrt(n_b) * t)
    return jnp.concatenate([a * w_a, b * w_b], axis=-1)


class MPConv(nn.Module):
    """Convolution or linear layer of EDM2 (Eq. 66) on weights that are folded already.

    ``kernel`` is ``(size, size, in, out)``, or ``(in, out)`` for ``size`` 1; no bias.
    It is stored as trained; ``fold_kernel`` makes of it, once per update of the
    optimizer, what a pass multiplies by.

    Attributes:
      features: output channels.
      size: side of the kernel.
      dtype: compute dtype.
    """

    features: int
    size: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``(b, ..., in)`` -> ``(b, ..., out)``."""
        shape: tuple[int, ...] = (x.shape[-1], self.features)
        if self.size > 1:
            shape = (self.size, self.size, *shape)
        w = self.param("kernel", nn.initializers.normal(1.0), shape)
        return conv(x.astype(self.dtype), w.astype(self.dtype))


class MPTable(nn.Module):
    """Rows of a table: an ``MPConv`` on ``sqrt(rows) one_hot(index)``.

    Attributes:
      rows: number of rows; a negative index is the last one.
      features: width of a row.
    """

    rows: int
    features: int

    @nn.compact
    def __call__(self, index: jax.Array) -> jax.Array:
        """``(b,)`` int -> ``(b, features)`` float32."""
        shape = (self.rows, self.features)
        table = self.param("kernel", nn.initializers.normal(1.0), shape)
        # Beyond the last row is NaN, which stops a training.
        index = jnp.where(index < 0, self.rows - 1, index)
        row = jnp.take(table, index, axis=0, mode="fill")
        return row.astype(jnp.float32) * np.float32(np.sqrt(self.rows))


def _input_axes(w: jax.Array) -> tuple[int, ...]:
    """All axes of a kernel but the last, less a leading stack axis."""
    axes = (-4, -3, -2) if w.ndim >= 4 else (-2,)
    return axes[-(w.ndim - 1) :]


def normalize_kernel(w: jax.Array) -> jax.Array:
    """Unit RMS per output channel."""
    return rms_normalize(w, _input_axes(w))


def fold_kernel(w: jax.Array, gain: jax.Array | float = 1.0) -> jax.Array:
    """``gain w / (|w| sqrt(fan_in))`` per output channel (EDM2, Eq. 66), float32.

    What a layer keeps the magnitude of its input with. ``|w|`` is the root mean square
    over the inputs. Stacked kernels carry a leading axis, and one gain each.
    """
    fan_in = np.prod([w.shape[axis] for axis in _input_axes(w)])
    gain = jnp.asarray(gain, jnp.float32)
    gain = gain.reshape(gain.shape + (1,) * (w.ndim - gain.ndim))
    return normalize_kernel(w) * (gain / np.sqrt(fan_in).astype(np.float32))


# XLA's CPU backend convolves images of at most so many positions more slowly than it
# multiplies their patches: 1.5 times at 4x4 with its gradient, 10 times at 2x2.
FEW_POSITIONS = 16


def conv(x: jax.Array, w: jax.Array) -> jax.Array:
    """``(b, h, w, in)`` by a ``(k, k, in, out)`` or ``(in, out)`` kernel, same size."""
    if w.ndim == 2:
        return jnp.einsum("...i,io->...o", x, w)
    if jax.default_backend() == "cpu" and x.shape[1] * x.shape[2] <= FEW_POSITIONS:
        return jnp.einsum(
            "...i,io->...o", patches(x, w.shape[0]), w.reshape(-1, w.shape[-1])
        )
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def patches(x: jax.Array, size: int) -> jax.Array:
    """``(b, h, w, c)`` -> ``(b, h, w, size^2 c)``: what a kernel sees at each place."""
    _, h, w, _ = x.shape
    before, after = (size - 1) // 2, size // 2
    x = jnp.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
    return jnp.concatenate(
        [x[:, i : i + h, j : j + w] for i in range(size) for j in range(size)], axis=-1
    )


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
