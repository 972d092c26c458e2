"""Networks of other processes: EDM, VP, rectified flow, any (alpha, sigma)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import trigflow
from scm_jax.trigflow.exact import Gaussian
from scm_jax.types import Cond

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
        with pytest.raises(ValueError, match=r"'noise' is not one of \['edm', 'eps'"):
            function(x, "noise", x, jnp.ones(1), jnp.ones(1), SD)


# --- Networks in EDM's parameterization -----------------------------------------------

MEAN, STD = np.array([0.7, -0.4, 0.1]), 0.3
# float32(pi/2) lies above pi/2.
ENDS_AND_MIDDLE = np.array([0.0, 1e-4, 0.3, 1.1, trigflow.t_max(SD), np.pi / 2])


def edm_denoiser(x, sigma):
    """``E[x0 | x0 + sigma eps = x]`` of Gaussian data."""
    return (STD**2 * x + sigma**2 * MEAN[None]) / (STD**2 + sigma**2)


def exact_edm_network(params, x, cond, *, train=False, key=None, dtype=None):
    """``F_EDM`` of that denoiser, by EDM's own preconditioning (its Table 1)."""
    sigma = jnp.exp(4.0 * cond.t)[:, None]  # c_noise = log(sigma)/4
    total = jnp.hypot(sigma, SD)
    c_skip, c_out, c_in = SD**2 / total**2, sigma * SD / total, 1 / total
    noisy = x / c_in
    return params * (edm_denoiser(noisy, sigma) - c_skip * noisy) / c_out


def test_edm_network_keeps_its_denoiser(float64):
    """``D_EDM(x_sigma) = cos t x_t - sin t sigma_data F`` (trap 4)."""
    fn = trigflow.from_edm(exact_edm_network, SD)
    sigma = np.array([0.002, 0.1, 0.98, 5.0, 80.0])[:, None]
    x_sigma = MEAN + np.hypot(sigma, STD) * np.random.default_rng(5).normal(size=(5, 3))
    time = trigflow.time_from_sigma(jnp.asarray(sigma[:, 0]), SD)
    x_t = jnp.asarray(x_sigma) * time.cos[:, None]
    F = fn(1.0, x_t / SD, Cond(t=time.t))
    D = trigflow.D_from_F(x_t, F, time, SD)
    np.testing.assert_allclose(D, edm_denoiser(x_sigma, sigma), rtol=0, atol=1e-9)
    data = Gaussian(mean=tuple(MEAN), std=STD)
    np.testing.assert_allclose(SD * F, data.velocity(x_t, time, SD), rtol=1e-7)


def test_edm_network_in_float32_at_all_times():
    """Where EDM's own formulas lose digits: at 0, at ``t_max`` and at pi/2."""
    fn = trigflow.from_edm(exact_edm_network, SD)
    t = jnp.asarray(ENDS_AND_MIDDLE, jnp.float32)
    x_t = np.random.default_rng(6).normal(size=(6, 3)).astype(np.float32) * SD

    @jax.jit
    def denoise(x_t, t):
        time = trigflow.time_from_t(t)
        return trigflow.D_from_F(x_t, fn(1.0, x_t / SD, Cond(t=t)), time, SD)

    cos, sin = np.cos(ENDS_AND_MIDDLE)[:, None], np.sin(ENDS_AND_MIDDLE)[:, None]
    V = STD**2 * cos**2 + SD**2 * sin**2
    exact = MEAN + STD**2 * cos / V * (x_t - cos * MEAN)
    got = denoise(x_t, t)
    np.testing.assert_allclose(got[2:4], exact[2:4], rtol=0, atol=1e-6)
    # Beyond c_noise is clipped, and 1e-4 is left of 9 digits by x_sigma = x_t / cos t.
    np.testing.assert_allclose(got, exact, rtol=0, atol=2e-5)


def test_edm_time_and_its_slope():
    """``c_noise = log(sigma)/4``; ``sin t`` times its slope is ``1/(4 cos t)``."""
    t = jnp.asarray(ENDS_AND_MIDDLE, jnp.float32)
    c_noise, slope = jax.jvp(
        lambda t: trigflow.edm_c_noise(t, SD), (t,), (jnp.ones_like(t),)
    )
    assert np.all(np.isfinite(c_noise)) and np.all(np.isfinite(slope))
    assert np.all(np.diff(c_noise) > 0)
    inner = ENDS_AND_MIDDLE[1:5]
    expected = np.log(SD * np.tan(inner)) / 4
    np.testing.assert_allclose(c_noise[1:5], expected, rtol=1e-5)
    assert float(c_noise[4]) == pytest.approx(np.log(80.0) / 4, rel=1e-5)
    scaled = np.sin(inner) * np.asarray(slope[1:5])
    # 1/cos(t_max) = 160: the instability of Sec. 4.1.
    np.testing.assert_allclose(scaled, 1 / (4 * np.cos(inner)), rtol=1e-4)
    assert scaled[-1] == pytest.approx(40.0, rel=1e-3)


def test_derivatives_through_an_edm_network_are_finite_at_all_times():
    """Value, tangent and the gradient of a consistency step, ends included."""

    def edm_network(params, x, cond, **kwargs):
        return jnp.sin(params * x + cond.t[:, None]) + jnp.exp(-jnp.square(x))

    fn = trigflow.from_edm(edm_network, SD)
    t = jnp.asarray(ENDS_AND_MIDDLE, jnp.float32)
    x, dx = np.random.default_rng(7).normal(size=(2, 6, 3)).astype(np.float32)

    @jax.jit
    @jax.vmap
    def run(x, t, dx):
        def loss(params):
            def F(x, t):
                return fn(params, x[None], Cond(t=t[None]))[0]

            F_value, dF_dt = jax.jvp(F, (x, t), (dx, jnp.ones_like(t)))
            target = jax.lax.stop_gradient(F_value - dF_dt)
            return jnp.sum((F_value - target) ** 2), (F_value, dF_dt)

        return jax.grad(loss, has_aux=True)(jnp.float32(0.8))

    gradient, (F_value, dF_dt) = run(x, t, dx)
    for name, values in {"g": gradient, "F": F_value, "dF_dt": dF_dt}.items():
        assert np.all(np.isfinite(values)), name
        assert np.all(np.abs(values) > 0), name


def test_edm_adapter_changes_time_and_sign_alone():
    """Input, other conditions and options go through; ``F = -F_EDM``."""
    seen = {}

    def edm_network(params, x, cond, **options):
        seen.update(params=params, x=x, cond=cond, options=options)
        return 2.0 * x

    x, t = jnp.ones((2, 3)), jnp.asarray([0.3, 1.1])
    cond = Cond(t=t, label=jnp.asarray([1, 2]), guidance=jnp.asarray([1.5, 2.5]))
    fn = trigflow.from_edm(edm_network, SD)
    F = fn("weights", x, cond, train=True, key="key")
    np.testing.assert_array_equal(F, -2.0 * x)
    assert seen["params"] == "weights" and seen["x"] is x
    assert seen["options"] == {"train": True, "key": "key"}
    assert seen["cond"].label is cond.label and seen["cond"].guidance is cond.guidance
    expected = np.log(SD * np.tan(np.asarray(t, np.float64))) / 4
    np.testing.assert_allclose(seen["cond"].t, expected, rtol=0, atol=1e-7)
    assert trigflow.PARAMETERIZATIONS["edm"] is trigflow.from_edm
