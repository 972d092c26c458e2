"""How the clips of a run move, beside real ones."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from scm_jax.evaluation.metrics import clip_motion
from scm_jax.evaluation.sample_quality import draw
from scm_jax.evaluation.subject import Subject, require_positive, require_seeds


@dataclasses.dataclass(frozen=True)
class ClipMotion:
    """``metrics.clip_motion`` of samples of ``moving_digits`` with one digit.

    Attributes:
      steps: steps of the sampler.
      seed: of the noise, and of which real clips are taken, of ``eval.split``.
      num_samples: clips, with the labels of as many real ones.
    """

    steps: int = 2
    seed: int = 0
    num_samples: int = 1000
    num_seeds: ClassVar[int] = 1

    def __post_init__(self):
        require_positive(self, "steps", "num_samples")
        require_seeds(self)

    def __call__(self, subject: Subject) -> dict[str, Any]:
        """The numbers of ``clip_motion.compare``."""
        to_pixels = subject.need("to_pixels", "motion of clips")
        real, given = subject.need("batch", "motion of clips")(
            self.num_samples, self.seed
        )
        if real.ndim != 5:
            raise ValueError(
                f"motion of clips: samples of shape {real.shape[1:]} are no clips "
                "(t, h, w, c)"
            )
        labels = None if given.label is None else np.asarray(given.label)
        made = draw(subject, real.shape, self.steps, self.seed, labels)
        return clip_motion.compare(to_pixels(made), to_pixels(np.asarray(real)))
