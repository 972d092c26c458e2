"""Text to sound at MeanAudio's sizes: settings, cost, a quick step."""

import pathlib

import jax
import numpy as np
import pytest

from scm_jax.config import from_dict, to_dict
from scm_jax.runs.estimate import describe
from scm_jax.runs.setup import experiment, parts
from scm_jax.sweeps.plan.sweep_file import load_module

FILES = pathlib.Path(__file__).resolve().parents[2] / "experiments"
AUDIO = load_module(str(FILES / "audio_latents.py"))


@pytest.mark.parametrize("variant", AUDIO.VARIANTS)
def test_every_variant_and_size_can_be_built(variant):
    for more in ("", ",size=480m", ",quick"):
        c = AUDIO.get_config(f"{variant}{more}")
        assert to_dict(from_dict(to_dict(c))) == to_dict(c)
        built = experiment.build_abstract(c)
        assert {"context", "pooled"} <= built.network.consumes
        guided = "guidance" in built.network.consumes
        assert guided == (variant == "scd")
        assert built.dataset.info.to_pixels is None  # latents of sound are no images


def test_students_have_the_times_of_the_paper_in_our_units():
    """-0.8 is for latents with a standard deviation of 0.5; the noise has 1."""
    c = AUDIO.get_config("scd")
    sigma_data = experiment.build_abstract(c).dataset.info.sigma_data
    t = np.arctan(np.exp(-0.8) / 0.5)
    assert np.arctan(np.exp(c.objective.P_mean) / sigma_data) == pytest.approx(t)
    assert AUDIO.get_config("scd,data=x").objective.P_mean == pytest.approx(-0.8)
    assert c.teacher.run == c.init.run == "runs/audio_teacher_120m"


def test_cost_of_480m():
    c = AUDIO.get_config("teacher,size=480m")
    c.train.batch_size = 1
    found = describe.describe(c)
    n, m, w, depth = 216, 77, 1024, 21
    block = n * (14 * w**2 + 2 * n * w + 2 * m * w) + 6 * w**2 + m * 1024 * 2 * w
    ends = 2 * n * 64 * w + 4 * w**2 + 512 * w
    assert found["forward_macs_per_image"] == pytest.approx(depth * block + ends, 1e-3)
    assert found["parameters"] == 489_663_552
    assert f"{found['parameters']:,}" in AUDIO.__doc__


@pytest.mark.parametrize("variant", AUDIO.VARIANTS)
def test_quick_steps_have_the_shapes_of_the_state(variant):
    built = experiment.build_abstract(AUDIO.get_config(f"{variant},quick"))
    state = jax.eval_shape(built.init_state, built.abstract_params())
    teacher = built.teacher and parts.abstract_init(built.teacher.network)
    step, batch = built.train_step(), built.example_batch(8)
    after, metrics = jax.eval_shape(step, state, batch, teacher)
    shapes = [jax.tree.map(lambda a: a.shape, tree) for tree in (after, state)]
    assert shapes[0] == shapes[1] and metrics["loss"].shape == ()
