"""Two players: an objective whose critic is trained in the same step."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scm_jax import objectives, trigflow
from scm_jax.objectives.matching import Matching, Sum
from scm_jax.training import checkpoint, ema, sharding
from scm_jax.training import state as state_lib
from scm_jax.training.step import CriticStep, Weights, make_train_step
from scm_jax.trigflow.exact import Gaussian
from scm_jax.types import Batch
from tests.training import toy

SD, SIZE = 0.5, 8
DATA, MADE = Gaussian((0.7, -0.4), 0.3), Gaussian((0.2, 0.1), 0.3)


def exact_fn(data):
    return lambda x, cond: data.velocity(x * SD, cond.t, SD) / SD


def generator(params, x, cond, *, train=False, key=None):
    """``F`` whose one-step samples are ``std z + mean``, plus an affine part."""
    cos, sin = jnp.cos(cond.t)[:, None], jnp.sin(cond.t)[:, None]
    f = MADE.std / SD * x * SD + params["mean"][None]
    return (cos * x * SD - f) / (sin * SD) + 0.0 * params["unused"]


def params_of(objective):
    net = {"mean": jnp.asarray(MADE.mean, jnp.float32), "unused": jnp.zeros(())}
    return {"net": net, "objective": objective.init(jax.random.key(0))}


def batch(size=SIZE):
    return Batch(x=jnp.asarray(DATA.sample(np.random.default_rng(0), size)))


@pytest.mark.parametrize("form", ["vsd", "dmd"])
def test_samples_go_to_where_the_data_are(form):
    """Row B13, sign and size: Gaussians of one std differ by their means alone."""
    objective = Matching(form=form, learned_weighting=False, P_mean=-0.5, P_std=1.0)
    params = params_of(objective)

    def loss(params, data):
        fns = {"teacher_fn": exact_fn(data), "critic_fn": exact_fn(MADE)}
        key, step = jax.random.key(1), jnp.int32(0)
        return objective(generator, params, batch(4000), key=key, step=step, **fns).loss

    grad = jax.grad(loss)(params, DATA)["net"]["mean"]
    toward = np.subtract(DATA.mean, MADE.mean)
    assert np.dot(-np.asarray(grad), toward) > 0.99 * np.linalg.norm(grad) * (
        np.linalg.norm(toward)
    )
    if form == "vsd":  # sd (F_p - F_q) = -sin(t) sd^2 / V_t (mean_p - mean_q)
        tau = -0.5 + np.random.default_rng(0).normal(size=100_000)
        t = np.arctan(np.exp(tau) / SD)
        V = (MADE.std * np.cos(t)) ** 2 + (SD * np.sin(t)) ** 2
        size = np.mean(np.sin(t) * SD**2 / V)  # 2/D of two elements is 1
        np.testing.assert_allclose(grad, -size * toward, rtol=0.03)
    still = jax.grad(loss)(params, MADE)["net"]["mean"]
    np.testing.assert_allclose(still, 0.0, atol=1e-5)


def test_the_last_of_the_simulated_steps_alone_has_a_gradient():
    objective = Matching(simulated=3)
    calls = []

    def net(params, x, cond, *, train=False, key=None):
        calls.append(train)
        return params["net"] * x

    def made(p, key):
        return objective.generate(net, {"net": p}, batch(), key, jax.random.key(2))[0]

    key = jax.random.key(0)
    _, tangent = jax.jvp(lambda p: made(p, key), (0.3,), (1.0,))
    # f = (cos - sin p) x with x stopped: df/dp = -sin(t_end) SD (x / SD).
    G = np.asarray(made(0.3, key))
    grid = trigflow.consistency_grid(3, SD)
    factor = -np.sin(grid) / (np.cos(grid) - np.sin(grid) * 0.3)
    ratio = np.asarray(tangent) / G
    nearest = np.abs(ratio[:, :1] - factor[None]).argmin(axis=1)
    np.testing.assert_allclose(ratio, factor[nearest][:, None].repeat(2, 1), rtol=1e-4)
    assert len(set(nearest.tolist())) > 1 and calls == [False, True] * 2


def critic_net(params, x, cond, *, train=False, key=None):
    return x * params["w"][None] + params["b"][None]


def critic_params():
    return {"w": jnp.asarray([0.1, 0.2]), "b": jnp.asarray([0.0, 0.1])}


OBJECTIVE = Matching(learned_weighting=False)
PROFILES = {"0.10": ema.PowerEma(0.10)}


@functools.cache
def setting(every=1, averaged=False, objective=OBJECTIVE, parts=1):
    """The compiled step and its first state."""
    optimizer, other = optax.adam(0.1), optax.adam(0.05)
    half_life = ema.HalfLifeEma(3.0 * SIZE, None) if averaged else None
    critic = CriticStep(critic_net, other, Weights(), every, half_life)
    step = make_train_step(
        objective,
        generator,
        optimizer,
        PROFILES,
        teacher_fn=lambda _, x, cond: exact_fn(DATA)(x, cond),
        critic=critic,
        num_microbatches=parts,
    )
    player = state_lib.init_critic(critic_params(), other, averaged)
    args = params_of(objective), optimizer, tuple(PROFILES), jax.random.key(0)
    return toy.quick_jit(step), state_lib.init_state(*args, player)


def run(step, state, number):
    states, metrics = [state], []
    for _ in range(number):
        state, found = step(state, batch(), None)
        states.append(state)
        metrics.append(found)
    return states, metrics


def test_both_players_move_and_neither_moves_the_other():
    """The critic's update is that of its own loss on the student's samples."""
    step, state = setting()
    (_, new), (found,) = run(step, state, 1)
    assert float(found["critic_loss"]) > 0 and bool(found["finite"])
    key = jax.random.fold_in(jax.random.fold_in(state.key, 0), 1)

    def loss(critic, student):
        both = generator, student, critic_net, critic
        return OBJECTIVE.critic_loss(*both, batch(), key=key, step=jnp.int32(0))

    grads = jax.grad(loss, argnums=(0, 1))(state.critic.params, state.params)
    updates, _ = optax.adam(0.05).update(
        {"net": grads[0]}, state.critic.opt_state, {"net": state.critic.params}
    )
    expected = optax.apply_updates({"net": state.critic.params}, updates)["net"]
    toy.assert_close(new.critic.params, expected, rtol=1e-5)
    for leaf in jax.tree.leaves(grads[1]["net"]):  # the student is stopped there
        np.testing.assert_array_equal(leaf, 0.0)

    def student_loss(student, critic):
        scorer = functools.partial(critic_net, critic)
        fns = {"teacher_fn": exact_fn(DATA), "critic_fn": scorer}
        call = {"key": jax.random.fold_in(state.key, 0), "step": jnp.int32(0)}
        return OBJECTIVE(generator, student, batch(), **call, **fns).loss

    grads = jax.grad(student_loss, argnums=1)(state.params, state.critic.params)
    for leaf in jax.tree.leaves(grads):  # and the critic here
        np.testing.assert_array_equal(leaf, 0.0)


def test_the_student_moves_in_the_last_step_of_a_cycle():
    step, state = setting(every=3)
    states, metrics = run(step, state, 6)
    moved = [
        bool(np.any(a.params["net"]["mean"] != b.params["net"]["mean"]))
        for a, b in itertools.pairwise(states)
    ]
    assert moved == [False, False, True] * 2
    assert all(
        np.any(a.critic.params["w"] != b.critic.params["w"])
        for a, b in itertools.pairwise(states)
    )
    counts = [int(s.opt_state[0].count) for s in states]
    assert counts == [0, 0, 0, 1, 1, 1, 2]
    # Means over a cycle are those of the update: that of a step in which it moves.
    always, _ = setting(every=1)
    alone = always(states[2], batch(), None)
    assert [float(m["loss"]) for m in metrics[:2]] == [0.0, 0.0]
    np.testing.assert_allclose(metrics[2]["loss"], 3 * alone[1]["loss"], rtol=1e-5)


def test_an_ema_of_the_critic_scores():
    step, state = setting(averaged=True)
    states, _ = run(step, state, 4)
    shadow = states[1].critic.params  # the first update forgets the start
    for after in states[2:]:
        beta = 0.5 ** (1 / 3)
        shadow = jax.tree.map(
            lambda e, p, b=beta: b * e + (1 - b) * p, shadow, after.critic.params
        )
    last, critic = states[-1], states[-1].critic
    toy.assert_close(critic.ema, shadow, rtol=1e-4)
    changed = critic.replace(ema=jax.tree.map(lambda a: a + 1.0, critic.ema))
    a, _ = step(last, batch(), None)
    b, _ = step(last.replace(critic=changed), batch(), None)
    assert np.any(a.params["net"]["mean"] != b.params["net"]["mean"])


def test_parts_of_a_batch_are_averaged_for_the_critic_too():
    step, state = setting(parts=2)
    _, (found,) = run(step, state, 1)
    key = jax.random.fold_in(jax.random.fold_in(state.key, 0), 1)
    losses = []
    for i, k in enumerate(jax.random.split(key, 2)):
        both = generator, state.params, critic_net, state.critic.params
        part = Batch(x=batch().x[i::2])
        losses.append(OBJECTIVE.critic_loss(*both, part, key=k, step=jnp.int32(0)))
    np.testing.assert_allclose(found["critic_loss"], np.mean(losses), rtol=1e-5)


def test_a_critic_that_is_not_finite_stops_the_step():
    step, state = setting(every=3)  # the student, which it scores, does not move
    bad = jax.tree.map(lambda a: a * jnp.nan, state.critic.params)
    bad = state.replace(critic=state.critic.replace(params=bad))
    _, found = step(bad, batch(), None)
    assert not bool(found["finite"])


def test_a_sum_adds_both_terms_under_their_names():
    main = objectives.build("consistency", sigma_data=SD, dx_dt="teacher")
    both = Sum(main, Matching(), 0.5)
    params = params_of(both)
    key, parts = jax.random.key(3), params["objective"]
    fns = {"teacher_fn": exact_fn(DATA), "critic_fn": exact_fn(MADE)}

    def call(objective, key, own=parts, **fns):
        args = generator, {**params, "objective": own}, batch()
        return objective(*args, key=key, step=jnp.int32(0), **fns)

    out = call(both, key, **fns)
    own, other = jax.random.split(key)
    a = call(main, own, parts["main"], teacher_fn=fns["teacher_fn"])
    b = call(Matching(), other, parts["matching"], **fns)
    np.testing.assert_allclose(out.loss, a.loss + 0.5 * b.loss, rtol=1e-6)
    assert out.metrics["squared_error"] == a.metrics["squared_error"]
    assert out.metrics["matching/squared_error"] == b.metrics["squared_error"]


def test_checkpoints_hold_both_players_and_resume_bit_by_bit(tmp_path):
    step, state = setting(every=2, averaged=True)
    states, _ = run(step, state, 5)
    with checkpoint.Checkpointer(tmp_path) as saver:
        saver.save(3, states[3])
        saver.wait()
        found = saver.restore_latest(states[0]).state
    assert isinstance(found.critic, state_lib.Player)
    again, _ = run(step, found, 2)
    toy.assert_same(again[-1], states[5])


def test_a_checkpoint_without_a_critic_is_not_resumed_with_one(tmp_path):
    _, state = setting()
    alone = state.replace(critic=None)
    for saved, wanted, message in ((alone, state, "lacks"), (state, alone, "critic")):
        folder = tmp_path / message
        with checkpoint.Checkpointer(folder) as saver:
            saver.save(1, saved)
            saver.wait()
            with pytest.raises(ValueError, match=rf"checkpoint.*(?s:.)*{message}"):
                saver.restore_latest(wanted)


def test_a_critic_of_another_network_is_sharded_by_the_same_rules():
    """Its paths are those of a group ``net``; its moments lie where it lies."""

    optimizer = optax.adam(0.1)
    net = {"proj": {"kernel": jnp.zeros((256, 128))}}
    other = {"proj": {"kernel": jnp.zeros((512, 128))}}
    player = state_lib.init_critic(other, optimizer, True)
    params = {"net": net, "objective": {}}
    state = state_lib.init_state(params, optimizer, ("0.1",), jax.random.key(0), player)
    mesh = jax.sharding.AbstractMesh((1, 4, 1), sharding.MESH_AXES)
    where = sharding.state_shardings(state, mesh)
    fsdp = jax.sharding.PartitionSpec(None, "fsdp")
    found = where.critic
    moments = found.opt_state[0]
    places = (found.params, found.ema, moments.mu["net"], moments.nu["net"])
    for tree in places:
        assert tree["proj"]["kernel"].spec == fsdp
