"""Learning-rate schedules and optimizers against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scm_jax.training import state as state_lib
from scm_jax.training.state import OptimizerConfig, build_optimizer, learning_rate

BATCH = 32


def updates_of(config, gradients):
    """The optimizer's updates of one scalar parameter for a sequence of gradients."""
    optimizer = build_optimizer(config, BATCH)

    @jax.jit
    def run(gradients):
        state = optimizer.init(jnp.zeros(()))

        def body(state, g):
            update, state = optimizer.update(g, state)
            return state, update

        return jax.lax.scan(body, state, gradients)[1]

    return np.asarray(run(jnp.asarray(gradients, jnp.float32)))


# --- Schedules ------------------------------------------------------------------------


# From the full rate to 0 at decay_images, and 0 after that.
COSINE = {
    images: 0.05 * (1 + np.cos(np.pi * min(images / 1200, 1)))
    for images in (100, 300, 600, 800, 1200, 2400)
} | {0: 0}


# lr / sqrt(max(images/decay, 1)) * min(images/rampup, 1)
INVERSE = {0: 0, 250: 0.0025, 1000: 0.01, 2000: 0.01, 8000: 0.005, 200_000: 0.001}


@pytest.mark.parametrize(
    ("rate", "schedule", "decay", "rampup", "expected"),
    [
        (3e-4, "constant", 0.0, 0.0, {0: 3e-4, 1: 3e-4, 10**9: 3e-4}),
        (1.0, "constant", 0.0, 100.0, {0: 0, 25: 0.25, 100: 1, 400: 1}),
        (0.01, "inverse_sqrt", 2000.0, 1000.0, INVERSE),
        (0.1, "cosine", 1200.0, 100.0, COSINE),
    ],
)
def test_schedules(rate, schedule, decay, rampup, expected):
    names = ("learning_rate", "schedule", "decay_images", "rampup_images")
    settings = dict(zip(names, (rate, schedule, decay, rampup), strict=True))
    got = learning_rate(OptimizerConfig(**settings), jnp.asarray([*expected], float))
    np.testing.assert_allclose(
        np.broadcast_to(got, len(expected)), [*expected.values()], rtol=1e-7, atol=1e-8
    )


@pytest.mark.parametrize("name", ["adam", "radam"])
def test_step_n_uses_the_rate_after_its_own_batch(name):
    """Adam's update for an unchanging gradient is the learning rate itself."""
    settings = {"name": name, "learning_rate": 0.01, "b1": 0.0, "eps": 1e-12}
    settings |= {"decay_images": 4.0 * BATCH, "rampup_images": 3.0 * BATCH}
    config = OptimizerConfig(schedule="inverse_sqrt", **settings)
    images = BATCH * np.arange(1, 17)
    expected = -0.01 / np.sqrt(np.maximum(images / 128, 1)) * np.minimum(images / 96, 1)
    updates = updates_of(config, np.full(16, 2.0))
    if name == "radam":  # rectified or not, the ratio of two steps' rates is the same
        assert updates[1] / updates[0] == pytest.approx(2.0, rel=1e-5)
    else:
        np.testing.assert_allclose(updates, expected, rtol=1e-5)


# --- Optimizers -----------------------------------------------------------------------


def adam(gradients, lr, b1, b2, eps):
    """arXiv 1412.6980, Alg. 1."""
    m = v = 0.0
    for n, g in enumerate(gradients, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        yield -lr * (m / (1 - b1**n)) / (np.sqrt(v / (1 - b2**n)) + eps)


def radam(gradients, lr, b1, b2, eps):
    """arXiv 1908.03265, Alg. 2: momentum alone until the variance is tractable."""
    m = v = 0.0
    rho_inf = 2 / (1 - b2) - 1
    for n, g in enumerate(gradients, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        m_hat = m / (1 - b1**n)
        rho = rho_inf - 2 * n * b2**n / (1 - b2**n)
        if rho >= 5:
            r = np.sqrt(
                (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)
            )
            yield -lr * r * m_hat / (np.sqrt(v / (1 - b2**n)) + eps)
        else:
            yield -lr * m_hat


@pytest.mark.parametrize(("name", "reference"), [("adam", adam), ("radam", radam)])
def test_optimizers_with_all_their_settings(name, reference):
    """Settings unlike the defaults, and an eps large enough to be seen."""
    settings = {"b1": 0.7, "b2": 0.95, "eps": 0.3}
    gradients = np.random.default_rng(0).normal(size=12) + 0.2
    config = OptimizerConfig(name=name, learning_rate=0.02, **settings)
    expected = list(reference(gradients, 0.02, **settings))
    np.testing.assert_allclose(updates_of(config, gradients), expected, rtol=2e-4)


def orthogonal(m):
    """The nearest matrix with orthonormal rows or columns."""
    u, _, v = np.linalg.svd(np.asarray(m, np.float64), full_matrices=False)
    return u @ v


# Kernels by the group of the network, as the matrices that Muon takes them for.
MATRICES = {
    ("head", (12, 4)): (1, 12, 4),
    ("qkv", (12, 3, 4)): (1, 12, 12),  # three outputs of one dense layer
    ("conv", (3, 3, 4, 8)): (1, 36, 8),
    ("blocks", (2, 12, 4)): (2, 12, 4),
    ("stage", (2, 3, 3, 4, 8)): (2, 36, 8),
    ("memory", (2, 6, 2, 3, 4)): (2, 6, 24),
}


def test_the_first_update_of_muon_is_the_orthogonal_part_of_the_gradient():
    """Five steps of Newton-Schulz bring all singular values near 1, not to it."""
    rng = np.random.default_rng(0)
    draw = {name: rng.normal(size=shape) for name, shape in MATRICES}
    net = {k: {"kernel": jnp.asarray(w, jnp.float32)} for k, w in draw.items()}
    grads = {"net": {**net, "position": jnp.asarray(draw["head"], jnp.float32)}}
    # The learned weight of an objective has a vector for a kernel.
    grads["objective"] = {"out": {"kernel": jnp.ones(3)}}
    config = OptimizerConfig(name="muon", learning_rate=0.1)
    optimizer = build_optimizer(config, BATCH, looped=("blocks", "stage"))
    step = jax.jit(lambda g: optimizer.update(g, optimizer.init(g), g)[0])
    updates, vector = (step(grads)[group] for group in ("net", "objective"))
    assert (vector["out"]["kernel"] < 0).all()
    for (name, _), shape in MATRICES.items():
        got = -np.asarray(updates[name]["kernel"]).reshape(shape)
        for a, g in zip(got, draw[name].reshape(shape), strict=True):
            unit = 0.1 * 0.2 * max(a.shape) ** 0.5  # a root mean square of 0.2
            singular = np.linalg.svd(a, compute_uv=False) / unit
            assert (0.6 < singular).all() and (singular < 1.3).all(), name
            assert np.sum(a * orthogonal(g)) > 0.97 * np.linalg.norm(a) * np.sqrt(
                min(a.shape)
            ), name
    # Adam's, with Nesterov momentum: one size, against the gradient.
    adam = np.asarray(updates["position"])
    np.testing.assert_array_equal(np.sign(adam), -np.sign(draw["head"]))
    np.testing.assert_allclose(np.abs(adam), np.abs(adam).mean(), rtol=1e-3)


def test_a_small_eps_lets_tiny_gradients_move_the_parameters():
    """Weighted gradients are tiny: EDM2-scale runs need 1e-11."""
    moved = {
        eps: -updates_of(OptimizerConfig(learning_rate=1.0, eps=eps), [1e-10])[0]
        for eps in (1e-8, 1e-13)
    }
    assert moved[1e-8] < 0.02 and moved[1e-13] > 0.95


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "adamm"}, r"optimizer\.name = 'adamm'.*did you mean 'adam'"),
        ({"schedule": "linear"}, r"optimizer\.schedule = 'linear' is not"),
        ({"schedule": "inverse_sqrt"}, r"optimizer\.decay_images must be"),
        ({"schedule": "cosine"}, r"optimizer\.decay_images must be"),
    ],
)
def test_bad_optimizers_are_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        build_optimizer(OptimizerConfig(**settings), BATCH)


# --- State ----------------------------------------------------------------------------


def test_fresh_state():
    params = {"net": {"w": jnp.arange(3.0)}, "objective": {"b": jnp.ones(())}}
    key = jax.random.key(5)
    state = state_lib.init_state(params, optax.adam(1e-3), ("0.05", "0.10"), key)
    assert state.step.dtype == jnp.int32 and int(state.step) == 0
    assert state.key is key and state.params is params
    # Moments of both groups.
    assert jax.tree.structure(state.opt_state[0].mu) == jax.tree.structure(params)
    assert set(state.ema) == {"0.05", "0.10"}
    buffers = [params["net"]["w"], *(tree["w"] for tree in state.ema.values())]
    for b in buffers:
        np.testing.assert_array_equal(b, [0, 1, 2])
    # A donated state may not hold one buffer twice.
    assert len({b.unsafe_buffer_pointer() for b in buffers}) == 3
