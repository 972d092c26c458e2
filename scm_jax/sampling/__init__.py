"""From ``F`` to samples: samplers, grids and guidance."""

from scm_jax.sampling.guidance import (
    Fn,
    with_autoguidance,
    with_guidance,
    with_interval,
)
from scm_jax.sampling.samplers import (
    SAMPLERS,
    Problem,
    Sampler,
    consistency_sample,
    ddim_sample,
    heun_path,
    heun_sample,
    make_grid,
    make_sampler,
    multistep_sample,
    nfe,
    sample_keys,
    sample_noise,
)

__all__ = [
    "SAMPLERS",
    "Fn",
    "Problem",
    "Sampler",
    "consistency_sample",
    "ddim_sample",
    "heun_path",
    "heun_sample",
    "make_grid",
    "make_sampler",
    "multistep_sample",
    "nfe",
    "sample_keys",
    "sample_noise",
    "with_autoguidance",
    "with_guidance",
    "with_interval",
]
