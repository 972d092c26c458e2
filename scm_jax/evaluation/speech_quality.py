"""Spoken digits, beside real ones: what is heard, and how it is said."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any, NamedTuple

import numpy as np

from scm_jax.evaluation.features import speech_reader
from scm_jax.evaluation.metrics import frechet, neighbours, voice
from scm_jax.evaluation.protocol import protocol_in
from scm_jax.evaluation.sample_quality import draw
from scm_jax.evaluation.subject import OneSet, Subject


@dataclasses.dataclass(frozen=True)
class SpeechQuality(OneSet):
    """A frozen network and ``metrics.voice``, for clips with one digit each.

    Samples have the labels of as many real clips, of voices that no training clip has.
    Both pass through the same front end and back to sound.
    """

    def __call__(self, subject: Subject) -> dict[str, Any]:
        """Numbers of the samples and, with ``_real``, of the real clips.

        Returns:
          those of ``measure``, and ``nearest``: the median distance to the nearest
          training clip, root mean square over the values, in units of ``sigma_data``;
          ``nearest_least`` is the smallest.
        """
        to_sound = subject.need("to_sound", "quality of speech")
        to_pixels = subject.need("to_pixels", "quality of speech")
        heard = subject.need("spectrograms", "quality of speech")
        x, given = subject.need("batch", "quality of speech")(
            self.num_samples, self.seed
        )
        x = np.asarray(x)
        labels = None if given.label is None else np.asarray(given.label)
        made = draw(subject, x.shape, self.steps, self.seed, labels)

        def hear(clips: np.ndarray) -> Heard:
            sound = to_sound(clips)
            return Heard(sound, heard(sound), to_pixels(clips))

        found = measure(hear(made), hear(x), labels, subject.sample_rate)
        train = subject.need("reference", "quality of speech")()[0]
        for end, clips in (("", made), ("_real", x)):
            away = neighbours.nearest(clips, train) / subject.sigma_data
            found[f"nearest{end}"] = float(np.median(away))
            found[f"nearest_least{end}"] = float(away.min())
        network = "speech_reader", speech_reader.WEIGHTS_SHA256
        reference = hashlib.sha256(x.tobytes()).hexdigest(), self.num_samples
        found |= protocol_in(self, subject, "speech_quality", network, *reference)
        return {**found, "num_samples": self.num_samples}


class Heard(NamedTuple):
    """Clips as sound and as what the frozen network reads.

    Attributes:
      sound: ``(n, samples)`` in [-1, 1].
      images: ``(n, 32, 32, 1)`` uint8, spectrograms of ``sound``.
      before: spectrograms that ``sound`` was made of; None where there are none.
    """

    sound: np.ndarray
    images: np.ndarray
    before: np.ndarray | None = None


def measure(
    made: Heard, real: Heard, labels: np.ndarray | None, rate: int
) -> dict[str, Any]:
    """Numbers of clips that should be of these digits, beside real ones of them.

    Returns:
      ``digit_accuracy``, the share of clips in which the network hears the label, on
      the spectrograms before the way back to sound ``digit_accuracy_before``,
      ``frechet_distance`` in its features and ``frechet_floor``, and ``voice.compare``.
    """
    found: dict[str, Any] = voice.compare(made.sound, real.sound, rate)
    weights, features = speech_reader.load_weights(), []
    for end, clips in (("", made), ("_real", real)):
        read = speech_reader.read(weights, clips.images)
        features.append(read["features"].astype(np.float64))
        if labels is None:
            continue
        right = read["digit"].argmax(-1) == labels
        found[f"digit_accuracy{end}"] = float(right.mean())
        before = clips.before
        if before is not None and before.shape[1:] == speech_reader.IMAGE_SHAPE:
            named = speech_reader.read(weights, before)["digit"].argmax(-1)
            found[f"digit_accuracy_before{end}"] = float((named == labels).mean())
    fake, true = features
    found["frechet_distance"] = frechet.feature_distance(true, fake)
    found["frechet_floor"], _ = frechet.halves_floor(true)
    return found
