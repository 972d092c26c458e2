"""The experiment file of shapes: it builds, it trains, students find their teacher."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax.evaluation import EVALUATORS
from scm_jax.runs.setup import experiment as experiment_lib

FILE = pathlib.Path(__file__).resolve().parents[2] / "experiments/shapes.py"
VARIANTS = ("teacher", "sct", "scd")


@pytest.fixture(scope="module")
def get_config():
    spec = importlib.util.spec_from_file_location("shapes", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_size_builds(get_config, variant, size):
    c = get_config(f"{variant},size={size},resolution=64")
    built = experiment_lib.build_abstract(c)
    assert built.dataset.info.sample_shape == (64, 64, 3)
    assert "label" in built.network.consumes
    assert (built.teacher is not None) == (variant == "scd")
    assert set(c.eval.evaluators) <= set(EVALUATORS) and c.eval.split == "test"
    teacher = get_config(f"teacher,size={size},resolution=64")
    if variant != "teacher":
        assert c.init.run == f"runs/{teacher.name}"
    if variant == "scd":
        assert c.teacher.run == f"runs/{teacher.name}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_quick_steps_have_the_shapes_of_the_state(get_config, variant):
    built = experiment_lib.build_abstract(get_config(f"{variant},quick"))
    state = jax.eval_shape(built.init_state, built.abstract_params())
    teacher = built.teacher and jax.eval_shape(
        built.teacher.network.init, jax.random.key(0)
    )
    step, batch = built.train_step(), built.example_batch(8)
    after, metrics = jax.eval_shape(step, state, batch, teacher)
    before, after = (jax.tree.map(lambda a: a.shape, tree) for tree in (state, after))
    assert before == after
    assert metrics["loss"].shape == ()


@pytest.mark.parametrize("variant", ["teacher"])
def test_quick_training_moves_the_network(get_config, variant):
    built = experiment_lib.build_abstract(get_config(f"{variant},quick"))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: jnp.asarray(0.1 * rng.standard_normal(s.shape), s.dtype),
        built.abstract_params(),
    )
    state = built.init_state(params)
    options = {"xla_backend_optimization_level": 0}  # half the time to compile
    step = jax.jit(built.train_step(), compiler_options=options)
    data = built.dataset.iterator(16, seed=0)
    for _ in range(2):
        batch = built.dataset.to_batch(next(data))
        before = state.params
        state, metrics = step(state, batch, None)
        assert np.isfinite(metrics["loss"])
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, state.params)
        assert any(jax.tree.leaves(moved["net"]))
