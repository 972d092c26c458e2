"""Training objectives; each is a frozen dataclass of named hyperparameters."""

from __future__ import annotations

from typing import Any

from scm_jax.objectives.base import LossOutput, Objective
from scm_jax.objectives.consistency import Consistency
from scm_jax.objectives.diffusion import Diffusion
from scm_jax.types import lookup

OBJECTIVES = {
    "diffusion": Diffusion,
    "consistency": Consistency,
}

__all__ = ["OBJECTIVES", "Consistency", "Diffusion", "LossOutput", "Objective", "build"]


def build(name: str, **settings: Any) -> Objective:
    """The objective ``name``; unknown names and settings are errors."""
    objective = lookup(OBJECTIVES, name, "objective.name")
    for setting in settings:
        lookup(objective.__dataclass_fields__, setting, "objective setting")
    return objective(**settings)
