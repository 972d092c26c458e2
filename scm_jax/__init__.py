"""Continuous-time consistency models (sCM, arXiv 2410.11081) in JAX and Flax.

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
    if name in ("load_run", "train_and_evaluate"):
        from scm_jax.runs import train

        return getattr(train, name)
    if name in ("load_runs", "load_metrics", "load_results"):
        from scm_jax.analysis.tables import frames

        return getattr(frames, name)
    raise AttributeError(f"module 'scm_jax' has no attribute {name!r}")
