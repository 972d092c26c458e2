"""Networks of other processes: EDM, VP, rectified flow, any (alpha, sigma)."""

import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import trigflow
from scm_jax.datasets.synthetic import Gaussian

SD = 0.5
MIDDLE = np.array([0.02, 0.3, 0.8, 1.1, 1.4, 1.55])
SMALL = np.array([1e-4, 1e-3])
# The last two lie beyond sigma = 80.
LARGE = np.arctan(np.array([80.0, 300.0, 2000.0]) / SD)

# name -> (alpha, sigma) of x = alpha x0 + sigma eps, in numpy and by its definition.
PROCESSES = {
    "edm": lambda t: (np.ones_like(t), SD * np.tan(t)),
    "vp": lambda t: _normalized(np.cos(t), SD * np.sin(t), 2),
    "flow": lambda t: _normalized(np.cos(t), SD * np.sin(t), 1),
    "general": lambda t: (3.0 * np.cos(t), 3.0 * SD * np.sin(t)),
}
KINDS = {
    "x0": tuple(PROCESSES),
    "eps": tuple(PROCESSES),
    "edm": tuple(PROCESSES),
    "v": ("vp",),
    "flow": ("flow",),
}
CASES = [(kind, process) for kind, of in KINDS.items() for process in of]


def _normalized(a, b, power):
    norm = (a**power + b**power) ** (1 / power)
    return a / norm, b / norm


def _point(process, t):
    """A point of a process with all that can be predicted there, in numpy float64."""
    rng = np.random.default_rng(1)
    x0 = 0.7 + 0.3 * rng.normal(size=(len(t), 3))
    eps = rng.normal(size=(len(t), 3))
    alpha, sigma = PROCESSES[process](t)
    a, b = alpha[:, None], sigma[:, None]
    F = (np.cos(t)[:, None] * SD * eps - np.sin(t)[:, None] * x0) / SD
    predictions = {
        "x0": x0,
        "eps": eps,
        "edm": -F,
        "v": a * eps - b * x0,
        "flow": eps - x0,
    }
    x_t = np.cos(t)[:, None] * x0 + np.sin(t)[:, None] * SD * eps
    return a * x0 + b * eps, alpha, sigma, x_t, F, predictions


def test_every_prediction_is_tested():
    assert set(KINDS) == set(trigflow.PREDICTIONS)


@pytest.mark.parametrize("process", PROCESSES)
def test_points_and_times_of_all_processes(process, float64):
    t = np.concatenate([SMALL, MIDDLE, LARGE])
    x, alpha, sigma, x_t, _, _ = _point(process, t)
    got, time = trigflow.to_trigflow(jnp.asarray(x), alpha, sigma, SD)
    np.testing.assert_allclose(got, x_t, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(time.t, t, rtol=1e-12)
    np.testing.assert_allclose(time.cos, np.cos(t), rtol=1e-10)
    np.testing.assert_allclose(time.sin, np.sin(t), rtol=1e-12)
    back = trigflow.from_trigflow(got, alpha, sigma, SD)
    np.testing.assert_allclose(back, x, rtol=1e-12)


@pytest.mark.parametrize("process", ["edm", "vp", "flow"])
def test_coefficients_of_named_processes(process, float64):
    t = np.concatenate([SMALL, MIDDLE, LARGE])
    function = {
        "edm": trigflow.edm_coefficients,
        "vp": trigflow.vp_coefficients,
        "flow": trigflow.rectified_flow_coefficients,
    }[process]
    for actual, expected in zip(function(t, SD), PROCESSES[process](t), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-12)


@pytest.mark.parametrize(("kind", "process"), CASES)
def test_predictions_there_and_back_in_float64(kind, process, float64):
    x, alpha, sigma, _, F, predictions = _point(process, MIDDLE)
    got = trigflow.F_from_prediction(
        jnp.asarray(predictions[kind]), kind, jnp.asarray(x), alpha, sigma, SD
    )
    # x0 and eps are divided by sin t and cos t, at least 0.02 here.
    tolerance = 1e-11 if kind in ("x0", "eps") else 1e-12
    np.testing.assert_allclose(got, F, rtol=tolerance, atol=tolerance)
    back = trigflow.prediction_from_F(
        jnp.asarray(F), kind, jnp.asarray(x), alpha, sigma, SD
    )
    np.testing.assert_allclose(back, predictions[kind], rtol=1e-12, atol=1e-12)


def _float32(*arrays):
    return [jnp.asarray(a, jnp.float32) for a in arrays]


# Which predictions hold F at which end: eps alone does not near pi/2, x0 not near 0.
ENDS = [
    ("eps", "edm", SMALL),
    ("eps", "vp", SMALL),
    ("x0", "vp", LARGE),
    ("x0", "flow", LARGE),
    ("edm", "edm", SMALL),
    ("edm", "edm", LARGE),
    ("v", "vp", SMALL),
    ("v", "vp", LARGE),
    ("flow", "flow", SMALL),
    ("flow", "flow", LARGE),
]


@pytest.mark.parametrize(("kind", "process", "t"), ENDS)
def test_predictions_in_float32_at_the_ends(kind, process, t):
    x, alpha, sigma, _, F, predictions = _point(process, t)
    x, alpha, sigma, prediction = _float32(x, alpha, sigma, predictions[kind])
    got = trigflow.F_from_prediction(prediction, kind, x, alpha, sigma, SD)
    assert got.dtype == jnp.float32
    # A handful of roundings of numbers up to max |F|, some doubled by 1/sigma_data.
    tolerance = 16 * np.finfo(np.float32).eps * np.abs(F).max()
    np.testing.assert_allclose(got, F, rtol=0, atol=tolerance)
    back = trigflow.prediction_from_F(*_float32(F), kind, x, alpha, sigma, SD)
    np.testing.assert_allclose(back, predictions[kind], rtol=0, atol=2 * tolerance)


def test_edm_differs_by_its_sign_alone(float64):
    """EDM's own preconditioning around the exact denoiser of Gaussian data."""
    data = Gaussian(mean=(0.7, -0.4), std=0.3)
    sigma = np.array([0.002, 0.1, 0.98, 5.0, 80.0])
    b = sigma[:, None]
    x = np.random.default_rng(2).normal(size=(5, 2)) * np.hypot(b, SD) + 0.7
    # arXiv 2206.00364: D = c_skip x + c_out F_EDM(c_in x).
    D = (data.std**2 * x + b**2 * np.array([data.mean])) / (data.std**2 + b**2)
    c_skip, c_out = SD**2 / (b**2 + SD**2), b * SD / np.hypot(b, SD)
    c_in = 1 / np.hypot(b, SD)
    F_edm = (D - c_skip * x) / c_out

    x_t, time = trigflow.to_trigflow(jnp.asarray(x), jnp.ones(5), sigma, SD)
    np.testing.assert_allclose(x_t / SD, c_in * x, rtol=1e-12)
    F = trigflow.F_from_prediction(
        jnp.asarray(F_edm), "edm", jnp.asarray(x), jnp.ones(5), sigma, SD
    )
    np.testing.assert_allclose(SD * F, data.velocity(x_t, time, SD), rtol=1e-9)
    np.testing.assert_allclose(trigflow.D_from_F(x_t, F, time, SD), D, rtol=1e-9)
    # At t_max the denoiser is -sigma_data F, up to cos t_max = 0.00625.
    np.testing.assert_allclose(D[-1], -SD * F[-1], atol=0.01)


def test_v_prediction_of_vp_is_F_for_data_of_unit_variance(float64):
    t = jnp.asarray(MIDDLE)
    rng = np.random.default_rng(3)
    v, x = (jnp.asarray(rng.normal(size=(6, 3))) for _ in range(2))
    F = trigflow.F_from_prediction(v, "v", x, jnp.cos(t), jnp.sin(t), 1.0)
    np.testing.assert_allclose(F, v, rtol=1e-12)


def test_rectified_flow_of_unit_variance_in_its_closed_form(float64):
    """Prop. 3.1 of SANA-Sprint (arXiv 2503.09641)."""
    s = np.array([0.01, 0.3, 0.5, 0.9, 0.999])
    b = s[:, None]
    rng = np.random.default_rng(4)
    u, x = rng.normal(size=(2, 5, 3))
    n = np.hypot(b, 1 - b)
    expected = ((1 - 2 * b) * x + (1 - 2 * b + 2 * b**2) * u) / n
    F = trigflow.F_from_prediction(
        jnp.asarray(u), "flow", jnp.asarray(x), 1 - s, s, 1.0
    )
    np.testing.assert_allclose(F, expected, rtol=1e-11)
    _, time = trigflow.to_trigflow(jnp.asarray(x), 1 - s, s, 1.0)
    np.testing.assert_allclose(time.t, np.arctan2(s, 1 - s), rtol=1e-12)


def test_unknown_predictions_are_errors():
    x = jnp.ones((1, 2))
    for function in (trigflow.F_from_prediction, trigflow.prediction_from_F):
        with pytest.raises(ValueError, match=r"'noise' is not one of \('x0', 'eps'"):
            function(x, "noise", x, jnp.ones(1), jnp.ones(1), SD)
