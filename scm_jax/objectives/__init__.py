"""Training objectives; each is a frozen dataclass of named hyperparameters."""

from __future__ import annotations

from typing import Any

from scm_jax.objectives.base import Objective
from scm_jax.objectives.consistency import Consistency
from scm_jax.objectives.diffusion import Diffusion
from scm_jax.types import check_choice, lookup

OBJECTIVES = {"diffusion": Diffusion, "consistency": Consistency}


def build(name: str, **settings: Any) -> Objective:
    """The objective ``name``; unknown names and settings are errors."""
    objective = lookup(OBJECTIVES, name, "objective.name")
    for setting in settings:
        check_choice(setting, objective.__dataclass_fields__, "objective setting")
    return objective(**settings)
