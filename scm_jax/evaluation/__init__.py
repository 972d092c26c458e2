"""Evaluators: distances between samples and data, and from the exact map.

A further evaluator is a frozen dataclass of settings with ``__call__(subject)`` and one
line in ``EVALUATORS``.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from scm_jax.evaluation.caption_agreement import CaptionAgreement
from scm_jax.evaluation.clip_quality import ClipQuality
from scm_jax.evaluation.emoji_quality import EmojiQuality
from scm_jax.evaluation.number_agreement import NumberAgreement
from scm_jax.evaluation.pretrained_quality import PretrainedQuality
from scm_jax.evaluation.sample_quality import FEATURES, SampleQuality
from scm_jax.evaluation.speech_quality import SpeechQuality
from scm_jax.evaluation.subject import Evaluator, Subject
from scm_jax.evaluation.validation import (
    MapResiduals,
    MixtureConsistency,
    TeacherTrajectory,
    Validation,
)
from scm_jax.types import lookup

# Known-good settings by name; ``build`` changes single ones.
EVALUATORS: dict[str, Evaluator] = {
    "captions": CaptionAgreement(),
    "digits": SampleQuality(features="digits_classifier"),
    "emoji": EmojiQuality(),
    "moving_digits": ClipQuality(),
    "moving_digits_continued": ClipQuality(first=2),
    "spoken_digits": SpeechQuality(),
    "spoken_numbers": NumberAgreement(),
    "shapes": SampleQuality(features="shapes_classifier", num_samples=5000),
    "raw_samples": SampleQuality(features="raw"),
    "fid": PretrainedQuality("inception", ("fid",)),
    "fd_dinov2": PretrainedQuality("dinov2", ("fid",)),
    "inception": PretrainedQuality("inception", ("fid", "sfid", "is", "kid", "prdc")),
    "dinov2": PretrainedQuality("dinov2", ("fid", "kid", "prdc")),
    "mind": PretrainedQuality("inception", ("mind",), num_samples=5000),
    "map_residuals": MapResiduals(),
    "mixture_consistency": MixtureConsistency(),
    "teacher_trajectory": TeacherTrajectory(),
    "validation": Validation(),
}

__all__ = [
    "EVALUATORS",
    "FEATURES",
    "CaptionAgreement",
    "ClipQuality",
    "EmojiQuality",
    "Evaluator",
    "MapResiduals",
    "MixtureConsistency",
    "NumberAgreement",
    "PretrainedQuality",
    "SampleQuality",
    "SpeechQuality",
    "Subject",
    "TeacherTrajectory",
    "Validation",
    "build",
]


def build(name: str, **settings: Any) -> Evaluator:
    """The evaluator ``name`` with some settings changed.

    Example:
      >>> build("digits", steps=4).steps
      4

    Raises:
      ValueError: unknown name or setting; the message lists the legal ones.
    """
    evaluator = lookup(EVALUATORS, name, "evaluator name")
    for setting in settings:
        known = {field.name: field for field in dataclasses.fields(evaluator)}
        lookup(known, setting, f"evaluator {name} setting")
    return dataclasses.replace(evaluator, **settings)
