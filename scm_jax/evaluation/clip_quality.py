"""Clips of moving digits, beside real ones: how they move and what is seen on them."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np

from scm_jax.evaluation.features import clips_reader
from scm_jax.evaluation.metrics import clip_motion, frechet, neighbours
from scm_jax.evaluation.protocol import protocol_in
from scm_jax.evaluation.sample_quality import draw
from scm_jax.evaluation.subject import OneSet, Subject, require_positive


@dataclasses.dataclass(frozen=True)
class ClipQuality(OneSet):
    """``metrics.clip_motion`` and a frozen network, for clips with one digit each.

    Samples have the labels of as many real clips.

    Attributes:
      first: frames of the real clips that the samples continue.
    """

    first: int = 0

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "first", least=0)

    def __call__(self, subject: Subject) -> dict[str, Any]:
        """Numbers of the samples and, with ``_real``, of the real clips.

        Returns:
          ``residual``, ``speed``, ``speed_distance`` (``clip_motion.compare``) of more
          than one frame; of 8 frames or 1 of 16x16 also ``frame_agreement``, the share
          of frames on which the network names the label, ``all_frames_agree``, the
          share of clips with all frames right, and ``frechet_distance``,
          ``frechet_floor``, ``precision`` and ``recall`` in its features; with
          ``first`` also ``path_error``, the root mean square distance of the
          digit from where it really went.
        """
        to_pixels = subject.need("to_pixels", "quality of clips")
        x, given = subject.need("batch", "quality of clips")(
            self.num_samples, self.seed
        )
        if x.ndim != 5:
            raise ValueError(
                f"quality of clips: samples of shape {x.shape[1:]} are no clips "
                "(t, h, w, c)"
            )
        real = to_pixels(np.asarray(x))
        labels = None if given.label is None else np.asarray(given.label)
        told = {"first": real[:, : self.first]} if self.first else {}
        drawn = draw(subject, x.shape, self.steps, self.seed, labels, **told)
        made = to_pixels(drawn)
        found = measure(made, real, labels)
        if self.first:
            paths = (clip_motion.centroids(clips) for clips in (made, real))
            away = np.subtract(*paths)[:, self.first :]
            found["path_error"] = float(np.sqrt((away**2).sum(-1).mean()))
        network = "none", "none"
        if real.shape[1:] in clips_reader.SHAPES:
            network = "clips_reader", clips_reader.WEIGHTS_SHA256
        metric = f"clip_quality(first={self.first})"
        reference = hashlib.sha256(real.tobytes()).hexdigest(), self.num_samples
        found |= protocol_in(self, subject, metric, network, *reference)
        return {**found, "num_samples": self.num_samples, "first": self.first}


def measure(made: np.ndarray, real: np.ndarray, labels: Any) -> dict[str, Any]:
    """The numbers of ``ClipQuality`` for uint8 clips of these labels."""
    found = clip_motion.compare(made, real) if real.shape[1] > 1 else {}
    if real.shape[1:] in clips_reader.SHAPES:
        found |= _read(made, real, labels)
    return found


def _read(made: np.ndarray, real: np.ndarray, labels: Any) -> dict[str, float]:
    """What the frozen network sees on the clips."""
    weights = clips_reader.load_weights()
    read = [clips_reader.read(weights, clips) for clips in (made, real)]
    fake, true = (seen["features"].astype(np.float64) for seen in read)
    found = {"frechet_distance": frechet.feature_distance(true, fake)}
    found["frechet_floor"], _ = frechet.halves_floor(true)
    found |= neighbours.precision_recall(true, fake)._asdict()
    for end, seen in zip(("", "_real"), read, strict=True):
        if labels is not None:
            right = seen["frame_digit"].argmax(-1) == labels[:, None]
            found[f"frame_agreement{end}"] = float(right.mean())
            found[f"all_frames_agree{end}"] = float(right.all(axis=1).mean())
    return found
