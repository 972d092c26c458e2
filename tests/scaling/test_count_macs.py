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
WEIGHTS_AND_X = (W, X)


def scanned(weights, x):
    """Eight products in a scan: 8 units forward."""
    return jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, weights)[0]


def unrolled(weights, x):
    for w in weights:
        x = jnp.tanh(x @ w)
    return x


def units(fn, *args):
    macs = counts.count_macs(fn, *args)
    assert macs % N**3 == 0
    return macs // N**3


def diffusion_loss(net, weights, x):
    return jnp.sum(net(weights, x) ** 2)


def tangent_loss(net, weights, x, *, shared, teacher=False):
    """The shape of Alg. 1: the target is a stopped tangent, the loss is on F."""
    dx = net(jax.lax.stop_gradient(weights) * 2, x) if teacher else jnp.ones_like(x)
    F, dF = jax.jvp(lambda x: net(weights, x), (x,), (dx,))
    if not shared:
        F = net(weights, x)
    return jnp.sum((F - jax.lax.stop_gradient(F + dF)) ** 2)


class TestKnownAnswers:
    def test_scan_counts_its_length(self):
        assert units(scanned, W, X) == 8

    def test_gradient(self):
        grad = jax.grad(functools.partial(diffusion_loss, scanned))
        assert units(grad, W, X) == 24

    def test_jvp(self):
        def jvp(weights, x):
            return jax.jvp(lambda x: scanned(weights, x), (x,), (x,))

        assert units(jvp, W, X) == 16

    def test_remat_gradient(self):
        def remat_scanned(weights, x):
            @jax.checkpoint
            def layer(c, w):
                return jnp.tanh(c @ w), None

            return jax.lax.scan(layer, x, weights)[0]

        grad = jax.grad(functools.partial(diffusion_loss, remat_scanned))
        assert units(grad, W, X) == 32

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            # forward and tangent, then the backward pass of the forward alone
            ({"shared": True}, 32),
            ({"shared": False}, 40),
            ({"shared": True, "teacher": True}, 40),
        ],
    )
    def test_consistency_step(self, options, expected):
        loss = functools.partial(tangent_loss, scanned, **options)
        assert units(jax.grad(loss), W, X) == expected

    def test_ideal_ratio_of_the_shared_step_unrolled(self):
        diffusion = jax.grad(functools.partial(diffusion_loss, unrolled))
        shared = jax.grad(functools.partial(tangent_loss, unrolled, shared=True))
        # without a scan the first layer's input gradient is dead: 23, and 8 more
        assert units(diffusion, W, X) == 23
        assert units(shared, W, X) == 31


class TestDeadCode:
    def test_unused_product(self):
        def fn(weights, x):
            unrolled(weights, x)
            return x @ x

        assert units(fn, W, X) == 1

    def test_unread_carry_and_output_inside_a_nested_scan(self):
        def body(carry, w):
            used, unread = carry
            return (used @ w, unread @ w), unread @ unread

        def fn(weights, x):
            (used, _), _ = jax.lax.scan(body, (x, x), weights)
            return used

        def nested(weights, x):
            return jax.lax.scan(lambda c, _: (fn(weights, c), None), x, length=5)[0]

        assert units(jax.jit(nested), W, X) == 5 * LENGTH

    def test_unread_tangent(self):
        def fn(weights, x):
            return jax.jvp(lambda x: scanned(weights, x), (x,), (x,))[0]

        assert units(fn, W, X) == 8

    def test_inside_branch_and_custom_rule(self):
        @jax.custom_jvp
        def pair(x):
            return x @ x, (x @ x) @ x

        pair.defjvp(lambda primals, tangents: (pair(*primals), pair(*tangents)))

        def fn(x):
            branches = (lambda x: pair(x), lambda x: (x, x))
            return jax.lax.cond(x[0, 0] > 0, *branches, x)[0]

        assert units(fn, X) == 1


class TestPrimitives:
    @pytest.mark.parametrize(
        ("spec", "a", "b", "macs"),
        [
            ("ij,jk->ik", (2, 3), (3, 5), 30),
            ("bij,bjk->bik", (7, 2, 3), (7, 3, 5), 210),
            ("bhqc,bhkc->bhqk", (2, 3, 4, 6), (2, 3, 5, 6), 720),
            ("ij,ij->", (2, 3), (2, 3), 6),
        ],
    )
    def test_dot_general(self, spec, a, b, macs):
        fn = functools.partial(jnp.einsum, spec)
        assert counts.count_macs(fn, shape(*a), shape(*b)) == macs

    @pytest.mark.parametrize(
        ("options", "x", "kernel", "macs"),
        [
            # (out positions) x (taps) x (channels in per group) x (channels out)
            ({"padding": "SAME"}, (2, 8, 8, 3), (3, 3, 3, 5), 2 * 64 * 9 * 3 * 5),
            ({"padding": "VALID"}, (2, 8, 8, 3), (3, 3, 3, 5), 2 * 36 * 9 * 3 * 5),
            (
                {"padding": "SAME", "window_strides": (2, 2)},
                (1, 8, 8, 3),
                (3, 3, 3, 5),
                16 * 9 * 3 * 5,
            ),
            (
                {"padding": "SAME", "feature_group_count": 3},
                (1, 8, 8, 3),
                (3, 3, 1, 6),
                64 * 9 * 6,
            ),
            (
                {"padding": "VALID", "batch_group_count": 2},
                (4, 8, 8, 3),
                (3, 3, 3, 6),
                2 * 36 * 9 * 3 * 6,
            ),
            (
                {"padding": "SAME", "rhs_dilation": (2, 2)},
                (1, 8, 8, 3),
                (3, 3, 3, 5),
                64 * 9 * 3 * 5,
            ),
            # every second row and column is a hole: a quarter of 15 x 15 x 16 taps
            (
                {"padding": ((2, 2), (2, 2)), "lhs_dilation": (2, 2)},
                (1, 8, 8, 3),
                (4, 4, 3, 5),
                16 * 16 * 4 * 3 * 5,
            ),
        ],
    )
    def test_conv(self, options, x, kernel, macs):
        options = {"window_strides": (1, 1), **options}

        def conv(x, kernel):
            return jax.lax.conv_general_dilated(
                x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
            )

        assert counts.count_macs(conv, shape(*x), shape(*kernel)) == macs

    @pytest.mark.parametrize("stride", [1, 2])
    def test_gradient_of_a_convolution_is_three_forwards(self, stride):
        def loss(kernel, x):
            y = jax.lax.conv_general_dilated(
                x,
                kernel,
                (stride, stride),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            return jnp.sum(y**2)

        kernel, x = shape(3, 3, 4, 6), shape(2, 8, 8, 4)
        forward = counts.count_macs(loss, kernel, x)
        both = counts.count_macs(jax.grad(loss, argnums=(0, 1)), kernel, x)
        assert both == 3 * forward

    def test_cond_is_its_dearest_branch(self):
        def fn(x):
            branches = [lambda x: x, lambda x: x @ x @ x, lambda x: x @ x]
            return jax.lax.switch(jnp.int32(x[0, 0]), branches, x)

        assert units(fn, X) == 2

    def test_while_with_products_is_refused(self):
        def fn(x):
            return jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ x, x)

        with pytest.raises(ValueError, match="while loop"):
            counts.count_macs(fn, X)

    def test_while_without_products_is_free(self):
        def fn(x):
            return jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x + 1, x) @ x

        assert units(fn, X) == 1

    def test_static_fori_loop_counts_its_length(self):
        assert units(lambda x: jax.lax.fori_loop(0, 5, lambda _, c: c @ c, x), X) == 5

    def test_custom_rules_and_nested_jit(self):
        @jax.custom_vjp
        def square(x):
            return x @ x

        square.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x.T + x.T @ g,))
        grad = jax.grad(lambda x: jnp.sum(jax.jit(square)(x)))
        assert units(square, X) == 1
        # g is a constant, but the rule still multiplies by it; x @ x itself is dead
        assert units(grad, X) == 2

    def test_shard_map_counts_all_devices(self):
        axis_types = (jax.sharding.AxisType.Auto,)
        mesh = jax.sharding.AbstractMesh((4,), ("data",), axis_types)
        spec = jax.sharding.PartitionSpec("data")
        fn = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=spec, out_specs=spec)
        macs = counts.count_macs(jax.jit(fn), shape(8, N))
        assert macs == 4 * 2 * N * 2  # each of 4 devices: (2, N) times (N, 2)

    def test_keys_and_integers_are_arguments(self):
        key = jax.eval_shape(lambda: jax.random.key(0))

        def fn(x, key, step):
            return x @ jax.random.normal(jax.random.fold_in(key, step), x.shape)

        assert units(fn, X, key, shape(dtype=jnp.int32)) == 1


def pallas_product(x):
    def kernel(x_ref, out_ref):
        out_ref[...] = x_ref[...] @ x_ref[...]

    call = pl.pallas_call(kernel, jax.ShapeDtypeStruct(x.shape, x.dtype), name="prod")
    return call(x)


class TestKernels:
    def test_unknown_kernel_is_refused_by_name(self):
        with pytest.raises(ValueError, match=r"register_macs\('prod', formula\)"):
            counts.count_macs(pallas_product, X)

    def test_unknown_caller_of_products_is_refused(self, monkeypatch):
        monkeypatch.setattr(counts, "_CALLS", ())
        with pytest.raises(ValueError, match="'jit' contains multiply-adds"):
            counts.count_macs(jax.jit(lambda x: x @ x), X)

    def test_registered_formula_counts_inside_a_scan(self, monkeypatch):
        monkeypatch.setattr(counts, "MAC_FORMULAS", dict(counts.MAC_FORMULAS))
        counts.register_macs("prod", lambda eqn: eqn.invars[0].aval.size * N)

        def fn(x):
            return jax.lax.scan(lambda c, _: (pallas_product(c), None), x, length=4)[0]

        assert units(fn, X) == 4
        with pytest.raises(ValueError, match="already"):
            counts.register_macs("prod", lambda eqn: 0)


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
    key = jax.eval_shape(lambda: jax.random.key(0))
    tree = {
        "w": shape(3, 5),
        "b": shape(5, dtype=jnp.bfloat16),
        "step": shape(),
        "k": key,
    }
    assert counts.parameter_count({"w": tree["w"], "b": tree["b"]}) == 20
    assert counts.tree_bytes(tree) == 60 + 10 + 4 + 8
    assert counts.parameter_count({}) == counts.tree_bytes({}) == 0


def test_effective_sampling_compute_of_the_paper():
    """Fig. 1: EDM2-XXL at 63 steps of two evaluations is 192, sCD-XXL at 2 is 3.05."""
    xxl = 1_523_200_000
    np.testing.assert_allclose(
        counts.effective_sampling_compute(xxl, 126), 191.9, atol=0.1
    )
    np.testing.assert_allclose(
        counts.effective_sampling_compute(xxl, 2), 3.05, atol=0.01
    )
