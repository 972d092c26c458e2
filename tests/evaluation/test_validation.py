"""Errors at fixed data, noise and times, where the right number is known."""

import dataclasses
import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import objectives, sampling, trigflow
from scm_jax.evaluation import (
    MapResiduals,
    MixtureConsistency,
    Subject,
    TeacherTrajectory,
    Validation,
)
from scm_jax.evaluation.validation import exact_consistency
from scm_jax.trigflow.exact import Gaussian, GaussianMixture
from scm_jax.types import Cond

# The sampler and the paths of a teacher are two programs.
pytestmark = pytest.mark.usefixtures("optimized")

SIGMA_DATA = 0.5
MIXTURE = GaussianMixture(weights=(0.4, 0.6), means=((-0.5,), (0.4,)), stds=(0.1, 0.2))
GAUSSIAN = Gaussian(mean=(0.25, -0.15), std=0.3)


# --- Against the exact map ------------------------------------------------------------


def with_error(error, data=GAUSSIAN):
    """A student that misses the exact map of ``data`` by ``error(x_t, t)``."""

    def f(x_t, t, label):
        time = trigflow.time_from_t(t)
        return exact_consistency(data, x_t, time, SIGMA_DATA) + error(x_t, t)

    return Subject(sigma_data=SIGMA_DATA, f=f, closed_form=data)


def test_a_map_is_compared_where_it_ends():
    """``map_rmse`` is that of X_{t->s}; a map with another end is wrong."""
    evaluator = MixtureConsistency(num_times=12, num_points=64)
    found = {}
    for name, shift in (("exact", 0.0), ("early", 0.1)):

        def X(x_t, t, s, label, shift=shift):
            end = trigflow.time_from_t(s.t * (1 - shift))
            return MIXTURE.flow(x_t, t, end, SIGMA_DATA)

        subject = dataclasses.replace(
            with_error(lambda x, t: 0 * x, MIXTURE), flow_map=X
        )
        found[name] = evaluator(subject)
    assert found["exact"]["map_rmse"] < 1e-5 < 1e-3 < found["early"]["map_rmse"]
    assert found["early"]["consistency_rmse"] == found["exact"]["consistency_rmse"]
    assert "map_rmse" not in evaluator(with_error(lambda x, t: 0 * x))


def test_map_residuals_are_means_over_pairs_of_times():
    """Each time has ends at 0, 1/4, 1/2 and 3/4 of it; data and noise are fixed."""
    seen = []

    def residuals(x0, z, t, s, cond):
        seen.append((t.t[0], s.t[0], z[0, 0]))
        return {"eulerian": z[:, 0] ** 2 + s.t, "semigroup": 0 * s.t}

    subject = Subject(
        sigma_data=SIGMA_DATA,
        batch=lambda num, seed: (np.zeros((num, 2), np.float32), None),
        map_residuals=residuals,
    )
    found = MapResiduals(num_times=5, num_points=4096)(subject)
    times, ends, noise = np.asarray(seen).T
    assert len(set(times.tolist())) == 5 and len(set(noise.tolist())) == 1
    np.testing.assert_allclose((ends / times).reshape(5, 4)[2], [0, 0.25, 0.5, 0.75])
    np.testing.assert_allclose(np.unique(times), np.sort(quantile_times(5)), rtol=1e-6)
    expected = SIGMA_DATA**2 + ends.mean()
    assert found["eulerian_error"] == pytest.approx(expected, rel=0.02)
    assert found["semigroup_error"] == 0.0
    with pytest.raises(ValueError, match="map residuals needs Subject.map_residuals"):
        MapResiduals()(Subject(sigma_data=SIGMA_DATA))


def test_exact_map_has_no_error_and_a_planted_one_is_found():
    evaluator = MixtureConsistency(num_times=16, num_points=64)
    metrics = evaluator(with_error(lambda x_t, t: 0 * x_t, MIXTURE))
    # t carries an absolute error of float32 epsilon, and f has slopes of a few units.
    assert metrics["consistency_rmse"] < 1e-5
    assert metrics["one_step_rmse"] < 1e-5
    assert metrics["num_samples"] == 16 * 64
    signs = 0.03 * np.where(np.arange(64) % 2, 1, -1)[:, None]
    metrics = evaluator(with_error(lambda x_t, t: signs, MIXTURE))
    assert metrics["consistency_rmse"] == pytest.approx(0.03, rel=1e-4)
    assert metrics["one_step_rmse"] == pytest.approx(0.03, rel=1e-4)
    # A mean over elements.
    error = np.array([[0.06, 0.0]], np.float32)
    metrics = evaluator(with_error(lambda x_t, t: error))
    assert metrics["consistency_rmse"] == pytest.approx(0.06 / np.sqrt(2), rel=1e-4)


@pytest.mark.parametrize("P_mean, P_std", [(-1.0, 1.4), (-0.4, 2.0)])
def test_times_follow_the_proposal(P_mean, P_std):
    """An error above the 84 % quantile of ``sigma = sigma_data tan t`` weighs 16 %."""
    threshold = np.arctan(np.exp(P_mean + P_std) / SIGMA_DATA)
    evaluator = MixtureConsistency(P_mean, P_std, num_times=200, num_points=64)
    metrics = evaluator(with_error(lambda x_t, t: 0.1 * (t[:, None] > threshold)))
    assert metrics["consistency_rmse"] ** 2 == pytest.approx(
        0.01 * 0.158655, abs=0.01 / 200
    )


def test_points_follow_the_noised_data():
    """The mean square of ``x_t``, here planted as the error, has a closed form."""
    evaluator = MixtureConsistency(num_times=32, num_points=2048)
    metrics = evaluator(with_error(lambda x_t, t: x_t))
    eps = np.linspace(-6, 6, 4001)
    weight = np.exp(-0.5 * eps**2) / np.exp(-0.5 * eps**2).sum()
    t = np.arctan(np.exp(-1.0 + 1.4 * eps) / SIGMA_DATA)
    data = 0.3**2 + (0.25**2 + 0.15**2) / 2
    square = np.cos(t) ** 2 * data + np.sin(t) ** 2 * SIGMA_DATA**2
    expected = np.sqrt((square * weight).sum())
    assert metrics["consistency_rmse"] == pytest.approx(expected, rel=0.01)
    assert metrics["one_step_rmse"] == pytest.approx(SIGMA_DATA, rel=0.05)


def test_student_is_compiled_once():
    traces = []

    @jax.jit
    def student(x_t, t, label):
        traces.append((x_t.shape, t.shape))
        time = trigflow.time_from_t(t)
        return trigflow.f_from_F(x_t, 0 * x_t, time, SIGMA_DATA)

    subject = Subject(sigma_data=SIGMA_DATA, f=student, closed_form=GAUSSIAN)
    metrics = MixtureConsistency(num_times=5, num_points=16)(subject)
    assert traces == [((16, 2), (16,))]
    assert metrics["consistency_rmse"] > 0.05


# --- What an objective makes small ----------------------------------------------------


def exact_F(x, cond):
    return GAUSSIAN.velocity(x * SIGMA_DATA, cond.t, SIGMA_DATA) / SIGMA_DATA


def student_F(slope, x, cond):
    """``F`` of a student whose ``f`` is the exact map plus ``slope * t``."""
    time, x_t = trigflow.time_from_t(cond.t), x * SIGMA_DATA
    f = GAUSSIAN.consistency(x_t, time, SIGMA_DATA) + slope * cond.t[:, None]
    return trigflow.F_from_f(x_t, f, time, SIGMA_DATA)


def validation_subject(net, teacher=None, objective="diffusion", **settings):
    """A network without parameters under an objective, on Gaussian data."""
    objective = objectives.build(objective, sigma_data=SIGMA_DATA, **settings)

    @jax.jit
    def errors(x0, z, time, label):
        cond = Cond(t=time.t, label=label)
        error = objective.validation_error(net, x0, z, time, cond, teacher)
        x_t = trigflow.interpolate(x0, z, time)
        F = net(x_t / SIGMA_DATA, cond)
        f = trigflow.f_from_F(x_t, F, time, SIGMA_DATA)
        return error, jnp.square(f - x0).mean(axis=-1)

    def batch(num, seed):
        x0 = GAUSSIAN.sample(np.random.default_rng([seed, 1]), num)
        return jnp.asarray(x0), None

    return Subject(sigma_data=SIGMA_DATA, batch=batch, validation_error=errors)


def quantile_times(num_times, mean=-1.0, std=1.4):
    """Times of equally likely noise levels, without the evaluator's code."""
    levels = [(i + 0.5) / num_times for i in range(num_times)]
    normal = statistics.NormalDist(mean, std)
    return np.arctan(np.exp([normal.inv_cdf(p) for p in levels]) / SIGMA_DATA)


def test_exact_diffusion_leaves_the_variance_of_the_velocity():
    """Var(v_t | x_t) = s^2 sigma_data^2 / (s^2 cos^2 + sigma_data^2 sin^2)."""
    evaluator = Validation(num_times=8, num_points=4096, batch_size=4096)
    metrics = evaluator(validation_subject(exact_F))
    t = quantile_times(8)
    variance = 0.09 * 0.25 / (0.09 * np.cos(t) ** 2 + 0.25 * np.sin(t) ** 2)
    by_time = metrics["validation_error_by_time"]
    # Means of 8,192 squares of normal numbers.
    np.testing.assert_allclose(by_time, variance, rtol=5 * np.sqrt(2 / 8192))
    assert metrics["validation_error"] == pytest.approx(np.mean(by_time), rel=1e-12)
    # The denoiser misses x0 by sin(t) times what the velocity misses.
    guess = (np.sin(t) ** 2 * variance).mean()
    assert metrics["denoising_error"] == pytest.approx(guess, rel=0.03)


def test_distillation_error_is_the_derivative_along_the_path():
    settings = {"dx_dt": "teacher", "tangent_norm_eps": 3.0}
    evaluator = Validation(num_times=8, num_points=64)
    for slope in (0.0, 0.7):
        net = functools.partial(student_F, slope)
        metrics = evaluator(validation_subject(net, exact_F, "consistency", **settings))
        expected = slope**2 * np.cos(quantile_times(8)) ** 2
        by_time = metrics["validation_error_by_time"]
        np.testing.assert_allclose(by_time, expected, rtol=1e-3, atol=1e-6)


def test_validation_ignores_how_an_objective_is_stabilized():
    net = functools.partial(student_F, 0.3)
    changed = {
        "tangent_normalization": "clip",
        "tangent_warmup_steps": 5,
        "tangent_warmup_form": "rcm",
        "prior_weighting": "none",
        "tangent": "finite_difference",
        "P_mean": 0.4,
    }
    plain, other = (
        Validation(num_times=4, num_points=32)(
            validation_subject(net, objective="consistency", **settings)
        )
        for settings in ({}, changed)
    )
    assert plain["validation_error"] > 0
    assert plain == other


def test_validation_is_the_same_in_parts():
    subject = validation_subject(exact_F)
    whole = Validation(num_times=3, num_points=64, batch_size=64)(subject)
    parts = Validation(num_times=3, num_points=64, batch_size=16)(subject)
    assert parts["validation_error"] == pytest.approx(
        whole["validation_error"], rel=1e-6
    )
    assert parts["validation_points"] == whole["validation_points"] == 192


def test_errors_that_are_not_finite_are_refused():
    subject = validation_subject(lambda x, cond: x * jnp.nan)
    with pytest.raises(ValueError, match="not finite"):
        Validation(num_times=2, num_points=8)(subject)


# --- Along a teacher's paths ----------------------------------------------------------


def solve(solver, num, steps, seed):
    grid = sampling.make_grid("heun", steps, SIGMA_DATA)

    @jax.jit
    def run(keys):
        cond = Cond(t=jnp.zeros((num,)))
        problem = sampling.Problem(exact_F, keys, cond, grid, (2,), SIGMA_DATA)
        return solver(problem)

    return grid, run(sampling.sample_keys(seed, np.arange(num)))


@functools.cache
def exact_paths(num, steps, seed):
    return *solve(sampling.heun_path, num, steps, seed), None


def test_a_perfect_student_takes_every_point_to_the_end_of_its_path():
    evaluator = TeacherTrajectory(teacher_steps=64, num_paths=32)
    perfect = dataclasses.replace(
        with_error(lambda x_t, t: 0 * x_t), teacher_paths=exact_paths
    )
    # What is left is the error of 64 Heun steps.
    assert evaluator(perfect)["trajectory_rmse"] < 3e-3
    shifted = dataclasses.replace(perfect, f=with_error(lambda x_t, t: 0.2 + 0 * x_t).f)
    metrics = evaluator(shifted)
    assert metrics["trajectory_rmse"] == pytest.approx(0.2, rel=0.02)
    assert metrics["trajectory_one_step_rmse"] == pytest.approx(0.2, rel=0.02)


def test_one_step_is_measured_from_the_noise_alone():
    def late(x_t, t):
        return 0.3 * (t[:, None] > 1.55) + 0 * x_t

    subject = dataclasses.replace(with_error(late), teacher_paths=exact_paths)
    metrics = TeacherTrajectory(teacher_steps=64, num_paths=32)(subject)
    assert metrics["trajectory_one_step_rmse"] == pytest.approx(0.3, rel=0.02)
    assert metrics["trajectory_rmse"] < 0.15


def test_paths_end_where_the_sampler_does():
    _, states, _ = exact_paths(32, 64, 0)
    _, end = solve(sampling.heun_sample, 32, 64, 0)
    assert states.shape == (65, 32, 2)
    np.testing.assert_allclose(states[-1], end, rtol=1e-5)
    keys = sampling.sample_keys(0, np.arange(32))
    start = sampling.sample_noise(keys, 0, (2,), SIGMA_DATA)
    np.testing.assert_array_equal(states[0], start)
