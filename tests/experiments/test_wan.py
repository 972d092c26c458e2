"""Text to video at Wan's sizes: settings and cost; the network is tested elsewhere."""

import pathlib

import numpy as np
import pytest

from scm_jax.config import from_dict, objective_settings, to_dict
from scm_jax.runs.estimate import describe
from scm_jax.runs.sample import load_run
from scm_jax.runs.setup import experiment
from scm_jax.runs.train import train_and_evaluate
from scm_jax.sweeps.plan.sweep_file import load_module
from tests.runs.untrained import write_run

FILES = pathlib.Path(__file__).resolve().parents[2] / "experiments"
WAN = load_module(str(FILES / "wan.py"))


@pytest.mark.parametrize("model", sorted(WAN.P_MEAN))
@pytest.mark.parametrize("variant", WAN.VARIANTS)
def test_every_variant_and_size_can_be_built(model, variant):
    for more in ("", ",size=720p", ",quick"):
        c = WAN.get_config(f"{variant},model={model}{more}")
        assert to_dict(from_dict(to_dict(c))) == to_dict(c)
        built = experiment.build_abstract(c)
        assert built.network.adapter is not None and c.mesh.sequence
        guided = "guidance" in built.network.consumes
        assert guided == (variant == "scd")
        assert built.dataset.info.frame_rate == 16.0


def test_students_have_the_settings_of_rcm():
    c = WAN.get_config("scd,model=1p3b")
    assert c.train.batch_size == 256 and c.train.duration_images == 10_000 * 256
    assert (c.optimizer.learning_rate, c.optimizer.b1) == (2e-6, 0.0)
    assert objective_settings(c)["tangent_warmup_steps"] == 1_000
    assert c.teacher.run == c.init.run == "runs/wan_teacher_1p3b"
    # In rCM's text the noise level has the median e^-0.8 sqrt(21).
    assert np.log(21) / 2 - 0.8 == pytest.approx(c.objective.P_mean, abs=0.03)


def test_cost_of_wan_1p3b():
    """32,760 tokens and 512 of the caption, whose keys and values cost once."""
    c = WAN.get_config("scd,model=1p3b")
    c.network.update({"attention": "einsum", "remat": "none"})
    c.train.batch_size = 1
    found = describe.describe(c)
    n, m, w, ff, depth = 21 * 30 * 52, 512, 1536, 8960, 30
    block = n * (4 * w**2 + 2 * w * ff + 2 * n * w + 2 * w**2 + 2 * m * w)
    once = m * (4096 * w + w**2 + depth * 2 * w**2)
    expected = depth * block + once + 2 * n * 64 * w
    assert found["forward_macs_per_image"] == pytest.approx(expected, rel=1e-3)
    # A layer from 1536 to 1536 for the guidance scale.
    assert found["parameters"] == 1_418_996_800 + 1536 * 1537
    # More than two: attention, whose tangent costs 5/3, is most of it.
    assert found["train_macs_ratio_to_diffusion"] == pytest.approx(2.233, abs=5e-3)


def test_a_quick_student_of_a_teacher_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teacher = WAN.get_config("teacher,quick")
    write_run(tmp_path / "runs" / teacher.name, teacher)
    c = WAN.get_config("scd,quick")
    train_and_evaluate(c, f"runs/{c.name}")
    samples = load_run(f"runs/{c.name}").sample(2)
    assert samples.pixels.shape == (2, 3, 8, 8, 3) and samples.rate == 16.0
