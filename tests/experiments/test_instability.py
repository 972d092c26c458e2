"""The instability laboratory: its configs, and what it measures."""

import pathlib
import types

import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import config as config_lib
from scm_jax.runs.setup import experiment
from scm_jax.sweeps.plan.sweep_file import load_module

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIGS, LAB = (
    load_module(str(ROOT / folder / "instability.py"))
    for folder in ("experiments", "benchmarks")
)


@pytest.mark.parametrize("variant", ["teacher", "sct"])
@pytest.mark.parametrize("network", CONFIGS.NETWORKS)
def test_each_variant_differs_from_the_paper_s_in_one_thing(variant, network):
    config = CONFIGS.get_config(f"{variant},network={network}")
    built = experiment.build(config)
    module = built.network.module
    assert (built.network.adapter is not None) == (network == "c_noise")
    assert (module.embedding == "fourier") == (network == "fourier16")
    assert (module.modulation == "adaptive") == (network == "adaln")
    config_lib.from_dict(config_lib.to_dict(config))


def test_tangents_of_students():
    for tangent in ("l2", "clip", "none"):
        c = CONFIGS.get_config(f"scd,tangent={tangent}")
        assert c.objective.tangent_normalization == tangent
        assert c.teacher.run == "runs/instability/teacher_trigflow" == c.init.run
    with pytest.raises(ValueError, match="'clip', 'l2', 'none'"):
        CONFIGS.get_config("scd,tangent=raw")
    with pytest.raises(ValueError, match="fourier16"):
        CONFIGS.get_config("scd,network=fourier")


def test_the_two_parts_of_the_tangent_are_those_of_a_known_function():
    """``F = a x + b t``: ``f = (cos t - sin t sd a / sd) x_t - sin t sd b t``."""
    a, b, sd = 0.7, 0.4, 0.5

    def apply(params, x, cond):
        return a * x + b * cond.t[:, None, None, None]

    info = types.SimpleNamespace(sigma_data=sd)
    loaded = types.SimpleNamespace(
        params=None,
        experiment=types.SimpleNamespace(
            network=types.SimpleNamespace(apply=apply),
            dataset=types.SimpleNamespace(info=info),
        ),
    )
    rng = np.random.default_rng(3)
    x = (sd * rng.standard_normal((16, 4, 4, 1))).astype(np.float32)
    found = LAB.derivative_parts(loaded, x, np.zeros(16, int))
    z = sd * np.random.default_rng(0).standard_normal(x.shape, np.float32)
    for t, (along_t, along_x) in zip(LAB.TIMES, found, strict=True):
        x_t = np.cos(t) * x + np.sin(t) * z
        dx_dt = a * x_t + sd * b * t
        d_t = -np.sin(t) * x_t - np.cos(t) * dx_dt - np.sin(t) * sd * b
        d_x = (np.cos(t) - np.sin(t) * a) * dx_dt
        expected = [np.sqrt(np.mean(part**2)) for part in (d_t, d_x)]
        np.testing.assert_allclose([along_t, along_x], expected, rtol=1e-4)
    assert jnp.isfinite(found).all() and LAB.TIMES[-1] < np.pi / 2
