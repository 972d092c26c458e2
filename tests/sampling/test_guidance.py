"""Guidance wrappers of a callable, by their algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import sampling, trigflow
from scm_jax.types import NULL_LABEL, Cond

X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 2)), jnp.float32)
T = jnp.asarray([0.2, 0.6, 1.0, 1.5])
LABEL = jnp.asarray([0, 2, 1, 5])


def F_of(x, cond):
    """A network that treats the null class, every class and every time differently."""
    scale = trigflow.expand(jnp.cos(cond.label + cond.t), x)
    return scale * x + trigflow.expand(1.0 * cond.label, x)


class Recorder:
    """Remembers what a network was asked."""

    def __init__(self):
        self.conds = []

    def __call__(self, x, cond):
        self.conds.append(cond)
        return F_of(x, cond)


COND = Cond(t=T, label=LABEL)
CONDITIONAL = np.asarray(F_of(X, COND))
NULL = np.asarray(F_of(X, COND.replace(label=jnp.full((4,), NULL_LABEL))))


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5, -1.0])
def test_guidance_extrapolates_from_the_null_class(scale):
    F = sampling.with_guidance(F_of, scale)(X, COND)
    expected = NULL + scale * (CONDITIONAL - NULL)
    np.testing.assert_allclose(F, expected, rtol=1e-5, atol=1e-5)


def test_scale_1_is_the_conditional_network_and_0_the_null_class():
    assert np.abs(CONDITIONAL - NULL).min() > 0.1
    one = sampling.with_guidance(F_of, 1.0)(X, COND)
    np.testing.assert_allclose(one, CONDITIONAL, rtol=0, atol=1e-6)
    # 0 is a scale, not "no guidance given": also beside a Cond that has another.
    for cond in (COND, COND.replace(guidance=jnp.full((4,), 3.0))):
        zero = sampling.with_guidance(F_of, 0.0)(X, cond)
        np.testing.assert_array_equal(zero, NULL)


def test_scales_per_sample_come_from_the_cond():
    s = jnp.asarray([0.0, 1.0, 3.0, 7.0])
    F = sampling.with_guidance(F_of)(X, COND.replace(guidance=s))
    expected = NULL + np.asarray(s)[:, None, None] * (CONDITIONAL - NULL)
    np.testing.assert_allclose(F, expected, rtol=1e-5, atol=1e-5)


def test_both_branches_are_one_call_and_unguided_inside():
    """A network with the scale as an input must not be guided twice."""
    fn = Recorder()
    sampling.with_guidance(fn)(X, COND.replace(guidance=jnp.full((4,), 3.0)))
    (cond,) = fn.conds
    np.testing.assert_array_equal(cond.label, [*LABEL, *[NULL_LABEL] * 4])
    np.testing.assert_array_equal(cond.t, [*T, *T])
    np.testing.assert_array_equal(cond.guidance, np.ones(8))
    sampling.with_guidance(fn, 2.0)(X, COND)
    assert fn.conds[1].guidance is None


@pytest.mark.parametrize("one", [1, 1.0, np.float32(1)])
def test_scale_1_evaluates_the_conditional_network_alone(one):
    fn, weak = Recorder(), Recorder()
    auto = sampling.with_autoguidance(fn, weak, one)
    for guided in (auto, sampling.with_interval(fn, auto, 0.6, 1.0)):
        np.testing.assert_array_equal(guided(X, COND), CONDITIONAL)
    assert len(fn.conds) == 2 and not weak.conds
    # No null class beside it, no second guidance inside it, and no label needed.
    cond = COND.replace(guidance=jnp.full((4,), 3.0))
    F = sampling.with_guidance(fn, one)(X, cond)
    np.testing.assert_array_equal(F, CONDITIONAL)
    np.testing.assert_array_equal(fn.conds[2].guidance, np.ones(4))
    sampling.with_guidance(lambda x, cond: x, one)(X, Cond(t=T))


def test_a_scale_that_is_traced_is_not_looked_at():
    run = jax.jit(
        lambda s: sampling.with_autoguidance(F_of, lambda x, c: x, s)(X, COND)
    )
    np.testing.assert_allclose(run(1.0), CONDITIONAL, rtol=1e-5, atol=1e-5)


def test_evaluations_are_doubled_by_guidance_outside_of_the_network():
    assert sampling.nfe("heun", 3) == sampling.nfe("heun", 3, 1.0) == 5
    assert sampling.nfe("heun", 3, 1.5, {"t", "label"}) == 10
    assert sampling.nfe("heun", 3, 1.5, {"t", "guidance"}) == 5


def test_what_guidance_needs():
    with pytest.raises(ValueError, match="guidance needs a scale"):
        sampling.with_guidance(F_of)(X, COND)
    with pytest.raises(ValueError, match="guidance needs class labels"):
        sampling.with_guidance(F_of, 2.0)(X, Cond(t=T))


def test_autoguidance_extrapolates_from_the_weak_network():
    def weak(x, cond):
        return 0.5 * F_of(x, cond) - 1.0

    weak_F = 0.5 * CONDITIONAL - 1.0
    for scale in (0.0, 1.0, 2.0):
        F = sampling.with_autoguidance(F_of, weak, scale)(X, COND)
        expected = weak_F + scale * (CONDITIONAL - weak_F)
        np.testing.assert_allclose(F, expected, rtol=1e-5, atol=1e-5)


def test_an_interval_chooses_per_sample():
    guided = sampling.with_guidance(F_of, 2.0)
    expected = np.asarray(guided(X, COND))
    F = sampling.with_interval(F_of, guided, 0.6, 1.0)(X, COND)
    # t_low itself is outside, t_high inside.
    np.testing.assert_array_equal(F[2], expected[2])
    np.testing.assert_array_equal(F[jnp.asarray([0, 1, 3])], CONDITIONAL[[0, 1, 3]])
