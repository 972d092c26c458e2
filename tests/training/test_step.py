"""The training step: gradients, accumulation, averages, the finite flag."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scm_jax.objectives import Consistency
from scm_jax.training import ema
from scm_jax.training import state as state_lib
from scm_jax.training.step import Weights, make_train_step
from scm_jax.types import Batch
from tests.training import toy

BATCH, DIM = 6, 3
OBJECTIVE = Consistency(dx_dt="teacher", tangent_warmup_steps=10)
PROFILES = {"0.10": ema.PowerEma(0.10), "images": ema.HalfLifeEma(20.0, None)}


def net_fn(params, x, cond, *, train=False, key=None):
    return jnp.tanh(x @ params["w"]) * jnp.cos(cond.t)[:, None] + params["b"][None]


def teacher_fn(params, x, cond):
    return params * x


def init(optimizer):
    w = np.random.default_rng(3).normal(size=(DIM, DIM))
    net = {"w": jnp.asarray(w, jnp.float32), "b": jnp.zeros((DIM,))}
    params = {"net": net, "objective": OBJECTIVE.init(jax.random.key(0))}
    return state_lib.init_state(params, optimizer, tuple(PROFILES), jax.random.key(0))


def data(index=0, size=BATCH):
    x = 0.7 + 0.3 * np.random.default_rng(index).normal(size=(size, DIM))
    return Batch(x=jnp.asarray(x, jnp.float32))


TEACHER = jnp.float32(0.6)


def compiled(optimizer, num_microbatches=1, net=net_fn, **settings):
    settings |= {"teacher_fn": teacher_fn, "num_microbatches": num_microbatches}
    return toy.quick_jit(
        make_train_step(OBJECTIVE, net, optimizer, PROFILES, **settings)
    )


@functools.cache
def sgd_step(num_microbatches=1):
    """With a learning rate of 1 the change of the parameters is the gradient."""
    return compiled(optax.sgd(1.0), num_microbatches)


@functools.cache
def training():
    """States and metrics of a few steps, and how often the network was traced."""
    traces = []

    def counted(*args, **kwargs):
        traces.append(None)
        return net_fn(*args, **kwargs)

    optimizer = state_lib.build_optimizer(
        state_lib.OptimizerConfig(learning_rate=0.05, rampup_images=100.0), BATCH
    )
    step = compiled(optimizer, net=counted)
    states, metrics, counts = [init(optimizer)], [], []
    for n in range(5):
        state, m = step(states[-1], data(n), TEACHER)
        states.append(state)
        metrics.append(m)
        counts.append(len(traces))
    return states, metrics, counts


def test_steps_are_counted_and_nothing_compiles_twice():
    states, metrics, counts = training()
    assert [int(s.step) for s in states] == [0, 1, 2, 3, 4, 5]
    assert counts[0] > 0 and len(set(counts)) == 1
    assert all(jnp.all(s.key == states[0].key) for s in states)
    assert states[-1].step.dtype == jnp.int32
    for n, m in enumerate(metrics):
        scalars = {k: v for k, v in m.items() if k != "bins"}
        assert {"loss", "grad_norm", "finite", "tangent_norm"} <= set(scalars)
        assert all(np.shape(v) == () for v in scalars.values())
        assert m["finite"].dtype == bool and bool(m["finite"])
        # r counts optimizer steps.
        assert float(m["tangent_warmup"]) == pytest.approx(n / 10)
        assert float(m["bins"]["count"].sum()) == BATCH


def test_averages_are_those_of_brute_force():
    """Every average as an explicit sum over all parameters so far, in float64."""
    states, _, _ = training()
    history = [np.asarray(s.params["net"]["w"], np.float64) for s in states[1:]]
    gamma = ema.rel_std_to_gamma(0.10)
    betas = {
        "0.10": [(1 - 1 / n) ** (gamma + 1) for n in range(1, 6)],
        "images": [0.0] + [0.5 ** (BATCH / 20.0)] * 4,
    }
    for name, beta in betas.items():
        weights = [(1 - b) * np.prod(beta[n + 1 :]) for n, b in enumerate(beta)]
        assert sum(weights) == pytest.approx(1.0)
        expected = sum(c * w for c, w in zip(weights, history, strict=True))
        np.testing.assert_allclose(states[-1].ema[name]["w"], expected, rtol=1e-5)
    # The initial network has weight 0.
    np.testing.assert_allclose(states[1].ema["0.10"]["w"], history[0], rtol=1e-6)
    assert np.abs(np.asarray(states[-1].ema["0.10"]["w"]) - history[-1]).max() > 1e-5


def test_parameters_follow_the_optimizer():
    """Adam's first step is the learning rate times the sign, for both groups."""
    states, _, _ = training()
    first = change(states[1], states[0])
    for moved in (first["net"]["w"], first["objective"]["log_weight"]["bias"]):
        np.testing.assert_allclose(np.abs(moved), 0.05 * BATCH / 100, rtol=1e-3)


# --- Gradients ------------------------------------------------------------------------


@functools.cache
def reference_gradient():
    """Gradient and metrics of the objective itself, on some rows with some key."""

    @toy.quick_jit
    def run(params, x, key, step, teacher):
        def loss(params):
            taught = functools.partial(teacher_fn, teacher)
            settings = {"key": key, "step": step, "teacher_fn": taught}
            out = OBJECTIVE(net_fn, params, Batch(x=x), **settings)
            return out.loss, out

        return jax.grad(loss, has_aux=True)(params)

    return run


def change(state, new):
    return jax.tree.map(lambda a, b: np.asarray(a - b), state.params, new.params)


assert_close = functools.partial(toy.assert_close, rtol=1e-4, atol=1e-6)


def test_step_uses_the_gradient_of_the_objective_with_the_key_of_its_number():
    state = init(optax.sgd(1.0)).replace(step=jnp.int32(4))
    new, metrics = sgd_step()(state, data(), TEACHER)
    key = jax.random.fold_in(state.key, 4)
    grads, out = reference_gradient()(state.params, data().x, key, state.step, TEACHER)
    assert_close(change(state, new), grads)
    assert_close(metrics["loss"], out.loss)
    assert_close(metrics["grad_norm"], optax.tree.norm(grads))
    assert float(metrics["grad_norm"]) > 1e-3


def test_accumulated_gradient_is_the_mean_over_the_microbatches():
    """Each part has noise of its own; one update, one step, r of the step."""
    parts = 3
    state = init(optax.sgd(1.0)).replace(step=jnp.int32(4))
    new, metrics = sgd_step(parts)(state, data(), TEACHER)
    keys = jax.random.split(jax.random.fold_in(state.key, 4), parts)
    rows = data().x.reshape(-1, parts, DIM).swapaxes(0, 1)
    results = [
        reference_gradient()(state.params, x, key, state.step, TEACHER)
        for x, key in zip(rows, keys, strict=True)
    ]
    grads = jax.tree.map(lambda *g: sum(g) / parts, *(g for g, _ in results))
    assert_close(change(state, new), grads)
    assert int(new.step) == 5
    outs = [out for _, out in results]
    assert_close(metrics["loss"], np.mean([out.loss for out in outs]))
    assert_close(
        metrics["tangent_norm"], np.mean([out.metrics["tangent_norm"] for out in outs])
    )
    assert float(metrics["tangent_warmup"]) == pytest.approx(0.4)
    # Bins are sums over the whole batch.
    bins = jax.tree.map(lambda *b: sum(b), *(out.metrics["bins"] for out in outs))
    assert_close(metrics["bins"], bins)
    assert float(metrics["bins"]["count"].sum()) == BATCH
    # Averages count the images of the batch, which all the parts are.
    for name, profile in PROFILES.items():
        w = float(profile.update_weight(state.step, BATCH))
        old, p = state.ema[name]["w"], new.params["net"]["w"]
        assert_close(new.ema[name]["w"], old + w * (p - old))


def test_microbatches_must_divide_the_batch():
    with pytest.raises(ValueError, match="train.microbatches = 4 does not divide .* 6"):
        compiled(optax.sgd(1.0), 4)(init(optax.sgd(1.0)), data(), TEACHER)


def test_steps_differ_in_their_noise_and_repeat_exactly():
    # After the warmup, which would tell steps apart by itself.
    state = init(optax.sgd(1.0)).replace(step=jnp.int32(100))
    later = state.replace(step=jnp.int32(101))
    other_seed = state.replace(key=jax.random.key(1))
    states = (state, state, later, other_seed)
    runs = [*((s, TEACHER) for s in states), (state, -TEACHER)]
    norms = [float(sgd_step()(s, data(), t)[1]["tangent_norm"]) for s, t in runs]
    assert norms[0] == norms[1] and len(set(norms)) == 4


# --- Forced weight normalization ------------------------------------------------------


def project(net):
    """Unit RMS of every column of ``w``, as of a U-Net's kernels; not of ``b``."""
    w = net["w"]
    return {**net, "w": w / jnp.sqrt(jnp.mean(w**2, axis=0, keepdims=True))}


RATE = 0.05


@functools.cache
def projected_training():
    """States of some steps with it."""
    optimizer = optax.sgd(RATE)
    step = compiled(optimizer, weights=Weights(project=project))
    states = [init(optimizer).replace(step=jnp.int32(4))]
    for n in range(3):
        states.append(step(states[-1], data(n), TEACHER)[0])
    return states


def column_rms(w):
    return np.sqrt(np.mean(np.asarray(w, np.float64) ** 2, axis=0))


def test_projection_follows_the_update():
    """Only of the network: the new parameters are the projected, updated ones."""
    first, second, *_ = projected_training()
    unprojected, _ = sgd_step()(first, data(0), TEACHER)
    updated = jax.tree.map(
        lambda p, g: p - RATE * g, first.params, change(first, unprojected)
    )
    assert np.abs(column_rms(updated["net"]["w"]) - 1).min() > 1e-2
    assert_close(second.params, {**updated, "net": project(updated["net"])})
    moved = project(first.params["net"])["w"] - second.params["net"]["w"]
    assert np.abs(moved).max() > 1e-3
    for state in projected_training()[1:]:
        np.testing.assert_allclose(column_rms(state.params["net"]["w"]), 1, rtol=1e-6)


def test_averages_are_of_projected_parameters_and_not_projected_themselves():
    states = projected_training()
    for name, profile in PROFILES.items():
        average = np.asarray(states[0].ema[name]["w"], np.float64)
        for before, after in itertools.pairwise(states):
            weight = float(profile.update_weight(before.step, BATCH))
            assert 0 < weight <= 1
            new = np.asarray(after.params["net"]["w"], np.float64)
            average = average + weight * (new - average)
            np.testing.assert_allclose(after.ema[name]["w"], average, rtol=1e-5)
        assert np.all(np.abs(column_rms(states[-1].ema[name]["w"]) - 1) > 1e-4)


# --- Folded weights -------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 3])
def test_gradient_passes_through_the_folding(parts):
    """Outside of the loop over microbatches it is what it would be within."""

    def folds_itself(params, *args, **kwargs):
        return net_fn(project(params), *args, **kwargs)

    state = init(optax.sgd(1.0)).replace(step=jnp.int32(4))
    got, expected = (
        change(state, compiled(optax.sgd(1.0), parts, **how)(state, data(), TEACHER)[0])
        for how in ({"weights": Weights(project)}, {"net": folds_itself})
    )
    assert_close(got, expected)
    # Without the folding's own derivative, columns of another length get another one.
    plain, _ = sgd_step(parts)(state, data(), TEACHER)
    assert np.abs(got["net"]["w"] - change(state, plain)["net"]["w"]).max() > 1e-2


def test_gradients_of_16_bit_weights_are_added_up_in_float32():
    """And rounded once, at the end: to 8 bits, whatever the number of microbatches."""
    parts, batch = 64, data(size=128)

    def fold(net):
        return {**net, "w": net["w"].astype(jnp.bfloat16)}

    state = init(optax.sgd(1.0)).replace(step=jnp.int32(100))
    new, _ = compiled(optax.sgd(1.0), parts, weights=Weights(fold))(
        state, batch, TEACHER
    )
    params = {**state.params, "net": fold(state.params["net"])}
    keys = jax.random.split(jax.random.fold_in(state.key, 100), parts)
    grads = []
    for i, key in enumerate(keys):
        x = batch.x[i::parts]
        of_part, _ = reference_gradient()(params, x, key, state.step, TEACHER)
        assert of_part["net"]["w"].dtype == jnp.bfloat16
        grads.append(np.asarray(of_part["net"]["w"], np.float64))
    got = change(state, new)["net"]["w"]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, np.mean(grads, axis=0), rtol=2**-8)


# --- Finite ---------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_data_that_is_not_finite_is_flagged(bad, parts):
    batch = Batch(x=data().x.at[5, 1].set(bad))
    _, metrics = sgd_step(parts)(init(optax.sgd(1.0)), batch, TEACHER)
    assert not bool(metrics["finite"])


def test_a_loss_or_gradient_that_is_not_finite_is_flagged():
    state = init(optax.sgd(1.0)).replace(step=jnp.int32(4))
    assert bool(sgd_step()(state, data(), TEACHER)[1]["finite"])
    assert not bool(sgd_step()(state, data(), jnp.float32(np.nan))[1]["finite"])
    # The loss is finite, the gradient of its weight overflows with its square.
    params = jax.tree.map(lambda a: a, state.params)
    params["objective"]["log_weight"]["bias"] = jnp.float32(86.0)
    _, metrics = sgd_step()(state.replace(params=params), data(), TEACHER)
    assert np.isfinite(metrics["loss"]) and not bool(metrics["finite"])
