"""Which parts of every backbone are float32, whatever the compute dtype."""

import functools
import os

import jax
import jax.numpy as jnp
import pytest

from tests.contracts.network_cases import (
    SETTINGS,
    build_loop,
    has,
    make,
    make_derivatives,
    noise,
)
from tests.networks.reference import equations, rms

# The largest error of bfloat16; slopes of linear attention jump at the corners of ReLU.
ERROR = {"ddpmpp": 0.05, "dit": 0.03, "mmdit": 0.03, "sana": 0.08, "unet": 0.03}
ERROR["wan"] = 0.03
# Width of the vector that conditions the blocks, for those that compute in bfloat16.
EMBEDDING = {"ddpmpp": 64, "dit": 16, "mmdit": 16, "sana": 16, "unet": 16}
EMBEDDING["wan"] = 16


@pytest.mark.parametrize("name", sorted(EMBEDDING))
def test_embedding_and_output_are_float32_whatever_the_compute_dtype(name):
    """Rounding of the time and of its tangent would hide in that of the blocks."""
    net, batch = build_loop(name, dtype="bfloat16", remat="none"), 5
    params = jax.eval_shape(net.init, jax.random.key(0))
    assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype("float32")}

    def tangent(params, x, cond):
        def F(t):
            return net.apply(params, x, cond.replace(t=t))

        return jax.jvp(F, (cond.t,), (jnp.ones_like(cond.t),))

    inputs = params, *jax.eval_shape(lambda: net.example(batch))
    program = jax.make_jaxpr(tangent)(*inputs)
    assert [a.dtype for a in program.out_avals] == [jnp.dtype("float32")] * 2
    seen = [v.aval for eqn in equations(program) for v in eqn.outvars]
    floats = [a for a in seen if jnp.issubdtype(a.dtype, jnp.floating)]
    embedding = [a.dtype for a in floats if a.shape == (batch, EMBEDDING[name])]
    assert len(embedding) > 5 and set(embedding) == {jnp.dtype("float32")}
    assert jnp.dtype(jnp.bfloat16) in {a.dtype for a in floats}
    # The dtype may also be given per call.
    plain = build_loop(name, remat="none")
    given = functools.partial(plain.apply, dtype="bfloat16")
    programs = {str(jax.make_jaxpr(f)(*inputs)) for f in (net.apply, given)}
    assert len(programs) == 1


def test_every_backbone_with_a_compute_dtype_is_tested():
    assert set(EMBEDDING) == {name for name in SETTINGS if has(name, "dtype")}


NIGHTLY = "SCM_JAX_NIGHTLY" in os.environ


@pytest.mark.parametrize("name", sorted(EMBEDDING) if NIGHTLY else ["dit", "unet"])
def test_bfloat16_is_close_in_value_and_tangent(name):
    case = make(name)
    args = case.params, case.x, case.cond, noise(case.x.shape, 5), jnp.ones(4)
    exact, got = (
        make_derivatives(build_loop(name, dtype=dtype, remat="none"))(*args)
        for dtype in ("float32", "bfloat16")
    )
    for a, b in zip(exact, got, strict=True):
        assert b.dtype == jnp.float32
        # 8 bits; exactly 0 would mean that they were not used.
        assert 1e-4 < rms(b - a) / rms(a) < ERROR[name]
