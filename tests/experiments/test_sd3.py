"""Text to image at SD3's sizes: settings and cost; the network is tested elsewhere."""

import pathlib

import numpy as np
import pytest

from scm_jax.config import from_dict, objective_settings, to_dict
from scm_jax.runs import evaluate
from scm_jax.runs.estimate import describe
from scm_jax.runs.setup import experiment
from scm_jax.sweeps.plan.sweep_file import load_module

FILES = pathlib.Path(__file__).resolve().parents[2] / "experiments"
SD3 = load_module(str(FILES / "sd3.py"))


@pytest.mark.parametrize("model", SD3.MODELS)
@pytest.mark.parametrize("variant", SD3.VARIANTS)
def test_every_variant_and_size_can_be_built(model, variant):
    for more in ("", ",quick"):
        c = SD3.get_config(f"{variant},model={model}{more}")
        assert to_dict(from_dict(to_dict(c))) == to_dict(c)
        built = experiment.build_abstract(c)
        published = model in ("medium", "sd35_medium", "sd35_large")
        assert (built.network.adapter is not None) == published
        guided = "guidance" in built.network.consumes
        assert guided == (variant == "scd")


def test_students_have_the_settings_of_sana_sprint():
    c = SD3.get_config("scd,model=medium")
    assert c.train.batch_size == 512 and c.train.duration_images == 20_000 * 512
    assert c.optimizer.learning_rate == 2e-6
    assert objective_settings(c)["tangent_warmup_steps"] == 4_000
    # Its median time, from its own form: log(0.5 tan t) = 0.2.
    t = np.arctan(np.exp(0.2) / 0.5)
    ours = experiment.build_abstract(c).dataset.info.sigma_data
    assert np.arctan(np.exp(c.objective.P_mean) / ours) == pytest.approx(t)
    assert c.teacher.run == c.init.run == "runs/sd3_teacher_medium"


def test_cost_of_sd3_medium():
    """At 512x512 and 154 tokens: 0.90 T multiply-adds; guided sCD costs 2.04 steps."""
    c = SD3.get_config("scd,model=medium,resolution=512")
    c.network.update({"attention": "einsum", "remat": "none"})
    c.train.batch_size = 2
    found = describe.describe(c)
    assert found["forward_macs_per_image"] == pytest.approx(0.90e12, rel=0.005)
    # A layer from 1536 to 1536 for the guidance scale.
    assert found["parameters"] == 2_084_951_104 + 1536 * 1537
    assert found["train_macs_ratio_to_diffusion"] == pytest.approx(2.04, abs=0.01)


def test_a_row_says_on_which_grid_a_teacher_was_sampled():
    c = SD3.get_config("teacher,model=medium,quick")
    assert (c.sampling.sampler, c.sampling.shift) == ("ddim", 3.0)
    found = {}
    for sampler in ("ddim", "consistency"):
        c.sampling.sampler = sampler
        built = experiment.build_abstract(c)
        found[sampler] = evaluate.sampling_facts(built, evaluate.SamplingPoint(4))
    assert found["ddim"]["sampler"] == "ddim(shift=3.0)"
    assert found["consistency"]["sampler"] == "consistency"
