"""Every implementation of attention against the einsum's.

The einsum itself is tested against numpy in test_layers.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax.cost import counts
from scm_jax.networks import attention as door
from tests.networks.reference import quick_jit

OTHERS = sorted(set(door.IMPLEMENTATIONS) - {"einsum"})

# Batch, queries, keys, heads, size of a head, size of a value; whether keys are masked.
# Chunks have up to 4 queries and 6 keys.
CASES = {
    "lengths that chunks divide": (2, 8, 12, 2, 5, 5, False),
    "lengths that chunks do not divide": (2, 9, 13, 2, 5, 5, False),
    "one chunk, values wider than keys": (2, 3, 4, 1, 2, 7, False),
    "head size 1, one query": (1, 1, 7, 2, 1, 1, False),
    "one key": (2, 5, 1, 1, 4, 4, False),
    "masked": (3, 5, 13, 2, 5, 4, True),
}


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(door, "QUERY_CHUNK", 4)
    monkeypatch.setattr(door, "KEY_CHUNK", 6)


def noise(shape, seed, dtype=np.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def make(case, dtype):
    """Queries, keys and values, their tangents, a cotangent; the mask of the keys."""
    b, n, m, h, d, e, masked = CASES[case]
    qkv = [(b, n, h, d), (b, m, h, d), (b, m, h, e)]
    shapes = [*qkv, *qkv, (b, n, h, e)]
    mask = None
    if masked:
        mask = np.random.default_rng(7).random((b, m)) < 0.5
        mask[0], mask[1, 0], mask[1, 6:12] = False, True, False  # none; a whole chunk
    return [noise(shape, i, dtype) for i, shape in enumerate(shapes)], mask


def implementation(name, mask=None):
    return functools.partial(door.attention, key_mask=mask, implementation=name)


def value(f, q, k, v, *_):
    return f(q, k, v)


def value_and_tangent(f, q, k, v, dq, dk, dv, *_):
    return jax.jvp(f, (q, k, v), (dq, dk, dv))


def gradient(f, q, k, v, dq, dk, dv, c):
    def loss(*args):
        return jnp.sum((f(*args).astype(jnp.promote_types(c, jnp.float32)) - c) ** 2)

    return jax.grad(loss, (0, 1, 2))(q, k, v)


def consistency_step(f, q, k, v, dq, dk, dv, c):
    """The gradient of the value, with the tangent in the target (Alg. 1); both."""

    def loss(*args):
        F, dF = jax.jvp(f, args, (dq, dk, dv))
        return jnp.sum((F - jax.lax.stop_gradient(F + dF + c)) ** 2), (F, dF)

    return jax.grad(loss, (0, 1, 2), has_aux=True)(q, k, v)


def second_order(f, q, k, v, dq, dk, dv, c):
    """The gradient of a tangent, by its inputs and by the tangents'."""

    def loss(*args):
        return jnp.sum(c * jax.jvp(f, args[:3], args[3:])[1])

    return jax.grad(loss, range(6))(q, k, v, dq, dk, dv)


MODES = {f.__name__: f for f in (value, value_and_tangent, gradient, consistency_step)}


def run(mode, f, arrays):
    """Leaves of a mode's result, by one program."""
    return jax.tree.leaves(quick_jit(functools.partial(mode, f))(*arrays))


def assert_equal(mode, f, g, arrays, tolerance):
    for a, b in zip(run(mode, f, arrays), run(mode, g, arrays), strict=True):
        assert a.dtype == b.dtype == arrays[0].dtype and np.all(np.isfinite(b))
        limit = tolerance * max(1.0, float(np.abs(b).max()))
        np.testing.assert_allclose(a, b, rtol=0, atol=limit)


def test_einsum_is_not_the_only_implementation():
    assert "chunked" in OTHERS


# --- Equality -------------------------------------------------------------------------


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("case", list(CASES))
def test_value_tangent_and_gradient_in_float64(name, case, small_chunks, float64):
    arrays, mask = make(case, jnp.float64)
    f, einsum = (implementation(i, mask) for i in (name, "einsum"))
    assert_equal(consistency_step, f, einsum, arrays, 1e-12)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("mode", [gradient, second_order])
def test_other_derivatives_in_float64(name, mode, small_chunks, float64):
    """Gradients of the value alone, and through a tangent that is not stopped."""
    arrays, mask = make("masked", jnp.float64)
    f, einsum = (implementation(i, mask) for i in (name, "einsum"))
    assert_equal(mode, f, einsum, arrays, 1e-12)


def row_by_row(how):
    """Turns attention of a batch into ``how`` over attention of its examples."""

    def wrap(name, mask):
        def one(q, k, v, mask):
            f = implementation(name, mask[None])
            return f(q[None], k[None], v[None])[0]

        return lambda q, k, v: how(one)(q, k, v, jnp.asarray(mask))

    return wrap


def scanned(one):
    return lambda *rows: jax.lax.scan(lambda _, x: (None, one(*x)), None, rows)[1]


TRANSFORMED = {
    "remat": lambda name, mask: jax.checkpoint(implementation(name, mask)),
    "vmap": row_by_row(jax.vmap),
    "scan of remat": row_by_row(lambda one: scanned(jax.checkpoint(one))),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("transform", list(TRANSFORMED))
def test_derivatives_under_transformations(name, transform, small_chunks, float64):
    arrays, mask = make("masked", jnp.float64)
    f, einsum = TRANSFORMED[transform](name, mask), implementation("einsum", mask)
    assert_equal(consistency_step, f, einsum, arrays, 1e-12)


def test_more_keys_than_the_chunks_allowed_make_longer_chunks(monkeypatch, float64):
    monkeypatch.setattr(door, "KEY_CHUNK", 2)
    monkeypatch.setattr(door, "MAX_KEY_CHUNKS", 3)
    arrays, _ = make("lengths that chunks do not divide", jnp.float64)
    got = implementation("chunked")(*arrays[:3])
    np.testing.assert_allclose(got, implementation("einsum")(*arrays[:3]), rtol=1e-12)
    program = jax.make_jaxpr(implementation("chunked"))(*arrays[:3])
    assert "length=3" in str(program) and "length=7" not in str(program)


# --- Masks ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(door.IMPLEMENTATIONS))
def test_masked_keys_are_as_if_they_were_not_there(name, small_chunks, float64):
    arrays, _ = make("lengths that chunks do not divide", jnp.float64)
    q, k, v, dq, dk, dv, c = arrays
    seen = np.array([1, 3, 4, 9])
    mask = np.zeros(k.shape[:2], bool)
    mask[:, seen] = True
    masked = run(consistency_step, implementation(name, mask), arrays)
    few = [q, k[:, seen], v[:, seen], dq, dk[:, seen], dv[:, seen], c]
    exact = run(consistency_step, implementation(name), few)
    for a, b in zip(masked, exact, strict=True):
        if a.shape != b.shape:  # of keys and values
            assert not np.any(a[:, ~mask[0]])
            a = a[:, seen]
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", sorted(door.IMPLEMENTATIONS))
def test_without_any_key_the_result_is_zero_with_finite_derivatives(name, small_chunks):
    arrays, mask = make("masked", jnp.float32)
    assert not mask[0].any() and mask[2].sum() > 1
    for x in run(consistency_step, implementation(name, mask), arrays):
        assert np.all(np.isfinite(x))
        assert not np.any(x[0]) and np.any(x[2])


@pytest.mark.parametrize("mask", [np.ones((3, 5), bool), np.ones((3, 13), np.float32)])
def test_a_mask_of_another_shape_or_dtype_is_an_error(mask):
    arrays, _ = make("masked", jnp.float32)
    with pytest.raises(ValueError, match=r"key_mask is .*it must be bool\[3, 13\]"):
        door.attention(*arrays[:3], key_mask=mask)


# --- Precision ------------------------------------------------------------------------


def bfloat16_errors(offset):
    """Relative errors of value, tangent and gradients: einsum and others.

    All keys share an offset of so many of their standard deviations, in every channel
    of every head with a sign of its own, and so do their tangents.
    """
    shape = (1, 640, 1, 64)  # more than one chunk
    arrays = [noise(shape, i, jnp.float32) for i in range(7)]
    for i in (1, 4):
        arrays[i] += offset * jnp.sign(noise((1, 1, 1, 64), 10 + i, jnp.float32))
    arrays = [a.astype(jnp.bfloat16) for a in arrays]

    def outputs(name, arrays):
        f = implementation(name)
        leaves = run(value_and_tangent, f, arrays) + run(gradient, f, arrays)
        return [np.asarray(a, np.float64) for a in leaves]

    exact = outputs("einsum", [a.astype(jnp.float32) for a in arrays])
    return {
        name: np.array(
            [
                np.linalg.norm(got - true) / np.linalg.norm(true)
                for got, true in zip(outputs(name, arrays), exact, strict=True)
            ]
        )
        for name in door.IMPLEMENTATIONS
    }


@pytest.mark.parametrize("offset", [0, 3, 10])
def test_bfloat16_is_as_precise_as_the_einsum(offset):
    """Value, tangent and the three gradients."""
    errors = bfloat16_errors(offset)
    assert np.all((1e-4 < errors["einsum"]) & (errors["einsum"] < 1e-2))
    for name in OTHERS:
        assert np.all(errors[name] <= 1.3 * errors["einsum"]), errors


# --- Cost -----------------------------------------------------------------------------


def abstract(tokens):
    """As in ``make``: arrays of one head of 16 channels."""
    return [jax.ShapeDtypeStruct((1, tokens, 1, 16), jnp.float32)] * 7


def temporary_bytes(mode, name, tokens):
    program = jax.jit(functools.partial(MODES[mode], implementation(name)))
    compiled = program.lower(*abstract(tokens)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("mode", MODES)
def test_memory_of_chunks_is_linear_in_tokens(mode, monkeypatch):
    """Four times the tokens, also where the number of chunks does not grow."""
    monkeypatch.setattr(door, "QUERY_CHUNK", 64)
    monkeypatch.setattr(door, "KEY_CHUNK", 128)
    monkeypatch.setattr(door, "MAX_KEY_CHUNKS", 8)
    few, many = (temporary_bytes(mode, "chunked", n) for n in (1024, 4096))
    assert many < 4.2 * few
    einsum = temporary_bytes(mode, "einsum", 1024)
    assert einsum > 3.9 * 1024**2 and few < einsum / 18


@pytest.mark.parametrize(
    ("mode", "chunked", "einsum"),
    [
        ("value", 2, 2),
        ("value_and_tangent", 6, 6),
        # Logits are computed again; nothing else is.
        ("gradient", 7, 6),
        # Value and tangent, logits again, the gradient of the value alone.
        ("consistency_step", 11, 10),
    ],
)
def test_multiply_adds(mode, chunked, einsum):
    """In products of ``n m d`` per head, of which the einsum's value has two."""
    tokens = 2048
    unit = tokens**2 * 16

    def units(name):
        program = functools.partial(MODES[mode], implementation(name))
        return counts.count_macs(program, *abstract(tokens)) / unit

    assert units("einsum") == einsum
    # The remaining mean of the keys costs n d.
    assert chunked <= units("chunked") < chunked + 0.01
