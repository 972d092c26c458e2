"""Exact cost of a program before it runs: multiply-adds, parameters, bytes.

XLA's own cost analysis counts the body of a scan once and reports nonsense for some
GPU kernels, so the count here walks the jaxpr. Its conventions:

- One multiply-add is one unit: a dense layer from n to m channels on b rows costs
  b n m. FLOPs are twice that; the "Gflops" of EDM2 are these units.
- Only contractions count (matrix products, convolutions).
- A convolution counts every tap that a dense kernel executes: also those on the
  padding, but not those on the holes of a dilated input (the gradient of a strided
  convolution), since no kernel multiplies by them.
- The program counts as written once dead code is gone: equal subexpressions twice.
- A cond costs its most expensive branch, a scan its body times its length, a
  shard_map its body on every device together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval

MacFormula = Callable[[Any], int]

# Primitives that run one inner program exactly once.
_CALLS = frozenset(
    "jit pjit closed_call core_call call remat2 checkpoint custom_jvp_call "
    "custom_vjp_call custom_vjp_call_jaxpr compute_on eval_jaxpr".split()
)

# Primitives that multiply but show nothing to count: only a formula can tell.
_OPAQUE = frozenset(
    "pallas_call mpmd_map ffi_call custom_call pure_callback io_callback "
    "ragged_dot_general scaled_matmul dot_product_attention_fwd "
    "dot_product_attention_fwd_wrapper dot_product_attention_bwd "
    "dot_product_attention_bwd_wrapper call_hi_primitive".split()
)


def count_macs(fn: Callable[..., Any], *abstract_args: Any) -> int:
    """Multiply-adds of one call ``fn(*abstract_args)``, without running it.

    Dead code (a tangent that nobody reads, the derivative of a stopped gradient) is
    removed first, also inside scans, branches and nested calls.

    ``fn`` is any traceable function, the arguments are pytrees of arrays or
    ``jax.ShapeDtypeStruct``.

    Returns:
      Multiply-adds of the whole batch on all devices.

    Raises:
      ValueError: the program multiplies inside a ``while`` loop, whose length is
        unknown, or inside a kernel that has no formula (``register_macs``).

    Example:
      >>> x = jax.ShapeDtypeStruct((2, 3), np.float32)
      >>> w = jax.ShapeDtypeStruct((3, 5), np.float32)
      >>> count_macs(lambda x, w: x @ w, x, w)
      30
    """
    return _jaxpr_macs(live_jaxpr(fn, *abstract_args))


def register_macs(name: str, formula: MacFormula) -> None:
    """Teaches ``count_macs`` the cost of a kernel it cannot look into.

    ``name`` is the kernel's own (``name`` of a ``pallas_call``, ``target_name`` of an
    ``ffi_call``) or that of a primitive; ``formula(eqn)`` finds shapes in
    ``eqn.invars[i].aval.shape``.

    Raises:
      ValueError: the name has a formula already.
    """
    if name in MAC_FORMULAS:
        raise ValueError(f"{name!r} has a multiply-add formula already")
    MAC_FORMULAS[name] = formula


def parameter_count(tree: Any) -> int:
    """Number of scalars in a pytree of arrays or ``jax.ShapeDtypeStruct``."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def tree_bytes(tree: Any) -> int:
    """Bytes that the arrays of a pytree occupy, all shards together."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def effective_sampling_compute(params: int, nfe: int) -> float:
    """Billions of parameters times network evaluations (``nfe``) per sample.

    The horizontal axis of Fig. 1 in arXiv 2410.11081v2.

    Example:
      >>> effective_sampling_compute(1_500_000_000, 2)
      3.0
    """
    return params / 1e9 * nfe


def live_jaxpr(fn: Callable[..., Any], *abstract_args: Any) -> Any:
    """The program of ``fn`` without dead code."""
    jaxpr = open_jaxpr(jax.make_jaxpr(fn)(*abstract_args))
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def open_jaxpr(jaxpr: Any) -> Any:
    """The ``Jaxpr`` whose equations can be walked; from jax 0.12 on, all can."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def _jaxpr_macs(jaxpr: Any) -> int:
    return sum(_eqn_macs(eqn) for eqn in open_jaxpr(jaxpr).eqns)


def _eqn_macs(eqn: Any) -> int:
    name = eqn.primitive.name
    kernel = _kernel_name(eqn)
    if formula := MAC_FORMULAS.get(kernel) or MAC_FORMULAS.get(name):
        return int(formula(eqn))
    if name in _OPAQUE:
        label = f"{name} {kernel!r}" if kernel else name
        raise ValueError(
            f"cannot count multiply-adds inside {label}: give its formula with "
            f"scm_jax.cost.counts.register_macs({kernel or name!r}, formula)"
        )
    bodies = [_jaxpr_macs(body) for body in core.jaxprs_in_params(eqn.params)]
    if name not in _CALLS and any(bodies):
        raise ValueError(
            f"the primitive {name!r} contains multiply-adds, and how often it runs "
            f"them is unknown: give its formula with "
            f"scm_jax.cost.counts.register_macs({name!r}, formula)"
        )
    return sum(bodies)


def _kernel_name(eqn: Any) -> str:
    key = {"pallas_call": "name", "ffi_call": "target_name"}.get(eqn.primitive.name)
    return str(eqn.params[key] or "") if key else ""


def _dot_general(eqn: Any) -> int:
    (contract, _), _ = eqn.params["dimension_numbers"]
    lhs = eqn.invars[0].aval.shape
    return math.prod(eqn.outvars[0].aval.shape) * math.prod(lhs[d] for d in contract)


def _conv(eqn: Any) -> int:
    # Batch x features out x features in per group x taps.
    spec = eqn.params["dimension_numbers"]
    rhs = eqn.invars[1].aval.shape
    out = eqn.outvars[0].aval.shape
    channels = out[spec.out_spec[0]] * out[spec.out_spec[1]] * rhs[spec.rhs_spec[1]]
    taps = math.prod(
        _taps(out[o], rhs[k], stride, padding[0], hole, dilation)
        for o, k, stride, padding, hole, dilation in zip(
            spec.out_spec[2:],
            spec.rhs_spec[2:],
            eqn.params["window_strides"],
            eqn.params["padding"],
            eqn.params["lhs_dilation"],
            eqn.params["rhs_dilation"],
            strict=True,
        )
    )
    return channels * taps


def _taps(
    out: int, kernel: int, stride: int, pad: int, hole: int, dilation: int
) -> int:
    """Pairs (output position, tap) along one axis that do not fall into a hole."""
    positions = np.arange(out)[:, None] * stride - pad
    taps = np.arange(kernel)[None, :] * dilation
    return int(np.sum((positions + taps) % hole == 0))


def _while(eqn: Any) -> int:
    bodies = (eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"])
    if any(_jaxpr_macs(body) for body in bodies):
        raise ValueError(
            "cannot count multiply-adds inside a while loop, whose length is known "
            "only when it runs: use lax.scan, or lax.fori_loop with static bounds"
        )
    return 0


def _shard_map(eqn: Any) -> int:
    # The body has the shapes of one shard. Devices along an axis that no input is
    # split over repeat the work: that is executed, so it counts.
    sizes = dict(eqn.params["mesh"].shape)
    shards = math.prod(sizes[axis] for axis in eqn.params["newly_manual_axes"])
    return shards * _jaxpr_macs(eqn.params["jaxpr"])


# Primitive or kernel name -> formula of the equation; extended by `register_macs`.
MAC_FORMULAS: dict[str, MacFormula] = {
    "dot_general": _dot_general,
    "conv_general_dilated": _conv,
    "scan": lambda eqn: eqn.params["length"] * _jaxpr_macs(eqn.params["jaxpr"]),
    "cond": lambda eqn: max(map(_jaxpr_macs, eqn.params["branches"])),
    "while": _while,
    "shard_map": _shard_map,
}
