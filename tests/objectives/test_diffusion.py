"""The diffusion objective on Gaussian data, where its minimum is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax.objectives import Diffusion
from scm_jax.types import NULL_LABEL, Batch
from tests.objectives import probe
from tests.objectives.probe import DATA, SD

NUM = 20_000


def run(objective, student, *, num=NUM, label=None):
    """Loss of ``F = (1 + scale) student + shift`` with its gradient and the cond."""
    x0 = jnp.asarray(DATA.sample(np.random.default_rng(0), num))

    @jax.jit
    def compute(key):
        seen = {}

        def net_fn(params, x, cond, *, train, key):
            assert train and key is not None
            seen["x"], seen["cond"] = x, cond
            return (1 + params["scale"]) * student(x, cond) + params["shift"]

        def loss(net):
            out = objective(
                net_fn,
                {"net": net, "objective": objective.init(key)},
                Batch(x=x0, label=label),
                key=key,
                step=jnp.int32(0),
            )
            return out.loss, (out, seen["x"], seen["cond"])

        return jax.grad(loss, has_aux=True)(
            {"scale": jnp.zeros(()), "shift": jnp.zeros((1, 2))}
        )

    grads, (out, x, cond) = compute(jax.random.key(1))
    return out, grads, x * SD, cond


@pytest.mark.parametrize("t", [0.2, 0.8, 1.3])
def test_minimum_is_the_posterior_variance_at_the_exact_velocity(t):
    """``E ||sd F* - v||^2 / D = s^2 sd^2 / V_t``, with zero gradient there."""
    objective = Diffusion(
        P_mean=float(np.log(SD * np.tan(t))), P_std=0.0, learned_weighting=False
    )
    out, grads, x_t, _ = run(objective, probe.exact_teacher)
    V = float(DATA.variance(jnp.asarray([t]), SD)[0])
    minimum = (DATA.std * SD) ** 2 / V
    relative = np.sqrt(2 / (2 * NUM))
    assert float(out.loss) == pytest.approx(minimum, rel=5 * relative)
    np.testing.assert_allclose(x_t.std(0), np.sqrt(V), rtol=0.03)
    spread = 2 * np.sqrt(minimum) * SD / np.sqrt(NUM)
    for g in jax.tree.leaves(grads):
        np.testing.assert_allclose(g, 0.0, atol=5 * spread)


def test_learned_weight_starts_at_one_and_bins_add_up():
    weighted, _, _, cond = run(Diffusion(), probe.exact_teacher, num=256)
    plain, _, _, _ = run(
        Diffusion(learned_weighting=False), probe.exact_teacher, num=256
    )
    np.testing.assert_allclose(weighted.per_example, plain.per_example, rtol=1e-6)
    np.testing.assert_allclose(
        weighted.loss, weighted.metrics["squared_error"], rtol=1e-5
    )
    bins = weighted.metrics["bins"]
    np.testing.assert_allclose(
        bins["loss"].sum(), weighted.per_example.sum(), rtol=1e-5
    )
    np.testing.assert_array_equal(
        bins["count"], np.histogram(cond.t, np.linspace(0, np.pi / 2, 9))[0]
    )


def test_proposal_and_label_dropout():
    label = jnp.arange(NUM) % 5
    objective = Diffusion(P_mean=-0.4, P_std=1.0, label_dropout=0.1)
    _, _, _, cond = run(objective, probe.exact_teacher, label=label)
    assert np.median(cond.t) == pytest.approx(0.930, abs=0.015)
    assert np.mean(np.asarray(cond.label) == NULL_LABEL) == pytest.approx(
        0.1, abs=0.011
    )
    _, _, _, cond = run(Diffusion(), probe.exact_teacher, label=label)
    np.testing.assert_array_equal(cond.label, label)
