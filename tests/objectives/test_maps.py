"""Objectives of maps between two times, against closed forms of Gaussian data.

The student is ``U = U0(x, t, dt) + shift`` with one trainable vector per example, as in
``probe``: at ``shift = 0`` the gradient shows the regression target.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import objectives, trigflow
from scm_jax.objectives import Consistency, two_times
from scm_jax.objectives.presets import PRESETS
from scm_jax.objectives.two_times import Rows
from scm_jax.trigflow.exact import Gaussian
from scm_jax.types import Batch, Cond

SD = 0.5
DATA = Gaussian(mean=(0.7, -0.4), std=0.3)
SIZE = 64


def build(name, **settings):
    return objectives.build(name, sigma_data=SD, **settings)


def method(name, **settings):
    """The objective of a preset without learned or adaptive weights and warmups."""
    preset = PRESETS[name]
    own = {k[10:]: v for k, v in preset.changes.items() if k.startswith("objective.")}
    plain = {"learned_weighting": False}
    fields = objectives.OBJECTIVES[preset.objective].__dataclass_fields__
    off = {"adaptive_power": 0.0, "tangent_warmup_steps": 0, "tangent_warmup_end": 1.0}
    plain |= {k: v for k, v in off.items() if k in fields}
    if "tangent_normalization" in fields:
        plain["tangent_normalization"] = "none"
    return build(preset.objective, **(own | plain | settings))


def exact_map(x, cond):
    """``U`` of the exact map; on the diagonal it is the velocity."""
    t, dt = cond.t, cond.dt
    X = DATA.flow(x * SD, t, t - dt, SD)
    sin = jnp.where(dt > 0, jnp.sin(dt), 1.0)[:, None]
    U = (jnp.cos(dt)[:, None] * x * SD - X) / (sin * SD)
    return jnp.where(dt[:, None] > 0, U, DATA.velocity(x * SD, t, SD) / SD)


def velocity(x, cond):
    return DATA.velocity(x * SD, cond.t, SD) / SD


def bent(x, cond):
    t, dt = cond.t[:, None], cond.dt[:, None]
    return jnp.sin(1.3 * x + 0.4 * jnp.roll(x, 1, 1) * t) - jnp.cos(2 * dt) * x + 0.3


def batch(dtype=jnp.float64, size=SIZE):
    x = DATA.sample(np.random.default_rng(0), size)
    return Batch(x=jnp.asarray(x, dtype), label=jnp.arange(size))


def look(objective, U0, *, teacher=velocity, given=None, seed=0, **more):
    """Gradient by ``shift``, and the output; labels number the examples."""
    given = batch() if given is None else given

    def net_fn(params, x, cond, *, train=False, key=None):
        return U0(x, cond) + params["shift"][cond.label]

    def loss(shift):
        params = {"net": {"shift": shift}, "objective": {}}
        out = objective(
            net_fn,
            params,
            given,
            key=jax.random.key(seed),
            step=jnp.int32(10**6),
            teacher_fn=teacher if objective.needs_teacher else None,
            **more,
        )
        return jnp.sum(out.per_example), out

    grad, out = jax.jit(jax.grad(loss, has_aux=True))(jnp.zeros_like(given.x))
    return grad, out


@pytest.mark.parametrize("name", ["emd", "lmd", "free_flow"])
def test_the_exact_map_is_a_fixed_point_of_every_distillation(name, float64_islands):
    settings = {"differentiate": True} if name == "lmd" else {}
    for chosen in ({}, settings):
        grad, out = look(method(name, **chosen), exact_map)
        assert float(out.per_example.max()) < 1e-14
        assert float(jnp.abs(grad).max()) < 1e-7
        _, other = look(method(name, **chosen), bent)
        assert float(other.per_example.mean()) > 1e-2


@pytest.mark.parametrize("name", ["lsd", "psd", "shortcut"])
def test_the_exact_map_has_no_map_error_in_self_distillation(name, float64_islands):
    _, out = look(method(name), exact_map)
    assert float(out.metrics["map_error"]) < 1e-16
    _, other = look(method(name), bent)
    assert float(other.metrics["map_error"]) > 1e-2


def rows_at(t, s):
    """Rows of the batch at fixed times."""
    x0 = batch().x
    z = SD * jnp.asarray(np.random.default_rng(1).normal(size=x0.shape))
    times = (trigflow.time_from_t(jnp.full((SIZE,), a)) for a in (t, s))
    cond = Cond(t=jnp.full((SIZE,), t), label=jnp.arange(SIZE))
    return Rows(x0, z, *times, cond)


def fn_of(U0):
    return lambda x, t, dt: U0(x, Cond(t=t, dt=dt))


def test_a_map_to_time_0_is_trained_like_a_consistency_model(float64):
    """The limit s = 0: value, tangent and sign are those of sCM."""
    rows, meanflow, sct = rows_at(1.1, 0.0), method("meanflow"), Consistency()
    v = rows.dx_dt
    U, g = meanflow.raw_tangent(fn_of(bent), rows, v, v, 1.0)

    def net(x, t):
        return bent(x, Cond(t=t, dt=t))

    F, F_tangent, q_dF = sct.value_and_tangent(net, rows.x_t, v, rows.t)
    raw = sct.raw_tangent(F_tangent, q_dF, rows.x_t, v, rows.t, jnp.ones(()))
    np.testing.assert_allclose(U, F, rtol=1e-12)
    np.testing.assert_allclose(g, raw, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["meanflow", "lmd"])
def test_the_diagonal_is_the_diffusion_loss(name, float64_islands, monkeypatch):
    """The limit s = t: the value of the diffusion loss, the gradient over sd."""
    diagonal = rows_at(1.1, 1.1)
    monkeypatch.setattr(two_times, "draw_rows", lambda *_: diagonal)
    grad, out = look(method(name), bent)
    target = diagonal.dx_dt
    if name == "lmd":  # the velocity is the teacher's
        target = DATA.velocity(diagonal.x_t, diagonal.t, SD)
    zero = Cond(t=diagonal.t.t, dt=jnp.zeros((SIZE,)))
    residual = SD * bent(diagonal.x_t / SD, zero) - target
    expected = jnp.mean(jnp.square(residual), axis=1)
    np.testing.assert_allclose(out.per_example, expected, rtol=1e-10)
    np.testing.assert_allclose(grad, residual, rtol=1e-8)  # 2/D of two elements


def test_only_the_stopped_forms_stop_their_target(float64_islands):
    """Stopped: the gradient is the residual's; LSD: also that of dX/ds."""
    for name in ("meanflow", "emd", "psd", "lmd", "lsd"):
        objective = method(name)
        if name in ("lsd", "psd"):
            objective = dataclasses.replace(objective, map_every=2)
        grad, out = look(objective, bent)
        size = jnp.sqrt(jnp.sum(jnp.square(grad), axis=1))
        per_residual = size / jnp.sqrt(2 * out.per_example)
        if name in ("meanflow", "emd", "lmd"):
            np.testing.assert_allclose(per_residual, 1.0, rtol=1e-6)
            continue
        mapped = np.asarray(per_residual)[0::2]
        if name == "psd":
            np.testing.assert_allclose(mapped, SD, rtol=1e-6)
        else:  # the derivative of cos(dt) sd U
            rows = two_times.draw_rows(
                objective, batch(), jax.random.split(jax.random.key(0))[0]
            )
            np.testing.assert_allclose(mapped, SD * rows.dt.cos[0::2], rtol=1e-6)


def test_a_map_is_taught_by_the_velocity_at_its_end(float64_islands):
    """Row B11': with the pair's own velocity at s the exact map is no fixed point."""
    rows = rows_at(1.1, 0.4)
    X = DATA.flow(rows.x_t, rows.t, rows.s, SD)
    own = trigflow.velocity(rows.x0, rows.z, rows.s)
    right = DATA.velocity(X, rows.s, SD)
    assert float(jnp.abs(jnp.mean(own - right, axis=0)).max()) < 0.3
    assert float(jnp.mean(jnp.square(own - right))) > 1e-3
    objective = method("lmd")
    error = objective._map_error(fn_of(exact_map), rows, velocity)
    assert float(error.max()) < 1e-20


def point_mass(x, cond):
    """Velocity of data that are one point for each class, and of no class at all."""
    t = cond.t[:, None]
    points = jnp.asarray([[0.5, -0.2], [-0.7, 0.3]])
    F = (jnp.cos(t) * x * SD - points[cond.label]) / (jnp.sin(t) * SD)
    return jnp.where(cond.label[:, None] < 0, 0.3 * x, F)


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"omega": 0.2, "kappa": 0.92}, 2.5),
        ({"omega": 1.0, "kappa": 0.5}, 2.0),
        ({"omega": 3.0}, 3.0),
        ({"guidance_range": (1.0, 8.0), "tangent_velocity": "own"}, None),
    ],
)
def test_guidance_of_the_target_has_its_effective_scale(
    settings, scale, float64_islands
):
    """Row B7: the fixed point is guided by ``omega / (1 - kappa)``, or by the input."""
    objective = method("meanflow", diagonal_share=1.0, **settings)
    label = jnp.arange(SIZE) % 2
    x0 = jnp.asarray([[0.5, -0.2], [-0.7, 0.3]])[label]

    def guided(x, cond):
        null = point_mass(x, dataclasses.replace(cond, label=jnp.full_like(label, -1)))
        w = scale if cond.guidance is None else cond.guidance[:, None]
        own = null + w * (point_mass(x, cond) - null)
        return jnp.where(cond.label[:, None] < 0, null, own)

    _, out = look(objective, guided, given=Batch(x=x0, label=label))
    assert float(out.per_example.max()) < 1e-12

    _, out = look(objective, point_mass, given=Batch(x=x0, label=label))
    assert float(out.per_example.mean()) > 1e-3


@pytest.mark.parametrize("law", two_times.PAIRS)
def test_pairs_are_ordered_and_of_their_law(law):
    objective = build("mean_flow", pairs=law, P_mean=-0.8, P_std=1.2)
    t, s = two_times.draw_pairs(objective, jax.random.key(0), 20_000)
    t_, s_ = (np.asarray(a.t, np.float64) for a in (t, s))
    assert (t_ >= s_).all() and s_.min() >= 0 and t_.max() <= np.pi / 2 + 1e-6
    np.testing.assert_allclose(np.sin(t_), t.sin, atol=1e-6)
    np.testing.assert_allclose(np.cos(s_), s.cos, atol=1e-6)
    normal = np.random.default_rng(0).normal(-0.8, 1.2, (2, 200_000))
    expected = {
        "zero": np.median(np.arctan(np.exp(normal[0]) / SD)),
        "sorted": np.median(np.arctan(np.exp(normal.max(axis=0)) / SD)),
        "uniform": np.pi / 2 / np.sqrt(2),
        "start": np.pi / 2,
    }
    if law in expected:
        assert np.median(t_) == pytest.approx(expected[law], rel=0.02)
    if law == "dyadic":
        steps = np.pi / 2 / (t_ - s_)
        np.testing.assert_allclose(np.log2(steps), np.round(np.log2(steps)), atol=1e-4)
        np.testing.assert_allclose(t_ / (t_ - s_), np.round(t_ / (t_ - s_)), rtol=1e-4)
    if law == "gap":
        share = [np.tan(a) / (1 + np.tan(a)) for a in (t_, s_)]
        gap = np.log(1 / (1 / np.clip(share[0] - share[1], 1e-6, 1 - 1e-6) - 1))
        assert np.median(gap) == pytest.approx(-0.8, abs=0.03)


def test_rows_of_both_kinds_come_back_in_their_order(float64):
    rows = rows_at(1.1, 0.4)
    number = jnp.arange(SIZE)
    diagonal, mapped = two_times.split(rows._replace(z=number), 4)
    np.testing.assert_array_equal(mapped.z, np.arange(0, SIZE, 4))
    np.testing.assert_array_equal(diagonal.s.t, diagonal.t.t)
    np.testing.assert_array_equal(two_times.join(diagonal.z, mapped.z, 4), number)
    with pytest.raises(ValueError, match=r"map_every = 5 does not divide the batch"):
        two_times.split(rows, 5)


# --- Segments


def test_one_segment_is_scd_itself():
    plain = Consistency(dx_dt="teacher", learned_weighting=False)
    one = dataclasses.replace(plain, segments=1)
    given = batch(jnp.float32)
    jax.tree.map(
        np.testing.assert_array_equal,
        look(plain, bent, given=given),
        look(one, bent, given=given),
    )


def test_segments_end_at_their_lower_boundary(float64_islands):
    """The exact map to ``t_k`` has no tangent; that to 0 has one."""
    settings = {"learned_weighting": False, "tangent_normalization": "none"}
    objective = Consistency(dx_dt="teacher", segments=3, **settings)
    width = float(np.float32(np.pi / 2 / 3))
    times = trigflow.time_from_t(jnp.asarray([0.1, width, width + 1e-4, 1.2, 1.57]))
    floor = np.asarray(objective.floor(times)) / width
    np.testing.assert_allclose(floor, [0, 0, 1, 2, 2], atol=1e-6)
    _, out = look(objective, exact_map)
    assert float(out.per_example.max()) < 1e-9
    _, out = look(dataclasses.replace(objective, segments=2), bent)
    assert float(out.per_example.mean()) > 1e-3


# --- Discrete


@pytest.mark.parametrize(
    ("std", "factors"),
    [
        (SD, (0.730, 0.846, 0.930, 0.982, 0.998)),
        (0.1, (0.674, 0.810, 0.912, 0.978, 0.997)),
    ],
)
def test_the_ladder_of_times_has_the_bias_of_its_closed_form(std, factors):
    """Row B32: training from pairs multiplies the std by the product of cosines."""
    for n, factor in zip((10, 18, 40, 160, 1280), factors, strict=True):
        objective = build("discrete", intervals=(n, n))
        levels = objective._levels(jnp.arange(1, n + 1), jnp.float32(n))
        t = np.append(0.0, np.arctan(np.asarray(levels, np.float64) / SD))
        phi = np.arctan(SD / std * np.tan(t))
        assert np.prod(np.cos(np.diff(phi))) == pytest.approx(factor, abs=1e-3)
        assert levels[-1] == pytest.approx(80.0, rel=1e-4)


def test_neighbours_are_on_the_grid_with_the_mass_of_their_interval():
    n = 20
    objective = build("discrete", intervals=(n, n), P_mean=-1.0, P_std=1.4)
    t, r = objective.neighbours(jax.random.key(0), 100_000, jnp.int32(0))
    levels = np.asarray(objective._levels(jnp.arange(1, n + 1), jnp.float32(n)))
    sigma, below = (SD * np.asarray(a.sin / a.cos, np.float64) for a in (t, r))
    index = np.abs(np.log(sigma[:, None] / levels)).argmin(axis=1)
    np.testing.assert_allclose(sigma, levels[index], rtol=1e-4)
    np.testing.assert_allclose(below, np.append(0.0, levels)[index], rtol=1e-4)
    draws = np.exp(np.random.default_rng(0).normal(-1.0, 1.4, 400_000))
    share = np.diff(np.searchsorted(np.sort(draws), levels) / draws.size, prepend=0.0)
    np.testing.assert_allclose(np.bincount(index, minlength=n) / 1e5, share, atol=5e-3)


def test_the_curriculum_doubles_the_levels_and_halves_the_gap():
    ict = build("discrete", intervals=(10, 80), curriculum_steps=400)
    ect = build("discrete", grid="ratio", curriculum_steps=400, stages=4)
    gaps = {"ict": [], "ect": []}
    for step in (0, 99, 100, 200, 399, 1000):
        for name, objective in (("ict", ict), ("ect", ect)):
            t, r = objective.neighbours(jax.random.key(0), 4000, jnp.int32(step))
            assert (np.asarray(t.t) > np.asarray(r.t)).all()
            high = np.asarray(t.t) > 0.8
            gaps[name].append(np.mean(np.asarray(t.t - r.t)[high]))
    for name, found in gaps.items():
        assert found[0] == found[1] and found[4] == found[5], name
        ratios = np.divide(found[:-1], found[1:])[[1, 2, 3]]
        assert ((1.6 < ratios) & (ratios < 3.0)).all(), (name, ratios)
    sigma = SD * np.tan(np.asarray(t.t, np.float64))  # the last stage is a = 3
    k = 1 + 8 / (1 + np.exp(sigma))
    expected = np.maximum(0.0, sigma * (1 - k / 2**4))
    np.testing.assert_allclose(SD * np.tan(r.t), expected, rtol=1e-3, atol=1e-5)


def test_a_teacher_s_step_is_exact_to_its_order(float64_islands):
    """CD's neighbour from DDIM and from Heun against the exact flow."""
    errors = {}
    for solver in ("euler", "heun"):
        objective = build("discrete", dx_dt="teacher", solver=solver)
        for h in (0.1, 0.05):
            rows = rows_at(1.0, 1.0 - h)
            x_r = objective._solved(rows.x_t, rows.t, rows.s, rows.cond, velocity)
            exact = DATA.flow(rows.x_t, rows.t, rows.s, SD)
            errors[solver, h] = float(jnp.abs(x_r - exact).max())
    assert errors["euler", 0.1] / errors["euler", 0.05] == pytest.approx(4, rel=0.15)
    assert errors["heun", 0.1] / errors["heun", 0.05] == pytest.approx(8, rel=0.25)


def test_the_target_of_a_discrete_model_has_no_gradient(float64_islands):
    """The gradient is that of f at t alone: ``-2/D sin(t) sd d``."""
    objective = build("discrete", huber=0.0, gap_weighting=False, intervals=(18, 18))
    grad, out = look(objective, bent)
    size = np.linalg.norm(grad, axis=1)
    ratio = size / np.sqrt(2 * np.asarray(out.per_example)) / SD  # sin t
    t, _ = objective.neighbours(
        jax.random.split(jax.random.key(0), 5)[0], SIZE, jnp.int32(10**6)
    )
    np.testing.assert_allclose(ratio, t.sin, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("mean_flow", {"pairs": "none"}, "objective.pairs = 'none'"),
        ("mean_flow", {"dx_dt": "teacher", "omega": 2.0}, "objective.dx_dt = 'data'"),
        ("mean_flow", {"kappa": 1.0}, r"objective.kappa = 1.0: must be in \[0, 1\)"),
        ("lagrangian", {"map_every": 1}, "objective.map_every above 1"),
        ("lagrangian", {"tangent_normalization": "l2"}, "no stopped target"),
        ("semigroup", {"map_every": 1}, "set it to 2 or more"),
        ("discrete", {"intervals": (1, 3)}, "objective.intervals = "),
        ("discrete", {"guidance_range": (1.0, 2.0)}, "needs objective.dx_dt = 'teach"),
        ("consistency", {"segments": 0}, "objective.segments = 0"),
        ("matching", {"simulated": 0}, "matching.simulated = 0"),
    ],
)
def test_settings_that_contradict_each_other(name, settings, message):
    with pytest.raises(ValueError, match=message):
        build(name, **settings)


def test_residuals_vanish_for_the_exact_map_alone(float64_islands):
    rows = rows_at(1.1, 0.4)
    found = two_times.residuals(exact_map, velocity, rows, SD)
    assert set(found) == {"eulerian", "lagrangian", "semigroup"}
    for name, value in found.items():
        assert value.shape == (SIZE,) and float(value.max()) < 1e-20, name
    for name, value in two_times.residuals(bent, velocity, rows, SD).items():
        assert float(value.mean()) > 1e-3, name
