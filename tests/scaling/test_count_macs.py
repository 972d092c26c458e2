"""The multiply-add counter against programs whose count is known by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from scm_jax.cost import counts

N = 3  # width of the toy: one of its matrix products is N^3 units
LENGTH = 8


def shape(*dims, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(dims, dtype)


X = shape(N, N)
W = shape(LENGTH, N, N)


def scanned(weights, x):
    """Eight products in a scan: 8 units forward."""
    return jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, weights)[0]


def unrolled(weights, x):
    for w in weights:
        x = jnp.tanh(x @ w)
    return x


def remat_scanned(weights, x):
    @jax.checkpoint
    def layer(c, w):
        return jnp.tanh(c @ w), None

    return jax.lax.scan(layer, x, weights)[0]


def diffusion(net):
    return jax.grad(lambda weights, x: jnp.sum(net(weights, x) ** 2))


def consistency(net, *, shared=True, teacher=False):
    """The shape of Alg. 1: the target is a stopped tangent, the loss is on F."""

    def loss(weights, x):
        dx = jnp.ones_like(x)
        if teacher:
            dx = net(jax.lax.stop_gradient(weights) * 2, x)
        F, dF = jax.jvp(lambda x: net(weights, x), (x,), (dx,))
        if not shared:
            F = net(weights, x)
        return jnp.sum((F - jax.lax.stop_gradient(F + dF)) ** 2)

    return jax.grad(loss)


def jvp(part):
    def fn(weights, x):
        return jax.jvp(lambda x: scanned(weights, x), (x,), (x,))[part]

    return fn


def with_unused_product(weights, x):
    unrolled(weights, x)
    return x @ x


def with_unread_carry(weights, x):
    def body(carry, w):
        used, unread = carry
        return (used @ w, unread @ w), unread @ unread

    def once(x):
        return jax.lax.scan(body, (x, x), weights)[0][0]

    return jax.lax.scan(lambda c, _: (once(c), None), x, length=5)[0]


@jax.custom_jvp
def pair(x):
    return x @ x, (x @ x) @ x


pair.defjvp(lambda primals, tangents: (pair(*primals), pair(*tangents)))


@jax.custom_vjp
def square(x):
    return x @ x


square.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x.T + x.T @ g,))


def branch(x, *branches):
    return jax.lax.switch(jnp.int32(x[0, 0]), branches, x)


def loop(body):
    return lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 1, body, x) @ x


def with_noise(x, key, step):
    return x @ jax.random.normal(jax.random.fold_in(key, step), x.shape)


KEY = jax.eval_shape(lambda: jax.random.key(0))
# In units of one product.
COUNTS = {
    "scan": (scanned, (W, X), 8),
    "gradient": (diffusion(scanned), (W, X), 24),
    "gradient with recomputation": (diffusion(remat_scanned), (W, X), 32),
    "both parts of a jvp": (jvp(slice(None)), (W, X), 16),
    # Forward and tangent, then the backward pass of the forward alone.
    "consistency": (consistency(scanned), (W, X), 32),
    "consistency, F twice": (consistency(scanned, shared=False), (W, X), 40),
    "distillation": (consistency(scanned, teacher=True), (W, X), 40),
    # Without a scan the first layer's input gradient is dead: 23, and 8 more.
    "gradient unrolled": (diffusion(unrolled), (W, X), 23),
    "consistency unrolled": (consistency(unrolled), (W, X), 31),
    "dead product": (with_unused_product, (W, X), 1),
    "dead carry and output": (jax.jit(with_unread_carry), (W, X), 5 * LENGTH),
    "dead tangent": (jvp(0), (W, X), 8),
    "dead in a branch and rule": (
        lambda x: branch(x, lambda x: (x, x), pair)[0],
        (X,),
        1,
    ),
    "dearest branch": (
        lambda x: branch(x, lambda x: x, lambda x: x @ x @ x, lambda x: x @ x),
        (X,),
        2,
    ),
    "while without products": (loop(lambda x: x + 1), (X,), 1),
    "static fori loop": (
        lambda x: jax.lax.fori_loop(0, 5, lambda _, c: c @ c, x),
        (X,),
        5,
    ),
    "custom rule": (square, (X,), 1),
    # g is a constant, but the rule still multiplies by it; x @ x itself is dead.
    "its gradient": (jax.grad(lambda x: jnp.sum(jax.jit(square)(x))), (X,), 2),
    "keys and integers": (with_noise, (X, KEY, shape(dtype=jnp.int32)), 1),
}


@pytest.mark.parametrize("name", COUNTS)
def test_known_counts(name):
    fn, args, units = COUNTS[name]
    assert counts.count_macs(fn, *args) == units * N**3


@pytest.mark.parametrize(
    ("spec", "a", "b", "macs"),
    [
        ("ij,jk->ik", (2, 3), (3, 5), 30),
        ("bij,bjk->bik", (7, 2, 3), (7, 3, 5), 210),
        ("bhqc,bhkc->bhqk", (2, 3, 4, 6), (2, 3, 5, 6), 720),
        ("ij,ij->", (2, 3), (2, 3), 6),
    ],
)
def test_dot_general(spec, a, b, macs):
    fn = functools.partial(jnp.einsum, spec)
    assert counts.count_macs(fn, shape(*a), shape(*b)) == macs


def conv(x, kernel, window_strides=(1, 1), padding="SAME", **options):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, window_strides, padding, dimension_numbers=layout, **options
    )


IMAGE, KERNEL = (1, 8, 8, 3), (3, 3, 3, 5)


@pytest.mark.parametrize(
    ("options", "x", "kernel", "macs"),
    [
        # (out positions) x (taps) x (channels in per group) x (channels out)
        ({}, (2, 8, 8, 3), KERNEL, 2 * 64 * 9 * 3 * 5),
        ({"padding": "VALID"}, (2, 8, 8, 3), KERNEL, 2 * 36 * 9 * 3 * 5),
        ({"window_strides": (2, 2)}, IMAGE, KERNEL, 16 * 9 * 3 * 5),
        ({"feature_group_count": 3}, IMAGE, (3, 3, 1, 6), 64 * 9 * 6),
        (
            {"padding": "VALID", "batch_group_count": 2},
            (4, 8, 8, 3),
            (3, 3, 3, 6),
            2 * 36 * 9 * 3 * 6,
        ),
        ({"rhs_dilation": (2, 2)}, IMAGE, KERNEL, 64 * 9 * 3 * 5),
        # every second row and column is a hole: a quarter of 15 x 15 x 16 taps
        (
            {"padding": ((2, 2), (2, 2)), "lhs_dilation": (2, 2)},
            IMAGE,
            (4, 4, 3, 5),
            16 * 16 * 4 * 3 * 5,
        ),
    ],
)
def test_conv(options, x, kernel, macs):
    fn = functools.partial(conv, **options)
    assert counts.count_macs(fn, shape(*x), shape(*kernel)) == macs


@pytest.mark.parametrize("stride", [1, 2])
def test_gradient_of_a_convolution_is_three_forwards(stride):
    def loss(x, kernel):
        return jnp.sum(conv(x, kernel, (stride, stride)) ** 2)

    args = shape(2, 8, 8, 4), shape(3, 3, 4, 6)
    both = counts.count_macs(jax.grad(loss, argnums=(0, 1)), *args)
    assert both == 3 * counts.count_macs(loss, *args)


def test_shard_map_counts_all_devices():
    axis_types = (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.AbstractMesh((4,), ("data",), axis_types)
    spec = jax.sharding.PartitionSpec("data")
    fn = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=spec, out_specs=spec)
    macs = counts.count_macs(jax.jit(fn), shape(8, N))
    assert macs == 4 * 2 * N * 2  # each of 4 devices: (2, N) times (N, 2)


# --- What cannot be counted -----------------------------------------------------------


def pallas_product(x):
    def kernel(x_ref, out_ref):
        out_ref[...] = x_ref[...] @ x_ref[...]

    call = pl.pallas_call(kernel, jax.ShapeDtypeStruct(x.shape, x.dtype), name="prod")
    return call(x)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (loop(lambda x: x @ x), "while loop"),
        (pallas_product, r"register_macs\('prod', formula\)"),
        (jax.jit(lambda x: x @ x), "'jit' contains multiply-adds"),
    ],
)
def test_what_cannot_be_counted_is_refused(fn, message, monkeypatch):
    monkeypatch.setattr(counts, "_CALLS", ())
    with pytest.raises(ValueError, match=message):
        counts.count_macs(fn, X)


def test_registered_formula_counts_inside_a_scan(monkeypatch):
    monkeypatch.setattr(counts, "MAC_FORMULAS", dict(counts.MAC_FORMULAS))
    counts.register_macs("prod", lambda eqn: eqn.invars[0].aval.size * N)

    def fn(x):
        return jax.lax.scan(lambda c, _: (pallas_product(c), None), x, length=4)[0]

    assert counts.count_macs(fn, X) == 4 * N**3
    with pytest.raises(ValueError, match="already"):
        counts.register_macs("prod", lambda eqn: 0)


# --- Others ---------------------------------------------------------------------------


def test_agrees_with_xla_on_an_unrolled_program():
    """XLA counts two FLOPs per multiply-add, and loops only where there are none."""

    def fn(weights, x):
        for w in weights:
            x = x @ w
        return x

    args = (shape(4, 64, 64), shape(16, 64))
    cost = jax.jit(fn).lower(*args).compile().cost_analysis()
    macs = counts.count_macs(fn, *args)
    assert macs == 4 * 16 * 64 * 64
    np.testing.assert_allclose(cost["flops"], 2 * macs, rtol=1e-6)


def test_parameters_and_bytes():
    weights = {"w": shape(3, 5), "b": shape(5, dtype=jnp.bfloat16)}
    assert counts.parameter_count(weights) == 20
    assert counts.tree_bytes({**weights, "step": shape(), "k": KEY}) == 60 + 10 + 4 + 8
    assert counts.parameter_count({}) == counts.tree_bytes({}) == 0


def test_effective_sampling_compute_of_the_paper():
    """Fig. 1: EDM2-XXL at 63 steps of two evaluations is 192, sCD-XXL at 2 is 3.05."""
    got = [counts.effective_sampling_compute(1_523_200_000, nfe) for nfe in (126, 2)]
    assert got == [pytest.approx(191.9, abs=0.05), pytest.approx(3.05, abs=0.01)]
