"""Published transformers as runs: sampled, teachers, written out again."""

import dataclasses
import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from scm_jax import config as config_lib
from scm_jax import datasets, networks, trigflow
from scm_jax.datasets import images
from scm_jax.files import state_dict
from scm_jax.runs import conditions, sample, transfer
from scm_jax.runs.setup import experiment
from scm_jax.types import TextInfo
from tests.exchange.published_layers import draw, layout, same, to_diffusers
from tests.exchange.test_transformers import DIT, OPEN, RENAMED, SANA
from tests.exchange.test_wan import WAN

TEXT = TextInfo(5, width=6, encoder="a tiny encoder")


def captioned(split="train", *, root=None, prepare=False):
    """Noise that claims to have captions as states."""
    noise = images.make_noise_images(split, sample_shape=(4, 4, 3), num_classes=0)
    return dataclasses.replace(noise, info=dataclasses.replace(noise.info, text=TEXT))


def captioned_clips(split="train", *, root=None, prepare=False):
    noise = images.make_noise_images(split, sample_shape=(2, 4, 4, 3), num_classes=0)
    info = dataclasses.replace(noise.info, text=TEXT, sigma_data=1.0)
    return dataclasses.replace(noise, info=info)


def imported(folder, network, dataset, state, settings, **options):
    config = config_lib.base_config(network, "diffusion")
    config.dataset.name = dataset
    config.network.update(settings)
    file = folder / "weights.safetensors"
    state_dict.write_state_dict(file, state)
    transfer.import_run(config, file, folder / "run", **options)
    return folder / "run", file


def check_export(run, file, folder):
    out = folder / "out.safetensors"
    transfer.export_run(run, out)
    before, after = (state_dict.read_state_dict(f) for f in (file, out))
    same(before, after)
    assert {n: a.dtype for n, a in before.items()} == {
        n: a.dtype for n, a in after.items()
    }


@pytest.mark.parametrize("process", ["dit", "sit"])
def test_dit_and_sit_as_runs(process, tmp_path):
    state = draw(layout(DIT, 8, 1, c=1, n=16, k=10))
    case = tmp_path, "dit", "digits", state, {"num_heads": 2}
    with pytest.raises(ValueError, match="the parameterization, dit or sit"):
        imported(*case)
    run, file = imported(*case, parameterization=process)
    check_export(run, file, tmp_path)
    loaded = sample.load_generate(run)
    x = loaded.generate(3, 2)
    assert x.shape == (3, 8, 8, 1) and np.isfinite(x).all()
    # As the teacher of a student with sCM's changes.
    c = config_lib.base_config("dit", "consistency")
    c.dataset.name, c.objective.dx_dt = "digits", "teacher"
    c.teacher.source, c.teacher.run = "run", str(run)
    teacher = experiment.build(c).teacher
    example, cond = teacher.network.example(2)
    cond = cond.replace(t=jnp.float32([0.5, 1.3]))
    F = teacher.fn(loaded.params, example, cond)
    bare = networks.Network(teacher.network.module).apply
    expected = trigflow.PARAMETERIZATIONS[process](bare, 0.5)(
        loaded.params, example, cond
    )
    np.testing.assert_allclose(F, expected, rtol=1e-6, atol=1e-6)


def test_wan_as_a_run(tmp_path, monkeypatch):
    """The file's velocity at ``1000 s``, without telling the parameterization."""
    monkeypatch.setitem(datasets.DATASETS, "captioned_clips", captioned_clips)
    state = draw(layout(WAN, 12, 1, c=3, text=6, hidden=8))
    run, file = imported(tmp_path, "wan", "captioned_clips", state, {"num_heads": 2})
    found = json.loads((run / "imported.json").read_text())
    assert found["parameterization"] == "rectified_flow"
    check_export(run, file, tmp_path)
    loaded = sample.load_generate(run)
    context = np.random.default_rng(0).normal(size=(2, 5, 6)).astype(np.float32)
    fields = {"context": context, "context_mask": np.ones((2, 5), bool)}
    prompts = conditions.Prompts(("one", "other"), fields)
    x = loaded.generate(2, 2, prompts=prompts, sampler="ddim")
    assert x.shape == (2, 2, 4, 4, 3) and np.isfinite(x).all()
    assert np.abs(x[0] - x[1]).max() > 1e-3


def test_sana_sprint_as_a_run(tmp_path, monkeypatch):
    """A file with diffusers' names, in bfloat16, sampled at the times of the paper."""
    monkeypatch.setitem(datasets.DATASETS, "captioned", captioned)
    state = to_diffusers(draw(layout(SANA, 8, 1, c=3, text=6)), RENAMED)
    state = {n: a.astype(ml_dtypes.bfloat16) for n, a in state.items()}
    run, file = imported(tmp_path, "sana", "captioned", state, OPEN)
    found = json.loads((run / "imported.json").read_text())
    assert found["parameterization"] == "sana_sprint"
    assert found["file_layout"]["naming"] == "diffusers"
    check_export(run, file, tmp_path)

    generate = sample.load_generate(run).generate
    context = np.random.default_rng(0).normal(size=(2, 5, 6)).astype(np.float32)
    fields = {"context": context, "context_mask": np.ones((2, 5), bool)}
    prompts = conditions.Prompts(("one", "other"), fields)
    start = float(np.arctan(200 / 0.5))
    options = {"sampler": "consistency", "prompts": prompts, "guidance": 4.5}
    for times in ((np.pi / 2,), (start, 1.3), (start, 1.3, 1.1, 0.6)):
        x = generate(2, len(times), times=times, **options)
        assert x.shape == (2, 4, 4, 3) and np.isfinite(x).all()
    other = generate(2, 4, times=times, **{**options, "guidance": 1.0})
    assert np.abs(x[0] - x[1]).max() > 1e-3 and np.abs(x - other).max() > 1e-4
    with pytest.raises(ValueError, match=r"must decrease within \(0, pi/2\]"):
        generate(2, 2, times=(1.6, 1.3), **options)
