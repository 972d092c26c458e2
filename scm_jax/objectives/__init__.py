"""Training objectives; each is a frozen dataclass of named hyperparameters."""

from __future__ import annotations

from typing import Any

from scm_jax.objectives.base import Objective
from scm_jax.types import Registry, check_choice, lookup

OBJECTIVES = Registry(
    consistency="scm_jax.objectives.consistency.Consistency",
    diffusion="scm_jax.objectives.diffusion.Diffusion",
    discrete="scm_jax.objectives.discrete.Discrete",
    lagrangian="scm_jax.objectives.lagrangian.Lagrangian",
    matching="scm_jax.objectives.matching.Matching",
    mean_flow="scm_jax.objectives.mean_flow.MeanFlow",
    semigroup="scm_jax.objectives.semigroup.Semigroup",
)


def __getattr__(name: str) -> Any:
    """``objectives.Diffusion`` and ``objectives.Consistency``, imported when needed."""
    if name in ("Consistency", "Diffusion"):
        return OBJECTIVES[name.lower()]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def build(name: str, **settings: Any) -> Objective:
    """The objective ``name``; unknown names and settings are errors."""
    objective = lookup(OBJECTIVES, name, "objective.name")
    for setting in settings:
        check_choice(setting, objective.__dataclass_fields__, "objective setting")
    return objective(**settings)
