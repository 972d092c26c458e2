"""Maximal-update rules: the learning rate that is best at one width is best at all.

Let ``r = base_width / width``. A kernel whose inputs grow with the width sums over
them, and updates whose entries all have one size are aligned with what they sum:
without a rule, the output of the layer moves ``1/r`` times as far in a step. Factors of
the learning rate, and of the standard deviation at the start:

| inputs grow | outputs grow | start | Adam | Muon |
|-------------|--------------|-------|------|------|
| no | yes or no | 1 | 1 | 1 |
| yes | yes | 1 | r | r^(1/2) |
| yes | no | r^(1/2) | r | r |

Adam's are Table 8 of arXiv 2203.03466, which arXiv 2505.15270 uses for diffusion
transformers; initializers have the variance ``1/inputs`` already. Muon's update has a
spectral norm of 0.2 times the root of the larger axis. A magnitude-preserving layer
multiplies by its unit-variance kernel over the root of its inputs, a factor
``r^(-1/2)`` in each rate and 1 at the start: its rate under Adam is ``r^(1/2)``, as in
EDM2, whose rates fall from 0.0120 at 128 channels to 0.0065 at 448
(arXiv 2312.02696, Table 6).

The size of a head must not grow: ``network.num_heads`` grows with the width. Depth is
not covered.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import optax

from scm_jax.training.state import kernel_axes


class WidthRules(NamedTuple):
    """Factors by parameter, trees like those of a network."""

    rate: Any  # of the learning rate
    start: Any  # of fresh parameters


def width_rules(
    shapes: Any,
    doubled: Any,
    share: float,
    *,
    optimizer: str = "adam",
    looped: Collection[str] = (),
    normalized: bool = False,
) -> WidthRules:
    """The factors of a network.

    Args:
      shapes: of its parameters.
      doubled: of those of the network of twice the width.
      share: ``base_width / width``.
      optimizer: a key of ``OptimizerConfig.name``.
      looped: groups of equal blocks, see ``Network.looped``.
      normalized: its layers are magnitude-preserving.
    """

    def grows(path: Any, a: Any, b: Any) -> tuple[bool, bool]:
        axes = kernel_axes(path, a.ndim, looped)
        if axes is None:
            return False, False
        inputs, outputs = (any(a.shape[i] != b.shape[i] for i in part) for part in axes)
        return inputs, outputs

    def rate(path: Any, a: Any, b: Any) -> float:
        inputs, outputs = grows(path, a, b)
        power = 0.5 if optimizer == "muon" and outputs else 1.0
        return share ** (power - 0.5 * normalized) if inputs else 1.0

    def start(path: Any, a: Any, b: Any) -> float:
        inputs, outputs = grows(path, a, b)
        return share**0.5 if inputs and not outputs and not normalized else 1.0

    trees = (jax.tree.map_with_path(f, shapes, doubled) for f in (rate, start))
    return WidthRules(*trees)


def scaled(
    optimizer: optax.GradientTransformation, rate: Any
) -> optax.GradientTransformation:
    """``optimizer`` of groups of parameters, with the factors ``rate`` for ``net``."""

    def scale(updates: Any, params: Any = None) -> Any:
        del params
        net = jax.tree.map(lambda u, factor: factor * u, updates["net"], rate)
        return {**updates, "net": net}

    return optax.chain(optimizer, optax.stateless(scale))
