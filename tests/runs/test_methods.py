"""Every method by its name: what it costs, that it runs, resumes and is measured."""

import json

import numpy as np
import pytest

from scm_jax.config import base_config, shrink
from scm_jax.objectives.presets import PRESETS
from scm_jax.runs import evaluate, sample, train
from scm_jax.runs.estimate import describe
from scm_jax.runs.setup import experiment
from scm_jax.sweeps.plan.sweep_file import load_module

# Training cost over a diffusion step of the same network: one forward pass is 1/3, a
# backward pass 2/3 (methods.md, section 2; of a student's update for two players).
COSTS = {
    "sct": 4 / 3,
    "scd": 5 / 3,
    "cd": 2.0,
    "ict": 4 / 3,
    "ect": 4 / 3,
    "meanflow": 4 / 3,
    "imf": 5 / 3,
    "emd": 5 / 3,
    "lmd": 5 / 3,
    "lsd": 4 / 3,  # 3/4 of the rows cost 1, the others 7/3
    "psd": 7 / 6,  # two further passes for the target of a map row
    "shortcut": 13 / 12,
    "dmd2": 25 / 3,
    "scd_vsd": 14 / 3,
}
TAUGHT = {"source": "run", "run": "runs/none"}


def costly(name, **changes):
    """A config whose network is wide enough for its embeddings to cost nothing."""
    c = base_config("mlp", name, "mixture")
    c.network.width, c.network.depth = 64, 8
    if PRESETS[name].taught:
        c.teacher.update(TAUGHT)
    for key, value in changes.items():
        c.objective[key] = value
    return c


@pytest.mark.parametrize("name", COSTS)
def test_the_cost_of_a_method_is_that_of_its_passes(name):
    c = costly(name)
    found = describe.describe(c)
    ratio = found["train_macs_ratio_to_diffusion"] * c.critic.student_every
    assert ratio == pytest.approx(COSTS[name], rel=0.03)
    roles = found["train_macs_by_role"]
    assert sum(roles.values()) == found["train_macs_per_image"]
    assert ("teacher" in roles) == PRESETS[name].taught
    assert ("critic_training" in roles) == name.endswith(("vsd", "dmd2"))
    if name == "scd_vsd":  # value, tangent and samples; sCD's velocity and VSD's score
        forward = roles["forward"]
        np.testing.assert_allclose(roles["backward"] / forward, 4 / 3, rtol=0.03)
        np.testing.assert_allclose(roles["teacher"] / forward, 2 / 3, rtol=0.03)
        np.testing.assert_allclose(roles["critic"] / forward, 1 / 3, rtol=0.03)
        np.testing.assert_allclose(roles["critic_training"], 4 / 3 * forward, rtol=0.03)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"omega": 2.0}, 5 / 3),
        ({"omega": 0.2, "kappa": 0.92}, 2.0),
        ({"tangent_velocity": "own", "guidance_range": (1.0, 8.0)}, 2.0),
    ],
)
def test_the_cost_of_guidance_in_the_target(changes, expected):
    """One more pass for the null class, another for the own conditional velocity."""
    c = base_config("dit", "meanflow", "digits")
    c.network.update({"width": 64, "depth": 4, "num_heads": 2, "patch": 4})
    c.network.use_guidance = "guidance_range" in changes
    for key, value in changes.items():
        c.objective[key] = value
    ratio = describe.describe(c)["train_macs_ratio_to_diffusion"]
    assert ratio == pytest.approx(expected, rel=0.03)


def tiny(name):
    """A smoke run on the mixture; its teacher is the closed form."""
    c = load_module("experiments/mixture.py").get_config(f"{name},quick")
    shrink(c, batch_size=16, network={"width": 8, "depth": 1})
    c.eval.evaluators = ("mixture_consistency", "map_residuals")[: 1 + c.network.use_dt]
    c.eval.steps = (2,)
    return c


@pytest.mark.parametrize(
    "name", ["meanflow", "lmd", "psd", "ect", "scd_segments", "rcm"]
)
def test_a_run_of_each_kind_is_trained_measured_and_sampled(name, tmp_path):
    c = tiny(name)
    assert train.train_and_evaluate(c, tmp_path / "run") == "done"
    (row,) = json.loads((tmp_path / "run/summary.json").read_text())["results"]
    assert np.isfinite(row["consistency_rmse"]) and row["nfe"] == 2
    if c.network.use_dt:
        assert row["sampler"] == "map"
        assert {"map_rmse", "eulerian_error", "lagrangian_error"} <= set(row)
    loaded = sample.load_generate(tmp_path / "run")
    x = loaded.generate(5, 2, gamma=0.5, sampler="map")
    assert x.shape == (5, 1) and np.isfinite(x).all()
    assert np.abs(x - loaded.generate(5, 2, sampler="map")).max() > 0
    rows = evaluate.evaluate_run(
        tmp_path / "run",
        steps=(2,),
        times=((1.0,),),
        samplers=("map", "consistency"),
        gamma=0.3,
        num_points=8,
    )
    assert [r["sampler"] for r in rows] == ["map(gamma=0.3)", "consistency"]


def test_two_players_resume_bit_by_bit(tmp_path):
    """A run with a critic that is cut in two is the run that was not."""
    c = tiny("scd_vsd")
    c.critic.half_life_images = 40.0
    train.train_and_evaluate(c, tmp_path / "whole")
    short = c.copy_and_resolve_references()
    train.train_and_evaluate(short, tmp_path / "cut")
    folder = tmp_path / "cut" / "checkpoints"
    steps = sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())
    assert len(steps) == 2
    import shutil

    shutil.rmtree(folder / str(steps[-1]))
    (tmp_path / "cut/summary.json").unlink()
    train.train_and_evaluate(short, tmp_path / "cut")
    results = [
        json.loads((tmp_path / name / "summary.json").read_text())["results"]
        for name in ("whole", "cut")
    ]
    assert results[0] == results[1]


def test_what_a_method_lacks_is_an_error_that_names_the_key():
    c = base_config("mlp", "meanflow", "mixture")
    c.network.use_dt = False
    with pytest.raises(ValueError, match=r"network\.use_dt = True"):
        experiment.build(c)
    c = base_config("mlp", "emd", "mixture")
    with pytest.raises(ValueError, match=r"teacher\.source = 'run' with teacher\.run"):
        experiment.build(c)
    c = base_config("mlp", "vsd", "mixture")
    with pytest.raises(ValueError, match=r"teacher\.source = 'exact'"):
        experiment.build(c)
    c.teacher.source, c.matching.weight = "exact", 1.0
    with pytest.raises(ValueError, match=r"matching\.weight = 1\.0 adds a second term"):
        experiment.build(c)
