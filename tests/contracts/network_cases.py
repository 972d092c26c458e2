"""A small instance of every backbone, with its compiled functions.

Compiling takes nearly all of the time, so many tests share a few compiled functions.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import shapes
from scm_jax import networks
from scm_jax.types import NULL_LABEL, Cond
from tests.networks.reference import quick_jit

# A new backbone needs a line there.
SHAPE, NUM_CLASSES = shapes.TINY["unet"].sample_shape, shapes.TINY["unet"].num_classes
SETTINGS: dict[str, dict[str, Any]] = {
    name: case.settings for name, case in shapes.TINY.items()
}


def make_key(seed):
    return jax.random.key(seed, impl="unsafe_rbg")


def build(name, **changes):
    settings = {"use_guidance": True, "dropout": 0.3, **SETTINGS[name], **changes}
    return networks.build(name, SHAPE, NUM_CLASSES, **settings)


def has(name, setting):
    return setting in {f.name for f in dataclasses.fields(networks.NETWORKS[name])}


def inputs(name):
    """Fields of ``Cond`` that the instance of ``build`` takes."""
    text = {"context", "context_mask", "pooled"} if "text" in SETTINGS[name] else set()
    return {"t", "label", "guidance"} | text


def build_loop(name, **changes):
    """With real loops over equal blocks and rematerialization, where there are any."""
    extra = {"remat": "blocks", "unroll": 1, **changes}
    return build(name, **{k: v for k, v in extra.items() if has(name, k)})


@dataclasses.dataclass
class Case:
    """A network, its fresh and some random parameters, inputs, compiled functions.

    ``step`` is the gradient of ``sum(c F)`` with the constants ``c`` of ``cotangent``
    and ``(F, dF_dt)``, in training with loops and rematerialization; ``derivatives``
    are ``F, dF`` in float64 and evaluation.
    """

    name: str
    net: networks.Network
    init: Callable  # key -> parameters
    apply: Callable  # (params, x, cond) -> F in evaluation
    dropped: Callable  # (params, x, cond, key) -> F in training
    step: Callable  # (params, x, dx, cond, key)
    derivatives: Callable  # (params, x, cond, dx, dt)
    fresh: dict
    params: dict
    x: jax.Array
    cond: Cond
    F: jax.Array  # apply at these inputs

    @property
    def opened(self):
        return opened(self.fresh)


def opened(params):
    """Fresh parameters with an output: some start at gain 0 or at 1e-5 on purpose."""

    def leaf(path, a):
        if path[-1].key == "out_gain":
            return jnp.ones_like(a)
        return 1e5 * a if np.abs(a).max() < 1e-4 else a

    return jax.tree_util.tree_map_with_path(leaf, params)


def trained(params):
    """Trained parameters have no zeros; biases, gains and guidance start there."""
    rng = np.random.default_rng(1)

    def leaf(path, a):
        if path[-1].key.endswith("_gain"):
            return jnp.full_like(a, 0.8)
        return a + 0.1 * rng.normal(size=a.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, params)


def cotangent(tangent):
    """As in a consistency step, where the tangent is a part of the target."""
    return noise(tangent.shape, 6) + 0.1 * jax.lax.stop_gradient(tangent)


def make_step(net):
    def step(params, x, dx, cond, key):
        def loss(params):
            def F(x, t):
                return net.apply(params, x, cond.replace(t=t), train=True, key=key)

            tangents = (dx, jnp.ones_like(cond.t))
            F_value, dF_dt = jax.jvp(F, (x, cond.t), tangents)
            return jnp.sum(cotangent(dF_dt) * F_value), (F_value, dF_dt)

        return jax.grad(loss, has_aux=True)(params)

    return quick_jit(step)


def make_derivatives(net):
    def derivatives(params, x, cond, dx, dt):
        def F(x, t):
            return net.apply(params, x, cond.replace(t=t))

        return jax.jvp(F, (x, cond.t), (dx, dt))

    return quick_jit(derivatives)


@functools.cache
def make(name):
    net = build(name)
    init, apply = quick_jit(net.init), quick_jit(net.apply)
    fresh = init(make_key(2))
    params = trained(fresh)
    cond = Cond(
        t=jnp.asarray([0.1, 0.7, 1.1, 1.5]),
        label=jnp.asarray([2, 0, NULL_LABEL, 0]),
        guidance=jnp.asarray([1.0, 2.0, 1.5, 3.0]),
    )
    if "context" in inputs(name):
        text = SETTINGS[name]["text"]
        cond = cond.replace(
            context=jnp.asarray(noise((4, text.length, text.width), 2)),
            context_mask=jnp.arange(text.length)[None]
            < jnp.asarray([[2], [1], [3], [0]]),
            pooled=jnp.asarray(noise((4, text.pooled), 3)),
        )
    x = jnp.asarray(noise((4, *SHAPE), 1))
    return Case(
        name=name,
        net=net,
        init=init,
        apply=apply,
        dropped=quick_jit(
            lambda params, x, cond, key: net.apply(params, x, cond, train=True, key=key)
        ),
        step=make_step(build_loop(name)),
        derivatives=make_derivatives(build_loop(name, dtype="float64")),
        fresh=fresh,
        params=params,
        x=x,
        cond=cond,
        F=apply(params, x, cond),
    )


def noise(shape, seed, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)
