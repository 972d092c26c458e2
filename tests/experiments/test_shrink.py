"""Smoke runs: what ``config.shrink`` leaves of an experiment."""

import pytest

from scm_jax import config
from tests.experiments.test_experiments import MODULES, VARIANTS


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", MODULES)
def test_a_smoke_run_passes_through_all_that_a_run_does(name, variant):
    c = MODULES[name].get_config(f"{variant},quick")
    images, batch = c.train.duration_images, c.train.batch_size
    assert images == 6 * batch and batch <= 16 and c.sampling.batch_size <= 16
    assert 0 < c.optimizer.rampup_images < images
    if c.optimizer.schedule == "inverse_sqrt":
        assert c.optimizer.rampup_images < c.optimizer.decay_images < images
    if variant != "teacher":
        assert 0 < c.objective.tangent_warmup_images < images
    for interval in (c.log.every_images, c.checkpoint.every_images):
        assert images / interval in (2, 3)
    assert c.network.width == 32 and c.network.channel_mult == (1,)


def test_what_varies_is_an_argument():
    c = config.base_config("dit", "consistency")
    config.shrink(c, batch_size=4, network={"depth": 1}, writers=("tensorboard",))
    assert (c.network.depth, c.network.width, c.network.num_heads) == (1, 64, 4)
    assert c.train.duration_images == 24 and c.log.writers == ("tensorboard",)
    with pytest.raises(ValueError, match=r"name = 'mlp'.*'ddpmpp', 'dit', "):
        config.shrink(config.base_config("mlp"))
    with pytest.raises(KeyError, match="head_channels"):
        config.shrink(c, network={"head_channels": 32})
