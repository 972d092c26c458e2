"""The gradient of the consistency loss against two explicit passes, dropout on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import networks, trigflow
from scm_jax.objectives import Consistency, base
from scm_jax.types import Batch
from tests.networks.reference import fresh_size
from tests.objectives import probe
from tests.objectives.probe import SD
from tests.training.toy import assert_close

BATCH = 6
NET = networks.build("mlp", (2,), 3, width=16, depth=1, dropout=0.4)


@functools.cache
def params():
    """Random network, and a weight that differs from 1 at every time."""
    rng = np.random.default_rng(0)

    net = fresh_size(NET)
    weight = {"kernel": 0.2 * rng.normal(size=64), "bias": np.float64(0.7)}
    weight = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), weight)
    return {"net": net, "objective": {"log_weight": weight}}


def batch():
    x = probe.DATA.sample(np.random.default_rng(1), BATCH)
    return Batch(x=jnp.asarray(x), label=jnp.arange(BATCH) % 3)


def teacher(x, cond):
    """Not the student: differs from it and depends on the label."""
    return probe.exact_teacher(x, cond) + 0.1 * cond.label[:, None]


@functools.cache
def gradient_and_reference(**settings):
    """Loss and gradient of the objective, and both from two passes written out."""
    objective = Consistency(dx_dt="teacher", tangent_warmup_steps=0, **settings)

    @jax.jit
    def run(params, batch, key):
        seen = {}

        def teacher_fn(x, cond):
            seen["x"], seen["cond"] = x, cond
            return teacher(x, cond)

        def net_fn(net, x, cond, *, train, key):
            seen["train"], seen["key"] = train, key
            return NET.apply(net, x, cond, train=train, key=key)

        def loss(params):
            out = objective(
                net_fn, params, batch, key=key, step=jnp.int32(0), teacher_fn=teacher_fn
            )
            return out.loss, (out, seen["x"], seen["cond"], seen["key"])

        grads, (out, x, cond, key_dropout) = jax.grad(loss, has_aux=True)(params)
        assert seen["train"]

        # Pass 1: F^- and its tangent, with nothing to differentiate.
        dx_dt = SD * teacher(x, cond)
        cos, sin = jnp.cos(cond.t)[:, None], jnp.sin(cond.t)[:, None]

        def net(net_params, x, t):
            c = cond.replace(t=t)
            return NET.apply(net_params, x, c, train=True, key=key_dropout)

        F_minus, dF_dt = jax.jvp(
            lambda x, t: net(params["net"], x, t),
            (x, cond.t),
            (dx_dt / SD, jnp.ones_like(cond.t)),
        )
        g = -(cos**2) * (SD * F_minus - dx_dt) - cos * sin * (SD * x + SD * dF_dt)
        g = g / (jnp.linalg.norm(g, axis=1, keepdims=True) + 0.1)
        # Pass 2: the vector-Jacobian product of -2 e^w / D g.
        w = base.log_weight(
            params["objective"]["log_weight"], trigflow.time_from_t(cond.t), SD
        )
        F, vjp = jax.vjp(lambda p: net(p, x, cond.t), params["net"])
        (reference,) = vjp(-2 * jnp.exp(w)[:, None] / 2 * g / BATCH)
        error = jnp.mean(g**2, axis=1)
        per_example = jnp.exp(w) * error - w
        return grads, out, reference, per_example, F - F_minus

    return run(params(), batch(), jax.random.key(3))


SETTINGS = [
    {},
    {"tangent_pass": "separate", "label_dropout": 0.5},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=["shared", "separate"])
def test_gradient_is_that_of_two_explicit_passes(settings):
    """Nothing flows through g, F^-, or the tangent: the gradient is -2 e^w/D J^T g."""
    grads, _, reference, _, _ = gradient_and_reference(**settings)
    size = max(float(jnp.abs(a).max()) for a in jax.tree.leaves(reference))
    assert size > 1e-2
    assert_close(grads["net"], reference, rtol=0, atol=2e-5 * size)


@pytest.mark.parametrize("settings", SETTINGS, ids=["shared", "separate"])
def test_residual_is_the_target_alone_with_dropout_on(settings):
    """``F - F^-`` is exactly 0: one set of weights, one mask, no stale copy."""
    _, out, _, per_example, difference = gradient_and_reference(**settings)
    np.testing.assert_allclose(difference, 0.0, atol=1e-6)
    # The loss has only g in it; another mask would add about 0.1.
    np.testing.assert_allclose(out.per_example, per_example, rtol=1e-4, atol=1e-5)


def test_finite_difference_has_one_mask_on_both_sides():
    """Then it is the derivative; between two masks it is their difference over h."""
    _, out, _, per_example, _ = gradient_and_reference(tangent="finite_difference")
    np.testing.assert_allclose(out.per_example, per_example, rtol=0, atol=1e-3)


def one_number(student, teacher, steps):
    """Loss and gradient, at the first step, by the one parameter of both networks."""
    objective = Consistency(dx_dt="teacher", tangent_warmup_steps=steps)

    def loss(scale):
        return objective(
            lambda params, x, cond, *, train, key: student(scale, x),
            {"net": {}, "objective": objective.init(jax.random.key(0))},
            batch(),
            key=jax.random.key(0),
            step=jnp.int32(0),
            teacher_fn=lambda x, cond: teacher(scale, x),
        ).loss

    return jax.jit(jax.value_and_grad(loss))


def test_no_gradient_where_there_is_no_target():
    """g = 0 exactly, where the derivative of ``g / (norm(g) + c)`` is NaN."""
    run = one_number(lambda scale, x: x * scale, lambda scale, x: x * 0.8, 10)
    value, grad = run(jnp.float32(0.8))
    assert float(value) == 0.0 and float(grad) == 0.0


def test_the_teacher_gets_no_gradient():
    run = one_number(lambda scale, x: jnp.sin(x), lambda scale, x: x * scale, 0)
    (value, grad), (other, _) = run(jnp.float32(0.8)), run(jnp.float32(0.1))
    assert float(grad) == 0.0 and float(value) != float(other)
