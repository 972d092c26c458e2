"""What every backbone of the registry must do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.interpreters import partial_eval

from scm_jax import networks, trigflow
from scm_jax.networks import attention, ddpmpp, layers, magnitude, unet
from scm_jax.types import NULL_LABEL
from tests.contracts.network_cases import (
    NUM_CLASSES,
    SETTINGS,
    build,
    cotangent,
    has,
    inputs,
    make,
    make_key,
    noise,
    trained,
)
from tests.networks.reference import quick_jit, rms

# With ReLU: a slope may jump within the step of a central difference.
CORNERS = {"sana"}

# Rows of the table of classes that a batch of the classes 2, 0, null, 0 uses: the
# U-Net's is normalized over its rows, and the last row of two is the null class.
ROWS = {
    "ddpmpp": [True, False, True],
    "dit": [True, False, True, True],
    "mlp": [True, False, True, True],
    "mmdit": [True, False, True, True],
    "sana": [True, False, True, True],
    "unet": [True, True, True],
    "wan": [True, False, True, True],
}
# Published weights without effect: queries whose result the last block drops.
UNREAD = {("last", "context", "attention", "q_norm")}


def test_registry_is_not_empty_and_every_backbone_is_tested():
    assert set(SETTINGS) == set(networks.NETWORKS) != set()


@pytest.fixture(scope="module", params=sorted(SETTINGS))
def case(request):
    return make(request.param)


@pytest.fixture
def float64_network(case, float64_islands, monkeypatch):
    """``float64_islands`` in the U-Nets, too: ``(params, cond, x)`` in float64."""
    for room in (unet, ddpmpp):
        monkeypatch.setattr(room, "jnp", layers.jnp)

    def widen(module):
        # The class's default was bound before the patch.
        if jnp.dtype(module.dtype) == np.float32:
            object.__setattr__(module, "dtype", jnp.float64)
        super(type(module), module).__post_init__()

    for layer in (magnitude.MPConv, ddpmpp.Conv):
        monkeypatch.setattr(layer, "__post_init__", widen, raising=False)

    def wide(tree):
        return jax.tree.map(
            lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a, tree
        )

    return wide


# --- Shapes and initialization --------------------------------------------------------


def test_F_has_the_shape_of_x_and_is_float32(case):
    assert case.F.shape == case.x.shape and case.F.dtype == jnp.float32
    assert case.net.consumes == inputs(case.name)


def test_parameters_are_float32_and_depend_on_the_key(case):
    shapes = jax.eval_shape(case.net.init, jax.random.key(0))
    assert {a.dtype for a in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    one, same, other = (case.init(make_key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, same)
    differs = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), one, other)
    assert any(jax.tree.leaves(differs))


def test_a_fresh_network_starts_where_its_paper_does(case):
    """EDM2's output gain is 0 and EDM's output layer 1e-5; others are of order 1."""
    F = rms(case.apply(case.fresh, case.x, case.cond))
    low, high = {"unet": (0.0, 0.0), "ddpmpp": (1e-7, 1e-3)}.get(case.name, (0.1, 2.0))
    assert low <= F <= high
    if case.name == "unet":
        # With the gain at 1 the magnitude of the input is preserved; zeros beyond the
        # border take a few percent per convolution.
        F = rms(case.apply(case.opened, case.x, case.cond))
        assert 0.75 < F < 1.15


def test_fresh_parameters_are_projected(case):
    """Forced normalization of the U-Net's weights; others have none."""
    projected = quick_jit(case.net.project)(case.fresh)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-3), projected, case.fresh
    )


def test_fresh_network_has_outputs_and_tangents_of_order_1(case, float64_network):
    """``c_noise = log(tan t)`` left in the network would show near pi/2, 160 times."""
    params, x, cond = float64_network((case.opened, case.x, case.cond))
    t = jnp.asarray([1e-4, 0.3, 1.1, trigflow.t_max(0.5)])
    dx = jnp.asarray(noise(x.shape, 3, np.float64))
    args = params, x, cond.replace(t=t)
    F, dF_dt = case.derivatives(*args, dx, jnp.ones_like(t))
    _, partial_t = case.derivatives(*args, 0 * dx, jnp.ones_like(t))
    assert 0.1 < rms(F) < 2.0
    assert all(rms(row) < 3.0 for row in dF_dt)
    by_time = np.array([rms(row) for row in partial_t])
    assert np.all(by_time < 1.0) and np.all(by_time > 1e-3)
    assert by_time[-1] < 5 * by_time[:-1].max()


# --- The tangent ----------------------------------------------------------------------


def test_jvp_is_the_central_difference(case, float64_network):
    """In float64; of the whole network, with all its inputs."""
    params, x, cond = float64_network((case.params, case.x, case.cond))
    dx, dt = jnp.asarray(noise(x.shape, 5, np.float64)), jnp.ones_like(cond.t)
    h = 1e-5
    for along_x, along_t in ((1, 0), (0, 1), (1, 1)):
        ahead, behind = (
            case.derivatives(
                params,
                x + a * along_x * dx,
                cond.replace(t=cond.t + a * along_t * dt),
                dx,
                dt,
            )[0]
            for a in (h, -h)
        )
        F, jvp = case.derivatives(params, x, cond, along_x * dx, along_t * dt)
        assert jvp.dtype == jnp.float64 and rms(jvp) > 1e-2
        difference = (ahead - behind) / (2 * h)
        np.testing.assert_allclose(jvp, difference, rtol=1e-6, atol=1e-6)
    # Loops, rematerialization and float64 compute what plain float32 does.
    np.testing.assert_allclose(F, case.F, rtol=0, atol=2e-5)


# --- Attention ------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in sorted(SETTINGS) if has(n, "attention")])
def test_chunked_attention_computes_what_the_einsum_does(name, monkeypatch):
    """With several chunks; derivatives are tests/networks/test_attention.py's."""
    monkeypatch.setattr(attention, "QUERY_CHUNK", 6)
    monkeypatch.setattr(attention, "KEY_CHUNK", 5)
    case = make(name)
    F = quick_jit(build(name, attention="chunked").apply)(
        case.params, case.x, case.cond
    )
    np.testing.assert_allclose(F, case.F, rtol=0, atol=1e-4 * rms(case.F))
    with pytest.raises(ValueError, match=r"network\.attention = 'flash' is not one of"):
        jax.eval_shape(build(name, attention="flash").init, jax.random.key(0))


# --- The gradient ---------------------------------------------------------------------


def after_steps(case, steps):
    """Fresh parameters after some steps against the sign of the gradient, as Adam's."""
    params = case.fresh
    for n in range(steps):
        grads, _ = run_step(case, params, n)
        assert max(np.abs(g).max() for g in jax.tree.leaves(grads)) < 1e3
        rate = 0.01 / (n + 1)  # a step back does not end at zero again
        params = jax.tree.map(
            lambda p, g, rate=rate: p - rate * jnp.sign(g), params, grads
        )
    return params


def run_step(case, params, seed):
    return case.step(params, case.x, noise(case.x.shape, 8), case.cond, make_key(seed))


def stacked(case, path):
    """Whether the first axis of this parameter counts equal blocks."""
    groups = case.net.module.layout() if case.name in ("unet", "ddpmpp") else ()
    names = {g.name for g in groups if len(g.names) > 1} | {"blocks"}
    return path[0].key in names


def test_gradient_reaches_every_parameter(case):
    """Every block has one; only rows of classes that no example has get none.

    None explodes: behind a zero-initialized modulation its pixel norm would have a
    slope of 1e4. A gain that starts at zero hides what lies behind it for one step;
    the U-Net's guidance has two of them.
    """
    for params in (case.params, after_steps(case, 2)):
        grads, _ = run_step(case, params, 7)
        for path, g in jax.tree_util.tree_leaves_with_path(grads):
            parts = g if stacked(case, path) else g[None]
            sizes = np.abs(np.asarray(parts)).reshape(len(parts), -1).max(axis=1)
            if tuple(key.key for key in path) in UNREAD:
                assert not sizes.any()
                continue
            assert np.all((1e-7 < sizes) & (sizes < 1e3)), path
            if g.ndim == 2 and any("label" in key.key for key in path):
                used = np.any(np.asarray(g) != 0, axis=1)
                np.testing.assert_array_equal(used, ROWS[case.name])


def test_gradient_is_the_central_difference(case):
    """Gradient of the value alone, through dropout, loops and rematerialization."""
    grads, (_, dF_dt) = run_step(case, case.params, 9)
    c = cotangent(dF_dt)
    h = 3e-4 if case.name in CORNERS else 3e-3
    direction = jax.tree.map(
        lambda a: noise(a.shape, 10) * (rms(a) + 0.01), case.params
    )
    ahead, behind = (
        jax.tree.map(lambda p, d, a=a: p + a * d, case.params, direction)
        for a in (h, -h)
    )
    values = [
        np.sum(np.asarray(c * case.dropped(p, case.x, case.cond, make_key(9)), float))
        for p in (ahead, behind)
    ]
    slopes = [
        float(np.vdot(g, d))
        for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True)
    ]
    difference = (values[0] - values[1]) / (2 * h)
    assert difference == pytest.approx(sum(slopes), abs=0.02 * np.linalg.norm(slopes))


# --- Independence of examples ---------------------------------------------------------


def test_examples_do_not_see_each_other(case):
    order = jnp.asarray([3, 3, 0, 1])
    moved = jax.tree.map(lambda a: a[order], (case.x, case.cond))
    np.testing.assert_allclose(
        case.apply(case.params, *moved), case.F[order], rtol=0, atol=1e-5
    )
    changed = case.apply(case.params, case.x.at[2].set(7.0), case.cond)
    np.testing.assert_allclose(changed[:2], case.F[:2], rtol=0, atol=1e-5)
    assert rms(changed[2] - case.F[2]) > 0.01


@pytest.fixture(scope="module")
def unlabelled(case):
    """``F`` of single examples under ``vmap``, without any label."""

    @quick_jit
    @jax.vmap
    def one(x, cond):
        row = jax.tree.map(lambda a: a[None], (x, cond))
        return case.net.apply(case.params, *row)[0]

    return one(case.x, case.cond.replace(label=None))


def null(cond):
    return cond.replace(label=jnp.full(cond.t.shape, NULL_LABEL))


def test_vmap_over_single_examples_is_the_batch(case, unlabelled):
    batch = case.apply(case.params, case.x, null(case.cond))
    np.testing.assert_allclose(unlabelled, batch, rtol=0, atol=1e-5)


# --- Dropout --------------------------------------------------------------------------


def test_dropout_acts_in_training_only_and_by_its_key(case):
    args = case.params, case.x, case.cond
    one, same, other = (case.dropped(*args, make_key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert rms(one - other) > 1e-3 and rms(one - case.F) > 1e-3
    # In evaluation a key is not used at all.
    program = jax.make_jaxpr(lambda *args: case.net.apply(*args, key=make_key(0)))
    live, _ = partial_eval.dce_jaxpr(program(*args).jaxpr, [True])
    assert "random_" not in str(live)


def test_value_and_tangent_have_the_dropout_mask_of_the_key(case):
    """Also where blocks are computed again; another mask would be off by order 1."""
    key, dx = make_key(9), noise(case.x.shape, 8)
    _, (F, dF_dt) = case.step(case.params, case.x, dx, case.cond, key)
    plain = case.dropped(case.params, case.x, case.cond, key)
    np.testing.assert_allclose(F, plain, rtol=0, atol=2e-5)
    h = 3e-3
    ahead, behind = (
        case.dropped(
            case.params, case.x + a * dx, case.cond.replace(t=case.cond.t + a), key
        )
        for a in (h, -h)
    )
    # Another mask would be off by order 1/h.
    atol = 5.0 if case.name in CORNERS else 2e-2
    np.testing.assert_allclose((ahead - behind) / (2 * h), dF_dt, rtol=0, atol=atol)


# --- Conditioning ---------------------------------------------------------------------


def test_null_label_and_missing_label_are_one(case, unlabelled):
    F = np.asarray(case.apply(case.params, case.x, null(case.cond)))
    np.testing.assert_allclose(unlabelled, F, rtol=0, atol=1e-5)
    for label in range(NUM_CLASSES):
        given = case.cond.replace(label=jnp.full((4,), label))
        assert rms(case.apply(case.params, case.x, given) - F) > 1e-2


def test_label_beyond_the_classes_is_not_taken_for_another_class(case):
    """It gives NaN, which stops training; the batch is checked by the dataset."""
    cond = case.cond.replace(label=jnp.full((4,), NUM_CLASSES + 1))
    assert np.all(np.isnan(case.apply(case.params, case.x, cond)))


def test_guidance_is_an_input_that_starts_without_effect(case):
    other = case.cond.replace(guidance=case.cond.guidance + 1.0)
    assert rms(case.apply(case.params, case.x, other) - case.F) > 1e-3
    F = case.apply(case.opened, case.x, case.cond)
    assert rms(F) > 0.1
    np.testing.assert_allclose(case.apply(case.opened, case.x, other), F, atol=1e-6)


def test_a_student_with_dt_starts_as_its_teacher_for_every_dt(case):
    """And its layers for dt are trained from the first step on."""
    student = build(case.name, use_dt=True)
    params = inherited(case.params, quick_jit(student.init)(make_key(4)))

    def added(path, a):
        """A direction of the layers for dt alone."""
        own = any("dt" in key.key.split("_") for key in path)
        return noise(a.shape, 11) if own else np.zeros(a.shape, np.float32)

    direction = jax.tree_util.tree_map_with_path(added, params)
    assert any(a.any() for a in jax.tree.leaves(direction))

    @quick_jit
    def run(params, cond):
        def F(params):
            return student.apply(params, case.x, cond)

        return jax.jvp(F, (params,), (direction,))

    for dt in (0.0, 0.3, -40.0):
        F, slope = run(params, case.cond.replace(dt=jnp.full(4, dt)))
        np.testing.assert_allclose(F, case.F, rtol=0, atol=1e-5)
        assert rms(slope) > 1e-4
    F, _ = run(trained(params), case.cond.replace(dt=jnp.full(4, 0.3)))
    other, _ = run(trained(params), case.cond.replace(dt=jnp.full(4, 0.8)))
    assert rms(F - other) > 1e-3


def inherited(weights, fresh):
    """``fresh`` with all weights that the teacher has."""
    flat, known = map(traverse_util.flatten_dict, (fresh, weights))
    return traverse_util.unflatten_dict(flat | known)
