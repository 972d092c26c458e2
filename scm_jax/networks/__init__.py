"""Backbones behind one pure interface: ``F = net.apply(params, x, cond)``."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from scm_jax.types import Cond, NetFn, Placement, Registry, check_choice, lookup

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
    """A Flax module as pure functions.

    ``adapter`` changes the convention of time and output, such as
    ``trigflow.from_edm``; None where the module's are TrigFlow's.
    """

    module: Any
    adapter: Callable[[NetFn], NetFn] | None = None

    @property
    def consumes(self) -> frozenset[str]:
        """Names of the fields of ``Cond`` that the module reads."""
        optional = {
            "label": self.module.num_classes > 0,
            "guidance": self.module.use_guidance,
            "dt": self.module.use_dt,
        }
        return frozenset({"t"} | {name for name, used in optional.items() if used})

    def init(self, key: jax.Array) -> Any:
        """Fresh float32 parameters."""
        module = self.place(None).module

        def init(key: jax.Array) -> Any:
            return module.init(key, *self.example(1))["params"]

        if not hasattr(module, "draw"):
            return init(key)
        return self.project(module.draw(key, jax.eval_shape(init, key)))

    def project(self, params: Any) -> Any:
        """``params`` after forced normalization, for after each optimizer update."""
        project = getattr(self.module, "project", None)
        return params if project is None else project(params)

    def fold(self, params: Any) -> Folded:
        """``params`` ready for any number of passes; pure and differentiable.

        The module's ``normalize`` acts in float32; then the blocks' kernels are rounded
        to the compute dtype. A training step folds once for all its microbatches and
        passes, on the pieces that each device stores; a sampler folds once.
        """
        normalize = getattr(self.module, "normalize", None)
        weights = params if normalize is None else normalize(params)
        dtype = jnp.dtype(getattr(self.module, "dtype", "float32"))
        if dtype == jnp.float32:
            return Folded(weights)

        def cast(path: Any, w: jax.Array) -> jax.Array:
            return w.astype(dtype) if path[-1].key == "kernel" else w

        names = getattr(self.module, "stacks", ())
        stacks = {name: weights[name] for name in names}
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

        ``params`` may be the result of ``fold``, which is not folded again. ``key`` is
        for dropout, which ``train`` switches on; ``dtype`` replaces the module's.
        """
        net = self
        if dtype is not None:
            net = dataclasses.replace(self, module=self.module.clone(dtype=dtype))
        folded = params if isinstance(params, Folded) else net.fold(params)
        variables = {"params": net._gather_outside(folded.weights)}
        rngs = {} if key is None else {"dropout": key}
        fn = functools.partial(net.module.apply, train=train, rngs=rngs)
        return (fn if self.adapter is None else self.adapter(fn))(variables, x, cond)

    def _gather_outside(self, weights: Any) -> Any:
        """Weights outside the blocks, gathered; the blocks gather their own."""
        placement = getattr(self.module, "placement", None)
        if placement is None or not placement.gathers:
            return weights
        stacks = getattr(self.module, "stacks", ())
        outside = {k: w for k, w in weights.items() if k not in stacks}
        return {**weights, **placement.gather(outside)}

    def example(self, batch_size: int) -> tuple[jax.Array, Cond]:
        """Inputs of the right shapes, for initialization and abstract evaluation."""
        t = jnp.ones((batch_size,), jnp.float32)
        label = jnp.zeros((batch_size,), jnp.int32)
        inputs = {"t": t, "dt": t, "guidance": t, "label": label}
        cond = Cond(**{name: inputs[name] for name in self.consumes})
        return jnp.ones((batch_size, *self.module.sample_shape), jnp.float32), cond


def build(
    name: str, sample_shape: tuple[int, ...], num_classes: int, **settings: Any
) -> Network:
    """The backbone ``name`` for samples of ``sample_shape``.

    Raises:
      ValueError: unknown name, unknown setting, or settings that contradict each other.
    """
    kind = lookup(NETWORKS, name, "network.name")
    known = {f.name for f in dataclasses.fields(kind)} - {"parent", "name"}
    for setting in settings:
        check_choice(setting, known, "network")
    module = kind(sample_shape=tuple(sample_shape), num_classes=num_classes, **settings)
    if hasattr(module, "check"):
        module.check()
    return Network(module)
