"""Emoji: whether a caption gives its own picture, the asked skin tone, or a copy."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from scm_jax.evaluation.sample_quality import draw
from scm_jax.evaluation.subject import Subject, require_positive, require_seeds

SIDE = 32  # pixels at which pictures are compared
_SKIN = 0.1  # of two skin tones, the difference of a pixel in [-1, 1] that counts
_BLOCK = 64


@dataclasses.dataclass(frozen=True)
class EmojiQuality:
    """Samples of known pictures, for seen and for held-out combinations apart.

    Pictures are compared by their pixels at 32x32. Half of the captions are of training
    images; the others ask for a skin tone that their emoji has in none of them.

    Attributes:
      steps: steps of the sampler.
      seed: of the first set of samples; the further ones use the integers after it.
      num_seeds: sets of samples, of one sample of each caption.
    """

    steps: int = 2
    seed: int = 0
    num_seeds: int = 1

    def __post_init__(self):
        require_positive(self, "steps", "num_seeds")
        require_seeds(self)

    def __call__(self, subject: Subject) -> dict[str, Any]:
        """Metrics of ``subject``, which needs ``generate``, ``reference``, ``truth``.

        Returns:
          ``retrieval_seen`` and ``retrieval_held_out``, the shares of samples to which
          no picture, of training or asked for, is nearer than their own;
          ``tone_error``, of held-out tones the distance between the mean colours of
          the skin in levels 0..255, and ``tone_error_other``, the same of the emoji
          with a skin tone that was seen: what copying gives;
          ``copy_distance``, the mean distance (root mean square in levels) of held-out
          samples to the nearest training image, and ``copy_distance_real``, the same
          of the true held-out pictures;
          ``num_samples``, ``num_seeds``, ``seed``, ``steps``.

        Raises:
          ValueError: a missing part, or samples of another shape or not finite.
        """
        prompts, truth = subject.need("truth", "emoji quality")()
        real, _ = subject.need("reference", "emoji quality")()
        train, own = _vectors(real), _vectors(truth.x)
        held_out = np.asarray(truth.held_out)
        skin = np.abs(truth.x - truth.other).max(-1, keepdims=True) > _SKIN
        true_tone = _mean_colour(truth.x, skin)[held_out]
        rows = []
        for seed in range(self.seed, self.seed + self.num_seeds):
            shape = truth.x.shape
            x = draw(subject, shape, self.steps, seed, None, prompts=prompts)
            samples = _vectors(x)
            nearest = _nearest(samples, train)
            best = np.minimum(nearest, _nearest(samples, own))
            right = np.sqrt(((samples - own) ** 2).mean(1)) <= best + 1e-6
            tone = _mean_colour(x, skin)[held_out]
            rows.append(
                {
                    "retrieval_seen": right[~held_out].mean(),
                    "retrieval_held_out": right[held_out].mean(),
                    "tone_error": np.linalg.norm(tone - true_tone, axis=1).mean(),
                    "copy_distance": nearest[held_out].mean(),
                }
            )
        metrics: dict[str, Any] = {
            name: float(np.mean([row[name] for row in rows])) for name in rows[0]
        }
        other = _mean_colour(truth.other, skin)[held_out] - true_tone
        metrics["tone_error_other"] = float(np.linalg.norm(other, axis=1).mean())
        metrics["copy_distance_real"] = float(_nearest(own[held_out], train).mean())
        counts = {"num_samples": len(own), "num_seeds": self.num_seeds}
        return metrics | counts | {"seed": self.seed, "steps": self.steps}


def _vectors(x: np.ndarray) -> np.ndarray:
    """Levels of pixels at ``SIDE``, ``(n, d)`` float64, by the means of boxes."""
    n, height, width, channels = x.shape
    box = max(height // SIDE, 1)
    shape = (n, height // box, box, width // box, box, channels)
    small = np.asarray(x, np.float64).reshape(shape).mean((2, 4))
    return small.reshape(n, -1).clip(-1, 1) * 127.5


def _nearest(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Root mean square distance of each of ``a`` to the nearest of ``b``."""
    found = []
    for start in range(0, len(a), _BLOCK):
        rows = a[start : start + _BLOCK]
        squares = (rows**2).sum(1)[:, None] - 2 * rows @ b.T + (b**2).sum(1)[None]
        found.append(squares.min(1))
    return np.sqrt(np.maximum(np.concatenate(found), 0) / a.shape[1])


def _mean_colour(x: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Mean colour of some pixels of each picture, ``(n, 3)`` levels."""
    total = (np.asarray(x, np.float64).clip(-1, 1) * where).sum((1, 2))
    return total / np.maximum(where.sum((1, 2)), 1) * 127.5
