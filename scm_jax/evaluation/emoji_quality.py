"""Emoji: whether a caption gives its own picture, the asked skin tone, or a copy."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from scm_jax.evaluation.caption_agreement import KINDS
from scm_jax.evaluation.metrics.neighbours import nearest
from scm_jax.evaluation.sample_quality import draw
from scm_jax.evaluation.subject import Subject, require_positive, require_seeds

SIDE = 32  # pixels at which pictures are compared
_SKIN = 12  # levels by which a pixel of the skin differs between two tones


@dataclasses.dataclass(frozen=True)
class EmojiQuality:
    """Samples of known pictures, for seen and for held-out combinations apart.

    Held-out ones ask for a skin tone that their emoji has in no training image.

    Attributes:
      steps: steps of the sampler.
      seed: of the first set of samples; the further ones use the integers after it.
      num_seeds: sets of samples.
      num_samples: captions of each kind at most.
    """

    steps: int = 2
    seed: int = 0
    num_seeds: int = 1
    num_samples: int = 290

    def __post_init__(self):
        require_positive(self, "steps", "num_seeds", "num_samples")
        require_seeds(self)

    def __call__(self, subject: Subject) -> dict[str, Any]:
        """Metrics of emoji; distances are root mean squares in levels 0..255 at 32x32.

        Returns:
          ``retrieval_KIND``: share of samples to which no picture, of training or asked
          for, is nearer than their own; ``copy_distance_KIND``: mean distance to the
          nearest training image, with ``_real`` that of the true pictures;
          ``tone_error``: of held-out skin tones the distance between the mean colours
          of the skin; ``tone_error_other``: that of the neighbouring skin tone, which
          was seen: what copying gives.
        """
        questions = subject.need("questions", "emoji quality")
        to_pixels = subject.need("to_pixels", "emoji quality")
        asked = {kind: questions(self.num_samples, kind) for kind in KINDS}
        real, _ = subject.need("reference", "emoji quality")()
        train = _vectors(to_pixels(real))
        own = {kind: _vectors(asked[kind].pixels) for kind in KINDS}
        rows = []
        for seed in range(self.seed, self.seed + self.num_seeds):
            row = {}
            for kind in KINDS:
                shape = (len(own[kind]), *real.shape[1:])
                prompts = asked[kind].prompts
                x = draw(subject, shape, self.steps, seed, None, prompts=prompts)
                pixels = to_pixels(x)
                samples = _vectors(pixels)
                away = nearest(samples, train)
                best = np.minimum(away, nearest(samples, own[kind]))
                right = np.sqrt(((samples - own[kind]) ** 2).mean(1)) <= best + 1e-6
                row[f"retrieval_{kind}"] = right.mean()
                row[f"copy_distance_{kind}"] = away.mean()
            row["tone_error"] = _tone_error(asked["held_out"], pixels)
            rows.append(row)
        found = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        for kind in KINDS:
            away = nearest(own[kind], train)
            found[f"copy_distance_{kind}_real"] = float(away.mean())
        other = asked["held_out"].targets["other"]
        found["tone_error_other"] = _tone_error(asked["held_out"], other)
        return found


def _vectors(pixels: np.ndarray) -> np.ndarray:
    """Levels at ``SIDE``, ``(n, d)`` float64, by the means of boxes."""
    n, height, width, channels = pixels.shape
    box = max(height // SIDE, 1)
    shape = (n, height // box, box, width // box, box, channels)
    return pixels.astype(np.float64).reshape(shape).mean((2, 4)).reshape(n, -1)


def _tone_error(asked: Any, pixels: np.ndarray) -> float:
    """Mean distance from the true mean colour where skin tones differ."""
    true, other = (a.astype(np.float64) for a in (asked.pixels, asked.targets["other"]))
    skin = np.abs(true - other).max(-1, keepdims=True) > _SKIN
    error = ((pixels - true) * skin).sum((1, 2)) / np.maximum(skin.sum((1, 2)), 1)
    return float(np.linalg.norm(error, axis=1).mean())
