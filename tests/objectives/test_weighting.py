"""Normalization of the target, the learned weight, time bins, labels and guidance."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scm_jax import sampling, trigflow
from scm_jax.objectives import Consistency, base
from scm_jax.types import NULL_LABEL, Batch, Cond
from tests.objectives import probe
from tests.objectives.probe import DATA, SD, look

IMAGES = np.random.default_rng(0).normal(size=(5, 3, 4, 2)).astype(np.float32)


def objective(normalization="l2", **changes):
    return Consistency(dx_dt="teacher", tangent_normalization=normalization, **changes)


def normalized(g, kind="l2"):
    return base.normalize(g, kind, objective(kind).tangent_norm_eps)


# --- Normalization --------------------------------------------------------------------


def test_l2_normalization_is_per_sample_over_all_elements():
    g = np.asarray(normalized(jnp.asarray(IMAGES)))
    norm = np.sqrt(np.sum(IMAGES**2, axis=(1, 2, 3), keepdims=True))
    np.testing.assert_allclose(g, IMAGES / (norm + 0.1), rtol=1e-5)
    assert np.all(np.sqrt(np.sum(g**2, axis=(1, 2, 3))) < 1)


def test_rms_normalization_divides_the_norm_by_the_root_of_the_size():
    g = normalized(jnp.asarray(IMAGES), "rms")
    rms = np.sqrt(np.mean(IMAGES**2, axis=(1, 2, 3), keepdims=True))
    np.testing.assert_allclose(g, IMAGES / (rms + 0.1), rtol=1e-5)


def test_clip_and_none():
    large = 3 * jnp.asarray(IMAGES)
    np.testing.assert_array_equal(normalized(large, "clip"), np.clip(large, -1, 1))
    np.testing.assert_array_equal(normalized(large, "none"), large)


@pytest.mark.parametrize("normalization", ["l2", "rms", "clip", "none"])
def test_scaling_one_sample_leaves_the_others(normalization):
    scaled = IMAGES.copy()
    scaled[2] *= 10
    rest = np.array([0, 1, 3, 4])
    both = (jnp.asarray(a) for a in (IMAGES, scaled))
    one, other = (np.asarray(normalized(a, normalization)) for a in both)
    np.testing.assert_array_equal(one[rest], other[rest])
    assert np.abs(one[2] - other[2]).max() > 1e-3


def test_size_of_the_target_at_image_dimension():
    """2.5: c = 0.1 hardly matters with L2 at D = 3072, and much with RMS."""
    D, s = 3072, 0.3
    t = np.array([0.01, 0.3, 1.1, 1.5, 1.5645])
    V = (s * np.cos(t)) ** 2 + (SD * np.sin(t)) ** 2
    size = (s * SD) ** 2 * np.sin(t) * np.cos(t) / V**1.5  # RMS of the raw target
    g = jnp.asarray(np.outer(size, np.ones(D)), jnp.float32)
    l2 = np.linalg.norm(normalized(g), axis=1)
    np.testing.assert_allclose(l2, [0.82, 0.99, 0.98, 0.88, 0.39], atol=0.006)
    rms = np.linalg.norm(normalized(g, "rms"), axis=1) / np.sqrt(D)
    np.testing.assert_allclose(rms, [0.08, 0.66, 0.47, 0.11, 0.01], atol=0.006)


def test_normalization_of_the_whole_objective_and_the_logged_norm():
    """The target is normalized after warmup; the raw norm is what is logged."""
    x0 = jnp.asarray(DATA.sample(np.random.default_rng(0), 16))
    kwargs = {"teacher": probe.exact_teacher, "step": 50}
    settings = {"tangent_warmup_steps": 100, "learned_weighting": False}
    raw = look(objective("none", **settings), probe.bent_student, x0, **kwargs)
    seen = look(objective("l2", **settings), probe.bent_student, x0, **kwargs)
    norm = np.linalg.norm(raw.g, axis=1, keepdims=True)
    np.testing.assert_allclose(seen.g, raw.g / (norm + 0.1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(seen.metrics["tangent_norm"], norm.mean(), rtol=1e-5)
    np.testing.assert_allclose(
        seen.metrics["bins"]["tangent_norm"].sum(), norm.sum(), rtol=1e-5
    )


# --- The learned weight ---------------------------------------------------------------


def test_weight_starts_at_one():
    params = base.init_log_weight()
    t = trigflow.time_from_t(jnp.linspace(0.01, 1.5, 7))
    np.testing.assert_array_equal(base.log_weight(params, t, SD), np.zeros(7))


def test_weighted_loss_and_its_optimum():
    """``e^w error - w`` per example: at ``w = -ln error`` it is flat and ``1 - w``."""
    error = 0.037
    time = trigflow.time_from_t(jnp.linspace(0.01, 1.5, 7))
    params = base.init_log_weight()
    params["bias"] = jnp.asarray(-np.log(error), jnp.float32)

    def loss(params):
        values, w = base.weighted_loss(
            {"log_weight": params}, time, jnp.full((7,), error), SD
        )
        return jnp.mean(values), (values, w)

    grads, (values, w) = jax.grad(loss, has_aux=True)(params)
    np.testing.assert_allclose(w, -np.log(error), rtol=1e-6)
    np.testing.assert_allclose(values, 1 - w, rtol=1e-5)
    for g in jax.tree.leaves(grads):
        np.testing.assert_allclose(g, 0.0, atol=1e-5)


def test_weight_counts_once_per_sample_not_per_element():
    """The gradient of w is ``e^w error - 1`` whatever the number of elements."""
    x0 = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4, 4, 2)), jnp.float32)
    settings = {"dx_dt": "data", "tangent_pass": "separate"}
    plain = look(Consistency(learned_weighting=False, **settings), _zero, x0)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient(params):
        out = Consistency(**settings)(
            lambda params, x, cond, **_: 0.0 * x,
            {"net": {}, "objective": params},
            probe.Batch(x=x0),
            key=jax.random.key(0),
            step=jnp.int32(10**9),
        )
        return out.loss, out.per_example

    params = Consistency(**settings).init(jax.random.key(0))
    grads, per_example = gradient(params)
    error = np.mean(np.square(plain.g), axis=(1, 2, 3))
    np.testing.assert_allclose(per_example, error, rtol=1e-5)
    np.testing.assert_allclose(grads["log_weight"]["bias"], error.mean() - 1, rtol=1e-5)


def _zero(x, cond):
    return 0.0 * x


def test_weight_learns_the_error_of_every_time():
    """Optimized, ``e^w error = 1`` at all noise levels and the loss is ``1 - w``."""
    time = trigflow.time_from_tau(jnp.linspace(-4.0, 4.0, 64), SD)
    error = 0.02 + 0.5 * time.sin**2
    optimizer = optax.adam(0.03)

    def loss(params):
        values, w = base.weighted_loss({"log_weight": params}, time, error, SD)
        return jnp.mean(values), (values, w)

    @jax.jit
    def fit(params):
        def body(carry, _):
            params, state = carry
            updates, state = optimizer.update(
                jax.grad(loss, has_aux=True)(params)[0], state
            )
            return (optax.apply_updates(params, updates), state), None

        carry = (params, optimizer.init(params))
        return jax.lax.scan(body, carry, length=2000)[0][0]

    _, (values, w) = loss(fit(base.init_log_weight()))
    np.testing.assert_allclose(np.exp(w) * error, 1.0, atol=0.1)
    np.testing.assert_allclose(values, 1 - w, atol=0.02)


def test_normalization_decides_where_the_weight_settles():
    """``w* = ln D`` with L2, 0 with RMS, while the norm is far above c."""
    D = 3072
    g = 100 * np.random.default_rng(0).normal(size=(4, D)).astype(np.float32)
    for normalization, expected in (("l2", np.log(D)), ("rms", 0.0)):
        target = normalized(jnp.asarray(g), normalization)
        error = base.per_example_mean(jnp.square(target))
        np.testing.assert_allclose(-np.log(error), expected, atol=3e-3)


def test_weight_is_finite_at_both_ends_and_resolves_them():
    params = base.init_log_weight()
    rng = np.random.default_rng(0)
    params["kernel"] = jnp.asarray(rng.normal(size=64), jnp.float32)
    time = trigflow.time_from_sigma(
        jnp.asarray([0.0, 1e-3, 4e-3, 80.0, 300.0, 1e30]), SD
    )
    w = np.asarray(base.log_weight(params, time, SD))
    assert np.all(np.isfinite(w))
    # Times 0.002 and 0.008, or 1.5645 and 1.5691, are different noise levels.
    assert abs(w[1] - w[2]) > 0.1 and abs(w[3] - w[4]) > 0.1


# --- Bins -----------------------------------------------------------------------------


def test_time_bins_are_sums_that_add_up():
    t = jnp.asarray([0.0, 0.1, 0.19, 0.2, 0.9, 1.5, 1.5707, 1.5])
    value = jnp.arange(8.0) - 2.0
    bins = base.time_bins(t, value=value)
    edges = np.linspace(0, np.pi / 2, base.NUM_TIME_BINS + 1)
    count, _ = np.histogram(t, edges)
    np.testing.assert_array_equal(bins["count"], count)
    sums, _ = np.histogram(t, edges, weights=value)
    np.testing.assert_allclose(bins["value"], sums, rtol=1e-6)


# --- Labels and guidance --------------------------------------------------------------


def test_label_dropout_rate():
    label = jnp.arange(20_000) % 10
    words = jnp.ones((20_000, 3), jnp.int32)
    batch = Batch(x=jnp.zeros((20_000, 1)), label=label, tokens=words)

    def condition(rate, batch=batch):
        of = objective(label_dropout=rate)
        return base.condition(of, jax.random.key(0), batch, t=batch.x[:, 0])

    found = condition(0.1)
    dropped = np.asarray(found.label)
    null = dropped == NULL_LABEL
    assert null.mean() == pytest.approx(0.1, abs=5 * np.sqrt(0.09 / 20_000))
    np.testing.assert_array_equal(dropped[~null], np.asarray(label)[~null])
    # It hits every class alike.
    assert np.bincount(np.asarray(label)[null], minlength=10).min() > 140
    # A caption goes as a whole, with the class.
    np.testing.assert_array_equal(found.tokens, ~null[:, None] * np.ones(3, np.int32))
    assert condition(0.0).label is label
    assert condition(0.5, Batch(x=batch.x)).label is None


def test_a_third_of_the_clips_are_told_their_first_frames():
    x = np.random.default_rng(0).normal(size=(9000, 5, 1, 2)).astype(np.float32)
    of = objective(first_frames=3, sigma_data=0.5)
    assert of.needs == {"t", "frames"}
    cond = base.condition(of, jax.random.key(0), Batch(x=x), t=x[:, 0, 0, 0])
    frames, known = np.split(np.asarray(cond.frames), [-1], axis=-1)
    number = known[:, :, 0, 0].sum(axis=1)
    share = np.bincount(number.astype(int), minlength=6) / len(x)
    np.testing.assert_allclose(share, [2 / 3, 1 / 9, 1 / 9, 1 / 9, 0, 0], atol=0.02)
    first = np.arange(5) < number[:, None]
    np.testing.assert_array_equal(known[:, :, 0, 0], first)
    np.testing.assert_array_equal(frames, 2 * x * first[:, :, None, None])


def test_guidance_scales_reach_teacher_and_student_alike():
    low, high = 1.0, 4.0
    student = objective(
        tangent_pass="separate", guidance_range=(low, high), label_dropout=0.5
    )
    assert student.needs == {"t", "guidance"}
    x0 = jnp.asarray(DATA.sample(np.random.default_rng(0), 4000))
    label = jnp.arange(4000) % 3
    seen = look(student, _zero, x0, label=label, teacher=probe.exact_teacher)
    s = np.asarray(seen.cond.guidance)
    assert low <= s.min() < low + 0.01 and high - 0.01 < s.max() <= high
    assert s.mean() == pytest.approx(2.5, abs=0.07) and s.std() == pytest.approx(
        (high - low) / np.sqrt(12), abs=0.04
    )
    # The student's map ends at 0; a velocity has no end.
    both = (c.replace(dt=None) for c in (seen.cond, seen.teacher_cond))
    jax.tree.map(np.testing.assert_array_equal, *both)
    assert np.mean(np.asarray(seen.cond.label) == NULL_LABEL) == pytest.approx(
        0.5, abs=0.04
    )
    # Scales do not go with times, labels or noise.
    assert abs(np.corrcoef(s, seen.cond.t)[0, 1]) < 0.08


def test_guided_teacher_moves_the_target_by_its_scale():
    """With guidance the velocity is ``null + s (label - null)`` for each example."""

    def teacher(x, cond):
        return x * 0.0 + 1.0 * cond.label[:, None]

    guided = sampling.with_guidance(teacher)
    student = objective(
        "none",
        tangent_pass="separate",
        guidance_range=(1.0, 4.0),
        tangent_warmup_steps=1,
        learned_weighting=False,
    )
    x0, label = jnp.zeros((8, 2)), jnp.full((8,), 2)
    seen = look(student, _zero, x0, label=label, teacher=guided)
    t = np.asarray(seen.cond.t)[:, None]
    s = np.asarray(seen.cond.guidance)[:, None]
    dx_dt = SD * (NULL_LABEL + s * (2 - NULL_LABEL))
    expected = np.cos(t) ** 2 * dx_dt - np.cos(t) * np.sin(t) * np.asarray(seen.x_t)
    np.testing.assert_allclose(seen.g, expected, rtol=1e-4, atol=1e-5)


def test_guidance_needs_a_teacher():
    with pytest.raises(ValueError, match=r"guidance_range needs objective\.dx_dt"):
        Consistency(dx_dt="data", guidance_range=(1.0, 2.0))
    plain = dataclasses.replace(objective(), guidance_range=None)
    assert plain.needs == {"t"}
    assert Cond(t=jnp.ones(1)).guidance is None
