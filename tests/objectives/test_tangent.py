"""The tangent of sCM: signs, factors, sources; in float64, sigma_data = 0.5."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import trigflow
from scm_jax.objectives import Consistency, base, consistency
from scm_jax.types import Cond
from tests.objectives import probe
from tests.objectives.probe import DATA, SD, look

NUM = 32
# The target as it is: no normalization, weight 1.
RAW = {
    "tangent_normalization": "none",
    "learned_weighting": False,
    "tangent_warmup_steps": 100,
}
SCD = Consistency(dx_dt="teacher", **RAW)
SCT = Consistency(dx_dt="data", tangent_pass="separate", **RAW)


@pytest.fixture
def x0(float64_islands):
    return jnp.asarray(DATA.sample(np.random.default_rng(0), NUM), jnp.float64)


def close(actual, expected, tolerance=1e-9):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def distill(x0, student=probe.bent_student, step=10**9, **changes):
    """``SCD`` on a student, with the teacher that knows the data."""
    objective = dataclasses.replace(SCD, **changes)
    return look(objective, student, x0, teacher=probe.exact_teacher, step=step)


def along_flow(x, t, u):
    return DATA.flow(x, t, u, SD)


def f_of(student):
    """The consistency function of ``student``."""

    def f(x, t):
        return trigflow.f_from_F(x, student(x / SD, Cond(t=t)), t, SD)

    return f


@functools.partial(jax.jit, static_argnums=(0, 1))
def derivative_along(f, path, x, t):
    """Central difference of ``f(path(x, t, u), u)`` at ``u = t``, also at ``2 h``."""

    def difference(h):
        ahead, behind = (f(path(x, t, t + a), t + a) for a in (h, -h))
        return (ahead - behind) / (2 * h)

    # Richardson: the error falls from h^2 to h^4.
    return (4 * difference(1e-3) - difference(2e-3)) / 3


def cos(t):
    return jnp.cos(t)[:, None]


def sin(t):
    return jnp.sin(t)[:, None]


# --- Against derivatives along the ODE ------------------------------------------------


@pytest.mark.parametrize("student", [probe.bent_student, probe.exact_teacher])
def test_scd_target_is_the_derivative_along_the_teachers_ode(student, x0):
    """``g = cos(t) df/dt``: sigma_data once, the teacher's velocity, the right sign."""
    seen = distill(x0, student)
    t = seen.cond.t
    df_dt = derivative_along(f_of(student), along_flow, seen.x_t, t)
    assert float(jnp.abs(df_dt).max()) > 0.3
    close(seen.g, cos(t) * df_dt)


def test_sct_target_is_the_derivative_along_the_pair(x0):
    """``dx/dt = cos(t) z - sin(t) x0`` with the pair that made ``x_t``."""
    seen = look(SCT, probe.bent_student, x0)
    t = seen.cond.t
    z = (seen.x_t - cos(t) * x0) / sin(t)

    def path(x, t, u):
        return cos(u) * x0 + sin(u) * z

    path_derivative = derivative_along.__wrapped__(
        f_of(probe.bent_student), path, seen.x_t, t
    )
    close(seen.g, cos(t) * path_derivative, 1e-8)


def test_student_equal_to_teacher(x0):
    """7.1: ``g = -s^2 sd^2 sin t cos t / V^2 y``, negative for every t."""
    seen = distill(x0, probe.exact_teacher)
    t = seen.cond.t
    V = DATA.variance(t, SD)[:, None]
    y = seen.x_t - cos(t) * jnp.asarray([DATA.mean])
    close(seen.g, -((DATA.std * SD / V) ** 2) * sin(t) * cos(t) * y)
    close(seen.g, cos(t) * DATA.tangent(seen.x_t, t, SD))


@pytest.mark.parametrize(
    ("t", "coefficient"),
    [
        (0.5, -0.58900481),
        (1.1, -0.19301481),
        (1.3, -0.10191063),
        (1.564546408, -0.0022500247),
    ],
)
def test_table_of_the_gaussian_tangent(t, coefficient, float64_islands):
    """The same number by number, at given times, through the parts of the objective."""
    x = jnp.asarray([[0.9, -0.2]])
    time = trigflow.time_from_t(jnp.asarray([t]))
    v = DATA.velocity(x, time.t, SD)

    def net(u, t):
        return DATA.velocity(u * SD, t, SD) / SD

    F, F_stop, q_dF_dt = SCD.value_and_tangent(net, x, v, time)
    g = SCD.raw_tangent(F_stop, q_dF_dt, x, v, time, jnp.ones(()))
    y = x - np.cos(t) * np.array([DATA.mean])
    np.testing.assert_allclose(g / y, coefficient, rtol=1e-5)
    np.testing.assert_array_equal(F, F_stop)


def test_exact_consistency_function_has_no_tangent_under_scd(x0):
    seen = distill(x0, probe.consistent_student)
    close(seen.g, 0.0)
    # Not so under sCT, where only the mean given x_t vanishes.
    seen = look(SCT, probe.consistent_student, x0)
    assert float(jnp.abs(seen.g).max()) > 0.1


def test_sct_is_unbiased_given_x_t(float64_islands):
    """The raw target is linear in the velocity, whose posterior mean is the teacher's.

    ``x0`` given ``x_t`` is normal: pairs mirrored at its mean average to the mean.
    """
    rng = np.random.default_rng(1)
    t = jnp.asarray(rng.uniform(0.05, 1.5, NUM))
    time = trigflow.time_from_t(t)
    x_t = jnp.asarray(rng.normal(size=(NUM, 2)))
    V = DATA.variance(t, SD)[:, None]
    spread = DATA.std * SD * sin(t) / jnp.sqrt(V) * rng.normal(size=(NUM, 2))
    mean = DATA.denoiser(x_t, t, SD)

    @jax.jit
    def target(dx_dt):
        def net(u, t):
            return probe.bent_student(u, Cond(t=t))

        _, F, q_dF_dt = SCT.value_and_tangent(net, x_t, dx_dt, time)
        return SCT.raw_tangent(F, q_dF_dt, x_t, dx_dt, time, jnp.ones(()))

    sides = []
    for sign in (1, -1):
        x0 = mean + sign * spread
        z = (x_t - cos(t) * x0) / sin(t)
        dx_dt = base.velocity(SCT, x0, z, x_t, time, Cond(t=t), None)
        sides.append(target(dx_dt))
    exact = target(DATA.velocity(x_t, t, SD))
    close((sides[0] + sides[1]) / 2, exact, 1e-8)
    assert float(jnp.abs(sides[0] - exact).max()) > 0.1


# --- Where the velocity comes from ----------------------------------------------------


def test_scd_velocity_depends_on_x_t_alone(x0):
    time = trigflow.time_from_t(jnp.full((NUM,), 0.8))
    cond = Cond(t=time.t)
    one, other = (
        base.velocity(SCD, a, b, x0, time, cond, probe.exact_teacher)
        for a, b in ((x0, x0), (x0 + 1, 3 * x0))
    )
    np.testing.assert_array_equal(one, other)
    close(one, DATA.velocity(x0, time.t, SD))


def test_missing_teacher_is_an_error():
    with pytest.raises(
        ValueError, match=r"objective\.dx_dt = 'teacher' needs a teacher"
    ):
        jax.eval_shape(lambda: look(SCD, probe.bent_student, jnp.ones((2, 2))))


@pytest.mark.parametrize("t", [0.3, 1.1, 1.5])
def test_x_t_has_the_variance_of_the_process(t):
    """``z`` has the data's scale, 0.5; a unit normal would give 1 at large t."""
    tau = float(np.log(SD * np.tan(t)))
    objective = dataclasses.replace(SCT, P_mean=tau, P_std=0.0)
    x0 = jnp.asarray(DATA.sample(np.random.default_rng(3), 20_000))
    seen = look(objective, lambda x, cond: 0.0 * x, x0)
    np.testing.assert_allclose(seen.cond.t, t, rtol=1e-5)
    V = float(DATA.variance(jnp.asarray([t]), SD)[0])
    spread = np.sqrt(V / len(x0))
    np.testing.assert_allclose(
        seen.x_t.mean(0), np.cos(t) * np.array(DATA.mean), atol=5 * spread
    )
    np.testing.assert_allclose(
        seen.x_t.std(0), np.sqrt(V), rtol=5 / np.sqrt(2 * len(x0))
    )


def test_proposal_of_the_objective():
    objective = dataclasses.replace(SCT, P_mean=-0.8, P_std=1.6)
    seen = look(objective, lambda x, cond: 0.0 * x, jnp.zeros((50_000, 1)))
    assert np.median(seen.cond.t) == pytest.approx(0.732, abs=0.015)
    assert np.mean(np.asarray(seen.cond.t) > 1.1) == pytest.approx(0.312, abs=0.01)


# --- Warmup ---------------------------------------------------------------------------


def test_warmup_scales_the_tangent_while_student_equals_teacher(x0):
    """Alg. 1: the first bracket vanishes, r multiplies all of the second."""
    full = distill(x0, probe.exact_teacher, step=100)
    for step, r in ((0, 0.0), (25, 0.25), (100, 1.0), (500, 1.0)):
        seen = distill(x0, probe.exact_teacher, step=step)
        close(seen.g, r * full.g)
        assert float(seen.metrics["tangent_warmup"]) == r


def parts(seen):
    """``sd F - v``, ``x_t`` and ``sd dF/dt`` of the bent student on the ODE."""
    t, x = seen.cond.t, seen.x_t
    v = DATA.velocity(x, t, SD)
    F = probe.bent_student(x / SD, Cond(t=t))

    def F_of(x, u):
        return probe.bent_student(x / SD, Cond(t=u))

    return SD * F - v, x, SD * derivative_along.__wrapped__(F_of, along_flow, x, t)


def test_warmup_of_the_paper_leaves_the_first_bracket(x0):
    seen = distill(x0, step=30)
    t = seen.cond.t
    first, x_t, dF_dt = parts(seen)
    expected = -(cos(t) ** 2) * first - 0.3 * cos(t) * sin(t) * (x_t + dF_dt)
    close(seen.g, expected)


@pytest.mark.parametrize(("step", "r"), [(0, 0.0), (30, 0.3), (50, 0.5), (100, 1.0)])
def test_warmup_of_rcm_bends_the_first_bracket_and_spares_the_derivative(step, r, x0):
    """Its code: ``cos^2 -> cos sqrt(1 - r^2 sin^2)``, and ``r`` on ``x_t`` alone."""
    seen = distill(x0, step=step, tangent_warmup_form="rcm")
    t = seen.cond.t
    first, x_t, dF_dt = parts(seen)
    bent = jnp.sqrt(1 - (r * sin(t)) ** 2)
    close(seen.g, -cos(t) * bent * first - cos(t) * sin(t) * (r * x_t + dF_dt))
    if r == 1:  # in the end both forms are one
        close(seen.g, distill(x0, step=step).g)


def test_no_warmup():
    objective = dataclasses.replace(SCD, tangent_warmup_steps=0)
    assert float(base.warmup(jnp.int32(0), objective.tangent_warmup_steps)) == 1.0


# --- Ways to compute it ---------------------------------------------------------------


def test_shared_pass_equals_separate_pass(x0):
    shared, separate = distill(x0), distill(x0, tangent_pass="separate")
    close(shared.g, separate.g, 1e-12)
    close(shared.loss, separate.loss, 1e-12)


def test_finite_difference_converges_to_the_exact_tangent(x0):
    exact, errors = distill(x0).g, []
    for h in (2e-2, 1e-2):
        how = {"tangent": "finite_difference", "finite_difference_step": h}
        errors.append(float(jnp.abs(distill(x0, **how).g - exact).max()))
    assert errors[1] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.1)


def test_finite_difference_of_the_default_step_is_close_in_float32():
    x0 = jnp.asarray(DATA.sample(np.random.default_rng(0), NUM))
    seen = distill(x0, tangent="finite_difference")
    np.testing.assert_allclose(seen.g, distill(x0).g, rtol=0, atol=2e-3)


def test_no_overflow_at_the_ends_in_float32():
    """``cos t sin t`` is folded into the input tangents: finite at any noise level."""

    def steep(x, cond):
        # d/dt of c_noise = log(tan t) is 1/(sin t cos t).
        c_noise = trigflow.log_sigma(cond.t, SD)
        return x * 0.0 + jnp.sin(3.0 * c_noise)[:, None]

    for tau in (-12.0, 9.0):
        seen = distill(jnp.ones((2, 2)), steep, P_mean=tau, P_std=0.0)
        assert np.all(np.abs(seen.g) < 10.0)


# --- Prior weighting ------------------------------------------------------------------


def test_prior_factor_stands_in_the_target_once(x0):
    """The gradient of ``w f^T df/dt`` with ``w = 1/(sd tan t)``, ``1``, or squared."""
    paper, plain, twice = (
        distill(x0, prior_weighting=name)
        for name in ("inverse_sigma", "none", "inverse_sigma_twice")
    )
    t = paper.cond.t
    df_dt = derivative_along(f_of(probe.bent_student), along_flow, paper.x_t, t)
    # y = w sd sin(t) df/dt.
    inverse_sigma = 1 / (SD * jnp.tan(t)[:, None])
    close(paper.g, inverse_sigma * SD * sin(t) * df_dt)
    close(plain.g, SD * sin(t) * df_dt)
    close(twice.g, inverse_sigma**2 * SD * sin(t) * df_dt, 1e-8)
    # Twice weighs the loss; its target is the paper's.
    close(twice.loss, inverse_sigma[:, 0] * paper.loss, 1e-8)


@pytest.mark.parametrize("field", consistency._CHOICES)
def test_unknown_choices_are_errors(field):
    with pytest.raises(
        ValueError, match=rf"objective\.{field} = 'exakt' is not one of"
    ):
        Consistency(**{field: "exakt"})


@pytest.mark.parametrize("tangent", ["exact", "finite_difference"])
def test_tangent_dtype_reaches_the_tangent_s_pass_alone(tangent, float64_islands):
    """``F`` keeps the network's dtype; value and derivative in ``g`` have the other."""
    objective = Consistency(
        tangent=tangent, tangent_pass="separate", tangent_dtype="float32", **RAW
    )
    x = jnp.asarray([[0.9, -0.2]])
    time = trigflow.time_from_t(jnp.asarray([0.7]))
    seen = []

    def net(u, t, dtype="bfloat16"):
        seen.append(dtype)
        return jnp.sin(t)[:, None] * (3.0 if dtype == "float32" else 1.0) + 0 * u

    F, F_tangent, q_dF_dt = objective.value_and_tangent(net, x, 0 * x, time)
    q = np.cos(0.7) * np.sin(0.7)
    close(F, np.sin(0.7))
    close(F_tangent, 3 * np.sin(0.7))
    close(q_dF_dt, 3 * q * np.cos(0.7), 1e-4)
    assert seen.count("bfloat16") == 1


def test_one_pass_cannot_have_two_dtypes():
    with pytest.raises(ValueError, match=r"tangent_pass = 'separate'"):
        Consistency(tangent_dtype="float32")
