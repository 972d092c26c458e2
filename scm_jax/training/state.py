"""Train state, and the paper's optimizers and schedules."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from optax import contrib

from scm_jax.types import lookup


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes."""

    step: jax.Array  # int32 scalar, optimizer steps done
    params: dict[str, Any]  # groups net and objective
    opt_state: Any  # optax state over params
    ema: dict[str, Any]  # profile name -> tree like params["net"]
    key: jax.Array  # typed, never changes: step n uses fold_in(key, n)
    critic: Player | None = None  # the second network of an objective that has one


@flax.struct.dataclass
class Player:
    """A critic: network parameters, their optimizer's state and their EMA."""

    params: Any
    opt_state: Any
    ema: Any  # like params; empty where there is none


def init_state(
    params: dict[str, Any],
    optimizer: optax.GradientTransformation,
    ema_names: tuple[str, ...],
    key: jax.Array,
    critic: Player | None = None,
) -> TrainState:
    """A fresh state; every EMA starts at the initial network."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        # Copies: a donated state may not hold one buffer twice.
        ema={name: jax.tree.map(jnp.copy, params["net"]) for name in ema_names},
        key=key,
        critic=critic,
    )


def init_critic(
    params: Any, optimizer: optax.GradientTransformation, averaged: bool
) -> Player:
    """A critic that starts at ``params``."""
    ema = jax.tree.map(jnp.copy, params) if averaged else {}
    return Player(params, optimizer.init({"net": params}), ema)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and learning-rate schedule."""

    name: str = "adam"  # or radam, or muon
    learning_rate: float = 1e-3  # constant, or the reference of the schedule
    b1: float = 0.9  # first moment decay
    b2: float = 0.99  # second moment decay
    # Added to the root of the second moment. EDM2-scale runs need 1e-11: weighted
    # gradients are tiny.
    eps: float = 1e-8
    # constant, inverse_sqrt (EDM2 and the paper) or cosine (to zero, for short runs).
    schedule: str = "constant"
    # Images before the decay of inverse_sqrt starts (t_ref B), or when cosine ends.
    decay_images: float = 0.0
    rampup_images: float = 0.0  # linear ramp-up of the learning rate; 0 for none
    # The width that ``learning_rate`` is for, see ``width_rules``; 0: one rate for all.
    base_width: int = 0


_DECAYS: dict[str, Callable[[jax.Array], jax.Array] | None] = {
    "constant": None,
    "inverse_sqrt": lambda u: jax.lax.rsqrt(jnp.maximum(u, 1.0)),
    "cosine": lambda u: 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.minimum(u, 1.0))),
}


def learning_rate(config: OptimizerConfig, images: jax.Array) -> jax.Array:
    """Learning rate after ``images`` images (EDM2, arXiv 2312.02696, Eq. 67).

    With ``u = images/decay_images``, the factor is ``1/sqrt(max(u, 1))`` or
    ``(1 + cos(pi min(u, 1)))/2``, times ``min(images/rampup_images, 1)``.

    Raises:
      ValueError: unknown schedule, or a decay without ``decay_images``.
    """
    decay = lookup(_DECAYS, config.schedule, "optimizer.schedule")
    images = jnp.asarray(images, jnp.float32)
    lr = jnp.full((), config.learning_rate, jnp.float32)
    if decay is not None:
        if config.decay_images <= 0:
            raise ValueError(
                "optimizer.decay_images must be positive with optimizer.schedule = "
                f"{config.schedule!r}"
            )
        lr = lr * decay(images / config.decay_images)
    if config.rampup_images > 0:
        lr = lr * jnp.minimum(images / config.rampup_images, 1.0)
    return lr


def kernel_axes(
    path: Any, ndim: int, looped: Collection[str]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Axes of inputs and outputs of a network's parameter; None if it is no kernel."""
    group, leaf = path[0].key, path[-1].key
    # A loop has a kernel per block, as the caption's keys and values do.
    per_block = group in (*looped, "memory")
    if leaf != "kernel" or ndim < 2 + per_block:  # the learned weight has a vector
        return None
    of_kernel = tuple(range(per_block, ndim))
    inputs = 3 if group != "memory" and len(of_kernel) == 4 else 1  # convolutions
    return of_kernel[:inputs], of_kernel[inputs:]


def _muon(
    lr: Any, *, b1: float, b2: float, eps: float, looped: Collection[str]
) -> optax.GradientTransformation:
    """Muon for kernels, Adam for all other parameters (arXiv 2502.16982).

    The momentum of a kernel, ``M = U S V^T`` of inputs and outputs, becomes ``U V^T``
    with a root mean square of 0.2, about that of Adam's updates: they share a rate.
    """

    def axes(path: Any, w: jax.Array) -> contrib.MuonDimensionNumbers | None:
        found = kernel_axes(path[1:], w.ndim, looped)
        return found and contrib.MuonDimensionNumbers(*found)

    return contrib.muon(
        lr,
        eps=eps,
        adam_b1=b1,
        adam_b2=b2,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=lambda p: jax.tree.map_with_path(axes, p),
    )


_OPTIMIZERS = {"adam": optax.adam, "radam": optax.radam, "muon": _muon}


def build_optimizer(
    config: OptimizerConfig, batch_size: int, looped: Collection[str] = ()
) -> optax.GradientTransformation:
    """The optimizer with its schedule; step ``n`` (from 0) has seen ``n B`` images.

    Step 0 of a ramp-up uses one batch, so that it moves the parameters. ``looped`` is
    that of the ``Network``.
    """
    make = lookup(_OPTIMIZERS, config.name, "optimizer.name")
    if make is _muon:
        make = functools.partial(_muon, looped=looped)
    learning_rate(config, jnp.zeros(()))  # a bad schedule is an error here

    def schedule(step: jax.Array) -> jax.Array:
        return learning_rate(config, (step + 1.0) * batch_size)

    return make(schedule, b1=config.b1, b2=config.b2, eps=config.eps)
