"""Continuous-time consistency models (sCM, arXiv 2410.11081) in JAX and Flax.

Example:
  >>> import scm_jax
  >>> run = scm_jax.load_run("runs/demo/scd")  # doctest: +SKIP
  >>> run.sample(num=16, steps=2, seed=0, label=3)  # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "load_metrics",
    "load_results",
    "load_run",
    "load_runs",
    "train_and_evaluate",
]


def __getattr__(name: str) -> Any:
    """What a notebook calls, imported when it is used."""
    if name == "load_run":
        from scm_jax.runs.sample import load_run

        return load_run
    if name == "train_and_evaluate":
        from scm_jax.runs.train import train_and_evaluate

        return train_and_evaluate
    if name in ("load_runs", "load_metrics", "load_results"):
        from scm_jax.analysis.tables import frames

        return getattr(frames, name)
    raise AttributeError(f"module 'scm_jax' has no attribute {name!r}")
