"""A file of SD3 becomes a run, a teacher, and the start of a student."""

import json

import jax
import numpy as np
import pytest

from scm_jax import config as config_lib
from scm_jax import trigflow
from scm_jax.files import state_dict
from scm_jax.networks.external import mmdit
from scm_jax.runs import transfer
from scm_jax.runs.setup import experiment, start
from scm_jax.training import sharding
from tests.exchange.test_mmdit import CONTEXT, POOLED, random_file


def config(objective="diffusion"):
    c = config_lib.base_config("mmdit", objective, "noise_latents")
    c.dataset.update({"length": 3, "width": CONTEXT, "pooled": POOLED})
    return c


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "sd35.safetensors"
    state = random_file("sd35_medium")
    half = {mmdit.PREFIX + n: a.astype(np.float16) for n, a in state.items()}
    state_dict.write_state_dict(path, half | {"vae.bias": np.ones(2, np.float16)})
    return path


@pytest.fixture(scope="module")
def run(file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("imported") / "run"
    transfer.import_run(config(), file, workdir)
    return workdir


def test_import_says_what_it_read_and_export_gives_it_back(run, file, tmp_path):
    found = json.loads((run / "imported.json").read_text())
    assert found["network"] == "mmdit" and found["num_heads"] == 2
    assert found["parameterization"] == "rectified_flow"
    assert found["file_layout"]["prefix"] == mmdit.PREFIX
    out = tmp_path / "back.safetensors"
    transfer.export_run(run, out)
    before, after = state_dict.read_state_dict(file), state_dict.read_state_dict(out)
    assert before.keys() - after.keys() == {"vae.bias"}
    for name, a in after.items():
        assert a.dtype == np.float16
        np.testing.assert_array_equal(a, before[name], err_msg=name)


def student_of(run, parameterization="rectified_flow"):
    c = config("consistency")
    c.network.update(mmdit.infer_network(random_file("sd35_medium"))[1])
    c.network.use_guidance = True
    c.parameterization = parameterization
    c.objective.update({"dx_dt": "teacher", "guidance_range": (4.0, 5.0)})
    c.init.run = c.teacher.run = str(run)
    c.teacher.source = "run"
    return c


def test_a_student_starts_as_its_teacher(run):
    c = student_of(run)
    built = experiment.build(c)
    mesh = sharding.make_mesh(sharding.MeshSpec())
    teacher = start.load_teacher(built, mesh)
    params = start.load_init(built, mesh)["net"]
    guidance = params["cond"].pop("guidance")
    assert not guidance["kernel"].any()
    jax.tree.map(np.testing.assert_array_equal, params, teacher.weights)
    for network in (built.network, built.teacher.network):
        assert network.adapter.func is trigflow.from_rectified_flow
        assert network.adapter.keywords == {"sigma_data": 1.0}


def test_a_start_of_another_parameterization_is_refused(run):
    for other in ("trigflow", "edm"):
        built = experiment.build(student_of(run, other))
        with pytest.raises(ValueError, match="another parameterization"):
            start.load_init(built, None)
