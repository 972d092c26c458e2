"""Published weights become runs: sampled, taken as teachers, written out again."""

import json

import jax
import numpy as np
import pytest

from scm_jax import config as config_lib
from scm_jax import networks
from scm_jax.files import state_dict
from scm_jax.networks.external import edm
from scm_jax.runs import sample, transfer
from scm_jax.runs.setup import experiment, start
from scm_jax.training import sharding

SETTINGS = {"width": 8, "channel_mult": (1, 2), "num_blocks": 1}
SETTINGS |= {"attention_resolutions": (4,)}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A file of the digits' shape with the names and settings of EDM2's."""
    published = {"modulation": "gain", "embedding": "fourier", "head_channels": 8}
    module = networks.build("unet", (8, 8, 1), 10, **published, **SETTINGS).module
    rng = np.random.default_rng(0)
    net = networks.Network(module)
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    state = edm.export_weights(
        module,
        jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), shapes),
        {"logvar_linear.weight": np.ones((1, 4), np.float32)},
    )
    path = tmp_path_factory.mktemp("weights") / "edm2.safetensors"
    state_dict.write_state_dict(path, state)
    return path


def config(variant="diffusion"):
    c = config_lib.base_config("unet", variant)
    c.dataset.name = "digits"
    c.network.head_channels = 8
    return c


@pytest.fixture(scope="module")
def run(file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("imported") / "run"
    transfer.import_run(config(), file, workdir)
    return workdir


@pytest.fixture(scope="module")
def loaded(run):
    return sample.load_generate(run)


def test_import_says_what_it_read(run):
    found = json.loads((run / "imported.json").read_text())
    assert found["network"] == "unet" and found["parameterization"] == "edm"
    assert found["channel_mult"] == [1, 2]
    assert found["extras"] == ["logvar_linear.weight"]
    assert found["parameters"] > 1000 and len(found["sha256"]) == 64


def test_an_imported_run_samples_in_trigflow_time(loaded, file):
    """The network that samples is minus EDM's, at EDM's ``c_noise`` of the time."""
    x = loaded.generate(3, 2, 0)
    assert x.shape == (3, 8, 8, 1) and np.isfinite(x).all()

    state = state_dict.read_state_dict(file)
    params, _ = edm.import_weights(loaded.experiment.network.module, state)
    net = loaded.experiment.network
    bare = networks.Network(net.module)
    example, cond = net.example(2)
    t = np.float32([0.3, 1.2])
    c_noise = np.log(0.5 * np.tan(t)) / 4
    label = np.array([1, 2])
    ours = net.apply(params, example, cond.replace(t=t, label=label))
    theirs = bare.apply(params, example, cond.replace(t=c_noise, label=label))
    np.testing.assert_allclose(ours, -theirs, rtol=1e-5, atol=1e-6)
    assert np.abs(ours).max() > 0.1


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_export_gives_the_imported_file_back(run, file, tmp_path, suffix):
    out = tmp_path / f"weights{suffix}"
    count = transfer.export_run(run, out)
    before, after = state_dict.read_state_dict(file), state_dict.read_state_dict(out)
    assert set(before) == set(after) and len(after) == count
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name], tensor, err_msg=name)


@pytest.fixture(scope="module")
def student(run):
    c = config("consistency")
    c.objective.dx_dt = "teacher"
    c.teacher.source = "run"
    c.teacher.run = str(run)
    c.network.update(SETTINGS)
    return experiment.build(c)


def test_a_student_takes_it_as_its_teacher(student):
    assert student.teacher.network.adapter is not None
    assert student.teacher.network.module.embedding == "fourier"


def test_a_teacher_is_folded_when_it_is_loaded(loaded, student):
    mesh = sharding.make_mesh(sharding.MeshSpec())
    got = start.load_teacher(student, mesh)
    assert isinstance(got, networks.Folded)
    folded = jax.jit(loaded.experiment.network.fold)(loaded.params)
    jax.tree.map(np.testing.assert_array_equal, got, folded)
    abstract = start.abstract_teacher(student, mesh)
    assert jax.tree.structure(abstract) == jax.tree.structure(got)
    for a, b in zip(jax.tree.leaves(abstract), jax.tree.leaves(got), strict=True):
        assert (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding)


def test_samplers_share_weights_that_are_folded_once(loaded, monkeypatch):
    calls, fold = [], networks.Network.fold
    monkeypatch.setattr(
        networks.Network, "fold", lambda *args: calls.append(None) or fold(*args)
    )
    vars(loaded.generate).pop("_weights", None)
    for steps in (1, 2):
        loaded.generate(3, steps)
    assert len(calls) == 1


def test_a_trigflow_student_cannot_start_from_an_edm_network(run):
    c = config("consistency")
    c.network.update({**SETTINGS, "modulation": "gain", "embedding": "fourier"})
    c.init.run = str(run)
    built = experiment.build(c)
    with pytest.raises(ValueError, match="another parameterization"):
        start.load_init(built, None)


def test_weights_of_other_data_are_refused(file, tmp_path):
    c = config()
    c.dataset.name = "mixture"
    with pytest.raises(ValueError, match="square images"):
        transfer.import_run(c, file, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_only_the_published_networks_can_be_exported(tmp_path):
    with pytest.raises(FileNotFoundError):
        transfer.export_run(tmp_path / "none", tmp_path / "out.npz")
