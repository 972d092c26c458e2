"""What every backbone of the registry must do."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import networks, trigflow
from scm_jax.types import NULL_LABEL, Cond

NUM_CLASSES = 3
SHAPE = (4, 4, 2)
# A small instance of every backbone; a new one needs a line here.
SETTINGS = {
    "dit": {"width": 16, "depth": 1, "num_heads": 2, "patch": 2, "mlp_ratio": 2},
    "mlp": {"width": 16, "depth": 1},
}


def test_registry_is_not_empty_and_every_backbone_is_tested():
    assert set(SETTINGS) == set(networks.NETWORKS) != set()


@dataclasses.dataclass
class Case:
    """A network, its fresh and some random parameters, inputs, compiled functions."""

    name: str
    net: networks.Network
    init: Callable
    apply: Callable
    params: dict
    x: jax.Array
    cond: Cond

    @functools.cached_property
    def fresh(self):
        return self.init(jax.random.key(2))


def build(name, **changes):
    settings = {"use_guidance": True, "dropout": 0.3, **SETTINGS[name], **changes}
    return networks.build(name, SHAPE, NUM_CLASSES, **settings)


@functools.cache
def make(name):
    net = build(name)
    init = jax.jit(net.init)
    rng = np.random.default_rng(1)
    # Trained parameters have no zeros: biases and the guidance kernel start there.
    params = jax.tree.map(
        lambda a: a + 0.1 * rng.normal(size=a.shape).astype(np.float32),
        init(jax.random.key(1)),
    )
    cond = Cond(
        t=jnp.asarray([0.1, 0.7, 1.1, 1.5]),
        label=jnp.asarray([2, 0, NULL_LABEL, 0]),
        guidance=jnp.asarray([1.0, 2.0, 1.5, 3.0]),
    )
    x = jnp.asarray(rng.normal(size=(4, *SHAPE)), jnp.float32)
    return Case(name, net, init, jax.jit(net.apply), params, x, cond)


def noise(shape, seed, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@pytest.fixture(scope="module", params=sorted(SETTINGS))
def case(request):
    return make(request.param)


def rms(a):
    return float(jnp.sqrt(jnp.mean(jnp.square(a))))


# --- Shapes and initialization --------------------------------------------------------


def test_F_has_the_shape_of_x_and_is_float32(case):
    F = case.apply(case.params, case.x, case.cond)
    assert F.shape == case.x.shape and F.dtype == jnp.float32
    assert case.net.consumes == {"t", "label", "guidance"}


def test_parameters_are_float32_and_depend_on_the_key(case):
    shapes = jax.eval_shape(case.net.init, jax.random.key(0))
    assert {a.dtype for a in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    one, same, other = (case.init(jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, same)
    differs = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), one, other)
    assert any(jax.tree.leaves(differs))


def test_fresh_network_has_outputs_and_tangents_of_order_1(case):
    """``c_noise = log(tan t)`` left in the network would show near pi/2, 160 times."""
    t = jnp.asarray([1e-4, 0.3, 1.1, trigflow.t_max(0.5)])
    x, dx = noise((2, 4, *SHAPE), 3)
    # One batch: along x and t, then along t alone.
    x, t = np.concatenate([x, x]), jnp.concatenate([t, t])
    dx = np.concatenate([dx, 0 * dx])
    cond = jax.tree.map(lambda a: jnp.concatenate([a, a]), case.cond)

    @jax.jit
    def derivatives(params, x, t, dx):
        def F(x, t):
            return case.net.apply(params, x, cond.replace(t=t))

        return jax.jvp(F, (x, t), (dx, jnp.ones_like(t)))

    F, dF_dt = derivatives(case.fresh, x, t, dx)
    dF_dt, partial_t = np.asarray(dF_dt).reshape(2, 4, -1)
    assert 0.1 < np.sqrt(np.mean(F**2)) < 2.0
    assert np.all(np.sqrt(np.mean(dF_dt**2, axis=1)) < 3.0)
    by_time = np.sqrt(np.mean(partial_t**2, axis=1))
    assert np.all(by_time < 1.0) and np.all(by_time > 1e-3)
    assert by_time[-1] < 5 * by_time[:-1].max()


# --- The tangent ----------------------------------------------------------------------


def test_jvp_is_the_central_difference(case, float64_islands):
    """In float64; of the whole network, with all its inputs."""
    dtype = {"dtype": "float64"} if "dtype" in case.net.module.__annotations__ else {}
    net = build(case.name, **dtype)
    params, cond = jax.tree.map(
        lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a,
        (case.params, case.cond),
    )
    x = case.x.astype(jnp.float64)
    dx, dt = jnp.asarray(noise(x.shape, 5, np.float64)), jnp.ones_like(cond.t)

    @jax.jit
    def compare(x, t, dx, dt):
        def F(x, t):
            return net.apply(params, x, cond.replace(t=t))

        h = 1e-4
        ahead, behind = (F(x + a * dx, t + a * dt) for a in (h, -h))
        return jax.jvp(F, (x, t), (dx, dt))[1], (ahead - behind) / (2 * h)

    for along_x, along_t in ((1, 0), (0, 1), (1, 1)):
        jvp, difference = compare(x, cond.t, along_x * dx, along_t * dt)
        assert jvp.dtype == jnp.float64 and rms(jvp) > 1e-2
        np.testing.assert_allclose(jvp, difference, rtol=1e-6, atol=1e-6)


def test_gradient_reaches_every_parameter(case):
    """Only rows of classes that no example has get none; and none explodes.

    Behind a zero-initialized modulation its pixel norm would have a slope of 1e4.
    """
    weights = noise(case.x.shape, 6)

    @jax.jit
    def gradient(params):
        def loss(params):
            return jnp.sum(weights * case.net.apply(params, case.x, case.cond))

        return jax.grad(loss)(params)

    # Also of the fresh network, whose biases are zero.
    for params in (case.params, case.fresh):
        grads = gradient(params)
        table = grads["cond"].pop("label")["embedding"]
        used = np.array([True, False, True, True])  # classes 0 and 2, and null
        np.testing.assert_array_equal(np.any(table != 0, axis=1), used)
        for path, g in jax.tree_util.tree_leaves_with_path(grads):
            assert 1e-7 < np.abs(g).max() < 1e3, path


# --- Independence of examples ---------------------------------------------------------


def test_examples_do_not_see_each_other(case):
    F = case.apply(case.params, case.x, case.cond)
    order = jnp.asarray([3, 3, 0, 1])
    moved = jax.tree.map(lambda a: a[order], (case.x, case.cond))
    np.testing.assert_allclose(
        case.apply(case.params, *moved), F[order], rtol=0, atol=1e-5
    )
    changed = case.apply(case.params, case.x.at[2].set(7.0), case.cond)
    np.testing.assert_allclose(changed[:2], F[:2], rtol=0, atol=1e-5)
    assert rms(changed[2] - F[2]) > 0.01


def test_vmap_over_single_examples_is_the_batch(case):
    @jax.jit
    def one_by_one(x, cond):
        def one(x, cond):
            row = jax.tree.map(lambda a: a[None], (x, cond))
            return case.net.apply(case.params, *row)[0]

        return jax.vmap(one)(x, cond)

    np.testing.assert_allclose(
        one_by_one(case.x, case.cond),
        case.apply(case.params, case.x, case.cond),
        rtol=0,
        atol=1e-5,
    )


# --- Dropout --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def train_jvp(case):
    """``F`` and its tangent in training mode: ``(x, t, key) -> F, dF_dt``."""
    dx = noise(case.x.shape, 8)

    @jax.jit
    def run(x, t, key):
        def F(x, t):
            cond = case.cond.replace(t=t)
            return case.net.apply(case.params, x, cond, train=True, key=key)

        return jax.jvp(F, (x, t), (dx, jnp.ones_like(t)))

    return run, dx


def test_dropout_acts_in_training_only_and_by_its_key(case, train_jvp):
    run, _ = train_jvp
    eval_F = case.apply(case.params, case.x, case.cond)
    np.testing.assert_array_equal(case.apply(case.params, case.x, case.cond), eval_F)
    keys = jax.random.split(jax.random.key(8))
    one, same, other = (run(case.x, case.cond.t, keys[i])[0] for i in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert rms(one - other) > 1e-3 and rms(one - eval_F) > 1e-3


def test_tangent_is_that_of_the_same_dropout_mask(case, train_jvp):
    run, dx = train_jvp
    key, h = jax.random.key(9), 1e-2
    _, dF_dt = run(case.x, case.cond.t, key)
    ahead, behind = (run(case.x + a * dx, case.cond.t + a, key)[0] for a in (h, -h))
    # Another mask would be off by order 1/h.
    np.testing.assert_allclose((ahead - behind) / (2 * h), dF_dt, rtol=0, atol=2e-2)


# --- Conditioning ---------------------------------------------------------------------


def test_null_label_and_missing_label_are_one(case):
    null = case.cond.replace(label=jnp.full((4,), NULL_LABEL))
    F = np.asarray(case.apply(case.params, case.x, null))
    missing = case.cond.replace(label=None)
    np.testing.assert_array_equal(case.apply(case.params, case.x, missing), F)
    for label in range(NUM_CLASSES):
        given = case.cond.replace(label=jnp.full((4,), label))
        assert rms(case.apply(case.params, case.x, given) - F) > 1e-2


def test_label_beyond_the_classes_is_not_taken_for_another_class(case):
    """It gives NaN, which stops training; the batch is checked by the dataset."""
    cond = case.cond.replace(label=jnp.full((4,), NUM_CLASSES + 1))
    assert np.all(np.isnan(case.apply(case.params, case.x, cond)))


def test_guidance_is_an_input_that_starts_without_effect(case):
    other = case.cond.replace(guidance=case.cond.guidance + 1.0)
    F = case.apply(case.params, case.x, case.cond)
    assert rms(case.apply(case.params, case.x, other) - F) > 1e-3
    np.testing.assert_allclose(
        case.apply(case.fresh, case.x, other),
        case.apply(case.fresh, case.x, case.cond),
        atol=1e-6,
    )


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_missing_inputs_are_errors(name):
    net = build(name, use_dt=True)
    assert net.consumes == {"t", "label", "guidance", "dt"}
    x, cond = net.example(2)
    for field in ("guidance", "dt"):
        with pytest.raises(ValueError, match=rf"network\.use_{field} = True"):
            jax.eval_shape(
                lambda x, c: net.module.init(jax.random.key(0), x, c),
                x,
                cond.replace(**{field: None}),
            )


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_bad_settings_are_errors_when_built(name):
    with pytest.raises(ValueError, match=r"'widht' is not one .* mean 'width'"):
        networks.build(name, SHAPE, 0, widht=8)
    with pytest.raises(ValueError, match=r"network\.width = 15: must be even"):
        networks.build(name, SHAPE, 0, width=15)
    net = build(name)
    x, cond = net.example(2)
    with pytest.raises(ValueError, match=r"x has shape \(2, 4, 2, 2\)"):
        jax.eval_shape(net.module.init, jax.random.key(0), x[:, :, :2], cond)


def test_unknown_network_is_an_error():
    with pytest.raises(ValueError, match=r"network\.name = 'unet' is not one of"):
        networks.build("unet", SHAPE, 0)


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_unconditional_network_consumes_time_alone(name):
    net = networks.build(name, SHAPE, 0, **SETTINGS[name])
    assert net.consumes == {"t"}
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    assert set(shapes["cond"]) == {"t", "out"}
