"""Backbones behind one pure interface: ``F = net.apply(params, x, cond)``."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from scm_jax.types import (
    Cond,
    NetFn,
    Placement,
    Registry,
    TextInfo,
    check_choice,
    lookup,
)

NETWORKS = Registry(
    ddpmpp="scm_jax.networks.ddpmpp.DDPMpp",
    dit="scm_jax.networks.dit.DiT",
    mlp="scm_jax.networks.mlp.MLP",
    mmdit="scm_jax.networks.mmdit.MMDiT",
    sana="scm_jax.networks.sana.Sana",
    unet="scm_jax.networks.unet.UNet",
    wan="scm_jax.networks.wan.Wan",
)

# Settings of the published sizes: PRESETS[network][size].
PRESETS = Registry(
    ddpmpp="scm_jax.networks.ddpmpp.PRESETS",
    dit="scm_jax.networks.dit.PRESETS",
    mmdit="scm_jax.networks.mmdit.PRESETS",
    sana="scm_jax.networks.sana.PRESETS",
    unet="scm_jax.networks.unet.PRESETS",
    wan="scm_jax.networks.wan.PRESETS",
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
        text: Any = getattr(self.module, "text", None)
        states = text is not None and not text.words
        optional = {
            "label": self.module.num_classes > 0,
            "guidance": self.module.use_guidance,
            "dt": self.module.use_dt,
            "tokens": text is not None and bool(text.words),
            "context": states,
            "context_mask": states,
            "pooled": states and text.pooled > 0,
            "frames": getattr(self.module, "use_frames", False),
        }
        return frozenset({"t"} | {name for name, used in optional.items() if used})

    @property
    def looped(self) -> tuple[str, ...]:
        """Groups of parameters that have a leading axis of equal blocks."""
        module = self.module
        if hasattr(module, "layout"):  # the U-Nets
            return tuple(g.name for g in module.layout() if len(g.names) > 1)
        if hasattr(module, "loops"):
            return tuple(name for name, number in module.loops().items() if number)
        return getattr(module, "stacks", ())

    @property
    def encoders(self) -> dict[str, Any]:
        """Modules ``Cond -> Cond`` that read captions, by their group of parameters."""
        encoders = getattr(self.module, "encoders", None)
        return {} if encoders is None else encoders()

    def init(self, key: jax.Array) -> Any:
        """Fresh float32 parameters."""
        module, (x, cond) = self.place(None).module, self.example(1)
        encoders = {}
        for i, (name, encoder) in enumerate(self.encoders.items()):
            variables = encoder.init(jax.random.fold_in(key, i), cond)
            if "params" in variables:
                encoders[name] = variables["params"]
            cond = encoder.apply(variables, cond)

        def init(key: jax.Array) -> Any:
            return module.init(key, x, cond)["params"]

        if not hasattr(module, "draw"):
            return {**init(key), **encoders}
        params = {**module.draw(key, jax.eval_shape(init, key)), **encoders}
        return self.project(params)

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
        for dropout, which ``train`` switches on; ``dtype`` replaces the module's, where
        it has one.
        """
        net = self
        if dtype is not None and hasattr(self.module, "dtype"):
            net = dataclasses.replace(self, module=self.module.clone(dtype=dtype))
        weights, cond = net._encode(params, cond)
        rngs = {} if key is None else {"dropout": key}
        fn: Any = functools.partial(net.module.apply, train=train, rngs=rngs)
        fn = fn if self.adapter is None else self.adapter(fn)
        return fn({"params": weights}, x, cond)

    def encode(self, params: Any, cond: Cond) -> Cond:
        """``cond`` with all of its caption that depends on neither ``x`` nor ``t``.

        A sampler encodes once for all its steps. ``apply`` encodes what is not encoded
        yet, and nothing of it has a tangent.
        """
        return self._encode(params, cond)[1]

    def _encode(self, params: Any, cond: Cond) -> tuple[Any, Cond]:
        """The module's weights, gathered where it does not gather, and the caption."""
        folded = params if isinstance(params, Folded) else self.fold(params)
        weights = self._gather_outside(folded.weights)
        encoders = self.encoders
        if encoders and cond.memory is None:
            for name, encoder in encoders.items():
                cond = encoder.apply({"params": weights.get(name, {})}, cond)
        own = {name: w for name, w in weights.items() if name not in encoders}
        return own, cond

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
        inputs: dict[str, Any] = {"t": t, "dt": t, "guidance": t, "label": label}
        if getattr(self.module, "use_frames", False):
            *shape, channels = self.module.sample_shape
            inputs["frames"] = jnp.zeros((batch_size, *shape, channels + 1))
        if (text := getattr(self.module, "text", None)) is not None:
            inputs |= example_caption(text, batch_size)
        cond = Cond(**{name: inputs[name] for name in self.consumes})
        return jnp.ones((batch_size, *self.module.sample_shape), jnp.float32), cond


def example_caption(text: TextInfo, batch_size: int) -> dict[str, jax.Array]:
    """Captions of full length, as ``Batch`` and ``Cond`` hold them."""
    shape = (batch_size, text.length)
    if text.words:
        return {"tokens": jnp.ones(shape, jnp.int32)}
    caption = {
        "context": jnp.ones((*shape, text.width), jnp.float32),
        "context_mask": jnp.ones(shape, jnp.bool_),
    }
    if text.pooled:
        caption["pooled"] = jnp.ones((batch_size, text.pooled), jnp.float32)
    return caption


def build(
    name: str,
    sample_shape: tuple[int, ...],
    num_classes: int,
    text: TextInfo | None = None,
    **settings: Any,
) -> Network:
    """The backbone ``name`` for samples of ``sample_shape``.

    A backbone that cannot read captions is built without ``text``.

    Raises:
      ValueError: unknown name, unknown setting, or settings that contradict each other.
    """
    kind = lookup(NETWORKS, name, "network.name")
    known = {f.name for f in dataclasses.fields(kind)} - {"parent", "name"}
    for setting in settings:
        check_choice(setting, known, "network")
    if "text" in known:
        settings["text"] = text
    module = kind(sample_shape=tuple(sample_shape), num_classes=num_classes, **settings)
    if hasattr(module, "check"):
        module.check()
    return Network(module)
