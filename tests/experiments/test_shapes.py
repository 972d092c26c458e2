"""The experiment file of shapes: it builds, and students find their teacher."""

import pytest

from scm_jax.evaluation import EVALUATORS
from scm_jax.runs.setup import experiment as experiment_lib
from tests.experiments.test_experiments import VARIANTS, config


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_size_builds(variant, size):
    c = config("shapes", f"{variant},size={size},resolution=64")
    built = experiment_lib.build_abstract(c)
    assert built.dataset.info.sample_shape == (64, 64, 3)
    assert "label" in built.network.consumes
    assert (built.teacher is not None) == (variant == "scd")
    assert set(c.eval.evaluators) <= set(EVALUATORS) and c.eval.split == "test"
    teacher = config("shapes", f"teacher,size={size},resolution=64")
    if variant != "teacher":
        assert c.init.run == f"runs/{teacher.name}"
    if variant == "scd":
        assert c.teacher.run == f"runs/{teacher.name}"
