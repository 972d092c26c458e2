"""What a sweep file is made of, and nothing that needs an accelerator to import.

Example:
  >>> from scm_jax.sweeps import cross, grid, seeds
  >>> len(list(cross(grid({"network.width": (32, 64)}), seeds(3))))
  6
"""

from scm_jax.sweeps.plan.combinators import (
    chain,
    cross,
    grid,
    loguniform,
    of_duration,
    run_dir,
    sample,
    seeds,
    uniform,
    zipped,
)

__all__ = [
    "chain",
    "cross",
    "grid",
    "loguniform",
    "of_duration",
    "run_dir",
    "sample",
    "seeds",
    "uniform",
    "zipped",
]
