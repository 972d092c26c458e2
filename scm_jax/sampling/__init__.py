"""From ``F`` to samples: samplers, grids and guidance."""

# ruff: noqa: F401  (all of these names are the interface)
from scm_jax.sampling.guidance import (
    Fn,
    with_autoguidance,
    with_guidance,
    with_interval,
)
from scm_jax.sampling.samplers import (
    SAMPLERS,
    TIMED,
    Problem,
    Sampler,
    consistency_sample,
    ddim_sample,
    heun_path,
    heun_sample,
    make_grid,
    make_sampler,
    map_sample,
    multistep_sample,
    nfe,
    sample_keys,
    sample_noise,
)
