"""Backbones behind one pure interface: ``F = net.apply(params, x, cond)``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from scm_jax.types import Cond, NetFn, Placement, Registry, lookup

NETWORKS = Registry(
    ddpmpp="scm_jax.networks.ddpmpp.DDPMpp",
    dit="scm_jax.networks.dit.DiT",
    mlp="scm_jax.networks.mlp.MLP",
    unet="scm_jax.networks.unet.UNet",
)

# Settings of the published sizes: PRESETS[network][size].
PRESETS = Registry(
    ddpmpp="scm_jax.networks.ddpmpp.PRESETS",
    dit="scm_jax.networks.dit.PRESETS",
    unet="scm_jax.networks.unet.PRESETS",
)


@flax.struct.dataclass
class Folded:
    """Parameters as the layers multiply by them; see ``Network.fold``."""

    weights: Any


@dataclasses.dataclass(frozen=True)
class Network:
    """A backbone as two pure functions and a statement of what it consumes.

    Attributes:
      module: the Flax module.
      consumes: names of the fields of ``Cond`` that it reads.
      adapter: changes the convention of time and output, such as
        ``trigflow.from_edm``; None where the module's are TrigFlow's.
    """

    module: nn.Module
    consumes: frozenset[str]
    adapter: Callable[[NetFn], NetFn] | None = None

    def init(self, key: jax.Array) -> Any:
        """Fresh float32 parameters."""
        module = self.place(None).module

        def init(key: jax.Array) -> Any:
            return module.init(key, *self.example(1))["params"]

        if not hasattr(module, "draw"):
            return init(key)
        return self.project(module.draw(key, jax.eval_shape(init, key)))

    def project(self, params: Any) -> Any:
        """``params`` after the module's forced normalization, if it has one.

        A pure function for after each update of the optimizer; never part of ``apply``.
        """
        project = getattr(self.module, "project", None)
        return params if project is None else project(params)

    def fold(self, params: Any) -> Folded:
        """``params`` ready for any number of passes; pure and differentiable.

        Weights are normalized and multiplied by their gains, where the module has that,
        in float32; then the blocks' kernels are rounded to the compute dtype. A
        training step folds once, whatever its microbatches and passes, and on the
        pieces that each device stores; a sampler folds once for all.
        """
        normalize = getattr(self.module, "normalize", None)
        weights = params if normalize is None else normalize(params)
        dtype = jnp.dtype(getattr(self.module, "dtype", "float32"))
        if dtype == jnp.float32:
            return Folded(weights)

        def cast(path: Any, w: jax.Array) -> jax.Array:
            return w.astype(dtype) if path[-1].key == "kernel" else w

        stacks = {name: weights[name] for name in self._stacks}
        stacks = jax.tree_util.tree_map_with_path(cast, stacks)
        return Folded({**weights, **stacks})

    def place(self, placement: Placement | None) -> Network:
        """The same network with its weights and activations on a mesh."""
        if not hasattr(self.module, "placement"):
            return self
        module = self.module.clone(placement=placement)
        return dataclasses.replace(self, module=module)

    def apply(
        self,
        params: Any,
        x: jax.Array,
        cond: Cond,
        *,
        train: bool = False,
        key: jax.Array | None = None,
        dtype: str | None = None,
    ) -> jax.Array:
        """``F`` at ``x = x_t / sigma_data``.

        Args:
          params: parameters, or what ``fold`` made of them: then they are not
            normalized and rounded again.
          x: ``(b, *sample_shape)``.
          cond: what the network consumes.
          train: dropout is on.
          key: the dropout key.
          dtype: replaces the module's compute dtype.
        """
        fn: NetFn = self._apply if self.adapter is None else self.adapter(self._apply)
        return fn(params, x, cond, train=train, key=key, dtype=dtype)

    def _apply(
        self,
        params: Any,
        x: jax.Array,
        cond: Cond,
        *,
        train: bool = False,
        key: jax.Array | None = None,
        dtype: str | None = None,
    ) -> jax.Array:
        rngs = {} if key is None else {"dropout": key}
        net = self
        if dtype is not None:
            net = dataclasses.replace(self, module=self.module.clone(dtype=dtype))
        folded = params if isinstance(params, Folded) else net.fold(params)
        variables = {"params": net._gather_outside(folded.weights)}
        F = net.module.apply(variables, x, cond, train=train, rngs=rngs)
        return cast(jax.Array, F)

    @property
    def _stacks(self) -> tuple[str, ...]:
        """Names of the subtrees that hold blocks, in the compute dtype."""
        return getattr(self.module, "stacks", ())

    def _gather_outside(self, weights: Any) -> Any:
        """Weights outside the blocks, gathered; the blocks gather their own."""
        placement = getattr(self.module, "placement", None)
        if placement is None or not placement.gathers:
            return weights
        outside = {k: w for k, w in weights.items() if k not in self._stacks}
        return {**weights, **placement.gather(outside)}

    def example(self, batch_size: int) -> tuple[jax.Array, Cond]:
        """Inputs of the right shapes, for initialization and abstract evaluation."""
        t = jnp.ones((batch_size,), jnp.float32)
        cond = Cond(
            t=t,
            dt=t if "dt" in self.consumes else None,
            label=jnp.zeros((batch_size,), jnp.int32)
            if "label" in self.consumes
            else None,
            guidance=t if "guidance" in self.consumes else None,
        )
        return jnp.ones((batch_size, *self.module.sample_shape), jnp.float32), cond


def build(
    name: str, sample_shape: tuple[int, ...], num_classes: int, **settings: Any
) -> Network:
    """The backbone ``name`` for samples of ``sample_shape``.

    Raises:
      ValueError: unknown name, unknown setting, or settings that contradict each other.
    """
    module = lookup(NETWORKS, name, "network.name")
    known = {
        f.name for f in dataclasses.fields(module) if f.name not in ("parent", "name")
    }
    for setting in settings:
        lookup(dict.fromkeys(known), setting, "network")
    built = module(
        sample_shape=tuple(sample_shape), num_classes=num_classes, **settings
    )
    if (check := getattr(built, "check", None)) is not None:
        check()
    consumes = {"t"}
    consumes |= {"label"} if num_classes else set()
    consumes |= {"guidance"} if built.use_guidance else set()
    consumes |= {"dt"} if built.use_dt else set()
    return Network(built, frozenset(consumes))
