"""The evaluators of a config, built and checked; imported where there are any."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from scm_jax.runs.setup.parts import build_dataset
from scm_jax.types import lookup

if TYPE_CHECKING:
    from scm_jax.evaluation.subject import Evaluator


def configured_evaluators(
    config: ConfigDict, names: Sequence[str] | None = None, **settings: Any
) -> dict[str, Evaluator]:
    """Evaluators with the settings of a config.

    Args:
      config: gives ``eval.*``; the proposal is the objective's.
      names: keys of ``EVALUATORS``; default is ``eval.evaluators``.
      **settings: take precedence; those that are None, or that an evaluator does not
        have, are left out.
    """
    names = config.eval.evaluators if names is None else names
    if not names:
        return {}
    # A large part of the package, which neither a plan nor a cost estimate needs.
    from scm_jax import evaluation

    asked = {
        "num_seeds": config.eval.num_seeds,
        "reference": config.eval.reference,
        "P_mean": config.objective.P_mean,
        "P_std": config.objective.P_std,
        **{name: value for name, value in settings.items() if value is not None},
    }
    built = {}
    for name in names:
        evaluator: Any = lookup(evaluation.EVALUATORS, name, "eval.evaluators")
        known = {f.name for f in dataclasses.fields(evaluator)}
        chosen = {key: value for key, value in asked.items() if key in known}
        if config.eval.num_samples and "num_samples" in known:
            chosen.setdefault("num_samples", config.eval.num_samples)
        built[name] = evaluation.build(name, **chosen)
    return built


def check(config: ConfigDict, *, files: bool = True) -> None:
    """Raises before a training what its evaluation would raise at the end.

    ``files`` also looks for weights and references, which may be on another machine
    while a sweep is planned.

    Raises:
      ValueError: an unknown evaluator, an illegal setting, or a missing split of the
        data.
      FileNotFoundError: an evaluator's weights or reference are not there.
    """
    evaluators = configured_evaluators(config).values()
    for evaluator in evaluators:
        if files and hasattr(evaluator, "check"):
            evaluator.check()
    # A split that nothing reads need not be there: many configs name one.
    if config.eval.split and any(hasattr(e, "held_out") for e in evaluators):
        build_dataset(config, config.eval.split)
