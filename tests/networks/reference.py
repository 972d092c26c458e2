"""Networks by their formulas, in numpy and float64; what tests of networks share."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from scm_jax.networks import autoencoder
from scm_jax.types import NULL_LABEL, Cond

COND = Cond(
    t=jnp.asarray([0.2, 0.9, 1.3]),
    dt=jnp.asarray([0.1, 0.2, 0.3]),
    label=jnp.asarray([2, 0, NULL_LABEL]),
    guidance=jnp.asarray([1.0, 1.5, 2.0]),
)
# Both are quick to compile, which is most of the time that these tests take.
KEY = jax.random.key(0, impl="unsafe_rbg")
quick_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)

PIXEL_NORM_EPS, RMS_EPS, GROUP_NORM_EPS = 1e-8, 1e-4, 1e-6


def normal(shape, seed=0, loc=0.3):
    return loc + np.random.default_rng(seed).normal(size=shape)


def rms(a):
    return float(np.sqrt(np.mean(np.square(np.asarray(a, np.float64)))))


def draw_small(module):
    """Weights of an autoencoder, float32."""
    rng = np.random.default_rng(0)
    shapes = autoencoder.abstract_params(module)
    return jax.tree.map(
        lambda a: (0.3 * rng.standard_normal(a.shape)).astype(np.float32), shapes
    )


def draw(shapes, seed=0):
    """Parameters of order 1 for a tree of shapes; scalars, which are gains, are 0.7."""
    rng = np.random.default_rng(seed)

    def leaf(a):
        return rng.normal(size=a.shape) if a.shape else np.float64(0.7)

    return jax.tree.map(lambda a: np.asarray(leaf(a), np.float32), shapes)


def fresh_size(net, seed=0):
    """Random parameters of about their size at the start; quicker than ``init``."""
    rng = np.random.default_rng(seed)

    def leaf(a):
        fan_in = a.shape[-2] if a.ndim > 1 else 16
        return jnp.asarray(rng.normal(size=a.shape) / np.sqrt(fan_in), jnp.float32)

    return jax.tree.map(leaf, jax.eval_shape(net.init, KEY))


def float64(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


def equations(program):
    """Those of a program, and of the programs within it."""
    for eqn in getattr(program, "jaxpr", program).eqns:
        yield eqn
        for inner in core.jaxprs_in_params(eqn.params):
            yield from equations(inner)


def silu(x):
    return x / (1 + np.exp(-x))


def positional(a, dim, amplitude):
    angles = a[:, None] * 1e4 ** -np.linspace(0, 1, dim // 2)
    return amplitude * np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)


def correlate(x, w):
    """A 3x3 kernel on images with zeros beyond the border, by its definition."""
    b, height, width, _ = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = np.zeros((b, height, width, w.shape[-1]))
    for i in range(height):
        for j in range(width):
            window = padded[:, i : i + 3, j : j + 3]
            y[:, i, j] = np.einsum("bklc,klco->bo", window, w)
    return y


def apply_kernel(x, w):
    return correlate(x, w) if w.ndim == 4 else x @ w


def unit_rms(x, axis):
    return x / (RMS_EPS + np.sqrt(np.mean(x**2, axis=axis, keepdims=True)))


def normalized(w):
    """Unit RMS per output channel over all other axes."""
    return unit_rms(w, tuple(range(w.ndim - 1)))


def mp_layer(x, kernel, gain=1.0):
    fan_in = np.prod(kernel.shape[:-1])
    return gain * apply_kernel(x, normalized(kernel)) / np.sqrt(fan_in)


def mp_sum(a, b, t):
    return ((1 - t) * a + t * b) / np.sqrt((1 - t) ** 2 + t**2)


def layer(x, p):
    return apply_kernel(x, p["kernel"]) + p["bias"]


def pixel_norm(a):
    return a / np.sqrt(np.mean(a**2, -1, keepdims=True) + PIXEL_NORM_EPS)


def group_norm(x, p):
    b, height, width, c = x.shape
    y = x.reshape(b, height * width, min(32, c // 4), -1)
    y = y - y.mean((1, 3), keepdims=True)
    y = y / np.sqrt(np.mean(y**2, (1, 3), keepdims=True) + GROUP_NORM_EPS)
    return y.reshape(x.shape) * p["scale"] + p["bias"]


def resample(x, mode):
    if mode == "up":
        return x.repeat(2, axis=1).repeat(2, axis=2)
    if mode == "down":
        corners = [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return sum(corners) / 4
    return x


def modulate(normed, affine, form):
    affine = affine.reshape(len(affine), *(1,) * (normed.ndim - 2), -1)
    if form == "double_norm_scale":
        return normed * pixel_norm(affine)
    s, b = np.split(affine, 2, axis=-1)
    if form == "adaptive":
        return normed * (1 + s) + b
    return normed * pixel_norm(s) + pixel_norm(b)


def softmax(a):
    e = np.exp(a - a.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attend(q, k, v):
    """``(b, n, heads, d)`` each."""
    p = softmax(np.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(q.shape[-1]))
    return np.einsum("bhnm,bmhd->bnhd", p, v)


def heads_of(qkv, num_heads):
    """q, k, v of output channels in the order head, channel, then q, k, v."""
    b, height, width, _ = qkv.shape
    qkv = qkv.reshape(b, height * width, num_heads, -1, 3)
    return qkv[..., 0], qkv[..., 1], qkv[..., 2]


def embedding_of(network, normalize, **settings):
    """A U-Net's conditioning alone at ``COND``, in float32, and its parameters."""

    class Embedding(network):
        @nn.compact
        def __call__(self, x, cond, *, train=False):
            return self._embed(cond)

    module = Embedding(
        (8, 8, 2), 3, width=16, use_guidance=True, use_dt=True, **settings
    )
    params = draw(jax.eval_shape(module.init, KEY, None, COND)["params"])
    run = quick_jit(lambda p: module.apply({"params": normalize(p)}, None, COND))
    return params, run(params)
